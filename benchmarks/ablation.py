"""Three questions of the Lance paper on a small model: what MaPE brings, whether drawing and answering help each other,
and whether an edit needs the ViT's view of its source, the VAE's, or both.

    python benchmarks/ablation.py runs/ablation --minutes 720      # goes on where it was stopped; every seed is one run
    python benchmarks/ablation.py runs/ablation --report           # table, figure and logs of what is there

Every arm sees as many packs of one size, from nothing, on nano's procedural world with nano's VAE and tokenizer: equal
compute, so that training on less kinds of tasks means more samples of each. (An edit with one view is shorter; its
tokens are counted.) The measure is the loss of each task on held-out samples, the same for all arms, with the same
noises and times; without the VAE's view of sources the noises are others. Seeds are paired: the samples of a seed are
those of all its arms. The interval of a mean difference is Student's, over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, markdown, write_results

from openlance.checkpoint.formats import folder_of, write_config
from openlance.config.model import ModelConfig, VAEConfig, nano
from openlance.config.train import Stage, stage
from openlance.data.source import Sample
from openlance.data.stream import Stream
from openlance.media.files import write_json
from openlance.runtime.media_encoder import MediaEncoder
from openlance.sequence.segment import Kind, Role
from openlance.sequence.tasks import TASKS
from openlance.training.batch import Preparer
from openlance.training.files import Settings
from openlance.training.run import sources_of
from openlance.training.start import Base, open_base
from openlance.training.trainer import HELD_OUT, Trainer

SEEDS, PACKS = (1, 2, 3), 8  # PACKS: held out, of every task
HELD_OUT_SEED = 77
MIXTURE = {"t2i": 4.0, "image_edit": 3.0, "x2t_image": 3.0}
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

    def shown(self, samples: list[Sample]) -> list[Sample]:
        """Samples without what is hidden."""
        return [self._shown(sample) for sample in samples] if self.hidden else samples

    def _shown(self, sample: Sample) -> Sample:
        kept = [s for s in sample.segments if not (s.role is Role.SOURCE and s.kind in self.hidden)]
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
    """A folder without weights of its own but nano's VAE."""
    shipped = folder_of("nano")
    write_config(folder, config_of(arm, VAEConfig.of(json.loads((shipped / "vae_config.json").read_text()))))
    for name in ("vae.safetensors", "tokenizer.json", "generation_config.json"):
        shutil.copyfile(shipped / name, folder / name)
    return folder


def plan_of(arm: Arm, seed: int, steps: int) -> Stage:
    """nano's first stage, shorter, with this mixture."""
    short = replace(stage("pt", "nano"), name="ablation", steps=steps, seed=seed, warmup=max(steps // 20, 1))
    return replace(short, mixture=arm.mixture, schedule="cosine", lr_end=0.03, pack_tokens=(4000, 4500))


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a run trains with."""

    arm: Arm
    stage: Stage
    base: Base

    def stream(self, of: Stage) -> Stream:
        settings = Settings(out=Path("."), model=Path("."))
        return Stream(sources_of(of, settings)[0], of, self.base.codec, style=self.base.style)

    def preparer(self, of: Stage) -> Preparer:
        encode = MediaEncoder(lambda _: self.base.learner.vit, lambda: self.base.vae, together=16)
        return Preparer(stage=of, codec=self.base.codec, encode=encode, device=torch.device("cpu"))


def run(folder: Path, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one arm with one seed, and measure it."""
    arm, start = ARMS[name], time.process_time()
    base = open_base(foundation(folder / "foundation", arm), plan_of(arm, seed, steps), "fresh")
    course = Course(arm=arm, stage=plan_of(arm, seed, steps), base=base)
    trainer, prepare, log, tokens = Trainer(course.stage, base.learner), course.preparer(course.stage), [], 0
    with course.stream(course.stage) as stream:
        for number in range(steps):
            batch = prepare(arm.shown(next(stream)), number)
            outcome = trainer.update([batch])
            if not outcome.finite:
                raise SystemExit(f"{name}, seed {seed}: step {number} is not finite, samples {outcome.broken[:3]}")
            tokens += len(batch.packed.rows)
            log.append({"step": number + 1, **{k: round(v, 5) for k, v in outcome.values.items()}})
    return {
        "arm": name, "seed": seed, "steps": steps, "tokens": tokens, "losses": held_out(course, trainer),
        "parameters": sum(p.numel() for p in base.learner.parameters()), "log": log,
        "cpu_minutes": round((time.process_time() - start) / 60, 2),
    }  # fmt: skip


def held_out(course: Course, trainer: Trainer) -> dict[str, float]:
    """The loss of every task of an arm, on the same samples for all arms and seeds."""
    found = {}
    for task in course.arm.mixture:
        asked = replace(
            course.stage, name="held out", seed=HELD_OUT_SEED, mixture={task: 1.0}, drop_text=0.0, drop_all=0.0
        )
        prepare = course.preparer(asked)
        with course.stream(asked) as stream:
            batches = [prepare(course.arm.shown(next(stream)), HELD_OUT + n) for n in range(PACKS)]
        kind = "text" if TASKS[task].makes == "text" else "flow"
        found[task] = trainer.evaluate(batches)[f"validation_{kind}"]
    return found


def finished(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*-seed*.json"))]


def paired(runs: list[dict[str, Any]], name: str, task: str) -> list[float]:
    """Losses of an arm less those of the whole, relative to it, seed by seed."""
    whole = {one["seed"]: one["losses"] for one in runs if one["arm"] == WHOLE}
    return [
        one["losses"][task] / whole[one["seed"]][task] - 1
        for one in runs
        if one["arm"] == name and one["seed"] in whole and task in one["losses"]
    ]


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, least and greatest; nan where one seed says nothing about others."""
    mean, n = statistics.fmean(values), len(values)
    half = T95.get(n - 1, 2.571) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return mean, mean - half, mean + half


def compared(runs: list[dict[str, Any]]) -> list[tuple[str, str, list[float]]]:
    """Every arm and task that has a whole run of its seed."""
    found = [(name, task, paired(runs, name, task)) for name in ARMS if name != WHOLE for task in MIXTURE]
    return [one for one in found if one[2]]


def report(runs: list[dict[str, Any]], out: Path) -> None:
    """The table and the figure."""
    rows = []
    for name, task, values in compared(runs):
        mean, low, high = interval(values)
        inside = "one seed" if math.isnan(low) else "inside the noise"
        if low > 0 or high < 0:
            inside = "worse" if mean > 0 else "better"
        spread = "" if math.isnan(low) else f"{low:+.2%} to {high:+.2%}"
        rows.append([name, task, f"{mean:+.2%}", spread, str(len(values)), inside])
    counts = {name: [one for one in runs if one["arm"] == name] for name in ARMS}
    costs = [
        [name, str(len(ones)), f"{ones[0]['steps']}", f"{statistics.fmean(o['tokens'] for o in ones):,.0f}",
         f"{sum(o['cpu_minutes'] for o in ones):.1f}",
         ", ".join(f"{task} {statistics.fmean(o['losses'][task] for o in ones):.4f}" for task in ones[0]["losses"])]
        for name, ones in counts.items() if ones
    ]  # fmt: skip
    head = "Held-out loss of an arm relative to the whole model, paired by seed; above 0 is worse.\n\n"
    table = head + markdown(["arm", "task", "difference", "95 %", "seeds", "which is"], rows)
    table += "\n" + markdown(["arm", "seeds", "steps", "tokens", "CPU minutes", "held-out losses"], costs)
    path = write_results("ablation", {"runs": runs}, table, out)
    path.with_suffix(".svg").write_text(figure(compared(runs)), encoding="utf-8")


def figure(found: list[tuple[str, str, list[float]]]) -> str:
    """Differences with their intervals, and every seed as a small dot."""
    left, width, high = 230, 420, 22
    shown = [abs(v) for _, _, values in found for v in [*values, *interval(values)] if not math.isnan(v)]
    most = min(max([1e-3, *shown]), 1.0)

    def at(value: float) -> float:
        return left + width / 2 * (1 + max(-1.0, min(value / most, 1.0)))

    height = high * (len(found) + 2)
    lines = [f'<line x1="{at(0):.1f}" x2="{at(0):.1f}" y1="6" y2="{height - high}" stroke="#999"/>']
    for n, (name, task, values) in enumerate(found):
        y, color, (mean, low, top) = high * (n + 0.8), COLORS[list(MIXTURE).index(task)], interval(values)
        lines.append(f'<text x="8" y="{y + 4:.0f}" fill="currentColor">{name}: {task}</text>')
        if not math.isnan(low):
            ends = f'x1="{at(low):.1f}" x2="{at(top):.1f}" y1="{y}" y2="{y}"'
            lines.append(f'<line {ends} stroke="{color}" stroke-width="2"/>')
        lines += [f'<circle cx="{at(v):.1f}" cy="{y}" r="2" fill="{color}" opacity=".5"/>' for v in values]
        lines.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="4.5" fill="{color}"/>')
    for value in (-most, 0.0, most):
        place = f'x="{at(value):.1f}" y="{height - 4}" text-anchor="middle"'
        lines.append(f'<text {place} fill="currentColor">{value:+.1%}</text>')
    size = f'width="{left + width + 40}" height="{height}" font-family="sans-serif" font-size="12" color="#555"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(lines)}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--steps", type=int, default=1500, help="of every run")
    parser.add_argument("--minutes", type=float, default=720.0, help="begin no run after so many")
    parser.add_argument("--report", action="store_true", help="report what is there, train nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    began = time.monotonic()
    todo = [(name, seed) for seed in SEEDS for name in ARMS] if not args.report else []
    for name, seed in todo:
        file = args.folder / f"{name.replace(' ', '-')}-seed{seed}.json"
        if file.is_file():
            if json.loads(file.read_text())["steps"] != args.steps:
                parser.error(f"{file} has another number of steps: choose another folder")
            continue
        if time.monotonic() - began > 60 * args.minutes:
            break
        write_json(file, run(args.folder, name, seed, args.steps))
        print(f"{name}, seed {seed}: {json.loads(file.read_text())['losses']}", flush=True)
    runs = finished(args.folder)
    if not runs:
        parser.error(f"{args.folder} has no finished run")
    report(runs, args.out)


if __name__ == "__main__":
    main()
