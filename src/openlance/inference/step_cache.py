"""Steps that need no pass through the model: a velocity that hardly changes is continued from earlier ones.

Each document of a batch (a request in one guidance branch) has a state of its own, and decides before the branches are
combined: guidance multiplies their differences, so a velocity that was reused after combining would carry errors that
no branch has. How fast a velocity changes with the state is measured between the last two passes and extrapolated; so
no model needs calibration (EasyCache, arXiv 2507.02860).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# (documents, their states (M, C), their times (M,)), one after another -> their velocities (M, C)
Run = Callable[[tuple[int, ...], Tensor, Tensor], Tensor]


@dataclass
class Memory:
    """One document: the state, time and velocity of its last pass, how much the velocity moved per move of the state
    between its last two passes, and its slope in time there."""

    x: Tensor
    t: float
    velocity: Tensor
    rate: float | None = None
    slope: Tensor | None = None

    def expected(self, x: Tensor) -> float:
        """The relative change of the velocity to expect at another state."""
        if self.rate is None:
            return float("inf")
        return self.rate * _mean(x - self.x) / max(_mean(self.velocity), 1e-12)

    def at(self, t: float) -> Tensor:
        """The velocity at a later time, continued along a line: to hold it would flatten what the next steps of a
        second-order solver build on."""
        return self.velocity if self.slope is None else self.velocity + (t - self.t) * self.slope

    def after(self, x: Tensor, t: float, velocity: Tensor) -> Memory:
        change = velocity - self.velocity
        slope = change / (t - self.t) if t != self.t else None
        return Memory(x, t, velocity, _mean(change) / max(_mean(x - self.x), 1e-12), slope)


def _mean(x: Tensor) -> float:
    return float(x.abs().mean())


class StepCache:
    """Takes the place of the model pass in one denoising run.

    Args:
        run: The pass.
        lengths: Rows of the target of each request; documents are requests, branch after branch.
        threshold: The relative change of a velocity since its last pass up to which no pass is made; 0 makes every one.
    """

    def __init__(self, run: Run, lengths: Sequence[int], threshold: float) -> None:
        self.run, self.lengths, self.threshold = run, lengths, threshold
        self.memory: dict[int, Memory] = {}
        self.passes = self.reused = 0  # documents that ran, and that did not

    def __call__(self, documents: tuple[int, ...], x_MC: Tensor, times_M: Tensor) -> Tensor:
        """Give velocities (M, C) of the target rows of some documents, given frames at time 0."""
        rows = [self.lengths[d % len(self.lengths)] for d in documents]
        states, times = x_MC.split(rows), times_M.split(rows)
        held = [self.memory.get(d) for d in documents]
        due = [n for n, m in enumerate(held) if m is None or m.expected(states[n]) >= self.threshold]
        made: dict[int, Tensor] = {}
        if due:
            ran = tuple(documents[n] for n in due)
            found = self.run(ran, torch.cat([states[n] for n in due]), torch.cat([times[n] for n in due]))
            for n, velocity in zip(due, found.split([rows[n] for n in due]), strict=True):
                before, t = held[n], float(times[n].max())
                now = Memory(states[n], t, velocity) if before is None else before.after(states[n], t, velocity)
                self.memory[documents[n]], made[n] = now, velocity
        self.passes += len(due)
        self.reused += len(documents) - len(due)
        each = [made[n] if n in made else self.memory[d].at(float(times[n].max())) for n, d in enumerate(documents)]
        return torch.cat(each)
