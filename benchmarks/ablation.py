"""Three questions of the Lance paper on a small model: what MaPE brings, whether drawing and answering help each other,
and whether an edit needs the ViT's view of its source, the VAE's, or both.

    python benchmarks/ablation.py runs/ablation --minutes 360      # the same command goes on where it was stopped
    python benchmarks/ablation.py runs/ablation --plan             # how many CPU hours are left, on this machine
    python benchmarks/ablation.py runs/ablation --report           # table and figure of what is finished; with --docs
                                                                   # they are put into docs/evaluation.md as well

Every arm sees as many packs of one size, from nothing, on nano's procedural world with nano's VAE and tokenizer: equal
compute, so that training on less kinds of tasks means more samples of each. (An edit with one view is shorter; its
tokens are counted.) Every arm and seed is a run of the trainer in a folder of its own, with its log and checkpoints,
and stops and goes on as any other. Seeds are paired: arms of one mixture see the same samples.

The first measure is the loss of each task on held-out samples, the same for all arms, with the same noises and times;
without the VAE's view of sources the noises are others. The second is the share of `bench world` that is right, by the
weights that the run exports; edits are made with the views that the arm has learned. The interval of a mean difference
is Student's, over the seeds.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, markdown, put, write_results

from openlance import load
from openlance.checkpoint.formats import folder_of, write_config
from openlance.config.model import ModelConfig, VAEConfig, nano
from openlance.config.train import Stage, stage
from openlance.config.values import read_json
from openlance.data.source import Sample
from openlance.data.stream import Stream
from openlance.errors import UserError
from openlance.media.files import write_json
from openlance.sequence.segment import Kind, Role, Segments
from openlance.sequence.tasks import TASKS
from openlance.training.again import check_again
from openlance.training.batch import Batch, Preparer
from openlance.training.files import Settings, read_log, starts_of
from openlance.training.interrupt import Interrupted
from openlance.training.run import begin, prepare, sources_of
from openlance.training.start import Base, export
from openlance.training.trainer import HELD_OUT, Trainer, train
from toyworld.suites.bench import Bench
from toyworld.suites.bench import run as bench

SEEDS, PACKS, JUDGED = (1, 2, 3), 8, 20  # PACKS: held out, of every task; JUDGED: requests per category
HELD_OUT_SEED = 77
PLANNED = 6  # steps that are timed, the first two of which warm up
LOGGED = 30  # steps of a point of the curves in the results
PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
MIXTURE = {"t2i": 4.0, "image_edit": 3.0, "x2t_image": 3.0}
SUITES = {"t2i": "t2i", "image_edit": "image_edit", "x2t_image": "vqa"}  # of `bench world`, by task
# What the paper prints for an arm of the name and for its whole model (arXiv 2605.18678; one seed each).
PAPER = {
    ("no MaPE", "t2i"): "GenEval 80.56, whole 80.94", ("no MaPE", "image_edit"): "GEdit 6.30, whole 6.86",
    ("no MaPE", "x2t_image"): "MVBench 59.02, whole 59.16", ("generation alone", "t2i"): "GenEval 80.88, joint 81.65",
}  # fmt: skip
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's quantile, two-sided 95 %, by degrees of freedom
COLORS = ("#2a6fd6", "#d9622b", "#188f6c", "#8a5cc9", "#a38b1f")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Args:
        shift: With MaPE.
        makes: Kinds of results whose tasks are trained.
        hidden: What of the sources of edits is left out.
    """

    shift: bool = True
    makes: tuple[str, ...] = ("image", "text")
    hidden: tuple[Kind, ...] = ()

    @property
    def mixture(self) -> dict[str, float]:
        return {task: weight for task, weight in MIXTURE.items() if TASKS[task].makes in self.makes}

    def views(self, segments: Segments) -> Segments:
        """A sample or a request without what is hidden."""
        return [s for s in segments if not (s.role is Role.SOURCE and s.kind in self.hidden)]

    def shown(self, sample: Sample) -> Sample:
        """A sample without what is hidden, and without labels of it."""
        kept = self.views(sample.segments)
        labels = sample.labels if any(s.kind is Kind.PATCHES for s in kept) else None
        return replace(sample, segments=kept, labels=labels)


WHOLE = "whole"
ARMS = {
    WHOLE: Arm(), "no MaPE": Arm(shift=False),
    "generation alone": Arm(makes=("image",)), "understanding alone": Arm(makes=("text",)),
    "VAE view alone": Arm(hidden=(Kind.PATCHES,)), "ViT view alone": Arm(hidden=(Kind.LATENTS,)),
}  # fmt: skip


def config_of(arm: Arm, vae: VAEConfig) -> ModelConfig:
    """Half of nano: its widths over two thirds of its layers, with a smaller vision tower."""
    base = nano(vae)
    vit = replace(base.vit, depth=2, fullatt_block_indexes=(0, 1))
    return replace(base, layers=4, vit=vit, position=replace(base.position, shift=arm.shift))


def foundation(folder: Path, arm: Arm) -> Path:
    """A folder without weights of its own but nano's VAE. Nothing looks for regions: not every arm can answer."""
    shipped = folder_of("nano")
    write_config(folder, config_of(arm, VAEConfig.of(read_json(shipped / "vae_config.json"))))
    for name in ("vae.safetensors", "tokenizer.json"):
        shutil.copyfile(shipped / name, folder / name)
    usual = read_json(shipped / "generation_config.json")
    write_json(folder / "generation_config.json", {name: value for name, value in usual.items() if name != "region"})
    return folder


def plan_of(arm: Arm, seed: int, steps: int) -> Stage:
    """nano's first stage, shorter, with this mixture."""
    short = replace(stage("pt", "nano"), name="ablation", steps=steps, seed=seed, warmup=max(steps // 20, 1))
    return replace(short, mixture=arm.mixture, schedule="cosine", lr_end=0.03, pack_tokens=(4000, 4500))


@dataclass(frozen=True, kw_only=True)
class Viewed(Preparer):
    """Makes batches of what an arm sees of its samples."""

    arm: Arm

    def __call__(self, samples: list[Sample], number_of_pack: int) -> Batch:
        return super().__call__([self.arm.shown(sample) for sample in samples], number_of_pack)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An arm that has been trained to its end."""

    arm: Arm
    stage: Stage
    base: Base
    trainer: Trainer
    prepare: Viewed


def trained(place: Path, arm: Arm, stage: Stage, minutes: float, compiled: bool) -> Trained | None:
    """Train an arm with one seed in its folder, on from where it stopped; None if the time is up before its end.

    Raises:
        UserError: The folder holds a run of other settings.
    """
    for start in starts_of(place)[-1:]:
        if start["stage"]["steps"] != stage.steps:
            raise UserError(f"{place} was begun with --steps {start['stage']['steps']}: choose another folder")
    settings = Settings(
        out=place, model=foundation(place / "start", arm), init="fresh", minutes=minutes, keep=1, compiled=compiled
    )
    processes, base = begin((stage,), settings)
    with ExitStack() as stack:
        trainer, work = prepare(stage, settings, base, processes, stack)
        check_again(stage, settings, work.folder.checkpoints)
        work.folder.record(stage)
        usual = {one.name: getattr(work.prepare, one.name) for one in fields(Preparer)}
        viewed = Viewed(arm=arm, **usual)
        if not train(trainer, replace(work, prepare=viewed)):
            return None
    return Trained(arm=arm, stage=stage, base=base, trainer=trainer, prepare=viewed)


def held_out(done: Trained) -> dict[str, float]:
    """The loss of every task of an arm, on the same samples for all arms and seeds."""
    found = {}
    for task in done.arm.mixture:
        asked = replace(
            done.stage, name="held out", seed=HELD_OUT_SEED, mixture={task: 1.0}, drop_text=0.0, drop_all=0.0,
            spread=(1.0, 1.0),
        )  # fmt: skip
        sources, view = sources_of(asked, Settings(out=Path(), model=Path()))[0], replace(done.prepare, stage=asked)
        with Stream(sources, asked, done.base.codec, style=done.base.style) as stream:
            batches = [view(next(stream), HELD_OUT + n) for n in range(PACKS)]
        kind = "text" if TASKS[task].makes == "text" else "flow"
        found[task] = done.trainer.evaluate(batches)[f"validation_{kind}"]
    return found


def judged(model: Path | str, arm: Arm, samples: int) -> dict[str, float]:
    """The share that is right of what an exported model makes, by task."""
    pipe: Any = load(model)
    fill = pipe.fill_visual
    pipe.fill_visual = lambda requests, *how, **more: fill([arm.views(one) for one in requests], *how, **more)
    tasks = tuple(SUITES[task] for task in arm.mixture)
    found = bench(pipe, Bench(tasks=tasks, samples=samples, seed=HELD_OUT_SEED))
    return {task: found[SUITES[task]]["mean"]["mean"] for task in arm.mixture}


def run(place: Path, name: str, stage: Stage, minutes: float, compiled: bool, samples: int = JUDGED) -> bool:
    """Train one arm with one seed, and measure it once it is trained. What `result.json` says of a run that was
    stopped is, byte for byte, what it says of one that was not."""
    done = trained(place, ARMS[name], stage, minutes, compiled)
    if done is None:
        return False
    export(done.trainer, done.base, place / "model")
    found = {"arm": name, "seed": stage.seed, "steps": stage.steps, "losses": held_out(done)}
    found["judged"] = judged(place / "model", done.arm, samples) if samples else {}
    found["parameters"] = sum(p.numel() for p in done.base.learner.parameters())
    write_json(place / "result.json", found)
    return True


def place_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '-')}-seed{seed}"


def finished(folder: Path) -> list[dict[str, Any]]:
    """Results of the runs that are finished, with what their logs add."""
    found = []
    for file in sorted(folder.glob("*-seed*/result.json")):
        rows = read_log(file.with_name("log.jsonl"))
        cost = {"tokens": int(sum(r["rows"] for r in rows)), "cpu_minutes": sum(r["cpu_seconds"] for r in rows) / 60}
        found.append(read_json(file) | cost | {"curves": {kind: curve(rows, kind) for kind in ("text", "flow")}})
    return found


def curve(rows: list[dict[str, Any]], kind: str) -> list[float | None]:
    """Means of a loss over LOGGED steps each, of those that had it; None for none."""
    parts = [[r[kind] for r in rows[n : n + LOGGED] if r[kind]] for n in range(0, len(rows), LOGGED)]
    return [round(statistics.fmean(part), 4) if part else None for part in parts]


def reached(place: Path) -> int:
    """Steps of a run that are logged; 0 before it begins."""
    log = place / "log.jsonl"
    return int(read_log(log)[-1]["step"]) if log.is_file() and log.stat().st_size else 0


def missing(folder: Path) -> list[str]:
    """What is not finished, and how far it is."""
    found = []
    for name, seed in ((name, seed) for seed in SEEDS for name in ARMS):
        place = place_of(folder, name, seed)
        if not (place / "result.json").is_file():
            found.append(f"{name}, seed {seed}" + (f" (step {at})" if (at := reached(place)) else ""))
    return found


def paired(runs: list[dict[str, Any]], name: str, task: str, measure: str = "losses") -> list[float]:
    """What an arm has more than the whole, seed by seed: of its loss as a share of the whole's, of what is right in
    points."""
    whole = {one["seed"]: one[measure] for one in runs if one["arm"] == WHOLE}
    pairs = [
        (one[measure][task], whole[one["seed"]][task])
        for one in runs
        if one["arm"] == name and one["seed"] in whole and task in one[measure]
    ]
    return [own / other - 1 if measure == "losses" else own - other for own, other in pairs]


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, least and greatest; nan where one seed says nothing about others."""
    mean, n = statistics.fmean(values), len(values)
    half = T95.get(n - 1, 2.571) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return mean, mean - half, mean + half


def pairs_of(runs: list[dict[str, Any]], measure: str) -> list[tuple[str, str, list[float]]]:
    """Every arm and task of it, with the differences of the seeds of which both runs are finished."""
    return [
        (name, task, paired(runs, name, task, measure)) for name in ARMS if name != WHOLE for task in ARMS[name].mixture
    ]


def compared(runs: list[dict[str, Any]], measure: str) -> str:
    """The table of differences in one measure; above 0 is worse for losses, better for what is judged."""
    rows = []
    for name, task, values in pairs_of(runs, measure):
        if not values:
            rows.append([name, task, "", "", "0", "not finished", PAPER.get((name, task), "")])
            continue
        mean, low, high = interval(values)
        said, spread = "one seed", ""
        if not math.isnan(low):
            spread = f"{low:+.2%} to {high:+.2%}"
            if low == high:
                said = "alike in all seeds"  # a handful of right ones, not certainty
            elif low <= 0 <= high:
                said = "inside the noise"
            else:
                said = "worse" if (mean > 0) == (measure == "losses") else "better"
        rows.append([name, task, f"{mean:+.2%}", spread, str(len(values)), said, PAPER.get((name, task), "")])
    return markdown(["arm", "task", "difference", "95 %", "seeds", "which is", "the paper's arm"], rows)


def report(folder: Path, out: Path, docs: bool) -> None:
    """The tables and the figure of the runs that are finished, and which are not; docs: in the page as well."""
    runs, left = finished(folder), missing(folder)
    counts = {name: [one for one in runs if one["arm"] == name] for name in ARMS}
    costs = [
        [name, str(len(ones)), f"{ones[0]['steps']}", f"{statistics.fmean(o['tokens'] for o in ones):,.0f}",
         f"{sum(o['cpu_minutes'] for o in ones):.1f}",
         *(", ".join(f"{task} {statistics.fmean(o[measure][task] for o in ones):.4f}" for task in ones[0][measure])
           for measure in ("losses", "judged"))]
        for name, ones in counts.items() if ones
    ]  # fmt: skip
    spent = sum(one["cpu_minutes"] for one in runs) / 60
    table = f"{len(runs)} of {len(ARMS) * len(SEEDS)} runs are finished; they were trained for {spent:.1f} CPU hours. "
    table += f"Not finished: {'; '.join(left)}.\n\n" if left else "\n\n"
    table += "Held-out loss of an arm relative to the whole model, paired by seed; above 0 is worse.\n\n"
    table += compared(runs, "losses")
    table += "\nWhat is right on `bench world`, in points above the whole model; above 0 is better.\n\n"
    table += compared(runs, "judged")
    head = ["arm", "seeds", "steps", "tokens", "CPU minutes", "held-out losses", "judged right"]
    path = write_results("ablation", {"runs": runs, "missing": left}, table + "\n" + markdown(head, costs), out)
    path.with_suffix(".svg").write_text(figure(runs), encoding="utf-8")
    if docs:
        put(PAGE, "ablation", table)
        shutil.copy(path.with_suffix(".svg"), PAGE.parent / "images" / "ablation.svg")


def figure(runs: list[dict[str, Any]]) -> str:
    """Both measures beside each other: mean differences with their intervals, and every seed as a small dot."""
    left, width, high, gap = 230, 300, 22, 80
    names = [(name, task) for name, task, _ in pairs_of(runs, "losses")]
    height = high * (len(names) + 3)
    lines = [
        f'<text x="8" y="{high * (n + 1.8) + 4:.0f}" fill="currentColor">{name}: {task}</text>'
        for n, (name, task) in enumerate(names)
    ]
    titles = {"losses": "held-out loss (left is better)", "judged": "judged right (right is better)"}
    for k, (measure, title) in enumerate(titles.items()):
        x = left + k * (width + gap)
        lines.append(f'<text x="{x + width / 2}" y="14" text-anchor="middle" fill="currentColor">{title}</text>')
        lines += panel(pairs_of(runs, measure), x, width, high)
    size = f'width="{left + 2 * (width + gap)}" height="{height}" font-family="sans-serif" font-size="12" color="#777"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(lines)}</svg>\n'


def panel(found: list[tuple[str, str, list[float]]], left: float, width: float, high: float) -> list[str]:
    """The marks of one measure."""
    shown = [abs(v) for _, _, values in found for v in [*values, *(interval(values) if values else ())]]
    most = min(max([1e-3, *(v for v in shown if not math.isnan(v))]), 1.0)

    def at(value: float) -> float:
        return left + width / 2 * (1 + max(-1.0, min(value / most, 1.0)))

    bottom = high * (len(found) + 1.6)
    lines = [f'<line x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{high}" y2="{bottom}" stroke="#999"/>']
    for n, (_, task, values) in enumerate(found):
        y, color = high * (n + 1.8), COLORS[list(MIXTURE).index(task)]
        if not values:
            lines.append(f'<text x="{left + 8}" y="{y + 4}" fill="#999">not finished</text>')
            continue
        mean, low, top = interval(values)
        if not math.isnan(low):
            ends = f'x1="{at(low):.1f}" x2="{at(top):.1f}" y1="{y}" y2="{y}"'
            lines.append(f'<line {ends} stroke="{color}" stroke-width="2"/>')
        lines += [f'<circle cx="{at(v):.1f}" cy="{y}" r="2" fill="{color}" opacity=".5"/>' for v in values]
        lines.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="4.5" fill="{color}"/>')
    for value in (-most, 0.0, most):
        place = f'x="{at(value):.1f}" y="{bottom + high}" text-anchor="middle"'
        lines.append(f'<text {place} fill="currentColor">{value:+.1%}</text>')
    return lines


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of some work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def planned(folder: Path, steps: int, compiled: bool) -> str:
    """CPU hours of what is left, by a few steps of every arm and one measurement on this machine."""
    rows, total = [], 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for name, arm in ARMS.items():
            place, plan = Path(scratch) / name, plan_of(arm, SEEDS[0], PLANNED)
            done = trained(place, arm, plan, math.inf, compiled)
            assert done is not None
            each = statistics.median(row["cpu_seconds"] for row in read_log(place / "log.jsonl")[2:])
            export(done.trainer, done.base, place / "model")
            # Less in truth: requests in larger batches are quicker.
            measuring = cpu(partial(held_out, done)) + JUDGED * cpu(partial(judged, place / "model", arm, 1))
            left = 0
            for seed in SEEDS:
                own = place_of(folder, name, seed)
                left += 0 if (own / "result.json").is_file() else steps - reached(own)
            hours = (left * each + left / steps * measuring) / 3600
            total += hours
            rows.append([name, f"{each:.2f}", f"{measuring / 60:.1f}", str(left), f"{hours:.2f}"])
    rows.append(["all", "", "", "", f"{total:.1f}"])
    return markdown(["arm", "CPU seconds a step", "CPU minutes to measure", "steps left", "CPU hours left"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--steps", type=int, default=600, help="of every run")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, all saved")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of these; two commands share the work")
    parser.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    parser.add_argument("--plan", action="store_true", help="time a few steps and print the CPU hours that are left")
    parser.add_argument("--report", action="store_true", help="report what is finished, train nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the report's table and figure into docs/evaluation.md")
    args = parser.parse_args()
    if args.plan:
        return print(planned(args.folder, args.steps, not args.no_compile))
    if not args.report and not work(parser, args):
        return None
    if not finished(args.folder):
        parser.error(f"{args.folder} has no finished run")
    report(args.folder, args.out, args.docs)


def work(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Train and measure what is not finished; False, and the command that goes on, once the time is up."""
    began, again = time.monotonic(), f"the same command goes on: {shlex.join(['python', *sys.argv])}"
    for name, seed in ((name, seed) for seed in args.seeds for name in ARMS):
        place, plan = place_of(args.folder, name, seed), plan_of(ARMS[name], seed, args.steps)
        if (place / "result.json").is_file() and read_json(place / "result.json")["steps"] == args.steps:
            continue
        left = args.minutes - (time.monotonic() - began) / 60
        try:
            if left <= 0 or not run(place, name, plan, left, not args.no_compile):
                print(f"{name}, seed {seed}: the time is up, all saved; {again}")
                return False
        except UserError as error:
            parser.error(str(error))
        except Interrupted as stopped:
            print(f"{name}, seed {seed}: step {stopped.step}, all saved; {again}")
            sys.exit(128 + stopped.number)
        print(f"{name}, seed {seed}: {read_json(place / 'result.json')}", flush=True)
    return True


if __name__ == "__main__":
    main()
