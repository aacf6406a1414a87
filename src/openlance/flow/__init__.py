"""Flow matching: pure functions, and the solvers of the sampling flow. t = 1 is noise, t = 0 is the clean latent; the
model predicts noise - clean.

    solver = SOLVERS["dpm++"]()
    for t, t_next in zip(times, times[1:]):
        x = solver.step(x, velocity(x, t), t, t_next)

A solver takes one velocity per step, remembers what its order needs, and gives the next state. It works number by
number, so that every latent of a batch goes its own way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from openlance.flow.multistep import clean_of, corrector_weights, extrapolated, log_ratio, straight


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise: s t / (1 + (s - 1) t) (released code; s = 4 in training, 3.5 in sampling)."""
    return shift * t / (1 + (shift - 1) * t)


def draw_times(n: int, shift: float, generator: torch.Generator | None = None) -> Tensor:
    """(n,) training times in (0, 1): logit-normal, then shifted (released code)."""
    return shift_times(torch.sigmoid(torch.randn(n, generator=generator)), shift)


def schedule(steps: int, shift: float) -> Tensor:
    """(steps + 1,) decreasing times from 1 to 0 of the Euler sampler (released code)."""
    if steps < 1:
        raise ValueError(f"{steps} steps cannot denoise anything: pass num_inference_steps of 1 or more")
    return shift_times(torch.linspace(1, 0, steps + 1), shift)


def add_noise(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) clean + t noise; t broadcasts over the channels: (N,) for (N, C)."""
    return torch.lerp(clean, noise, t[:, None].to(clean))


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    return noise - clean


def euler(x: Tensor, velocity: Tensor, t: Tensor | float, t_next: Tensor | float) -> Tensor:
    return x - velocity * (t - t_next)


class Solver(Protocol):
    def step(self, x: Tensor, velocity: Tensor, t: float, t_next: float) -> Tensor:
        """The state at t_next < t, from the state at t and its velocity (noise - clean)."""

    def restart(self) -> None:
        """Forget the past: the velocity is about to jump, as where guidance begins or ends."""


class Euler:
    """The released sampler."""

    def step(self, x: Tensor, velocity: Tensor, t: float, t_next: float) -> Tensor:
        return euler(x, velocity, t, t_next)

    def restart(self) -> None:
        pass


class DPM:
    """DPM-Solver++ 2M; with order 1 it is Euler's."""

    def __init__(self, order: int = 2) -> None:
        self.order = order
        self.past: tuple[float, Tensor] | None = None  # time and clean latents of the step before

    def step(self, x: Tensor, velocity: Tensor, t: float, t_next: float) -> Tensor:
        clean = clean_of(x, velocity, t)
        ahead = clean
        if self.past is not None and self.order > 1:
            ahead = extrapolated(clean, self.past[1], self.past[0], t, t_next)
        self.past = t, clean
        return straight(x, ahead, t, t_next)

    def restart(self) -> None:
        self.past = None


class UniPC(DPM):
    """The predictor is DPM-Solver++ 2M; each new velocity first corrects the state it was taken at, at no cost."""

    def __init__(self, order: int = 2) -> None:
        super().__init__(order)
        self.left: tuple[float, Tensor, float | None, Tensor | None] | None = None

    def step(self, x: Tensor, velocity: Tensor, t: float, t_next: float) -> Tensor:
        if self.left is not None and self.order > 1:
            x_corrected = self._corrected(clean_of(x, velocity, t), t)
            velocity = velocity + (x_corrected - x) / t  # the clean latents stay those of the evaluation
            x = x_corrected
        t_before, before = self.past or (None, None)
        self.left = t, x, t_before, before
        return super().step(x, velocity, t, t_next)

    def _corrected(self, clean: Tensor, t: float) -> Tensor:
        """The state at t once more from the step before, now that the clean latents at t are known."""
        assert self.left is not None and self.past is not None
        t_from, x_from, t_before, before = self.left
        start = self.past[1]
        h = log_ratio(t) - log_ratio(t_from)
        h_before = None if t_before is None else log_ratio(t_from) - log_ratio(t_before)
        earlier, newest = corrector_weights(h, h_before)
        mixed = start + newest * (clean - start)
        if before is not None and h_before is not None and earlier:
            mixed = mixed + (earlier * h / h_before) * (start - before)
        return straight(x_from, mixed, t_from, t)

    def restart(self) -> None:
        super().restart()
        self.left = None


SOLVERS: dict[str, type[Euler] | type[DPM]] = {"euler": Euler, "dpm++": DPM, "unipc": UniPC}
