"""The folder of a run: what it was started with, its log, its checkpoints.

run.json          every start: stage as resolved, options, versions, commit
log.jsonl         one line per step; TensorBoard's files beside it where that is installed
checkpoints/      see `checkpoint.py`
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from openlance.config.train import Stage
from openlance.config.values import as_data
from openlance.config.versions import versions
from openlance.errors import UserError
from openlance.media.files import atomic_path
from openlance.runtime.distributed import Distributed
from openlance.training.checkpoint import Checkpoints, disk
from openlance.training.report import read_log
from openlance.training.trainer import Trainer

REPORTERS = ("tensorboard", "wandb", "trackio")


class Batches(Protocol):
    """Packs of samples with a position, such as `data.stream.Stream`."""

    def __next__(self) -> list: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class RunFolder:
    """Files of a run; only rank 0 writes what is not a checkpoint. `report_to` names reporters that are asked for."""

    def __init__(self, path: Path, processes: Distributed, keep: int = 3, report_to: tuple[str, ...] = ()) -> None:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: give a folder with -o, for example -o runs/mine")
        self.path, self.processes, self.report_to = path, processes, report_to
        with disk(path):
            path.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(path, processes, keep)
        self.log_path = path / "log.jsonl"
        self._writers: list[Any] = []

    def record(self, stage: Stage, options: Mapping[str, Any], command: Sequence[str]) -> None:
        """Note what the run is started with."""
        self.checkpoints.sweep()
        if not self.processes.leads:
            return
        settings = {"stage": as_data(stage), "options": dict(options)}
        entry = settings | {"command": list(command), "processes": self.processes.size}
        entry |= {"versions": versions(), "commit": commit()}
        starts = [*starts_of(self.path), entry]
        with disk(self.path), atomic_path(self.path / "run.json") as path:
            path.write_text(json.dumps(starts, indent=1, default=str) + "\n", encoding="utf-8")
        self._writers = list(reporters(self.path, self.report_to))

    def log(self, row: dict[str, float]) -> None:
        if not self.processes.leads:
            return
        with disk(self.path), self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({k: float(f"{v:.6g}") for k, v in row.items()}) + "\n")
        for write in self._writers:
            write(row)

    def save(self, run: Trainer, place: dict[str, Any]) -> None:
        """Begin a checkpoint of the run, its data at `place`, unless there is one of this step."""
        self.checkpoints.finish()
        if run.step in self.checkpoints.steps():
            return
        self.checkpoints.save(run.step, run.tensors(), run.state() | {"data": place})

    def resume(self, run: Trainer, batches: Batches, at_most: int | None = None) -> bool:
        """Go on from the last whole checkpoint, of step `at_most` or before; False if there is none."""
        steps = [s for s in self.checkpoints.steps() if at_most is None or s <= at_most]
        if not steps:
            return False
        own = self.checkpoints.load(steps[-1], run.tensors())
        run.restore(own)
        batches.load_state_dict(own["data"])
        return True

    def forget_after(self, step: int) -> None:
        """Drop log lines of steps that a kill undid."""
        if self.processes.leads and self.log_path.is_file():
            kept = [row for row in read_log(self.log_path) if row["step"] <= step]
            with disk(self.path), atomic_path(self.log_path) as path:
                path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """What `record` wrote in a folder, oldest first; none if it is no run."""
    path = folder / "run.json"
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        fits = isinstance(found, list) and all({"stage", "options", "command"} <= start.keys() for start in found)
    except (ValueError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise UserError(f"{path} is damaged: delete it to start again from the checkpoints beside it")
    return found


def stage_folders(folder: Path) -> list[Path]:
    """Folders of the stages of a recipe, NUMBER-NAME, that have begun, in order."""
    found = {int(p.name.partition("-")[0]): p for p in folder.glob("*-*") if p.name.partition("-")[0].isdecimal()}
    return [found[number] for number in sorted(found) if starts_of(found[number])]


def commit() -> str | None:
    """The git commit of this package's sources; `+` marks changes that are not in it. None outside of a repository."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def check_reporters(asked: tuple[str, ...]) -> None:
    """UserError for a reporter that is unknown or not installed."""
    for name in asked:
        if name not in REPORTERS:
            raise UserError(f"there is no reporter {name!r}: use one of {', '.join(REPORTERS)}")
        if find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install {name}, or leave --report-to {name} out")


def reporters(folder: Path, asked: tuple[str, ...]):
    """Functions that take a row of the log: TensorBoard's wherever it is installed, others when asked for."""
    if find_spec("tensorboard") is not None:
        yield _tensorboard(folder)
    for name in asked:
        if name in ("wandb", "trackio"):
            yield _tracker(name, folder)


def _tensorboard(folder: Path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))

    return write


def _tracker(name: str, folder: Path):
    """wandb, and trackio, which has the same interface."""
    import importlib

    tracker = importlib.import_module(name)
    tracker.init(project="openlance", name=folder.name)
    return lambda row: tracker.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))
