"""Ctrl-C and SIGTERM save and say so, the same command goes on; curves and schedules over several starts."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from openlance.cli.main import main
from openlance.runtime.distributed import Distributed
from openlance.training import interrupt
from openlance.training.files import RunFolder, Settings, note_schedule, reporters
from openlance.training.interrupt import Interrupted, stoppable
from openlance.training.trainer import Trainer, Work, train


@pytest.fixture
def work(worker, tmp_path):
    def begin(folder, stage, packs=worker.Packs, **options):
        processes = Distributed()
        files = RunFolder(Settings(out=tmp_path / folder, model=tmp_path, **options), processes)
        run = Trainer(stage, worker.learner(), processes)
        files.record(stage)
        return run, Work(folder=files, batches=packs(), prepare=worker.preparer(stage, processes))

    return begin


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_saves_the_step_it_falls_into_and_the_run_goes_on_as_if_it_had_not_been(worker, work, capfd, number):
    class Signalling(worker.Packs):
        def __next__(self):
            if self.taken == 2:
                os.kill(os.getpid(), number)
            return super().__next__()

    stage = replace(worker.STAGE, steps=5)
    straight, whole = work("whole", stage)
    train(straight, whole)
    before = [signal.getsignal(n) for n in interrupt.SIGNALS]
    run, job = work("cut", stage, Signalling, save_every=0)
    with pytest.raises(
        Interrupted, match="stopped after step 3, all saved in .*cut: the same command goes on"
    ) as stopped:
        train(run, job)
    assert stopped.value.number == number and [signal.getsignal(n) for n in interrupt.SIGNALS] == before
    assert "finishing the step and saving" in capfd.readouterr().err
    assert job.folder.checkpoints.steps() == [3]
    again, rest = work("cut", stage)
    assert train(again, rest)
    mine, theirs = worker.weights(again), worker.weights(straight)
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


def test_a_second_ctrl_c_ends_at_once_unless_it_is_the_first_one_passed_on(monkeypatch):
    with stoppable(False) as heard:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # from torchrun, which got it too
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.of_each == [True, True]
        monkeypatch.setattr(interrupt, "SAME", 0.0)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_threads_hear_nothing_and_train_all_the_same(worker, work):
    run, job = work("thread", replace(worker.STAGE, steps=1))
    thread = threading.Thread(target=train, args=(run, job))
    thread.start()
    thread.join(60)
    assert run.step == 1


def test_a_checkpoint_is_never_older_than_the_minutes_say(worker, work):
    run, job = work("timed", replace(worker.STAGE, steps=3), save_every=0, save_minutes=1e-6)
    saved = []
    save = job.folder.save
    job.folder.save = lambda run, place: saved.append(run.step) or save(run, place)
    train(run, job)
    assert saved == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"steps": 40},
            "steps 40 in the place of 20: step 20 had a rate of 0.000108, step 21 has 0.00155, and the last",
        ),
        (
            {"steps": 40, "schedule": "constant", "lr": 2e-3},
            "steps 40 in the place of 20, lr 0.002 in the place of 0.003",
        ),
        ({"lr": 1e-3}, None),
        ({}, None),
    ],
)
def test_extending_a_finished_run_says_what_becomes_of_the_rate(worker, work, tmp_path, capsys, changes, said):
    stage = replace(worker.STAGE, steps=20, schedule="cosine", lr=3e-3, lr_end=0.03, warmup=0)
    run, job = work("done", stage)
    run.step = 20
    job.folder.save(run, {"taken": 20})
    job.folder.checkpoints.finish()
    note_schedule(replace(stage, **changes), tmp_path / "done")
    told = capsys.readouterr().err
    assert told.startswith(f"note: {tmp_path / 'done'} goes on with {said}") if said else not told


def test_tensorboard_shows_every_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, known, steps in ((0, 0, range(1, 8)), (4, 7, range(5, 10)), (9, 9, range(10, 12))):
        [write] = list(reporters(tmp_path, (), done, known))
        for step in steps:
            write({"flow": step + done / 100}, step)
        time.sleep(1.1)  # files are named by the second
    seen = EventAccumulator(str(tmp_path))
    seen.Reload()
    rows = [(e.step, round(e.value, 2)) for e in seen.Scalars("flow")]
    assert rows == [(n, n + (0 if n < 5 else 0.04 if n < 10 else 0.09)) for n in range(1, 12)]


def test_wandb_goes_on_with_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    import wandb

    names, folder = [], tmp_path / "run"
    folder.mkdir()
    for done, known, steps in ((0, 0, {1: 1, 2: 2, 3: 3}), (2, 3, {3: 0, 4: 4})):  # the third is there already
        *_, write = reporters(folder, ("wandb",), done, known)
        for step, last in steps.items():
            write({"flow": 1.0}, step)
            assert wandb.run.step == last
        names.append((wandb.run.id, wandb.run.name))
        wandb.finish()
    assert names[0] == names[1]


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from openlance.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_of_a_command_is_said_and_the_same_command_goes_on(shallow, tmp_path, monkeypatch, capsys):
    words = ["train", "lora", "--model", str(shallow), "--data", "world", "-o", "run", "--rank", "1"]
    words += ["--set", "draws=1", "--set", "pack_tokens=[150, 400]", "--set", "max_sample_tokens=400", "--steps"]
    start = [sys.executable, "-c", COMMAND, *words]
    with subprocess.Popen([*start, "5000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
        while not (log.is_file() and log.read_text().count("\n") > 1) and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        told = running.communicate(timeout=60)[1]
    step = json.loads(log.read_text().splitlines()[-1])["step"]
    assert (
        running.returncode == 130 and f"stopped after step {step:g}, all saved in run: the same command goes on" in told
    )
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{int(step):08d}"]
    monkeypatch.chdir(tmp_path)
    assert main([*words, str(int(step) + 1)]) == 0 and "note: run goes on with steps" in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, int(step) + 2)) and (tmp_path / "run" / "adapter_config.json").is_file()
