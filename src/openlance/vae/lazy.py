"""The parts of the VAE that a run needs, each loaded when it is first needed; and how pixels and latents lie on both
sides of it (axes as in `vae.autoencoder`).

Text-to-image reads the 2-D decoder alone, an edit of a picture both 2-D halves, image-to-video those of clips, a
question nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openlance.checkpoint.tensors import TensorSource
from openlance.config.model import VAEConfig
from openlance.model.precision import HALVES, M, fast_bfloat16
from openlance.vae.frames import FrameVAE

if TYPE_CHECKING:
    from openlance.vae.autoencoder import VAE


def to_signed(pixels_FHW3: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> float32 (3, F, H, W) in [-1, 1]."""
    return (pixels_FHW3.permute(3, 0, 1, 2).float() / 255.0 - 0.5) / 0.5


def to_uint8(pixels_3FHW: Tensor) -> Tensor:
    """(3, F, H, W) in [-1, 1] -> uint8 (F, H, W, 3), rounded as the release writes its files."""
    scaled = (pixels_3FHW.float().clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0)


def channels_last(z_CTYX: Tensor) -> Tensor:
    """(..., C, T, Y, X) -> (..., T, Y, X, C), the layout in which the model reads latents."""
    return z_CTYX.movedim(-4, -1)


def channels_first(z_TYXC: Tensor) -> Tensor:
    """(..., T, Y, X, C) -> (..., C, T, Y, X), the layout of the codec."""
    return z_TYXC.movedim(-1, -4)


class LazyVAE:
    """encode and decode of VAE over a weight file, or over its tensors. A file is opened at the first call, so errors
    come then.

    Pictures and clips have each a form of their own, so that what a picture becomes never depends on what was asked
    before.

    dtype: of the weights. On a CPU that only emulates it they are rounded to it and then held in float32: convolutions
    read few numbers many times, so that widening them at every use would cost more than the memory is worth.
    """

    def __init__(
        self,
        weights: str | Path | TensorSource,
        config: VAEConfig,
        *,
        allow_pickle: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.weights, self.config = weights, config
        self._settings: dict[str, Any] = {"allow_pickle": allow_pickle, "dtype": dtype, "device": device}

    @property
    def device(self) -> torch.device:
        return torch.device(self._settings["device"])

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are rounded to."""
        return self._settings["dtype"]

    def to(self, device: torch.device | str) -> LazyVAE:
        """The same codec on a device."""
        return LazyVAE(self.weights, self.config, **self._settings | {"device": device})

    @torch.no_grad()
    def encode(self, pixels_CFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (3, F, H, W) in [-1, 1] or a batch -> normalised mean and log-variance, each (C, T, Y, X)."""
        return (self._frame_encoder if pixels_CFHW.shape[-3] == 1 else self._encoder).encode(pixels_CFHW)

    @torch.no_grad()
    def decode(self, z_CTYX: Tensor) -> Tensor:
        """Normalised latents (C, T, Y, X) or a batch -> pixels (3, F, H, W) in [-1, 1] or a batch."""
        return (self._frame_decoder if z_CTYX.shape[-3] == 1 else self._decoder).decode(z_CTYX)

    @torch.no_grad()
    def decode_steps(self, z_CTYX: Tensor) -> Iterator[Tensor]:
        """What `decode` gives, some frames at a time; see `VAE.decode_steps`."""
        if z_CTYX.shape[-3] == 1:
            yield self.decode(z_CTYX)
        else:
            yield from self._decoder.decode_steps(z_CTYX)

    @cached_property
    def _encoder(self) -> VAE:
        from openlance.vae.autoencoder import VAE

        return self._ready(VAE.load(self.weights, self.config, parts=("encoder",), **self._settings))

    @cached_property
    def _decoder(self) -> VAE:
        from openlance.vae.autoencoder import VAE

        return self._ready(VAE.load(self.weights, self.config, parts=("decoder",), **self._settings))

    @cached_property
    def _frame_encoder(self) -> FrameVAE:
        return self._ready(FrameVAE.load(self.weights, self.config, parts=("encoder",), **self._settings))

    @cached_property
    def _frame_decoder(self) -> FrameVAE:
        return self._ready(FrameVAE.load(self.weights, self.config, parts=("decoder",), **self._settings))

    def _ready(self, half: M) -> M:
        wide = self.dtype in HALVES and not fast_bfloat16(self.device)
        return (half.float() if wide else half).eval()
