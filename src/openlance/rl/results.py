"""What rollouts make and objectives learn from: results, the stochastic steps that led to them, and states at which a
velocity is wanted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openlance.flow.stochastic import Stochastic


@dataclass(frozen=True, eq=False, kw_only=True)
class Transition:
    """One stochastic step of a rollout.

    Args:
        kind: Of the step.
        t: Its time.
        t_next: That of the next state.
        x: (N, C) the state.
        x_next: (N, C) the next state that was drawn.
        mean: (N, C) of its distribution.
        log_prob: Of the next state, mean over latent values.
    """

    kind: Stochastic
    t: float
    t_next: float
    x: Tensor
    x_next: Tensor
    mean: Tensor
    log_prob: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """What a rollout made.

    Args:
        clean: (N, C) latents of the target.
        given: Leading rows that were known; they are clean at every time.
        moves: (N,) rows that take part in the loss, None for all that were not given. Rows outside of a region do not,
            though they are noised as the others.
        transitions: Its stochastic steps, if any.
    """

    clean: Tensor
    given: int = 0
    moves: Tensor | None = None
    transitions: tuple[Transition, ...] = ()

    @property
    def learned(self) -> Tensor:
        """(N,) rows that take part."""
        free = torch.arange(len(self.clean), device=self.clean.device) >= self.given
        return free if self.moves is None else free & self.moves.to(free.device)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ask:
    """A state at which the velocity is wanted.

    Args:
        result: To which it belongs.
        advantage: Of that.
        x: (N, C) the state.
        t: Its time.
        transition: The step of the rollout that begins here, if any.
    """

    result: Result
    advantage: float
    x: Tensor
    t: float
    transition: Transition | None = None

    @property
    def times(self) -> Tensor:
        """(N,) times of the rows, 0 of those that are given."""
        rows = torch.arange(len(self.x), device=self.x.device)
        return torch.where(rows >= self.result.given, self.t, 0.0)

    @property
    def target(self) -> Tensor:
        """(N, C) the velocity that leads straight to the result: noise - clean."""
        return (self.x - self.result.clean.float()) / self.t
