"""The loss of a pack, read from its rows: next token where a label stands, velocity where a latent is denoised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openlance.flow import add_noise, velocity_target
from openlance.model.lance import Lance, Layout
from openlance.sequence.pack import Pack


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Shares of the two losses (paper: 0.25 : 1 in PT and SFT, 0.5 : 1 in CT)."""

    text: float = 0.25
    flow: float = 1.0


@dataclass(frozen=True)
class Noised:
    """What the flow side of a step needs, per latent row. x, target: (N, C); times: (N,), 0 where clean."""

    x: Tensor
    target: Tensor
    times: Tensor


def noised(pack: Pack, clean_NC: Tensor, times: Tensor, noise_NC: Tensor) -> Noised:
    """Put noise on the latent rows that are denoised. times: one per visual target of the pack."""
    rows = pack.rows.at(pack.rows.is_latent)
    t = torch.where(rows.denoise.to(times.device), times[rows.target.clamp(min=0)] if len(times) else 0.0, 0.0)
    return Noised(add_noise(clean_NC, noise_NC, t), velocity_target(clean_NC, noise_NC), t)


@dataclass(frozen=True)
class Losses:
    """Means over all label tokens and over all denoised latents of a pack; per-row values beside them."""

    text: Tensor
    flow: Tensor
    per_token: Tensor  # (n labels,)
    per_latent: Tensor  # (n denoised, C)

    def total(self, weights: Weights) -> Tensor:
        return weights.text * self.text + weights.flow * self.flow


def objective(model: Lance, layout: Layout, noise: Noised | None, patches: Tensor | None, vocabulary: int) -> Losses:
    """One forward and both losses. `vocabulary`: effective size, logits beyond it take no part (released code)."""
    x, times = (noise.x, noise.times) if noise is not None else (None, None)
    und, gen = model(layout, patches=patches, latents=x, times=times)
    label = layout.rows.label[: layout.und]
    where = ((label >= 0) & (label < vocabulary)).nonzero()[:, 0].to(und.device)
    logits = model.logits(und.index_select(0, where))[:, :vocabulary].float()
    per_token = F.cross_entropy(logits, label.to(und.device)[where], reduction="none")
    zero = und.new_zeros(())
    if noise is None:
        return Losses(per_token.mean() if len(where) else zero, zero, per_token, und.new_zeros(0, 1))
    moved = layout.rows.denoise[layout.und :].nonzero()[:, 0].to(gen.device)
    error = model.velocity(gen.index_select(0, moved)).float() - noise.target[moved].float()
    per_latent = error.square()
    flow = per_latent.mean() if len(moved) else zero
    return Losses(per_token.mean() if len(where) else zero, flow, per_token, per_latent)
