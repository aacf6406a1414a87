"""The VAE for videos: Wan2.2's, run chunk by chunk, with the release's normalization. Its parts are named as those of
diffusers' AutoencoderKLWan.

Axes: B batch, C channels, T Y X latent frames, rows, columns; F H W pixel frames, rows, columns. Pixels are in [-1, 1].
The first frame is coded alone, then groups of `temporal_stride` frames, each seeing only the past.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.formats import released_names
from openlance.checkpoint.writer import write_tensors
from openlance.config.model import VAEConfig
from openlance.vae.frames import PARTS, Attention, Norm, NormalizedVAE, denormalized


def sample(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Draw a latent around the encoder's mean, any layout; eps is standard normal noise of the same shape.

    As released: the mean is normalized per channel but the deviation exp(logvar / 2) is not rescaled with it.
    """
    return mean + torch.exp(0.5 * logvar) * eps


@dataclass
class Past:
    """What one pass remembers between its chunks; not on the module, so that one VAE can serve several threads.

    Attributes:
        first: Whether the chunk is the first one, a frame alone, where no layer steps in time.
        last: Whether no other chunk comes, so that nothing has to be kept.
        kept: The frames that a layer has seen last.
    """

    first: bool = True
    last: bool = True
    kept: dict[nn.Module, Tensor] = field(default_factory=dict)

    def over(self, x_BCFYX: Tensor, stride: int) -> Iterator[Tensor]:
        """Give the first frame, then chunks of `stride` frames."""
        chunks = [x_BCFYX[:, :, :1], *x_BCFYX[:, :, 1:].split(stride, dim=2)] if x_BCFYX.shape[2] > 1 else [x_BCFYX]
        for number, chunk in enumerate(chunks):
            self.first, self.last = number == 0, number == len(chunks) - 1
            yield chunk

    def join(self, layer: nn.Module, x_BCFYX: Tensor, frames: int) -> Tensor:
        """Put what a layer saw last before a chunk, and keep `frames` of both for the next one."""
        earlier = self.kept.pop(layer, None)
        joined = x_BCFYX if earlier is None else torch.cat([earlier, x_BCFYX], dim=2)
        if not self.last:
            self.kept[layer] = joined[:, :, -frames:].clone()
        return joined


class Causal(nn.Conv3d):
    """A convolution that sees nothing of the future; before the first frame there are zeros."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(inputs, outputs, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x_BCFYX: Tensor, past: Past | None = None) -> Tensor:
        before, new = self.kernel_size[0] - 1, x_BCFYX.shape[2]
        if past is not None and before:
            x_BCFYX = past.join(self, x_BCFYX, before)
        if x_BCFYX.shape[2] == 1:
            # One frame after zeros meets the last tap alone: an image, in about half the time on a CPU.
            tap = self.weight[:, :, -1].contiguous(memory_format=torch.channels_last)
            frame = x_BCFYX[:, :, 0].contiguous(memory_format=torch.channels_last)
            return F.conv2d(frame, tap, self.bias, padding=self.kernel_size[1] // 2).unsqueeze(2)
        zeros = before + new - x_BCFYX.shape[2]
        return super().forward(F.pad(x_BCFYX, (0, 0, 0, 0, zeros, 0)))


def of_each_frame(layer: nn.Module, x_BCFYX: Tensor) -> Tensor:
    """Apply a layer for images to every frame."""
    return layer(x_BCFYX.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x_BCFYX), -1)).transpose(1, 2)


class Residual(nn.Module):
    """Two convolutions beside what comes in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(inputs, axes=3), Causal(inputs, outputs)
        self.norm2, self.conv2 = Norm(outputs, axes=3), Causal(outputs, outputs)
        self.conv_shortcut = Causal(inputs, outputs, (1, 1, 1)) if inputs != outputs else nn.Identity()

    def forward(self, x_BCFYX: Tensor, past: Past) -> Tensor:
        y_BCFYX = self.conv1(F.silu(self.norm1(x_BCFYX)), past)
        return self.conv2(F.silu(self.norm2(y_BCFYX)), past) + self.conv_shortcut(x_BCFYX)


class Middle(nn.Module):
    """Attention within each frame, between two blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Residual(channels, channels), Residual(channels, channels)])
        self.attentions = nn.ModuleList([Attention(channels)])

    def forward(self, x_BCFYX: Tensor, past: Past) -> Tensor:
        y_BCFYX = of_each_frame(self.attentions[0], self.resnets[0](x_BCFYX, past))
        return self.resnets[1](y_BCFYX, past)


class Up(nn.Module):
    """Twice the rows and columns; with `temporal` two frames of every frame but the very first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        doubled = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.resample = nn.Sequential(doubled, nn.Conv2d(channels, channels, 3, padding=1))
        self.time_conv = Causal(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x_BCFYX: Tensor, past: Past) -> Tensor:
        if self.time_conv is not None and not past.first:
            both = self.time_conv(x_BCFYX, past).unflatten(1, (2, -1))
            x_BCFYX = both.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        return of_each_frame(self.resample, x_BCFYX)


class Down(nn.Module):
    """Half the rows and columns; with `temporal` one frame of two, but of the very first itself."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        padded = nn.ZeroPad2d((0, 1, 0, 1))  # below and to the right (released code)
        self.resample = nn.Sequential(padded, nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x_BCFYX: Tensor, past: Past) -> Tensor:
        x_BCFYX = of_each_frame(self.resample, x_BCFYX)
        if self.time_conv is None:
            return x_BCFYX
        x_BCFYX = past.join(self.time_conv, x_BCFYX, 1)
        return x_BCFYX if past.first else self.time_conv(x_BCFYX)


class UpLevel(nn.Module):
    """The blocks of one resolution and the step to the next, with a shortcut that only copies channels."""

    def __init__(self, inputs: int, outputs: int, blocks: int, temporal: bool | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.upsampler = None if temporal is None else Up(outputs, temporal)
        self.frames = 2 if temporal else 1

    def forward(self, x_BCFYX: Tensor, past: Past) -> Tensor:
        y_BCFYX = x_BCFYX
        for block in self.resnets:
            y_BCFYX = block(y_BCFYX, past)
        if self.upsampler is None:
            return y_BCFYX
        return self.upsampler(y_BCFYX, past) + self._shortcut(x_BCFYX, y_BCFYX.shape[1], past.first)

    def _shortcut(self, x_BCFYX: Tensor, outputs: int, first: bool) -> Tensor:
        """Channels become frames and 2 x 2 pixels; of the very first frame the last of its copies counts."""
        b, c, f, y, x = x_BCFYX.shape
        spread = x_BCFYX.repeat_interleave(outputs * self.frames * 4 // c, dim=1)
        cells = spread.view(b, outputs, self.frames, 2, 2, f, y, x).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return cells.reshape(b, outputs, f * self.frames, 2 * y, 2 * x)[:, :, self.frames - 1 if first else 0 :]


class DownLevel(nn.Module):
    """The blocks of one resolution and the step to the next, with a shortcut that only averages."""

    def __init__(self, inputs: int, outputs: int, blocks: int, temporal: bool | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.downsampler = None if temporal is None else Down(outputs, temporal)
        self.outputs, self.side, self.frames = outputs, 1 if temporal is None else 2, 2 if temporal else 1

    def forward(self, x_BCFYX: Tensor, past: Past) -> Tensor:
        y_BCFYX = x_BCFYX
        for block in self.resnets:
            y_BCFYX = block(y_BCFYX, past)
        if self.downsampler is not None:
            y_BCFYX = self.downsampler(y_BCFYX, past)
        return y_BCFYX + self._shortcut(x_BCFYX)

    def _shortcut(self, x_BCFYX: Tensor) -> Tensor:
        """Frames and pixels become channels, which are averaged in groups; a missing earlier frame counts as zeros."""
        s, t = self.side, self.frames
        x_BCFYX = F.pad(x_BCFYX, (0, 0, 0, 0, -x_BCFYX.shape[2] % t, 0))
        b, c, f, y, x = x_BCFYX.shape
        cells = x_BCFYX.reshape(b, c, f // t, t, y // s, s, x // s, s).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return cells.reshape(b, self.outputs, -1, f // t, y // s, x // s).mean(2)


class Encoder(nn.Module):
    """From cells of pixels to both moments of the latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in (1, *config.dim_mult)]
        steps = (*config.temporal_downsample, None)  # the last level is not followed by a step
        self.conv_in = Causal(3 * config.patch_size**2, widths[0])
        self.down_blocks = nn.ModuleList(
            DownLevel(inputs, outputs, config.num_res_blocks, temporal)
            for inputs, outputs, temporal in zip(widths, widths[1:], steps, strict=False)
        )
        self.mid_block = Middle(widths[-1])
        self.norm_out, self.conv_out = Norm(widths[-1], axes=3), Causal(widths[-1], 2 * config.z_dim)

    def forward(self, x_BCFYX: Tensor, past: Past) -> Tensor:
        x_BCFYX = self.conv_in(x_BCFYX, past)
        for level in self.down_blocks:
            x_BCFYX = level(x_BCFYX, past)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x_BCFYX, past))), past)


class Decoder(nn.Module):
    """From latents to cells of pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dec_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        steps = (*reversed(config.temporal_downsample), None)  # the last level is not followed by a step
        self.conv_in = Causal(config.z_dim, widths[0])
        self.mid_block = Middle(widths[0])
        self.up_blocks = nn.ModuleList(
            UpLevel(inputs, outputs, config.num_res_blocks + 1, temporal)
            for inputs, outputs, temporal in zip(widths, widths[1:], steps, strict=False)
        )
        self.norm_out, self.conv_out = Norm(widths[-1], axes=3), Causal(widths[-1], 3 * config.patch_size**2)

    def forward(self, z_BCTYX: Tensor, past: Past) -> Tensor:
        x_BCFYX = self.mid_block(self.conv_in(z_BCTYX, past), past)
        for level in self.up_blocks:
            x_BCFYX = level(x_BCFYX, past)
        return self.conv_out(F.silu(self.norm_out(x_BCFYX)), past)


class Wan(nn.Module):
    """The halves that are asked for, run chunk by chunk, between pixels and latents that are not normalized."""

    def __init__(self, config: VAEConfig, parts: Iterable[str] = PARTS) -> None:
        super().__init__()
        self.config = config
        if "encoder" in parts:
            self.encoder = Encoder(config)
            self.quant_conv = Causal(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        if "decoder" in parts:
            self.decoder = Decoder(config)
            self.post_quant_conv = Causal(config.z_dim, config.z_dim, (1, 1, 1))

    def encode_moments(self, pixels_BCFHW: Tensor) -> Tensor:
        """Encode pixels to (B, 2 * C, T, Y, X): means, then log-variances, before any normalization."""
        p, past = self.config.patch_size, Past()
        # The channels of a cell are ordered color, column, row (released code).
        cells = pixels_BCFHW.unflatten(-1, (-1, p)).unflatten(-3, (-1, p)).permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)
        coded = [self.encoder(chunk, past) for chunk in past.over(cells, self.config.temporal_stride)]
        return self.quant_conv(torch.cat(coded, dim=2))

    def decode_steps(self, z_BCTYX: Tensor) -> Iterator[Tensor]:
        """Decode latents in the encoder's units to pixels (B, 3, f, H, W), not clamped: one frame, then each latent's,
        in memory that does not grow with the frames."""
        p, past = self.config.patch_size, Past()
        for chunk in past.over(z_BCTYX, 1):
            cells = self.decoder(self.post_quant_conv(chunk), past).unflatten(1, (3, p, p))
            yield cells.permute(0, 1, 4, 5, 3, 6, 2).flatten(-2).flatten(-3, -2)


class VAE(NormalizedVAE):
    """The VAE for videos of any length."""

    wan: Wan

    def __init__(self, config: VAEConfig, parts: Iterable[str] = PARTS) -> None:
        super().__init__(config, parts)
        self.wan = Wan(config, self.parts)

    def decode_steps(self, z_CTYX: Tensor) -> Iterator[Tensor]:
        """Decode one latent frame at a time: (3, f, H, W) or batches, in memory of a few frames."""
        self._require("decoder")
        z = denormalized(self._batch(z_CTYX), self.mean_C111, self.std_C111)
        for pixels in self.wan.decode_steps(z):
            yield (pixels if z_CTYX.dim() == 5 else pixels[0]).clamp(-1.0, 1.0)

    def _moments(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.wan.encode_moments(pixels_BCFHW).chunk(2, dim=1)
        return mean, logvar

    def _pixels(self, z_BCTYX: Tensor) -> Tensor:
        return torch.cat(list(self.wan.decode_steps(z_BCTYX)), dim=2)

    def released_state(self) -> dict[str, Tensor]:
        """Return the weights of the halves that are here, under the names of `Wan2.2_VAE.pth`."""
        names = released_names(self.config)
        return {names.to_released(name): value for name, value in self.wan.state_dict().items()}

    def save(self, path: str | Path) -> None:
        """Write released_state() as one safetensors file."""
        write_tensors(path, self.released_state())
