"""Training as data: phases of a run, each with its mixture, length and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from openlance.data.world import WorldMixture
from openlance.train.objective import Weights

MANY = {(64, 64): 0.72, (64, 96): 0.09, (96, 64): 0.09, (96, 96): 0.10}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of steps. lr falls from `lr` to `lr * lr_end` along a cosine; the widest placement of the scenes to
    draw goes from `spread[0]` to `spread[1]` (0 canonical, 1 free)."""

    name: str
    steps: int
    mixture: WorldMixture
    lr: float = 2e-3
    lr_end: float = 1.0
    warmup: int = 0
    spread: tuple[float, float] = (1.0, 1.0)

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        along = step / max(self.steps, 1)
        return self.lr * warm * (self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * along)))

    def at(self, step: int) -> WorldMixture:
        """The mixture of a step: placement widens linearly over the phase."""
        low, high = self.spread
        return replace(self.mixture, spread=(0.0, low + (high - low) * step / max(self.steps, 1)))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a training run from scratch.

    draws: noise levels of one target per context. shift: of the training times. dense: weight of the vision tower's
    auxiliary loss. ema: decay of the averaged weights, which are what is exported; short, as the rate ends near zero.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.97)
    max_norm: float = 1.0
    ema: float = 0.95
    draws: int = 4
    shift: float = 1.5
    weights: Weights = field(default_factory=lambda: Weights(text=0.5, flow=1.0))
    dense: float = 0.3

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> tuple[Phase, int]:
        """The phase of a global step and the step inside it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise ValueError("the recipe is over: nothing is left to train")
