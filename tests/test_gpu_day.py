"""The whole of nano in one command, small, so that on a GPU that is paid by the minute nothing is left to find out."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from openlance.checkpoint.formats import find

ROOT = Path(__file__).parents[1]
DAY = ROOT / "benchmarks" / "gpu_day.py"


@pytest.fixture(scope="module")
def day():
    spec = importlib.util.spec_from_file_location("gpu_day", DAY)
    module = sys.modules["gpu_day"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_phase_is_a_stage_that_there_is(day):
    from openlance.config.train import override, read_recipe

    for phase in (*day.BASE, *day.PHASES):
        if phase.stage is not None:
            file, name = phase.stage
            stages = {s.name: s for s in read_recipe(ROOT / "src" / "toyworld" / f"{file}.yaml")}
            assert override(stages[name], ["steps=2", *phase.small]).steps == 2


def test_steps_fill_the_time_that_a_phase_has(day, tmp_path):
    """A probe is timed and thrown away; its later half counts."""
    now = day.Day(tmp_path, False, time.monotonic() + 600, {})

    def run(phase, line, seconds):
        folder = Path(line[line.index("-o") + 1])
        folder.mkdir()
        took = [9.0] * 6 + [0.5] * 6
        (folder / "log.jsonl").write_text("".join(json.dumps({"seconds": t}) + "\n" for t in took))
        return 0

    now.run = run
    phase = day.PHASES[0]
    steps = day.fitting(now, phase, "nano", 100.0)
    assert steps == pytest.approx(100 * (1 - day.RESERVE) / 0.5, abs=2) and not (tmp_path / "probe").exists()
    now.done[phase.name] = {"steps": 7}
    assert day.fitting(now, phase, "nano", 100.0) == 7, "what was planned holds when it goes on"


def test_weights_come_back_in_pieces(day, tmp_path):
    model, results = tmp_path / "model", tmp_path / "results"
    model.mkdir()
    (model / "model.safetensors").write_bytes(os.urandom(11_500_000))
    shipped = ROOT / "src" / "openlance" / "assets" / "nano" / "tokenizer.json"
    (model / "tokenizer.json").write_bytes(shipped.read_bytes())
    now = day.Day(tmp_path, False, 0.0, {})
    now.note("regions", steps=3)
    day.collected(now, str(model), results, 1)
    pieces = sorted(results.glob("weights.tar.*"))
    assert len(pieces) == 11 and all(piece.stat().st_size <= 1 << 20 for piece in pieces)
    (tmp_path / "whole.tar").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(tmp_path / "whole.tar") as found:
        assert found.getnames() == ["model.safetensors"], "what the shipped weights hold is not sent"
    assert json.loads((results / "day.json").read_text())["phases"]["regions"]["steps"] == 3


def test_what_takes_too_long_ends_with_all_that_it_began(day, tmp_path, monkeypatch):
    """As torch.distributed.run begins its workers, each in a session of its own."""
    (tmp_path / "sleeper.py").write_text("import pathlib, time\npathlib.Path('began').touch()\ntime.sleep(600)\n")
    now = day.Day(tmp_path, False, 0.0, dict(os.environ), 2)
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 sleeper.py"
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {torchrun}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert now.run("pt", ["train"], 0.0) == 124 and (tmp_path / "began").exists()
    assert "sleeper.py" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.nightly
def test_a_small_day_runs_from_end_to_end_and_goes_on(tmp_path):
    line = [sys.executable, str(DAY), str(tmp_path / "day"), "--scale", "small", "--minutes", "20"]
    done = subprocess.run([*line, "--results", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    phases = json.loads(done.stdout.splitlines()[-1])["phases"]
    assert list(phases) == ["regions", "all", "whole", "distill", "rl", "two", "scores"]
    assert all(p["finished"] for p in phases.values())
    model = Path(json.loads(done.stdout.splitlines()[-1])["model"])
    assert {"image_inpaint", "outpaint", "video_inpaint", "extend"} <= set(find(model).defaults.tasks)
    assert set(json.loads((tmp_path / "out" / "scores.json").read_text())) == {"vqa.reasoning", "image_inpaint"}
    began = time.monotonic()
    again = subprocess.run(line, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and time.monotonic() - began < 30, "what is done is not done again"
    other = subprocess.run([*line, "--processes", "2"], capture_output=True, text=True, check=False)
    assert other.returncode == 2 and "go on with the same, or name another folder" in other.stderr
