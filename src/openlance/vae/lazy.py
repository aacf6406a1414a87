"""The parts of the VAE that a run needs, each loaded when it is first needed; and how pixels and latents lie on both
sides of it (axes as in `vae.autoencoder`).

Text-to-image reads the 2-D decoder alone, an edit of an image both 2-D halves, image-to-video those of videos, a
question nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from openlance.checkpoint.tensors import TensorSource
from openlance.config.model import VAEConfig
from openlance.model.precision import HALVES, fast_bfloat16
from openlance.vae.frames import FrameVAE, NormalizedVAE


def to_signed(pixels_FHW3: Tensor) -> Tensor:
    """Turn uint8 (F, H, W, 3) into float32 (3, F, H, W) in [-1, 1]."""
    return (pixels_FHW3.permute(3, 0, 1, 2).float() / 255.0 - 0.5) / 0.5


def to_uint8(pixels_3FHW: Tensor) -> Tensor:
    """Turn (3, F, H, W) in [-1, 1] into uint8 (F, H, W, 3), rounded as the release writes its files."""
    scaled = (pixels_3FHW.float().clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0)


def channels_last(z_CTYX: Tensor) -> Tensor:
    """Turn (..., C, T, Y, X) into (..., T, Y, X, C), the layout in which the model reads latents."""
    return z_CTYX.movedim(-4, -1)


def channels_first(z_TYXC: Tensor) -> Tensor:
    """Turn (..., T, Y, X, C) into (..., C, T, Y, X), the layout of the VAE."""
    return z_TYXC.movedim(-1, -4)


class LazyVAE:
    """The halves of the VAE that are used, over a weight file or its tensors. A file is opened at the first call, so
    errors come then.

    Images and videos have each a network of their own, so that what an image becomes never depends on what was asked
    before.

    Args:
        weights: A file, or tensors under released names.
        config: Sizes of the network.
        allow_pickle: Whether the file may be a pickle.
        dtype: Of the weights. On a CPU that only emulates it they are rounded to it and then held in float32:
            convolutions read few numbers many times, so that widening them at every use would cost more than the
            memory is worth.
        device: Where the halves are loaded.
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
        self.dtype, self.device = dtype, torch.device(device)
        self._allow_pickle = allow_pickle
        self._halves: dict[tuple[str, bool], NormalizedVAE] = {}

    def to(self, device: torch.device | str) -> LazyVAE:
        """Make the same VAE on a device."""
        return LazyVAE(self.weights, self.config, allow_pickle=self._allow_pickle, dtype=self.dtype, device=device)

    @torch.no_grad()
    def encode(self, pixels_CFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels to normalized mean and log-variance; see `NormalizedVAE.encode`."""
        return self._half("encoder", pixels_CFHW).encode(pixels_CFHW)

    @torch.no_grad()
    def decode(self, z_CTYX: Tensor) -> Tensor:
        """Decode normalized latents to pixels in [-1, 1]; see `NormalizedVAE.decode`."""
        return self._half("decoder", z_CTYX).decode(z_CTYX)

    @torch.no_grad()
    def decode_steps(self, z_CTYX: Tensor) -> Iterator[Tensor]:
        """Decode some frames at a time; see `NormalizedVAE.decode_steps`."""
        yield from self._half("decoder", z_CTYX).decode_steps(z_CTYX)

    def _half(self, part: str, x_CFYX: Tensor) -> NormalizedVAE:
        """The half for images or, where there is more than one frame, for videos."""
        still = x_CFYX.shape[-3] == 1
        if (part, still) not in self._halves:
            form: type[NormalizedVAE] = FrameVAE
            if not still:
                from openlance.vae.autoencoder import VAE as form
            half = form.load(
                self.weights, self.config, parts=(part,), allow_pickle=self._allow_pickle, dtype=self.dtype,
                device=self.device,
            )  # fmt: skip
            wide = self.dtype in HALVES and not fast_bfloat16(self.device)
            self._halves[part, still] = (half.float() if wide else half).eval()
        return self._halves[part, still]
