"""What rollouts make and objectives learn from: results, the stochastic steps that led to them, and states at which a
velocity is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openlance.flow.stochastic import Stochastic, means_of_results


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
        log_prob: () of the next state, mean over latent values.
    """

    kind: Stochastic
    t: float
    t_next: float
    x: Tensor
    x_next: Tensor
    mean: Tensor
    log_prob: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """What a rollout made.

    Args:
        clean: (N, C) latents of the target.
        given: (N,) rows that were known, None for none; they are clean at every time.
        moves: (N,) rows that take part in the loss, None for all that were not given. Rows outside of a region do not,
            though they are noised as the others.
        transitions: Its stochastic steps, if any.
    """

    clean: Tensor
    given: Tensor | None = None
    moves: Tensor | None = None
    transitions: tuple[Transition, ...] = ()

    @property
    def free(self) -> Tensor:
        """(N,) rows that were not known."""
        given = self.given if self.given is not None else torch.zeros(len(self.clean), dtype=torch.bool)
        return ~given.to(self.clean.device)

    @property
    def learned(self) -> Tensor:
        """(N,) rows that take part."""
        free = self.free
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
        return torch.where(self.result.free.to(self.x.device), self.t, 0.0)

    @property
    def target(self) -> Tensor:
        """(N, C) the velocity that leads straight to the result: noise - clean."""
        return (self.x - self.result.clean.float()) / self.t


@dataclass(frozen=True, eq=False, kw_only=True)
class Together:
    """Asks of one time and, if any, one kind of step: B of them with M rows that take part, all in one piece.

    Args:
        numbers: (B,) their places among all asks.
        rows: (M,) the places of their rows among those of all asks.
        lengths: Rows of each.
        t: Their time.
        advantage: (B,).
        target: (M, C).
        step: The steps of the rollouts that begin here, as one, with a log-probability for each ask.
    """

    numbers: Tensor
    rows: Tensor
    lengths: list[int]
    t: float
    advantage: Tensor
    target: Tensor
    step: Transition | None

    def mean(self, values_MC: Tensor) -> Tensor:
        """Return (B,) means over the latent values of each ask."""
        return means_of_results(values_MC, self.lengths)


def together(asks: Sequence[Ask], device: torch.device) -> Iterator[Together]:
    """Sort asks by time and kind of step, and bring them to the device, wherever results were kept."""
    places = dict[object, list[int]]()
    for n, ask in enumerate(asks):
        step = ask.transition
        places.setdefault((ask.t, step and (step.kind, step.t_next)), []).append(n)
    rows = torch.arange(sum(len(ask.x) for ask in asks)).split([len(ask.x) for ask in asks])
    for numbers in places.values():
        yield _joined([asks[n] for n in numbers], numbers, [rows[n] for n in numbers], device)


def _joined(asks: list[Ask], numbers: list[int], rows: list[Tensor], device: torch.device) -> Together:
    learned = [ask.result.learned for ask in asks]

    def joined(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([part[where.to(part.device)] for part, where in zip(parts, learned)]).to(device)

    steps = [ask.transition for ask in asks if ask.transition is not None]
    step = steps and replace(
        steps[0],
        x=joined(s.x for s in steps),
        x_next=joined(s.x_next for s in steps),
        mean=joined(s.mean for s in steps),
        log_prob=torch.stack([s.log_prob for s in steps]).to(device),
    )
    return Together(
        numbers=torch.tensor(numbers, device=device),
        rows=joined(rows),
        lengths=[int(where.sum()) for where in learned],
        t=asks[0].t,
        advantage=torch.tensor([ask.advantage for ask in asks], device=device),
        target=joined(ask.target for ask in asks),
        step=step or None,
    )
