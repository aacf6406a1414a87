"""A stage in progress: weights, optimizer, average, step; what one update does to them; and the loop over the steps.

run = Trainer(stage, base.learner, processes)
train(run, Work(folder=RunFolder(settings, processes), batches=stream, prepare=preparer))
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openlance.config.train import Stage
from openlance.data.lanes import Lanes
from openlance.data.report import Report
from openlance.errors import UserError
from openlance.model.lance import Expert, compile_experts
from openlance.model.precision import autocast, lowered
from openlance.runtime.distributed import Distributed
from openlance.training.batch import Batch, Preparer
from openlance.training.files import RunFolder
from openlance.training.interrupt import SIGNALS, Interrupted, stoppable
from openlance.training.learner import Learner
from openlance.training.optim import Ema, Optimizer
from openlance.training.parallel import full, only_last, recompute, shard, sum_gradients

LOSSES = ("text", "flow", "dense")
HELD_OUT = 1 << 40  # numbers of the packs that validate: far from those that train
NAMED = 8  # samples that a message names; the others are in the log of the replay


class TrainingDiverged(UserError):
    """A loss or a gradient that is not finite: the run stops, nothing of the step is kept.

    Args:
        said: What is wrong.
        folder: Of the run, which holds a checkpoint of where the step began.
        step: Its number.
    """

    def __init__(self, said: str, folder: Path, step: int) -> None:
        super().__init__(said)
        self.folder, self.step = folder, step


@dataclass(frozen=True)
class Outcome:
    """What a step came to, over all processes. broken: the samples of this process that were not finite."""

    values: dict[str, float]
    finite: bool
    broken: list[str]


class Trainer:
    """One stage. The losses of a step are means over all its packs on all processes, so how the packs are dealt to
    processes and accumulation changes nothing but rounding.

    Args:
        stage: What is done.
        learner: What learns.
        processes: That train it together; one by default.
        compiled: Compile the element-wise parts of layers.
    """

    shown: tuple[str, ...] = ("text", "flow")  # of the values of a step, while it runs
    measures_start = False  # whether held-out packs are measured before the first step too

    def __init__(
        self, stage: Stage, learner: Learner, processes: Distributed | None = None, compiled: bool = False
    ) -> None:
        self.stage, self.processes, self.step = stage, processes or Distributed(), 0
        self.learner = learner.to(self.processes.device).train()
        freeze(learner, stage)
        if compiled and not hasattr(Expert.project, "_torchdynamo_orig_callable"):
            compile_experts(Expert)
        if stage.checkpointing:
            recompute(learner.lance)
        # What draws looks at what is given between steps too: the tower runs by itself, and stays whole.
        whole = None if (stage.distill or stage.rl) is None else learner.vit
        shard(self.processes, learner, lowered(stage.dtype, self.processes.device), whole)
        self.optimizer = Optimizer(stage, learner)
        self.ema = Ema(learner, stage.ema)
        self.weights = torch.tensor([stage.text_weight, stage.flow_weight, stage.dense_weight])

    def numbers(self) -> list[int]:
        """Return the numbers of this process's packs of this step; no two packs of a run share one."""
        at, processes, count = self.step, self.processes, self.stage.accumulate
        return [(at * count + n) * processes.size + processes.rank for n in range(count)]

    def update(self, batches: Sequence[Batch]) -> Outcome:
        """Do one step on this process's packs; without effect unless all losses and gradients are finite."""
        means, broken = self.backward(batches)
        told, finite = self.descend(bool(means.isfinite().all()))
        self.step += finite
        return Outcome(dict(zip(LOSSES, means.tolist())) | told, finite, broken or [i for b in batches for i in b.ids])

    def descend(self, wanted: bool = True) -> tuple[dict[str, float], bool]:
        """Take a step along the gradients of all processes, clipped, and forget them.

        Args:
            wanted: Whether to; else nothing but the norm is found.

        Returns:
            Norm and rate; and whether the step was taken, which it is not along gradients that are not finite.
        """
        sum_gradients(self.processes, self.learner)
        norm = float(full(nn.utils.clip_grad_norm_(self.learner.parameters(), self.stage.max_norm)))
        rate, taken = self.stage.rate(self.step), wanted and math.isfinite(norm)
        if taken:
            self.optimizer.step(rate)
            self.ema.update(self.learner)
        self.optimizer.zero_grad()
        return {"norm": norm, "lr": rate}, taken

    def backward(self, batches: Sequence[Batch], weight: float = 1.0) -> tuple[Tensor, list[str]]:
        """Add gradients of the weighted losses of this process's packs; `descend` sums them over all.

        Args:
            batches: Its packs.
            weight: Of these losses among others of the step.

        Returns:
            (3,) the losses over all processes, and the samples of this one that are not finite.
        """
        totals = self.processes.total(torch.stack([b.counts for b in batches]).sum(0)).clamp(min=1)
        shares = (weight * self.weights / totals).float().to(self.processes.device)
        sums, broken = torch.zeros(3, dtype=torch.float64), list[str]()
        for n, batch in enumerate(batches):
            only_last(self.processes, self.learner, n == len(batches) - 1)
            found, by_document = self._forward(batch)
            (found.float() * shares).sum().backward()
            sums += found.detach().double().cpu()
            broken += [i for i, value in zip(batch.ids, by_document.isfinite().tolist()) if not value]
        return self.processes.total(sums) / totals, broken

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the losses of packs, without learning from them; every process needs as many."""
        totals = self.processes.total(torch.stack([b.counts for b in batches]).sum(0))
        self.learner.eval()
        sums = torch.stack([self._forward(batch)[0].double().cpu() for batch in batches]).sum(0)
        self.learner.train()
        means = self.processes.total(sums) / totals.clamp(min=1)
        return {f"validation_{name}": v for name, v in zip(LOSSES, means.tolist())}

    @torch.no_grad()
    def documents(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of each sample of a pack."""
        return self._forward(batch)[1]

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        torch.manual_seed(batch.seed)
        with autocast(self.stage.dtype, self.processes.device):
            return self.learner(batch)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds. Frozen weights are not in it: they come from the start point."""
        trained = {n: p.detach() for n, p in self.learner.named_parameters() if p.requires_grad}
        return {
            **{f"weights/{n}": v for n, v in trained.items()},
            **({f"average/{n}": v for n, v in self.ema.values.items()} if self.stage.ema else {}),
            **{f"optimizer/{n}": v for n, v in self.optimizer.tensors().items()},
        }

    def state(self) -> dict[str, Any]:
        """Return plain data that go beside the tensors: counters and the random state of this process."""
        return {"step": self.step, "averaged": self.ema.count, "random": torch.get_rng_state().numpy().tobytes().hex()}

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.ema.count = state["step"], state["averaged"]
        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["random"]), dtype=torch.uint8))


def freeze(learner: Learner, stage: Stage) -> None:
    """Leave alone what the stage says. UserError for a pattern that fits nothing, or if nothing is left to train."""
    named = dict(learner.named_parameters())
    for pattern in stage.frozen:
        # The VAE is never trained here, so freezing it is always true.
        if not any(fnmatchcase(name, pattern + "*") for name in named) and pattern != "vae":
            good = "the beginning of a parameter's name, such as vit, lance.embed or lance.layers.*.und"
            raise UserError(f"frozen: nothing is called {pattern!r}: write {good}")
    for name, p in named.items():
        p.requires_grad_(p.requires_grad and not stage.freezes(name))
    if not any(p.requires_grad for p in named.values()):
        raise UserError(f"the stage {stage.name} freezes everything: leave something out of `frozen`")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run reads and writes.

    Args:
        folder: Of the run, with its settings.
        batches: What it trains on, packs of samples.
        prepare: Makes batches of samples.
        held_out: Packs whose losses are measured.
        found: What there is to train on, on the first process.
        show: Called on every process, every `show_every` steps; exports the model.
    """

    folder: RunFolder
    batches: Lanes
    prepare: Preparer
    held_out: Sequence[list] = ()
    show: Callable[[Trainer], Any] | None = None
    found: Report | None = None


def train(run: Trainer, work: Work) -> bool:
    """Train to the end of the stage, going on from the last whole checkpoint.

    Returns:
        False if the time was up before.

    Raises:
        TrainingDiverged: When a loss or a gradient is not finite; that step's position is saved, so it can be replayed.
        Interrupted: After Ctrl-C or SIGTERM, once the step is finished and everything is saved.
    """
    from tqdm import tqdm

    folder, batches, processes, began = work.folder, work.batches, run.processes, time.monotonic()
    stage, settings = run.stage, folder.settings
    folder.resume(run, batches)
    folder.open_log(run.step or -1)
    if run.measures_start and work.held_out and not run.step:
        folder.log({"step": 0.0} | validate(run, work))
    saved = time.monotonic()
    bar = tqdm(
        total=stage.steps, initial=run.step, unit="step", desc=stage.name, smoothing=0.05, delay=2.0,
        disable=not processes.leads,
    )  # fmt: skip
    with bar, stoppable(processes.leads) as heard:
        while run.step < stage.steps:
            now = time.monotonic()
            up, late, *stopped = processes.agree(
                now - began > 60 * settings.minutes, now - saved > 60 * settings.save_minutes, *heard.of_each
            )
            if up or any(stopped):
                break
            if late:
                folder.save(run, batches.state_dict())
                saved = time.monotonic()
            started, cpu, place = time.monotonic(), time.process_time(), batches.state_dict()
            samples = [next(batches) for _ in range(stage.accumulate)]
            waited = time.monotonic() - started
            packs = [work.prepare(s, number) for s, number in zip(samples, run.numbers(), strict=True)]
            outcome = run.update(packs)
            if not outcome.finite:
                stop(run, work, place, outcome)
            rows = sum(p.size for p in packs)
            row = outcome.values | {"step": run.step, "rows": rows, "waited": waited}
            row["filled"] = rows / (len(packs) * stage.pack_tokens[1])
            if work.held_out and due(run, settings.validate_every):
                row |= validate(run, work)
            spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
            folder.log(row | spent)
            bar.update()
            bar.set_postfix_str(" ".join(f"{name} {row[name]:.3f}" for name in run.shown))
            if due(run, settings.save_every):
                folder.save(run, batches.state_dict())
                saved = time.monotonic()
            if work.show is not None and due(run, settings.show_every):
                work.show(run)
            folder.checkpoints.poll()
        folder.save(run, batches.state_dict())
        folder.checkpoints.finish()
        for number, any_process in zip(SIGNALS, processes.agree(*heard.of_each), strict=True):
            if any_process:
                raise Interrupted(folder.path, run.step, number)
    return run.step >= stage.steps


def due(run: Trainer, every: int) -> bool:
    return bool(every) and run.step % every == 0


def validate(run: Trainer, work: Work) -> dict[str, float]:
    """Return the losses of the held-out packs, with the same noise every time."""
    first = HELD_OUT + run.processes.rank * len(work.held_out)
    return run.evaluate([work.prepare(samples, first + n) for n, samples in enumerate(work.held_out)])


def stop(run: Trainer, work: Work, place: dict, outcome: Outcome) -> None:
    """Save where the step began and raise TrainingDiverged naming its samples and how to replay it."""
    work.folder.save(run, place)
    work.folder.checkpoints.finish()
    broken = sorted({i for ids in run.processes.gather(outcome.broken) for i in ids})
    named = ", ".join(broken[:NAMED]) + (f" and {len(broken) - NAMED} more" if len(broken) > NAMED else "")
    values = " ".join(f"{k} {v:.4g}" for k, v in outcome.values.items())
    folder, said = work.folder.path, f"step {run.step} is not finite ({values}), samples {named}"
    look = f"take them out or lower lr, after a look at replay_step({str(folder)!r}, {run.step})"
    raise TrainingDiverged(f"{said}: {look}", folder, run.step)


def rewind(run: Trainer, work: Work, step: int) -> list[Batch]:
    """Go back to a step.

    The last checkpoint at or before it is read; if that is earlier, the data are those of the step but the weights
    those of the checkpoint.

    Returns:
        The packs of the step, ready for `run.update`.

    Raises:
        UserError: If there is no such checkpoint.
    """
    if not work.folder.resume(run, work.batches, at_most=step) and step:
        raise UserError(f"{work.folder.path} has no checkpoint of step {step} or before: choose a later step")
    for _ in range((step - run.step) * run.stage.accumulate):
        next(work.batches)
    run.step = step
    return [work.prepare(next(work.batches), number) for number in run.numbers()]
