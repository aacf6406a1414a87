"""A stage in progress: weights, optimiser, average, step; and what one update does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from openlance.config.train import Stage
from openlance.errors import UserError
from openlance.model.precision import autocast, lowered
from openlance.runtime.distributed import Distributed
from openlance.training.batch import Batch
from openlance.training.learner import Learner, fuse
from openlance.training.optim import Ema, Optimizer
from openlance.training.parallel import full, only_last, recompute, shard, sum_gradients

LOSSES = ("text", "flow", "dense")


class TrainingDiverged(UserError):
    """A loss or a gradient that is not finite: the run stops, nothing of the step is kept."""


@dataclass(frozen=True)
class Outcome:
    """What a step came to, over all processes. broken: the samples of this process that were not finite."""

    values: dict[str, float]
    finite: bool
    broken: list[str]


class Trainer:
    """One stage. The losses of a step are means over all its packs on all processes, so how the packs are dealt to
    processes and accumulation changes nothing but rounding."""

    def __init__(
        self, stage: Stage, learner: Learner, processes: Distributed | None = None, compiled: bool = False
    ) -> None:
        self.stage, self.processes, self.step = stage, processes or Distributed(), 0
        self.learner = learner.to(self.processes.device).train()
        freeze(learner, stage)
        if compiled:
            fuse()
        if stage.checkpointing:
            recompute(learner.lance)
        shard(self.processes, learner, lowered(stage.dtype, self.processes.device))
        self.optimizer = Optimizer(
            learner.named_parameters(),
            betas=stage.betas,
            eps=stage.eps,
            weight_decay=stage.weight_decay,
            muon=stage.optimizer == "muon",
        )
        self.ema = Ema(learner, stage.ema)
        self.weights = torch.tensor([stage.text_weight, stage.flow_weight, stage.dense_weight])

    def numbers(self) -> list[int]:
        """The numbers of this process's packs of this step; no two packs of a run share one."""
        at, processes, count = self.step, self.processes, self.stage.accumulate
        return [(at * count + n) * processes.size + processes.rank for n in range(count)]

    def update(self, batches: Sequence[Batch]) -> Outcome:
        """One step on this process's packs; without effect unless all losses and gradients are finite."""
        means, broken = self.backward(batches)
        norm = full(nn.utils.clip_grad_norm_(self.learner.parameters(), self.stage.max_norm))
        finite = bool(norm.isfinite()) and bool(means.isfinite().all())
        rate = self.stage.rate(self.step)
        if finite:
            self.optimizer.set_rate(rate)
            self.optimizer.step()
            self.ema.update(self.learner)
            self.step += 1
        self.optimizer.zero_grad()
        values = dict(zip(LOSSES, means.tolist())) | {"norm": float(norm), "lr": rate}
        return Outcome(values, finite, broken or [i for b in batches for i in b.ids])

    def backward(self, batches: Sequence[Batch]) -> tuple[Tensor, list[str]]:
        """Gradients of the weighted losses of all processes' packs; (3,) the losses, and the samples of this process
        that are not finite."""
        totals = self.processes.total(torch.stack([b.counts for b in batches]).sum(0)).clamp(min=1)
        shares = (self.weights / totals).float().to(self.processes.device)
        sums, broken = torch.zeros(3, dtype=torch.float64), list[str]()
        for n, batch in enumerate(batches):
            only_last(self.processes, self.learner, n == len(batches) - 1)
            found, by_document = self._forward(batch)
            (found.float() * shares).sum().backward()
            sums += found.detach().double().cpu()
            broken += [i for i, value in zip(batch.ids, by_document.isfinite().tolist()) if not value]
        sum_gradients(self.processes, self.learner)
        return self.processes.total(sums) / totals, broken

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """The losses of packs, without learning from them; every process needs as many."""
        totals = self.processes.total(torch.stack([b.counts for b in batches]).sum(0))
        sums = torch.stack([self._forward(batch)[0].double().cpu() for batch in batches]).sum(0)
        means = self.processes.total(sums) / totals.clamp(min=1)
        return {f"validation_{name}": v for name, v in zip(LOSSES, means.tolist())}

    @torch.no_grad()
    def documents(self, batch: Batch) -> Tensor:
        """The sum of the losses of each sample of a pack."""
        return self._forward(batch)[1]

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with autocast(self.stage.dtype, self.processes.device):
            return self.learner(batch)

    # What a checkpoint holds. Frozen weights are not in it: they come from the start point.

    def tensors(self) -> dict[str, Tensor]:
        trained = {n: p.detach() for n, p in self.learner.named_parameters() if p.requires_grad}
        return {
            **{f"weights/{n}": v for n, v in trained.items()},
            **({f"average/{n}": v for n, v in self.ema.values.items()} if self.stage.ema else {}),
            **{f"optimizer/{n}": v for n, v in self.optimizer.tensors().items()},
        }

    def state(self) -> dict[str, Any]:
        """Plain data that goes beside the tensors: counters and the random state of this process."""
        return {"step": self.step, "averaged": self.ema.count, "random": torch.get_rng_state().numpy().tobytes().hex()}

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.ema.count = state["step"], state["averaged"]
        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["random"]), dtype=torch.uint8))


def freeze(learner: Learner, stage: Stage) -> None:
    """Leave alone what the stage says. UserError for a pattern that fits nothing, or if nothing is left to train."""
    named = dict(learner.named_parameters())
    for pattern in stage.frozen:
        # The codec is never trained here, so freezing it is always true.
        if not any(fnmatchcase(name, pattern + "*") for name in named) and pattern != "vae":
            raise UserError(
                f"frozen: nothing is called {pattern!r}: write the beginning of a parameter's name, such as vit, "
                f"lance.embed or lance.layers.*.und"
            )
    for name, p in named.items():
        p.requires_grad_(p.requires_grad and not stage.freezes(name))
    if not any(p.requires_grad for p in named.values()):
        raise UserError(f"the stage {stage.name} freezes everything: leave something out of `frozen`")
