"""The folder of a run: what it was started with, its log, its checkpoints.

run.json          every start: stage as resolved, options, versions, commit
found.json        what there was to train on
log.jsonl         one line per step; TensorBoard's files beside it where that is installed
cache/            encodings of its media, see `data.cache`; may be deleted
checkpoints/      see `checkpoint.py`
"""

from __future__ import annotations

import importlib
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlance.config.train import Stage
from openlance.config.values import as_data, build, read_json
from openlance.config.versions import versions
from openlance.errors import UserError
from openlance.media.files import atomic_path, write_json
from openlance.runtime.distributed import Distributed
from openlance.training.checkpoint import Checkpoints, disk

if TYPE_CHECKING:
    from openlance.data.lanes import Lanes
    from openlance.training.trainer import Trainer

REPORTERS = ("tensorboard", "wandb", "trackio")
Report = Callable[[dict[str, float], int], Any]  # takes the values of a step
Data = Mapping[str, Any]  # task: what `open_source` reads


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a run that is not the stage.

    Args:
        out: Folder of the run.
        model: Folder to start from.
        init: What of it, see `open_base`.
        data: Sources by task; those of the stage where nothing is said.
        held_out: Sources that validate, by task.
        held_out_packs: How many packs validate.
        workers: Processes that decode.
        cache_gb: Gigabytes of encodings to keep in `out/cache`, so that media of files are decoded and encoded once; 0
            keeps none.
        max_broken: Broken rows to skip, see `check_broken`.
        save_every: Steps between checkpoints; 0 keeps the last one alone.
        save_minutes: Longest time between them, for steps that take long.
        keep: Checkpoints to keep.
        validate_every: Steps between validations, 0 for none.
        show_every: Steps between exports, 0 for none before the end.
        shard: Processes that share one copy of the weights.
        compiled: Compile the element-wise parts of layers: 1.7 times faster steps on a CPU. Needs a C++ compiler.
        report_to: Of `REPORTERS`.
        minutes: Stop after so long, all saved.
        adapter: Where the adapter of a stage with `lora` goes on from; nothing where it begins anew.
        allow_pickle: Read weights that are pickles.
        of_recipe: `out` is one of the folders of a recipe.
        command: The words that started it.

    Raises:
        UserError: For a reporter that is unknown or not installed.
    """

    out: Path
    model: Path
    init: str = "model"
    data: Data = field(default_factory=dict)
    held_out: Data = field(default_factory=dict)
    held_out_packs: int = 2
    workers: int = 0
    cache_gb: float = 10.0
    max_broken: float = 0.001
    save_every: int = 500
    save_minutes: float = 30.0
    keep: int = 3
    validate_every: int = 0
    show_every: int = 0
    shard: int = 1
    compiled: bool = False
    report_to: tuple[str, ...] = ()
    minutes: float = float("inf")
    adapter: Path | None = None
    allow_pickle: bool = False
    of_recipe: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.report_to:
            if name not in REPORTERS:
                raise UserError(f"there is no reporter {name!r}: use one of {', '.join(REPORTERS)}")
            if find_spec(name) is None:
                raise UserError(f"{name} is not installed: pip install {name}, or leave it out of report_to")

    def recorded(self) -> dict[str, Any]:
        """Return what all processes have to agree on."""
        return {k: v for k, v in asdict(self).items() if k not in ("command", "minutes")}

    @classmethod
    def of_record(cls, options: dict[str, Any]) -> Settings:
        """Return the settings that were recorded."""
        paths = {name: Path(options[name]) for name in ("out", "model", "adapter") if options.get(name)}
        return cls(**options | paths)


class RunFolder:
    """Files of a run; only rank 0 writes what is not a checkpoint."""

    def __init__(self, settings: Settings, processes: Distributed) -> None:
        self.path, self.processes, self.settings = settings.out, processes, settings
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose a folder for the run")
        with disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(self.path, processes, settings.keep)
        self.log_path = self.path / "log.jsonl"
        self._writers: list[Report] = []

    def record(self, stage: Stage) -> None:
        """Note what the run is started with."""
        self.checkpoints.sweep()
        if not self.processes.leads:
            return
        entry = {
            "stage": as_data(stage), "options": self.settings.recorded(), "command": list(self.settings.command),
            "processes": self.processes.size, "versions": versions(), "commit": commit(),
        }  # fmt: skip
        starts = [*starts_of(self.path), entry]
        with disk(self.path), atomic_path(self.path / "run.json") as path:
            path.write_text(json.dumps(starts, indent=1, default=str) + "\n", encoding="utf-8")

    def log(self, row: dict[str, float]) -> None:
        """Write the values of a step."""
        if not self.processes.leads:
            return
        with disk(self.path), self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({k: float(f"{v:.6g}") for k, v in row.items()}) + "\n")
        values = {k: v for k, v in row.items() if k != "step"}
        for write in self._writers:
            write(values, int(row["step"]))

    def save(self, run: Trainer, place: dict[str, Any]) -> None:
        """Begin a checkpoint of the run, its data at `place`, unless there is one of this step."""
        self.checkpoints.finish()
        if run.step in self.checkpoints.steps():
            return
        self.checkpoints.save(run.step, run.tensors(), run.state() | {"data": place})

    def resume(self, run: Trainer, batches: Lanes, at_most: int | None = None) -> bool:
        """Go on from the last whole checkpoint, of step `at_most` or before; False if there is none."""
        steps = [s for s in self.checkpoints.steps() if at_most is None or s <= at_most]
        if not steps:
            return False
        found = self.checkpoints.load(steps[-1], run.tensors())
        run.restore(found[min(self.processes.rank, len(found) - 1)])
        batches.load_state_dict({lane: place for own in found for lane, place in own["data"].items()})
        return True

    def open_log(self, step: int) -> None:
        """Go on with the log after a step, -1 where it begins: lines of later ones, which a kill undid, are dropped,
        and the curves of reporters go on where they are."""
        if not self.processes.leads:
            return
        known = -1
        if self.log_path.is_file():
            rows = read_log(self.log_path)
            known = max((int(row["step"]) for row in rows), default=-1)
            with disk(self.path), atomic_path(self.log_path) as path:
                path.write_text(
                    "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step), encoding="utf-8"
                )
        self._writers = list(reporters(self.path, self.settings.report_to, step, known))


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the rows of a log.jsonl; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """Return what `record` wrote in a folder, oldest first; none if it is no run. UserError if it is damaged."""
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
    for start in found:
        if "lora" in start["options"]:  # which versions before 0.2 had there
            start["stage"]["lora"] = start["options"].pop("lora")
    return found


def as_begun(stage: Stage, folder: Path, processes: Distributed) -> Stage:
    """Return the stage with as many packs in a step as the run in a folder has, shared by the processes of now.

    UserError if they cannot share them, or the stage itself asks for another number of packs.
    """
    kept, starts = Checkpoints(folder, Distributed()), starts_of(folder)
    if not kept.steps() or not starts:
        return stage
    told = kept.told(kept.steps()[-1])
    packs, now = sum(len(own["data"]) for own in told), stage.accumulate * processes.size
    if packs == now:
        return stage
    said = f"{folder} has {packs} packs in a step"
    if packs % processes.size:
        fit = " or ".join(str(n) for n in range(1, packs + 1) if packs % n == 0)
        raise UserError(f"{said}, which {processes.size} processes cannot share: start {fit}")
    if stage.accumulate != starts[-1]["stage"]["accumulate"]:
        raise UserError(f"{said}, not {now}: use accumulate={packs // processes.size}, or begin in another folder")
    stage = replace(stage, accumulate=packs // processes.size)
    if processes.leads:
        note(f"{said}: with {processes.size} in the place of {len(told)} processes, accumulate={stage.accumulate}")
    return stage


def note_schedule(stage: Stage, folder: Path) -> None:
    """Say what becomes of the rate where a run goes on with other numbers than it was planned with."""
    steps, starts = Checkpoints(folder, Distributed()).steps(), starts_of(folder)
    if not steps or not starts:
        return
    was, at = build(Stage, starts[-1]["stage"]), steps[-1]
    changed = [
        name for name in ("steps", "lr", "schedule", "lr_end", "warmup") if getattr(was, name) != getattr(stage, name)
    ]
    if changed and at < stage.steps:
        named = ", ".join(f"{name} {getattr(stage, name)} in the place of {getattr(was, name)}" for name in changed)
        rates = f"step {at} had a rate of {was.rate(max(at - 1, 0)):.3g}, step {at + 1} has {stage.rate(at):.3g}"
        note(f"{folder} goes on with {named}: {rates}, and the last will have {stage.rate(stage.steps - 1):.3g}")


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def stage_folders(folder: Path) -> list[Path]:
    """Return the folders of the stages of a recipe, NUMBER-NAME, that have begun, in order."""
    found = {int(p.name.partition("-")[0]): p for p in folder.glob("*-*") if p.name.partition("-")[0].isdecimal()}
    return [found[number] for number in sorted(found) if starts_of(found[number])]


def commit() -> str | None:
    """Return the git commit of this package's sources; `+` marks changes that are not in it. None where there is no
    repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def reporters(folder: Path, asked: tuple[str, ...], step: int, known: int) -> Iterator[Report]:
    """Yield functions that take the values of a step: TensorBoard's wherever it is installed, others when asked for.

    A run keeps one curve over all its starts, in which every step stands once.

    Args:
        folder: Of the run.
        asked: Of `REPORTERS`.
        step: The last that is done.
        known: The last that was logged. Steps up to there are taken back in TensorBoard; W&B and trackio have them,
            and they would be the same.
    """
    if find_spec("tensorboard") is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder), purge_step=step + 1 if known >= 0 else None)

        def write(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield write
    for name in asked:
        if name != "tensorboard":  # wandb, and trackio, which has the same interface
            tracker = importlib.import_module(name)
            tracker.init(project="openlance", resume="allow", **identity(folder, name))

            def report(values: dict[str, float], step: int, log: Callable[..., Any] = tracker.log) -> None:
                if step > known:
                    log(values, step=step)

            yield report


def identity(folder: Path, reporter: str) -> dict[str, str]:
    """Return what a run is called by a reporter, at every start the same: trackio goes by the name alone."""
    place = folder / f"{reporter}.json"
    if not place.is_file():
        code = secrets.token_hex(4)
        write_json(place, {"name": f"{folder.name}-{code}"} | ({"id": code} if reporter == "wandb" else {}))
    return read_json(place)
