"""Both halves of Wan's VAE for single frames, in two dimensions: what training on pictures needs, and about three times
cheaper than diffusers' modules on a CPU.

On one frame only the last temporal tap of a causal kernel meets anything but zeros and the temporal resamplers wait, so
the network is an ordinary 2-D one, with the decoder that `model.wan_frames` shows pictures with. `to_vae()` puts the
taps back where they belong; tests hold both equal.

Axes: B batch, C channels, Y X latent rows and columns, H W those of the pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.config.model import VAEConfig
from openlance.model.vae import VAE
from openlance.model.wan_frames import Decoder, Middle, Norm, Residual


class Downsampler(nn.Module):
    """Halves both sides; the padding is below and to the right (released code)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.resample(x_BCYX)


class DownLevel(nn.Module):
    """The residual blocks of one resolution and the step to the next, with a shortcut that only averages."""

    def __init__(self, inputs: int, outputs: int, blocks: int, down: bool, temporal: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Residual(inputs if i == 0 else outputs, outputs) for i in range(blocks)])
        self.downsampler = Downsampler(outputs) if down else None
        self.outputs, self.factor, self.frames = outputs, 2 if down else 1, 2 if temporal else 1

    def forward(self, x_BCYX: Tensor) -> Tensor:
        y_BCYX = x_BCYX
        for block in self.resnets:
            y_BCYX = block(y_BCYX)
        if self.downsampler is not None:
            y_BCYX = self.downsampler(y_BCYX)
        return y_BCYX + self._shortcut(x_BCYX)

    def _shortcut(self, x_BCYX: Tensor) -> Tensor:
        """Pixels become channels, which are averaged in groups; a missing earlier frame counts as zeros."""
        (b, c, y, x), s = x_BCYX.shape, self.factor
        cells = x_BCYX.reshape(b, c, 1, y // s, s, x // s, s).permute(0, 1, 2, 4, 6, 3, 5)
        if self.frames > 1:
            cells = torch.cat([torch.zeros_like(cells), cells], dim=2)
        return cells.reshape(b, self.outputs, -1, y // s, x // s).mean(2)


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in (1, *config.dim_mult)]
        steps = (*config.temporal_downsample, None)  # the last level is not followed by a step
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownLevel(inputs, outputs, config.num_res_blocks, down=temporal is not None, temporal=bool(temporal))
            for inputs, outputs, temporal in zip(widths, widths[1:], steps, strict=False)
        )
        self.mid_block = Middle(widths[-1])
        self.norm_out, self.conv_out = Norm(widths[-1]), nn.Conv2d(widths[-1], 2 * config.z_dim, 3, padding=1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        x_BCYX = self.conv_in(x_BCYX)
        for level in self.down_blocks:
            x_BCYX = level(x_BCYX)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x_BCYX))))


class FrameCodec(nn.Module):
    """Pictures to latents and back. Pixels lie in [-1, 1]; latents are not normalised."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.quant_conv = Encoder(config), nn.Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.decoder, self.post_quant_conv = Decoder(config), nn.Conv2d(config.z_dim, config.z_dim, 1)
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
        p = self.config.patch_size
        b, c, h, w = pixels_BCHW.shape
        cells = pixels_BCHW.reshape(b, c, h // p, p, w // p, p).permute(0, 1, 5, 3, 2, 4)  # colour, column, row
        x_BCYX = cells.reshape(b, c * p * p, h // p, w // p).contiguous(memory_format=torch.channels_last)
        mean, logvar = self.quant_conv(self.encoder(x_BCYX)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z_BCYX: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), not clamped."""
        p = self.config.patch_size
        x_BCYX = self.decoder(self.post_quant_conv(z_BCYX))
        b, c, y, x = x_BCYX.shape
        cells = x_BCYX.reshape(b, c // (p * p), p, p, y, x).permute(0, 1, 4, 3, 5, 2)
        return cells.reshape(b, c // (p * p), y * p, x * p)

    def to_vae(self, mean: Tensor, std: Tensor) -> VAE:
        """The codec for pictures and clips with these weights; mean and std of the latents, (C,), normalise.

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
