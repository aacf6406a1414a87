"""Training on pictures: both halves of Wan's VAE in two dimensions, and the way back to the VAE for clips.

`to_vae()` puts the taps of the present frame back where they belong; tests hold both equal.

Axes: B batch, C channels, Y X latent rows and columns, H W those of the pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from openlance.config.model import VAEConfig
from openlance.vae.autoencoder import VAE
from openlance.vae.frames import Frames


class PictureVAE(Frames):
    """Pictures to latents and back. Pixels lie in [-1, 1]; latents are not normalised."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self._start_gently()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def _start_gently(self) -> None:
        """Residual branches start near zero, so that pixels reach the output over the shortcuts; latents start near
        unit deviation and nearly without posterior noise."""
        for name, module in self.named_modules():
            if name.endswith(("conv2", "proj")):
                module.weight.mul_(0.1)
        self.quant_conv.weight[: self.config.z_dim].mul_(5.0)
        self.quant_conv.get_parameter("bias")[self.config.z_dim :].fill_(-5.0)

    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, each (B, C, Y, X)."""
        mean, logvar = self.moments(pixels_BCHW)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z_BCYX: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), not clamped."""
        return self.pixels(z_BCYX)

    def to_vae(self, mean: Tensor, std: Tensor) -> VAE:
        """The VAE for pictures and clips with these weights; mean and std of the latents, (C,), normalise.

        Of each kernel the earlier taps are zero and temporal resamplers keep or repeat the newest frame, so that clips
        start from what pictures taught.
        """
        vae = VAE(replace(self.config, mean=tuple(mean.tolist()), std=tuple(std.tolist())))
        flat, state = self.state_dict(), {}
        for name, value in vae.wan.state_dict().items():
            state[name] = torch.zeros_like(value)
            if ".time_conv." not in name:
                target = state[name][:, :, -1] if value.ndim == 5 else state[name]
                target.copy_(flat[name].reshape(target.shape))
            elif value.ndim == 5:
                state[name][:, :, -1, 0, 0] = torch.eye(value.shape[1]).repeat(value.shape[0] // value.shape[1], 1)
        vae.wan.load_state_dict(state)
        return vae.eval()
