"""Clips to clean latents: the codec, frozen, right before the forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from openlance.media.clip import Clip
from openlance.model.precision import autocast
from openlance.model.vae import channels_last, to_signed
from openlance.model.vae_lazy import LazyVAE

PIXELS = 1 << 22  # of all frames that go through the encoder together: bounds its memory


class Encoder:
    """Clips, or latents (T, Y, X, C) that were encoded before, to (N, C) each. Clips of one size share passes; one
    that several segments hold runs once; surplus frames beyond 1 + k * temporal stride are cut (released code).

    dtype: inside, as a stage names it.
    """

    def __init__(self, vae: LazyVAE, dtype: str = "float32") -> None:
        self.vae, self.dtype = vae, dtype

    @torch.no_grad()
    def __call__(self, values: list[Any]) -> list[Tensor]:
        found: dict[int, Tensor] = {id(v): _latents(v) for v in values if not isinstance(v, Clip)}
        by_size: dict[tuple[int, ...], dict[int, Clip]] = {}
        for value in values:
            if isinstance(value, Clip):
                by_size.setdefault(value.pixels.shape, {})[id(value)] = value
        for shape, group in by_size.items():
            keys, clips, most = list(group), list(group.values()), max(1, PIXELS // int(np.prod(shape[:3])))
            for at in range(0, len(clips), most):
                found |= zip(keys[at : at + most], self._encode(clips[at : at + most]), strict=True)
        return [found[id(v)] for v in values]

    def _encode(self, clips: list[Clip]) -> Tensor:
        stride = self.vae.config.temporal_stride
        frames = (clips[0].frames - 1) // stride * stride + 1
        pixels = torch.stack([to_signed(pixels_of(clip)[:frames]) for clip in clips])
        device = self.vae.device
        with autocast(self.dtype, device):
            mean, _ = self.vae.encode(pixels.to(device))
        return channels_last(mean.float()).flatten(1, 3)


def _latents(value: Any) -> Tensor:
    return torch.as_tensor(value).float().flatten(0, 2)


def pixels_of(clip: Clip) -> Tensor:
    """uint8 (T, H, W, 3). torch has no read-only tensors, so pixels that may not be written to are copied."""
    return torch.from_numpy(np.require(clip.pixels, requirements=("C", "W")))
