"""The whole of nano in one command, meant for 25 minutes on one GPU: stages, fewer passes, rewards, scores.

    python benchmarks/gpu_day.py runs/day --minutes 25                # from the shipped weights, stage after stage
    python benchmarks/gpu_day.py runs/day --minutes 25 --from nothing # decoder and vision tower first
    python benchmarks/gpu_day.py runs/day --minutes 9 --results out   # in pieces: the same command goes on
    python benchmarks/gpu_day.py runs/small --scale small             # about two minutes of a CPU, to see that it runs

Each phase has a share of the time that is left. What a step takes is measured first, in a run of a few steps that is
thrown away, and the stage then gets as many as fit, so that its falling rate ends where its time does. `day.json` in
the folder knows what is done; a phase that was stopped goes on from its checkpoint. A phase that fails is noted, and
the next begins from the best that there is.

A small model leaves most of a GPU idle between its launches, so several processes share it (--processes; each takes a
pack of the recipe's size, and the rate grows with the root of their number).

--wheels: a folder of wheels that are unpacked beside the folder first, for a machine without a network: one of
openlance (`uv build --wheel`) and of whatever it lacks. --results: where day.json, the logs and the weights that differ
from the shipped ones are put, in pieces of at most --piece megabytes that `cat` joins to a tar file.

    python benchmarks/gpu_day.py --logs "one process=a/log.jsonl" "five=b/log.jsonl:5" --device NAME   # rows a second
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src"
PROBE = 12  # steps that are timed; the first half warms up
GRACE = 60  # seconds in which what took too long can end
RESERVE = 0.06  # share of a phase's time for opening the model and writing the result


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the day.

    Args:
        name: Of its folder.
        share: Of all phases' time.
        stage: File and name of the stage that trains, none where something else runs.
        small: What is changed of the stage at small scale.
        most: Steps at most, however fast the machine is.
        init: "fresh" where nothing but sizes, tokenizer and VAE of the start is taken.
    """

    name: str
    share: float
    stage: tuple[str, str] | None = None
    small: tuple[str, ...] = ()
    most: int = 1 << 20
    init: str = "model"


ROWS = ("pack_tokens=[700,1500]", "max_sample_tokens=1500", "max_frames=5", "sides=[32,64]", "warmup=1", "draws=1")
FEW_RL = (
    "pack_tokens=[400,800]", "max_sample_tokens=800", "max_frames=5", "warmup=0", "rl.group=2", "rl.probes=0",
    "rl.keep=1", "rl.num_inference_steps=2", "rl.times=[2,1,1,1]", "rl.supervised=0",
)  # fmt: skip
BASE = (
    Phase(name="pt", share=5, stage=("nano", "pt"), small=ROWS, most=2000, init="fresh"),
    Phase(name="sft", share=5, stage=("nano", "sft"), small=ROWS, most=4000),
    Phase(name="sft-iii", share=6, stage=("nano", "sft-iii"), small=ROWS, most=4160),
)
PHASES = (
    Phase(name="regions", share=5, stage=("nano-2", "regions"), small=ROWS, most=4000),
    Phase(name="all", share=8, stage=("nano-2", "all"), small=ROWS, most=12000),
    Phase(name="whole", share=3, stage=("nano-2", "whole"), small=ROWS, most=4000),
    Phase(name="distill", share=6, stage=("nano-distill", "distill"), small=ROWS, most=4000),
    Phase(name="rl", share=1, stage=("nano-rl", "rl"), small=FEW_RL, most=400),
    Phase(name="two", share=6, stage=("nano-distill-2", "two"), small=ROWS, most=800),
    Phase(name="scores", share=4),
)


@dataclass
class Day:
    """A day in progress: its folder, what `day.json` says, and how its commands run."""

    folder: Path
    small: bool
    until: float  # time.monotonic() at which it ends
    environment: dict[str, str]
    processes: int = 1
    done: dict[str, Any] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)  # of the command, which goes on with the same alone

    def note(self, phase: str, **said: Any) -> None:
        self.done.setdefault(phase, {}).update(said)
        text = json.dumps({"said": self.said, "phases": self.done}, indent=1) + "\n"
        (self.folder / "day.part").write_text(text, encoding="utf-8")
        (self.folder / "day.part").replace(self.folder / "day.json")

    def shared(self, phase: str) -> int:
        """How many processes train a phase; rounds of rewards take one."""
        return 1 if phase == "rl" else self.processes

    def run(self, phase: str, line: list[Any], seconds: float) -> int:
        """Run `openlance` with a line, its output in the phase's log; 124 where it took longer than it should."""
        with open(self.folder / f"{phase}.log", "a", encoding="utf-8") as log:
            print("$ openlance", *line, file=log, flush=True)
            several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.shared(phase))]
            first = several if self.shared(phase) > 1 and line[0] == "train" else []
            line = [sys.executable, *first, "-m", "openlance.cli.main", *map(str, line)]
            with subprocess.Popen(line, stdout=log, stderr=log, env=self.environment) as command:
                try:
                    return command.wait(max(seconds, 30))
                except subprocess.TimeoutExpired:
                    command.terminate()  # what it began ends with it, which it would not if this were killed
                    try:
                        command.wait(GRACE)
                    except subprocess.TimeoutExpired:
                        command.kill()
                    return 124

    def left(self) -> float:
        return self.until - time.monotonic()


def train_line(day: Day, phase: Phase, model: str, out: Path, steps: int, minutes: float) -> list[Any]:
    assert phase.stage is not None
    file, name = phase.stage
    changes = [f"steps={steps}", *(phase.small if day.small else ())]
    if day.shared(phase.name) > 1:
        from openlance.config.train import read_recipe

        own = next(one for one in read_recipe(SOURCE / "toyworld" / f"{file}.yaml") if one.name == name)
        more = day.shared(phase.name) ** 0.5
        changes.append(f"lr={own.lr * more:g}")
        if own.distill is not None and own.distill.matches:
            changes.append(f"distill.critic_lr={own.distill.critic_lr * more:g}")
    line = ["train", SOURCE / "toyworld" / f"{file}.yaml", "--stage", name, "--model", model, "-o", out]
    line += ["--init", phase.init, "--minutes", f"{max(minutes, 0.1):.2f}", "--save-minutes", "2", "--keep", "1"]
    return [*line, *(word for change in changes for word in ("--set", change))]


def seconds_of(run: Path) -> list[float]:
    """What the steps of a run took."""
    log = run / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return [json.loads(line)["seconds"] for line in lines if "seconds" in json.loads(line)]


def fitting(day: Day, phase: Phase, model: str, seconds: float) -> int:
    """How many steps of a stage fit into some seconds; measured once."""
    noted = day.done.get(phase.name, {}).get("steps")
    if noted:
        return int(noted)
    if day.small:
        return 2
    probe = day.folder / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    began = time.monotonic()
    day.run(phase.name, train_line(day, phase, model, probe, PROBE, seconds / 60), seconds)
    took = sorted(seconds_of(probe)[PROBE // 2 :])
    shutil.rmtree(probe, ignore_errors=True)
    if not took:
        raise RuntimeError(f"no step of {phase.name} was timed: see {day.folder / phase.name}.log")
    left = seconds * (1 - RESERVE) - (time.monotonic() - began)
    return min(max(int(left / took[len(took) // 2]), PROBE), phase.most)


def trained(day: Day, phase: Phase, model: str, seconds: float) -> str:
    """Train a stage for some seconds; returns the folder of the result."""
    began, out = time.monotonic(), day.folder / phase.name
    steps = fitting(day, phase, model, seconds)
    day.note(phase.name, steps=steps, model=model)
    left = seconds - (time.monotonic() - began)
    code = day.run(phase.name, train_line(day, phase, model, out, steps, left / 60 * (1 - RESERVE)), left + 120)
    losses = (out / "log.jsonl").read_text(encoding="utf-8").splitlines() if (out / "log.jsonl").is_file() else []
    ran = len(losses)
    day.note(phase.name, code=code, ran=ran, seconds=day.done[phase.name].get("seconds", 0) + time.monotonic() - began)
    if code or not (out / "model" / "model.safetensors").is_file():
        raise RuntimeError(f"{phase.name} ended with code {code}: see {day.folder / phase.name}.log")
    return str(out / "model")


def scored(day: Day, model: str, seconds: float) -> None:
    """Score the result on the world, every suite with as many requests as time allows."""
    samples = 1 if day.small else max(int(seconds / 12), 4)  # about 55 categories, batched
    line = ["bench", "world", "--tasks", "vqa.reasoning,image_inpaint" if day.small else "all", "--model", model]
    line += ["--samples", samples, "--seed", 1, "--batch", 256 if not day.small else 8]
    began = time.monotonic()
    code = day.run("scores", [*line, "--json", day.folder / "scores.json"], max(seconds, 60))
    day.note("scores", code=code, samples=samples, model=model, seconds=time.monotonic() - began)
    if code:
        raise RuntimeError(f"the scores ended with code {code}: see {day.folder / 'scores.log'}")


def unpacked(wheels: Path | None, folder: Path) -> dict[str, str]:
    """The environment of all commands; with wheels what they hold, and openlance from where it is here."""
    site = folder / "site"
    if wheels is not None and not site.is_dir():
        files = sorted(map(str, wheels.glob("*.whl")))
        line = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site), *files]
        subprocess.run(line, check=True)
    path = [str(site)] if wheels is not None else [str(SOURCE)]
    given = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join(path + ([given] if given else []))}


def collected(day: Day, model: str, results: Path, piece: int) -> None:
    """Put what the day brought into a folder: its record, its logs, and the weights that it changed."""
    results.mkdir(parents=True, exist_ok=True)
    tar, shipped = day.folder / "weights.tar", SOURCE / "openlance" / "assets" / "nano"
    with tarfile.open(tar, "w") as packed:
        for file in sorted(Path(model).iterdir()) if Path(model).is_dir() else []:
            same = (shipped / file.name).is_file() and filecmp.cmp(file, shipped / file.name, shallow=False)
            if file.is_file() and not same:
                packed.add(file, arcname=file.name)
    with tarfile.open(results / "logs.tar.gz", "w:gz") as packed:
        for file in sorted(day.folder.glob("*.log")) + sorted(day.folder.glob("*/log.jsonl")):
            packed.add(file, arcname=str(file.relative_to(day.folder)))
    for name in ("day.json", "scores.json"):
        if (day.folder / name).is_file():
            shutil.copyfile(day.folder / name, results / name)
    for old in results.glob("weights.tar*"):
        old.unlink()
    size, number = (piece << 20) or 1 << 62, 0
    with open(tar, "rb") as whole:
        while block := whole.read(min(size, tar.stat().st_size or 1)):
            (results / (f"weights.tar.{number:03d}" if piece else "weights.tar")).write_bytes(block)
            number += 1
    tar.unlink()


def rates(logs: list[str], device: str, out: Path | None) -> None:
    """Write the rows a second of runs, given as NAME=LOG or NAME=LOG:PROCESSES, their first third left out."""
    from common import OTHER_DEVICE, RESULTS, markdown, write_results

    found, rows = dict[str, Any](), list[list[Any]]()
    for said in logs:
        name, _, rest = said.partition("=")
        path, _, processes = rest.partition(":")
        steps = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        minutes = sum(step["seconds"] for step in steps) / 60
        steps = steps[len(steps) // 3 :]
        size = sum(step["rows"] for step in steps) / len(steps) * int(processes or 1)
        seconds = sum(step["seconds"] for step in steps) / len(steps)
        found[name] = {"rows": size, "seconds": seconds, "rows_per_second": size / seconds, "minutes": minutes}
        rows.append([name, f"{size:.0f}", f"{seconds:.3f}", f"{size / seconds:.0f}", f"{minutes:.1f}"])
    head = f"Training of nano on {device}. {OTHER_DEVICE}\n\n"
    table = markdown(["run", "rows of a step", "s a step", "rows a second", "minutes of all steps"], rows)
    write_results("gpu_day", {"device": device, "runs": found}, head + table, out or RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--processes", type=int, default=1, help="that train together on the one GPU")
    parser.add_argument("--logs", nargs="+", help="tell the rows a second of these logs, and nothing else")
    parser.add_argument("--device", default="", help="where those were written")
    parser.add_argument("--out", type=Path, help="where that is written, benchmarks/results by default")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--from", dest="start", default="nano", help="nano, nothing, or a folder of weights")
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--piece", type=int, default=15, help="megabytes; 0: one file")
    args = parser.parse_args()
    if args.logs:
        return rates(args.logs, args.device, args.out)
    if args.folder is None:
        parser.error("name the folder of the day")
    args.folder.mkdir(parents=True, exist_ok=True)
    began, small = time.monotonic(), args.scale == "small"
    environment = unpacked(args.wheels, args.folder)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)  # this machine may have nothing of it
    environment |= {"OPENLANCE_SHARED_GPU": "1", "OMP_NUM_THREADS": "1"}
    day = Day(args.folder, small, began + 60 * args.minutes, environment, args.processes)
    said = {"from": args.start, "scale": args.scale, "processes": args.processes}
    if (args.folder / "day.json").is_file():
        noted = json.loads((args.folder / "day.json").read_text(encoding="utf-8"))
        day.done = noted["phases"]
        if noted.get("said", said) != said:
            parser.error(f"{args.folder} holds a day of {noted['said']}: go on with the same, or name another folder")
    day.said = said
    fresh = args.start == "nothing"
    phases, model = (*(BASE if fresh else ()), *PHASES), "nano" if fresh else args.start
    best = model
    for n, phase in enumerate(phases):
        noted = day.done.get(phase.name, {})
        if noted.get("finished"):
            best = noted.get("result", best)
            continue
        if not small and day.left() < 45:
            break
        seconds = day.left() * phase.share / sum(other.share for other in phases[n:])
        try:
            if phase.stage is None:
                scored(day, best, seconds)
                day.note(phase.name, finished=True)
                continue
            best = trained(day, phase, best, seconds)
            ran, steps = day.done[phase.name]["ran"], day.done[phase.name]["steps"]
            day.note(phase.name, finished=ran >= steps or day.left() > 45, result=best)
        except RuntimeError as error:
            print(f"note: {error}", file=sys.stderr)
            day.note(phase.name, finished=True, failed=str(error))
    if args.results is not None:
        collected(day, best, args.results, args.piece)
    print(json.dumps({"model": best, "seconds": round(time.monotonic() - began, 1), "phases": day.done}))
    sys.exit(1 if any(one.get("failed") for one in day.done.values()) else 0)


if __name__ == "__main__":
    main()
