"""The training loop: every stage, one process or many.

run = Trainer(stage, base.learner, processes)
train(run, Work(folder=RunFolder(Path("runs/mine"), processes), batches=stream, prepare=preparer))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openlance.errors import UserError
from openlance.training.batch import Batch, Preparer
from openlance.training.files import Batches, RunFolder
from openlance.training.trainer import Outcome, Trainer, TrainingDiverged

HELD_OUT = 1 << 40  # numbers of the packs that validate: far from those that train
NAMED = 8  # samples that a message names; the others are in the log of the replay


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run reads and writes, and when. Lengths in steps, 0 is never. held_out: packs whose losses are measured.
    show(run) is called on every process: it exports and draws."""

    folder: RunFolder
    batches: Batches
    prepare: Preparer
    save_every: int = 500
    validate_every: int = 0
    held_out: Sequence[list] = ()
    show_every: int = 0
    show: Callable[[Trainer], None] | None = None
    minutes: float = float("inf")  # stop after so long, all saved


def train(run: Trainer, work: Work) -> bool:
    """Train to the end of the stage, going on from the last whole checkpoint; False if the time was up before.

    TrainingDiverged when a loss or a gradient is not finite: that step's position is saved, so it can be replayed.
    """
    folder, batches, processes, began = work.folder, work.batches, run.processes, time.monotonic()
    folder.resume(run, batches)
    folder.forget_after(run.step)
    with progress(run) as bar:
        while run.step < run.stage.steps and not processes.agree(time.monotonic() - began > 60 * work.minutes):
            started, cpu, place = time.monotonic(), time.process_time(), batches.state_dict()
            samples = [next(batches) for _ in range(run.stage.accumulate)]
            waited = time.monotonic() - started
            packs = [work.prepare(s, number) for s, number in zip(samples, run.numbers(), strict=True)]
            outcome = run.update(packs)
            if not outcome.finite:
                stop(run, work, place, outcome)
            rows = sum(len(p.packed) for p in packs)
            row = outcome.values | {"step": run.step, "rows": rows, "waited": waited}
            row["filled"] = rows / (len(packs) * run.stage.pack_tokens[1])
            if due(run, work.validate_every) and work.held_out:
                row |= validate(run, work)
            spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
            folder.log(row | spent)
            bar.update()
            bar.set_postfix_str(f"text {row['text']:.3f} flow {row['flow']:.3f}")
            if due(run, work.save_every):
                folder.save(run, batches.state_dict())
            if work.show is not None and due(run, work.show_every):
                work.show(run)
            folder.checkpoints.poll()
    folder.save(run, batches.state_dict())
    folder.checkpoints.finish()
    return run.step >= run.stage.steps


def due(run: Trainer, every: int) -> bool:
    return bool(every) and (run.step % every == 0)


def validate(run: Trainer, work: Work) -> dict[str, float]:
    """The losses of the held-out packs, with the same noise every time."""
    first = HELD_OUT + run.processes.rank * len(work.held_out)
    return run.evaluate([work.prepare(samples, first + n) for n, samples in enumerate(work.held_out)])


def stop(run: Trainer, work: Work, place: dict, outcome: Outcome) -> None:
    """Save where the step began and raise TrainingDiverged naming its samples and how to replay it."""
    work.folder.save(run, place)
    work.folder.checkpoints.finish()
    broken = sorted({i for ids in run.processes.gather(outcome.broken) for i in ids})
    named = ", ".join(broken[:NAMED]) + (f" and {len(broken) - NAMED} more" if len(broken) > NAMED else "")
    values = " ".join(f"{k} {v:.4g}" for k, v in outcome.values.items())
    size = run.processes.size
    start = "openlance" if size == 1 else f"torchrun --nproc-per-node {size} -m openlance.cli.main"
    raise TrainingDiverged(
        f"step {run.step} is not finite ({values}), samples {named}; replay it with `{start} train resume "
        f"{work.folder.path} --only-step {run.step}`, then take the samples out or lower lr"
    )


def rewind(run: Trainer, work: Work, step: int) -> list[Batch]:
    """Go back to a step and return its packs, ready for `run.update`: from the last checkpoint at or before it; if that
    is earlier, the data are those of the step but the weights those of the checkpoint. UserError if there is none."""
    if not work.folder.resume(run, work.batches, at_most=step) and step:
        raise UserError(f"{work.folder.path} has no checkpoint of step {step} or before: choose a later --only-step")
    for _ in range((step - run.step) * run.stage.accumulate):
        next(work.batches)
    run.step = step
    return [work.prepare(next(work.batches), number) for number in run.numbers()]


def progress(run: Trainer):
    from tqdm import tqdm

    return tqdm(
        total=run.stage.steps, initial=run.step, unit="step", desc=run.stage.name, smoothing=0.05, delay=2.0,
        disable=not run.processes.leads,
    )  # fmt: skip
