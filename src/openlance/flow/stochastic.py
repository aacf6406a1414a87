"""Stochastic steps of the flow: from a state and its velocity to a normal distribution of the next state.

    step = STOCHASTIC["sde"](noise=0.7)
    moments = step.moments(x, velocity, t, t_next)
    x_next = moments.draw(noise)
    log_probs = step.log_prob(x_next, moments, lengths)

As everywhere in `flow`, t = 1 is noise, t = 0 is clean, x_t = (1 - t) clean + t noise, the velocity is noise - clean,
and a step goes from t to t_next < t. Every kind of step is linear in the state and its velocity, so that a kind is one
function of two times; what is drawn, how likely it is and which steps are stochastic are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from openlance.config.values import within
from openlance.errors import UserError


class Coefficients(NamedTuple):
    """The mean of the next state is `state` x + `velocity` v, its standard deviation is `std`."""

    state: float
    velocity: float
    std: float


class Moments(NamedTuple):
    """The distribution of the next state.

    Args:
        mean: (N, C).
        std: Of every value.
    """

    mean: Tensor
    std: float

    def draw(self, noise_NC: Tensor) -> Tensor:
        """Return the next state (N, C) that standard normal noise leads to."""
        return self.mean + self.std * noise_NC


def means_of_results(values_NC: Tensor, lengths: Sequence[int], moves_N: Tensor | None = None) -> Tensor:
    """Average the latent values of each result.

    Args:
        values_NC: Rows of all results, one result after another.
        lengths: Rows of each.
        moves_N: Which rows take part; those that are given (first frames, what lies outside of a region) do not. None
            if all do.

    Returns:
        (B,) float32; a result in a batch has the very number that it has alone.

    Raises:
        ValueError: If a result has no row that takes part.
    """
    if sum(lengths) != len(values_NC):
        raise ValueError(f"results of {sum(lengths)} rows do not fit {len(values_NC)} rows")
    counts = torch.tensor(lengths, device=values_NC.device)
    owner = torch.arange(len(lengths), device=values_NC.device).repeat_interleave(counts)
    if moves_N is not None:
        moves_N = moves_N.to(values_NC.device)
        owner, values_NC = owner[moves_N], values_NC[moves_N]
        counts = torch.bincount(owner, minlength=len(lengths))
    if not counts.all():
        raise ValueError(f"result {int(counts.argmin())} has no row that moves: leave it out")
    # Ratios are near 1 by as little as 1e-5, so the sum over rows is exact to float32 whatever their number and order.
    rows = values_NC.float().mean(1).double()
    return (rows.new_zeros(len(lengths)).index_add(0, owner, rows) / counts).float()


@dataclass(frozen=True, kw_only=True)
class Stochastic:
    """A kind of stochastic step.

    Args:
        noise: Its level; 0 is the deterministic Euler step.
    """

    noise: float

    def __post_init__(self) -> None:
        within("noise", self.noise, 0)

    def coefficients(self, t: float, t_next: float) -> Coefficients:
        raise NotImplementedError

    def moments(self, x_NC: Tensor, velocity_NC: Tensor, t: float, t_next: float) -> Moments:
        """Return the distribution of the state at `t_next`, in float32."""
        state, velocity, std = self.coefficients(t, t_next)
        return Moments(state * x_NC.float() + velocity * velocity_NC.float(), std)

    def log_prob(
        self, x_next_NC: Tensor, moments: Moments, lengths: Sequence[int], moves_N: Tensor | None = None
    ) -> Tensor:
        """Return how likely each result's next state is: (B,) float32 log-densities, mean over its latent values.

        The mean, not the sum, is what Flow-GRPO's code takes, so that it does not depend on the size of a result, and
        ratios of two of them are near 1.

        Args:
            x_next_NC: States of all results, one after another.
            moments: Their distributions.
            lengths: Rows of each result.
            moves_N: See `means_of_results`.

        Raises:
            ValueError: If the step is deterministic.
        """
        if moments.std <= 0:
            raise ValueError("a step without noise has no log-probability: leave it out of the window")
        squares = means_of_results((x_next_NC.float() - moments.mean).square(), lengths, moves_N)
        return self._log_density(squares, moments.std)

    def _log_density(self, squares_B: Tensor, std: float) -> Tensor:
        return -squares_B / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class SDE(Stochastic):
    """The SDE of Flow-GRPO (Liu et al., 2025, arXiv 2505.05470, and sd3_sde_with_logprob.py of its code), with the
    marginals of the flow in small steps. Its noise per root of time is `noise` * sqrt(t / (1 - t))."""

    noise: float = 0.7

    def coefficients(self, t: float, t_next: float) -> Coefficients:
        g, dt = self.diffusion(t, t_next), t - t_next
        pull = g**2 * dt / (2 * t)  # towards the data, along the score -(x + (1 - t) v) / t
        return Coefficients(1 - pull, -dt - pull * (1 - t), g * math.sqrt(dt))

    def diffusion(self, t: float, t_next: float) -> float:
        """Noise per root of time. At t = 1, where it is infinite, the next time takes the place of t in the divisor:
        in the code it is the second time of the schedule, which is the same."""
        return self.noise * math.sqrt(t / (1 - (t if t < 1 else t_next)))


@dataclass(frozen=True, kw_only=True)
class ConstantSDE(SDE):
    """The same SDE with constant noise per root of time, as DanceGRPO has it (Xue et al., 2025, arXiv 2505.07818)."""

    noise: float = 0.3

    def diffusion(self, t: float, t_next: float) -> float:
        return self.noise


@dataclass(frozen=True, kw_only=True)
class CPS(Stochastic):
    """Coefficient-preserving sampling (arXiv 2509.05952).

    The clean latents keep the coefficient 1 - t_next, and old and fresh noise together t_next, so that no result is
    noisier than its time says. Fresh is a share sin(`noise` * pi / 2) of it, however small the step: the marginals are
    not the flow's, in any number of steps.

    Its log-probability has no constants, 1 / (2 std^2) among them (code of the paper), so that late steps, of small
    noise, do not outweigh the others.
    """

    noise: float = 0.8

    def __post_init__(self) -> None:
        within("noise", self.noise, 0, 1)

    def coefficients(self, t: float, t_next: float) -> Coefficients:
        share = self.noise * math.pi / 2
        old = t_next * math.cos(share)
        # Clean latents x - t v and noise x + (1 - t) v are what the velocity says of a state.
        return Coefficients(1 - t_next + old, -t * (1 - t_next) + old * (1 - t), t_next * math.sin(share))

    def _log_density(self, squares_B: Tensor, std: float) -> Tensor:
        return -squares_B


STOCHASTIC: dict[str, type[SDE] | type[CPS]] = {"sde": SDE, "dance": ConstantSDE, "cps": CPS}


class Window(Protocol):
    """Which steps of a schedule are stochastic. The last never is: what it adds stays in the image."""

    def steps(self, count: int, round: int) -> range:
        """Return the stochastic ones, numbers from 0.

        Args:
            count: Steps of the schedule.
            round: Of training, from 0.

        Raises:
            UserError: If the window does not fit the schedule.
        """


@dataclass(frozen=True, kw_only=True)
class AllButLast:
    """Flow-GRPO's."""

    def steps(self, count: int, round: int) -> range:
        _fits(1, count - 1, count)
        return range(count - 1)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A stretch of steps that is drawn anew in every round (Flow-GRPO-Fast).

    Args:
        size: Steps of the stretch.
        share: Of the schedule, from its noisy end, in which it lies.
        seed: Decides with the round where.
    """

    size: int = 2
    share: float = 0.5
    seed: int = 0

    def steps(self, count: int, round: int) -> range:
        most = min(math.ceil(count * self.share), count - 1)
        _fits(self.size, most, count)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + round)
        first = int(torch.randint(most - self.size + 1, (), generator=generator))
        return range(first, first + self.size)


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """A stretch that moves towards the image, and begins again at its end (MixGRPO, Li et al., 2025, arXiv
    2507.21802: 4 of 25 steps, by 1 every 25 updates).

    Args:
        size: Steps of the stretch.
        every: Rounds between two moves by one step.
    """

    size: int = 4
    every: int = 25

    def steps(self, count: int, round: int) -> range:
        _fits(self.size, count - 1, count)
        first = round // self.every % (count - self.size)
        return range(first, first + self.size)


WINDOWS: dict[str, type[AllButLast] | type[Drawn] | type[Sliding]] = {
    "all": AllButLast, "drawn": Drawn, "sliding": Sliding,
}  # fmt: skip


def _fits(size: int, most: int, count: int) -> None:
    if not 1 <= size <= most:
        raise UserError(
            f"a window of {size} stochastic steps does not fit a schedule of {count}, of which {max(most, 0)} can be "
            "stochastic: set another size, or more steps"
        )
