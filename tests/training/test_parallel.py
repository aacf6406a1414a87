"""One process, two processes and two halves of sharded weights are the same run; all losses are means over the whole
global batch, although the ranks hold different numbers of label tokens."""

import json
from dataclasses import replace

import pytest
import torch
import torch.distributed.fsdp  # noqa: F401  once, before there are two processes
from safetensors.torch import load_file

from openlance.errors import UserError
from openlance.runtime.distributed import Distributed
from openlance.training import parallel

LOSSES = ("text", "flow", "dense", "norm")


@pytest.fixture(scope="module")
def two(worker, on_two_processes, tmp_path_factory):
    """What two processes found, per rank, and where their weights are."""
    out = tmp_path_factory.mktemp("two")
    worker.learner()  # imports what the processes need too
    on_two_processes(lambda: worker.every(out))
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)], out


def same(worker, two, name, steps, tolerance, **changes):
    """The run of that name, done by one process with twice the packs, has the same losses and weights."""
    ranks, out = two
    accumulate = 2 * changes.pop("accumulate", 1)
    rows, run = worker.trained(Distributed(), replace(worker.STAGE, accumulate=accumulate, **changes), steps)
    for mine, theirs in zip(rows, ranks[0][name], strict=True):
        assert [mine[k] for k in LOSSES] == pytest.approx([theirs[k] for k in LOSSES], abs=tolerance, rel=tolerance)
    assert ranks[0][name] == ranks[1][name]
    written, mine = load_file(out / f"{name}.safetensors"), worker.weights(run)
    assert written.keys() == mine.keys()
    worst = max((mine[n] - written[n]).abs().max().item() for n in mine)
    assert worst < tolerance, worst


def test_two_processes_train_what_one_does(worker, two):
    same(worker, two, "plain", 6, 1e-5)


def test_sharded_weights_train_like_whole_ones(worker, two):
    same(worker, two, "sharded", 4, 1e-5)


def test_sharded_layers_that_are_computed_again_under_muon_train_like_plain_ones(worker, two):
    # Muon iterates in bfloat16, where a rounding of 1e-7 in a gradient may turn into one of 1e-2 in its update.
    same(worker, two, "recomputed", 2, 1e-3, optimizer="muon", accumulate=2)


def test_ranks_that_disagree_stop_and_say_on_which_field(two):
    for rank in two[0]:
        assert "ranks 0 and 1 disagree on stage.lr (0.1 against 0.2)" in rank["disagree"]


def test_processes_that_cannot_share_weights_are_refused():
    with pytest.raises(UserError, match="1 processes cannot share weights in groups of 2"):
        Distributed.join(2)


@pytest.fixture
def one_gpu_for_two(monkeypatch):
    """The second of two processes on a machine with one GPU, as far as joining asks; a dictionary of what it began."""
    began = {}
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: began.update(device=device))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: began.update(backend=backend))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    return began


def test_a_second_process_on_one_gpu_is_refused_unless_it_is_asked_for(one_gpu_for_two, monkeypatch):
    with pytest.raises(UserError, match=r"process 1 has no GPU.* 1 of this machine, or set OPENLANCE_SHARED_GPU=1"):
        Distributed.join()
    monkeypatch.setenv("OPENLANCE_SHARED_GPU", "1")
    with pytest.raises(UserError, match="unsharded"):
        Distributed.join(2)
    joined = Distributed.join()
    assert one_gpu_for_two == {"device": torch.device("cuda", 0), "backend": "gloo"}
    assert (joined.device, joined.wire) == (torch.device("cuda", 0), torch.device("cpu"))


def test_gradients_travel_in_buckets_of_one_type_and_a_bounded_size(monkeypatch):
    monkeypatch.setattr(parallel, "BUCKET", 6)
    sizes = [4, 2, 1, 9, 3]
    tensors = [torch.zeros(n, dtype=torch.bfloat16 if n == 3 else torch.float32) for n in sizes]
    assert [[t.numel() for t in some] for some in parallel._buckets(tensors)] == [[4, 2], [1], [9], [3]]


def test_accumulating_packs_is_one_large_pack(worker):
    stage = replace(worker.STAGE, accumulate=3, ema=0.0)
    prepare, processes = worker.preparer(stage, Distributed()), Distributed()
    packs = worker.Packs()
    lists = [next(packs) for _ in range(5)][2:]  # pictures, questions and both
    one = worker.Trainer(stage, worker.learner(), processes)
    batches = [prepare(s, n) for n, s in enumerate(lists)]
    values = one.update(batches).values
    totals = torch.stack([b.counts for b in batches]).sum(0)
    apart = [worker.Trainer(stage, worker.learner(), processes) for _ in batches]
    own = [run.update([b]).values for run, b in zip(apart, batches)]
    for k, name in enumerate(("text", "flow", "dense")):
        mean = sum(v[name] * b.counts[k] for v, b in zip(own, batches)) / totals[k]
        assert values[name] == pytest.approx(mean.item(), abs=1e-6)
