"""Laws of a run and its loop, on tiny real modules: resume, stopping on what is not finite, freezing, validation."""

import json
import time
from dataclasses import replace

import pytest
import torch

from openlance.errors import UserError
from openlance.model.precision import fast_bfloat16, lowered
from openlance.runtime.distributed import Distributed
from openlance.sequence.segment import Kind
from openlance.training.files import RunFolder, Settings, starts_of
from openlance.training.optim import Ema, Optimizer, orthogonalized
from openlance.training.run import take_over
from openlance.training.trainer import Trainer, TrainingDiverged, Work, freeze, rewind, train


@pytest.fixture
def work(worker, tmp_path):
    """A fresh run of a stage and what it works with, in one folder."""

    def begin(stage=worker.STAGE, folder="run", held_out=(), **options):
        processes = Distributed()
        run, prepare = Trainer(stage, worker.learner(), processes), worker.preparer(stage, processes)
        files = RunFolder(Settings(out=tmp_path / folder, model=tmp_path, **options), processes)
        return run, Work(folder=files, batches=worker.Packs(), prepare=prepare, held_out=held_out)

    return begin


def losses(work):
    rows = [json.loads(line) for line in work.folder.log_path.read_text().splitlines()]
    return [[row[k] for k in ("step", "text", "flow", "dense", "norm", "lr")] for row in rows]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_decay_whatever_the_optimizer(worker, optimizer):
    stage = replace(worker.STAGE, optimizer=optimizer, weight_decay=0.1)
    module = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    Optimizer(stage, module).step(0.5)
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), 0.95 * before[name])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(worker, work, optimizer):
    stage = replace(worker.STAGE, steps=6, optimizer=optimizer)
    straight, whole = work(stage, "straight")
    assert train(straight, whole)
    train(*work(stage, "cut", minutes=0.0))  # nothing but the first checkpoint
    first, part = work(stage, "cut", save_every=2)
    part.batches.__class__ = stopping_after(worker, 3)  # the fourth pack never comes
    with pytest.raises(KeyboardInterrupt):
        train(first, part)
    part.folder.checkpoints.poll(wait=True)
    second, rest = work(stage, "cut")
    assert train(second, rest)
    assert losses(rest) == losses(whole)
    mine, theirs = worker.weights(second), worker.weights(straight)
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


def stopping_after(worker, count):
    class Stopping(worker.Packs):
        def __next__(self):
            if self.taken == count:
                raise KeyboardInterrupt
            return super().__next__()

    return Stopping


def test_every_parameter_learns(worker):
    before = worker.weights(Trainer(worker.STAGE, worker.learner()))
    _, run = worker.trained(Distributed(), worker.STAGE, 8)
    now = worker.weights(run)
    assert not [n for n, p in now.items() if torch.equal(p, before[n])]


class Spoiling:
    """A VAE whose latents are not numbers for the samples of one pack."""

    def __init__(self, worker, pack):
        self.worker, self.pack, self.calls = worker, pack, 0

    def __call__(self, samples, targets):
        self.calls += 1
        [found] = self.worker.encoder()(samples, targets=targets)
        spoilt = found[0].filled(found[0].value * float("nan"))
        return [[spoilt, *found[1:]] if self.calls > self.pack else found]


def test_what_is_not_finite_stops_the_run_names_its_sample_and_can_be_replayed(worker, work):
    stage = replace(worker.STAGE, steps=6)
    run, job = work(stage)
    job = replace(job, prepare=replace(job.prepare, encode=Spoiling(worker, 2)))
    with pytest.raises(TrainingDiverged) as stopped:
        train(run, job)
    said = str(stopped.value)
    step = run.step
    assert f"step {step} is not finite" in said and f"{str(job.folder.path)!r}, {step})" in said
    before = worker.weights(run)
    assert all(bool(p.isfinite().all()) for p in before.values())
    again, same = work(stage)
    packs = rewind(again, replace(same, prepare=replace(same.prepare, encode=Spoiling(worker, 0))), step)
    outcome = again.update(packs)
    assert again.step == step and not outcome.finite
    assert set(outcome.broken) < set(packs[0].ids) or len(packs[0].ids) == 1
    assert all(name in said for name in outcome.broken)
    fine, _ = work(stage)
    assert fine.update(rewind(fine, same, step)).finite


def test_what_the_next_stage_leaves_alone_stays_as_its_average(worker, work):
    first, job = work(replace(worker.STAGE, steps=4, ema=0.9))
    train(first, job)
    name = next(n for n in first.ema.values if ".gen." in n)
    average = first.ema.values[name].clone()
    assert not torch.equal(average, dict(first.learner.named_parameters())[name])
    frozen = replace(worker.STAGE, ema=0.9, frozen=("lance.layers.*.gen",))
    take_over(Trainer(frozen, first.learner, Distributed()), first)
    assert torch.equal(average, dict(first.learner.named_parameters())[name])


def test_the_generation_expert_rests_while_only_questions_are_trained(worker):
    run, packs = Trainer(worker.STAGE, worker.learner(), Distributed()), worker.Packs()
    before = {n: p for n, p in worker.weights(run).items() if ".gen." in n}
    prepare = worker.preparer(worker.STAGE, Distributed())
    for number in range(3):
        asked = [s for _ in range(4) for s in next(packs) if s.labels is not None]
        assert run.update([prepare(asked, number)]).finite
    now = worker.weights(run)
    assert before and all(torch.equal(now[n], p) for n, p in before.items())


def test_noise_is_a_function_of_the_seed_and_the_number_of_the_pack(worker):
    samples = next(worker.Packs())
    one, again, other = (worker.preparer(worker.STAGE, Distributed())(samples, number).noise.x for number in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    seeded = worker.preparer(replace(worker.STAGE, seed=4), Distributed())(samples, 5).noise.x
    assert not torch.equal(one, seeded)


def test_features_that_were_encoded_before_train_like_their_pictures(worker):
    stage, processes = replace(worker.STAGE, frozen=("vit",), dense_weight=0.0), Distributed()
    run, prepare = Trainer(stage, worker.learner(), processes), worker.preparer(stage, processes)
    samples = [*next(worker.Packs(rank=2)), *next(worker.Packs(rank=3))]  # an edit and a question among them
    batch = prepare(samples, 0)
    with torch.no_grad():
        features = {id(c): f[:, None, None] for c, f in zip(batch.clips, run.learner._look(batch))}
    encoded = [
        replace(s, labels=None, segments=[replace(g, value=features.get(id(g.value), g.value)) if g.kind is Kind.PATCHES
                                          else g for g in s.segments])
        for s in samples
    ]  # fmt: skip
    mine, theirs = (run.evaluate([prepare(given, 0)]) for given in (encoded, samples))
    assert batch.clips and mine["validation_text"] == pytest.approx(theirs["validation_text"], rel=1e-6)
    assert mine["validation_flow"] == pytest.approx(theirs["validation_flow"], rel=1e-6)
    with pytest.raises(UserError, match="freeze it with"):
        Trainer(worker.STAGE, worker.learner(), processes).evaluate([prepare(encoded, 0)])


def test_a_broken_step_changes_nothing(worker):
    run = Trainer(worker.STAGE, worker.learner(), Distributed())
    before, prepare = worker.weights(run), worker.preparer(worker.STAGE, Distributed())
    outcome = run.update([replace(prepare, encode=Spoiling(worker, 0))(next(worker.Packs()), 0)])
    now = worker.weights(run)
    assert not outcome.finite and run.step == 0 and all(torch.equal(now[n], p) for n, p in before.items())


def test_frozen_parts_rest_and_the_others_learn(worker):
    stage = replace(worker.STAGE, frozen=("vit", "vae", "lance.layers.*.und", "lance.embed"), steps=3)
    start = worker.weights(Trainer(stage, worker.learner()))
    _, run = worker.trained(Distributed(), stage, 3)
    now = worker.weights(run)
    moved = {n for n in start if not torch.equal(now[n], start[n])}
    assert moved and not [n for n in moved if n.startswith(("vit", "lance.embed")) or ".und." in n and "layers" in n]
    assert any(".gen." in n for n in moved)
    assert not [n for n in run.tensors() if n.startswith("weights/vit")]


def test_a_pattern_that_freezes_nothing_or_everything_is_refused(worker):
    model = worker.learner()
    with pytest.raises(UserError, match="nothing is called 'vitt'"):
        freeze(model, replace(worker.STAGE, frozen=("vitt",)))
    with pytest.raises(UserError, match="freezes everything"):
        freeze(model, replace(worker.STAGE, frozen=("vit", "lance", "dense")))


def test_validation_learns_nothing_and_says_the_same_twice(worker, work):
    packs = worker.Packs(rank=0, size=1)
    stage = replace(worker.STAGE, steps=4, lr=0.0 + 1e-12)
    run, job = work(stage, validate_every=2, held_out=[next(packs), next(packs)])
    train(run, job)
    rows = [json.loads(line) for line in job.folder.log_path.read_text().splitlines()]
    measured = [row["validation_flow"] for row in rows if "validation_flow" in row]
    assert len(measured) == 2 and measured[0] == pytest.approx(measured[1], rel=1e-4)


def test_the_folder_records_what_it_was_started_with(worker, work):
    run, job = work(command=("train", "nano/sft"))
    job.folder.record(worker.STAGE)
    job.folder.record(worker.STAGE)
    first, second = starts_of(job.folder.path)
    assert first["stage"]["lr"] == worker.STAGE.lr and first["command"] == ["train", "nano/sft"]
    assert "torch" in first["versions"] and "commit" in first
    assert second["options"]["shard"] == 1 and Settings.of_record(second["options"]).out == job.folder.path


def test_an_average_starts_at_the_weights_and_follows_them():
    layer = torch.nn.Linear(3, 3)
    ema = Ema(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    gaps = []
    for _ in range(60):
        ema.update(layer)
        gaps.append((ema.values["weight"] - 1).abs().max().item())
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.01


def test_an_orthogonalized_matrix_keeps_its_singular_vectors_and_evens_their_values():
    torch.manual_seed(0)
    for shape in ((2, 24, 48), (2, 48, 24)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)).float())
        assert values.min() > 0.4 and values.max() < 1.4


def test_a_stage_that_leaves_its_precision_open_takes_what_the_device_is_fast_at():
    assert lowered("auto", "cuda") and lowered("bfloat16", "cpu") and not lowered("float32", "cuda")
    a = torch.randn(512, 512)
    low, whole = (min(seconds(lambda x=x: x @ x) for _ in range(5)) for x in (a.bfloat16(), a))
    assert lowered("auto", "cpu") == fast_bfloat16("cpu") and (low < whole or not fast_bfloat16("cpu"))


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
