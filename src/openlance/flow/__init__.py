"""Flow matching as pure functions. t = 1 is noise, t = 0 is the clean latent; the model predicts noise - clean."""

from __future__ import annotations

import torch
from torch import Tensor


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
