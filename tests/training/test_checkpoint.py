"""A checkpoint is whole or not there: kills, full disks and damage."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch

from openlance.errors import UserError
from openlance.runtime.distributed import Distributed
from openlance.training.checkpoint import Checkpoints, disk

KILLED = """
import os, signal, sys, torch
from pathlib import Path
from openlance.training import checkpoint
from openlance.runtime.distributed import Distributed

kept = checkpoint.Checkpoints(Path(sys.argv[1]), Distributed())
kept.save(1, {"a": torch.ones(4)}, {"data": {"taken": 1}})
kept.finish()
real = os.fsync
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # in the middle of the second one's tensors
kept.save(2, {"a": torch.full((4,), 2.0)}, {"data": {"taken": 2}})
kept.finish()
"""


def test_a_kill_during_a_write_leaves_the_last_whole_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "checkpoints").glob(".step-*"))
    kept = Checkpoints(tmp_path, Distributed())
    kept.sweep()
    assert kept.steps() == [1] and not list((tmp_path / "checkpoints").glob(".step-*"))
    into = {"a": torch.zeros(4)}
    [own] = kept.load(1, into)
    assert own["data"] == {"taken": 1}
    assert torch.equal(into["a"], torch.ones(4))


def test_a_checkpoint_holds_what_the_tensors_were_when_it_began_and_old_ones_go(tmp_path):
    kept, a = Checkpoints(tmp_path, Distributed(), keep=2), torch.zeros(1000)
    for step in (1, 2, 3):
        a.fill_(step)
        kept.save(step, {"a": a}, {})
        a.fill_(-1)  # while it is written
    kept.finish()
    assert kept.steps() == [2, 3]
    kept.load(2, {"a": a})
    assert torch.equal(a, torch.full((1000,), 2.0))


def test_what_every_process_said_is_there_or_the_checkpoint_is_damaged(tmp_path):
    kept = Checkpoints(tmp_path, Distributed())
    kept.save(1, {"a": torch.zeros(1)}, {})
    kept.finish()
    (kept.path(1) / "rank0.json").write_text('{"processes": 2}')
    with pytest.raises(UserError, match="is damaged .*rank1.json"):
        kept.load(1, {"a": torch.zeros(1)})
    (kept.path(1) / "rank1.json").write_text('{"processes": 2, "data": {"1": 7}}')
    assert [own.get("data") for own in kept.load(1, {"a": torch.zeros(1)})] == [None, {"1": 7}]


def test_a_damaged_checkpoint_and_one_of_another_model_are_named(tmp_path):
    kept = Checkpoints(tmp_path, Distributed())
    kept.save(1, {"a": torch.zeros(3)}, {})
    kept.finish()
    with pytest.raises(UserError, match="step-00000001 does not fit"):
        kept.load(1, {"b": torch.zeros(3)})
    (kept.path(1) / "rank0.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        kept.load(1, {"a": torch.zeros(3)})


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_table_of_contents_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = Checkpoints(tmp_path, Distributed())
    kept.save(1, {"a": torch.zeros(3)}, {})
    kept.finish()
    (kept.path(1) / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="system"):
        kept.load(1, {"a": torch.zeros(3)})
    assert not (tmp_path / "owned").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="the disk of .* is full: free some space"), disk(tmp_path):
        with open("/dev/full", "w") as full:
            full.write("x")


FULL = """
import resource, sys, torch
from pathlib import Path
from openlance.errors import UserError
from openlance.training.checkpoint import Checkpoints
from openlance.runtime.distributed import Distributed

kept = Checkpoints(Path(sys.argv[1]), Distributed())
kept.save(1, {"a": torch.ones(4)}, {})
kept.finish()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a full disk: the write fails half way
try:
    kept.save(2, {"a": torch.ones(100_000)}, {})
    kept.finish()
except UserError as error:
    assert "is full" in str(error), error
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000001"]
    sys.exit(7)
"""


def test_a_checkpoint_that_finds_the_disk_full_says_so_and_the_one_before_stays(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
