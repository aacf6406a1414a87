"""The loss of a pack, read from its rows: next token where a label stands, velocity where a latent is denoised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from openlance.flow import add_noise, velocity_target
from openlance.model.lance import Cache, Lance, Layout
from openlance.model.lora import without_updates
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


@dataclass(frozen=True)
class Pass:
    """One forward pass over a pack.

    Args:
        layout: Of the pack.
        noise: Of its latents, None without any.
        patches: (M, D) tokens of what is looked at, None without any.
        vocabulary: Its effective size; logits beyond it take no part (released code).
        cache: Keys and values of rows that ran before.
    """

    layout: Layout
    noise: Noised | None
    patches: Tensor | None
    vocabulary: int
    cache: Cache | None = None

    @cached_property
    def labeled(self) -> Tensor:
        """Numbers of the understanding rows that have a label."""
        label = self.layout.rows.label[: self.layout.und]
        return ((label >= 0) & (label < self.vocabulary)).nonzero()[:, 0]

    @cached_property
    def moved(self) -> Tensor:
        """Numbers of the latent rows that are denoised."""
        return self.layout.rows.denoise[self.layout.und :].nonzero()[:, 0]

    def predicted(self, model: Lance) -> tuple[Tensor, Tensor]:
        """Give the logits (labels, vocabulary) and velocities (denoised latents, C) of a decoder, in float32."""
        x, times = (self.noise.x, self.noise.times) if self.noise is not None else (None, None)
        und, gen = model(self.layout, patches=self.patches, latents=x, times=times, cache=self.cache)
        logits = model.logits(und.index_select(0, self.labeled.to(und.device)))[:, : self.vocabulary].float()
        if self.noise is None:
            return logits, und.new_zeros(0, 1)
        return logits, model.velocity(gen.index_select(0, self.moved.to(gen.device))).float()


def objective(model: Lance, one: Pass, preserved: Tensor | None = None) -> Losses:
    """Run one forward pass and compute both losses.

    Args:
        model: The decoder.
        one: The pass.
        preserved: (documents,) bool, those whose samples say nothing of what is right: there the decoder is to predict
            what it does without its adapter (square of the velocities' difference, Kullback-Leibler of the logits);
            None for none.
    """
    logits, velocities = one.predicted(model)
    rows, device = one.layout.rows, logits.device
    labels = rows.label[one.labeled].to(device)
    target = velocities if one.noise is None else one.noise.target[one.moved.to(velocities.device)].float()
    per_token = F.cross_entropy(logits, labels, reduction="none")
    if preserved is not None:
        with torch.no_grad(), without_updates(model):
            before, kept = one.predicted(model)
        apart = F.kl_div(logits.log_softmax(-1), before.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        per_token = torch.where(preserved[rows.doc[one.labeled]].to(device), apart, per_token)
        there = preserved[rows.doc[one.layout.und :][one.moved]].to(device)
        target = target if one.noise is None else torch.where(there[:, None], kept, target)
    return Losses(per_token, (velocities - target).square())
