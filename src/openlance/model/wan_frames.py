"""The decoder for single pictures, in two dimensions and without diffusers, whose import alone takes seconds.

On one frame the Wan2.2 decoder is an ordinary 2-D network: a causal convolution meets only zeros before the frame, so
its last temporal tap is all of it, and the temporal resamplers wait for a second frame. This is that network, reading
the same weights; tests hold it equal to diffusers' modules.

Axes: B batch, C channels, Y X latent rows and columns, H W those of the pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.config.model import VAEConfig
from openlance.model.names_vae import released_names
from openlance.model.weights import TensorSource, load_into, open_tensors, unfilled


class Norm(nn.Module):
    """Scales the channels of every pixel to unit root mean square, times gamma."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x_BCYX: Tensor) -> Tensor:
        unit = F.normalize(x_BCYX.float(), dim=1).to(x_BCYX.dtype)  # the squares of half precision would overflow
        return unit * len(self.gamma) ** 0.5 * self.gamma


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = Norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x_BCYX: Tensor) -> Tensor:
        y_BCYX = self.conv1(F.silu(self.norm1(x_BCYX)))
        return self.conv2(F.silu(self.norm2(y_BCYX))) + self.conv_shortcut(x_BCYX)


class Attention(nn.Module):
    """One head over all cells of the frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.to_qkv = Norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x_BCYX)).flatten(2).transpose(1, 2)[:, None]
        out = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return x_BCYX + self.proj(out[:, 0].transpose(1, 2).reshape(x_BCYX.shape))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Residual(channels, channels), Residual(channels, channels)])
        self.attentions = nn.ModuleList([Attention(channels)])

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x_BCYX)))


class Upsampler(nn.Module):
    """Doubles both sides, then smooths."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        doubled = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.resample = nn.Sequential(doubled, nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.resample(x_BCYX)


class Level(nn.Module):
    """The residual blocks of one resolution and the step to the next, with a shortcut that only copies channels."""

    def __init__(self, inputs: int, outputs: int, blocks: int, up: bool, temporal: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Residual(inputs if i == 0 else outputs, outputs) for i in range(blocks)])
        self.upsampler = Upsampler(outputs) if up else None
        self.copies = 2 if temporal else 1

    def forward(self, x_BCYX: Tensor) -> Tensor:
        y_BCYX = x_BCYX
        for block in self.resnets:
            y_BCYX = block(y_BCYX)
        if self.upsampler is None:
            return y_BCYX
        return self.upsampler(y_BCYX) + self._shortcut(x_BCYX, y_BCYX.shape[1])

    def _shortcut(self, x_BCYX: Tensor, outputs: int) -> Tensor:
        """Channels become 2 x 2 pixels; where frames are doubled too, a first frame is the second of its copies."""
        b, c, y, x = x_BCYX.shape
        spread = x_BCYX.repeat_interleave(outputs * self.copies * 4 // c, dim=1)
        newest = spread.reshape(b, outputs, self.copies, 2, 2, y, x)[:, :, -1]
        return newest.permute(0, 1, 4, 2, 5, 3).reshape(b, outputs, 2 * y, 2 * x)


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dec_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        steps = (*reversed(config.temporal_downsample), None)  # the last level is not followed by a step
        self.conv_in = nn.Conv2d(config.z_dim, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0])
        self.up_blocks = nn.ModuleList(
            Level(inputs, outputs, config.num_res_blocks + 1, up=temporal is not None, temporal=bool(temporal))
            for inputs, outputs, temporal in zip(widths, widths[1:], steps, strict=False)
        )
        self.norm_out, self.conv_out = Norm(widths[-1]), nn.Conv2d(widths[-1], 3 * config.patch_size**2, 3, padding=1)

    def forward(self, z_BCYX: Tensor) -> Tensor:
        x_BCYX = self.mid_block(self.conv_in(z_BCYX))
        for level in self.up_blocks:
            x_BCYX = level(x_BCYX)
        return self.conv_out(F.silu(self.norm_out(x_BCYX)))


class FrameDecoder(nn.Module):
    """Latents of one frame -> its pixels; the decoding half of VAE for pictures, with the same weights and numbers."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.post_quant_conv, self.decoder = nn.Conv2d(config.z_dim, config.z_dim, 1), Decoder(config)
        for name, values in (("mean_C11", config.mean), ("std_C11", config.std)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(-1, 1, 1), persistent=False)

    def decode(self, z_C1YX: Tensor, *, clamp: bool = True) -> Tensor:
        """Normalised latents (C, 1, Y, X) or a batch of them -> pixels (3, 1, H, W) in [-1, 1], or a batch."""
        if z_C1YX.shape[-3] != 1:
            raise ValueError(f"a picture has one latent frame, not {z_C1YX.shape[-3]}: decode clips with VAE")
        z_BCYX = z_C1YX.squeeze(-3).reshape(-1, *z_C1YX.shape[-4:-3], *z_C1YX.shape[-2:])
        z_BCYX = z_BCYX.to(self.std_C11.dtype) * self.std_C11 + self.mean_C11
        z_BCYX = self.post_quant_conv(z_BCYX.contiguous(memory_format=torch.channels_last))
        pixels = _unfold(self.decoder(z_BCYX), self.config.patch_size)
        pixels = pixels.clamp(-1.0, 1.0) if clamp else pixels
        return pixels.reshape(*z_C1YX.shape[:-4], *pixels.shape[1:]).unsqueeze(-3)

    @classmethod
    def load(
        cls,
        path: str | Path | TensorSource,
        config: VAEConfig,
        *,
        allow_pickle: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> FrameDecoder:
        """Build and fill from released names, strictly; the encoder is never read. Errors as VAE.load."""
        with unfilled():
            frames = cls(config)
        names = released_names(config)

        def place(name: str) -> str | None:
            return None if ".time_conv." in name else names.to_ours(name, ("decoder",))

        source = _last_taps(open_tensors(path, allow_pickle=allow_pickle))
        load_into(frames, source, place, dtype=dtype, device=device)
        return frames.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _last_taps(source: TensorSource) -> TensorSource:
    """The same tensors without the time axis: of each kernel the tap that meets the present frame."""

    def flat(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) == 5:
            return shape[:2] + shape[3:]
        return shape[:3] if name.endswith(".gamma") else shape

    shapes = {name: flat(name, shape) for name, shape in source.shapes.items()}

    def read(name: str) -> Tensor:
        value = source.read(name)
        if value.dim() != 5:
            return value.reshape(shapes[name])
        tap = value[:, :, -1].contiguous()
        source.release(name, value)
        return tap

    return TensorSource(source.origin, shapes, read)


def _unfold(x_BCYX: Tensor, p: int) -> Tensor:
    """Channels become p x p pixels. The release orders them colour, column, row; pixel_shuffle colour, row, column."""
    b, c, y, x = x_BCYX.shape
    return F.pixel_shuffle(x_BCYX.reshape(b, c // (p * p), p, p, y, x).transpose(2, 3).reshape(b, c, y, x), p)
