"""Several processes at one request draw what one draws."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openlance.errors import UserError
from openlance.runtime.distributed import Distributed, Split

WORKER = str(Path(__file__).with_name("distributed_worker.py"))


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


# Rows alone, and branches beside rows.
@pytest.mark.parametrize("count", [3, pytest.param(4, marks=pytest.mark.nightly)])
def test_several_processes_draw_what_one_process_draws(checkpoint, tmp_path, count):
    line = [sys.executable, WORKER, str(count), str(checkpoint.folder), str(tmp_path)]
    subprocess.run(line, check=True, timeout=300, env=ENVIRONMENT)
    alone = runpy.run_path(WORKER)["draw"](checkpoint.load())
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(count)]
    assert ranks[0].keys() == alone.keys() | {"nobody's seed"}
    for name in ranks[0]:
        assert all(torch.equal(found[name], ranks[0][name]) for found in ranks), name  # all hold the whole result
    for name, expected in alone.items():
        if "step cache" not in name:  # whose decisions a rounding may turn
            torch.testing.assert_close(ranks[0][name], expected, atol=5e-5, rtol=1e-4, msg=name)


def test_the_command_line_draws_with_all_processes_and_writes_once(checkpoint, tmp_path, chat_server):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = ["-m", "openlance.cli.main", "generate", "t2i", "a red circle", "--model", str(checkpoint.folder)]
    line += ["--size", "64x64", "--num-inference-steps", "2", "-o", str(tmp_path / "out.png")]
    line += ["--enhance-prompt", "--enhance-url", chat_server.url]
    done = subprocess.run([*torchrun, *line], check=True, timeout=300, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.count("seed") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"] and chat_server.prompts == ["a red circle"]


def test_a_launcher_that_says_half_is_told_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK is not set: use torchrun"):
        Distributed.join()


@pytest.mark.parametrize("rows", [0, 1, 5, 8])
def test_every_row_is_dealt_once(rows):
    runs = [Split(None, rank, 3).own(rows) for rank in range(3)]
    assert [n for run in runs for n in range(rows)[run]] == list(range(rows))
    assert max(r.stop - r.start for r in runs) - min(r.stop - r.start for r in runs) <= 1


def test_what_several_processes_cannot_do_is_refused(checkpoint):
    from openlance.config.sampling import Sampling
    from openlance.sequence import tasks

    pipe = checkpoint.load()
    pipe.shared = object()
    with pytest.raises(UserError, match="several processes"):
        pipe.fill_latents([tasks.text_to_visual("a", [], (1, 64, 64))], Sampling(cached=False), [torch.Generator()])
