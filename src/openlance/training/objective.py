"""The loss of a pack, read from its rows: next token where a label stands, velocity where a latent is denoised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openlance.flow import add_noise, velocity_target
from openlance.model.lance import Cache, Lance, Layout
from openlance.sequence.pack import Pack


@dataclass(frozen=True)
class Noised:
    """What the flow side of a step needs, per latent row.

    Args:
        x: (N, C) latents with their noise.
        target: (N, C) velocities to predict.
        times: (N,) from 0 to 1, 0 where clean.
    """

    x: Tensor
    target: Tensor
    times: Tensor


def noised(pack: Pack, clean_NC: Tensor, times: Tensor, noise_NC: Tensor) -> Noised:
    """Put noise on the latent rows that are denoised.

    Args:
        pack: Says which rows are.
        clean_NC: Latents of all images and videos of the pack.
        times: One per target of the pack, and per noise sample of it.
        noise_NC: Normal noise.
    """
    rows = pack.rows.at(pack.rows.is_latent)
    t = torch.where(rows.denoise.to(times.device), times[rows.target.clamp(min=0)] if len(times) else 0.0, 0.0)
    return Noised(add_noise(clean_NC, noise_NC, t), velocity_target(clean_NC, noise_NC), t)


@dataclass(frozen=True)
class Losses:
    """Losses of a pack.

    Args:
        per_token: (labels,) cross-entropy.
        per_latent: (denoised latents, C) squared errors of the velocity.
    """

    per_token: Tensor
    per_latent: Tensor

    @property
    def text(self) -> Tensor:
        """Mean over all label tokens, 0 without any."""
        return self.per_token.mean() if len(self.per_token) else self.per_token.sum()

    @property
    def flow(self) -> Tensor:
        """Mean over all denoised latents, 0 without any."""
        return self.per_latent.mean() if len(self.per_latent) else self.per_latent.sum()

    def total(self, text: float = 0.25, flow: float = 1.0) -> Tensor:
        """Return the weighted sum (paper: 0.25 : 1 in PT and SFT, 0.5 : 1 in CT)."""
        return text * self.text + flow * self.flow


def objective(
    model: Lance, layout: Layout, noise: Noised | None, patches: Tensor | None, vocabulary: int,
    cache: Cache | None = None,
) -> Losses:  # fmt: skip
    """Run one forward pass and compute both losses.

    Args:
        model: The decoder.
        layout: Of the pack.
        noise: Of its latents, None without any.
        patches: (M, D) tokens of what is looked at, None without any.
        vocabulary: Its effective size; logits beyond it take no part (released code).
        cache: Keys and values of rows that ran before.
    """
    x, times = (noise.x, noise.times) if noise is not None else (None, None)
    und, gen = model(layout, patches=patches, latents=x, times=times, cache=cache)
    label = layout.rows.label[: layout.und]
    where = ((label >= 0) & (label < vocabulary)).nonzero()[:, 0].to(und.device)
    logits = model.logits(und.index_select(0, where))[:, :vocabulary].float()
    per_token = F.cross_entropy(logits, label.to(und.device)[where], reduction="none")
    if noise is None:
        return Losses(per_token, und.new_zeros(0, 1))
    moved = layout.rows.denoise[layout.und :].nonzero()[:, 0].to(gen.device)
    error = model.velocity(gen.index_select(0, moved)).float() - noise.target[moved].float()
    return Losses(per_token, error.square())
