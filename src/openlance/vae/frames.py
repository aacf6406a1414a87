"""The codec for pictures: half of `vae.autoencoder`'s interface, the same weights and numbers, without diffusers, whose
import alone takes seconds.

On one frame the Wan2.2 codec is an ordinary 2-D network: a causal convolution meets only zeros before the frame, so its
last temporal tap is all of it, and the temporal resamplers wait for a second frame. This is that network, about three
times cheaper than diffusers' modules on a CPU; `training.codec` trains it.

Axes: B batch, C channels, Y X latent rows and columns, H W those of the pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.names import released_names
from openlance.checkpoint.tensors import TensorSource, load_into, open_tensors, unfilled
from openlance.config.model import VAEConfig, check_size
from openlance.model.precision import HALVES


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


class Frames(nn.Module):
    """The halves that are asked for, between pixels in [-1, 1] and moments or latents that are not normalised."""

    def __init__(self, config: VAEConfig, parts: tuple[str, ...] = ("encoder", "decoder")) -> None:
        super().__init__()
        self.config = config
        if "encoder" in parts:
            self.encoder, self.quant_conv = Encoder(config), nn.Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        if "decoder" in parts:
            self.decoder, self.post_quant_conv = Decoder(config), nn.Conv2d(config.z_dim, config.z_dim, 1)

    def moments(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, each (B, C, Y, X)."""
        cells = _fold(pixels_BCHW, self.config.patch_size).contiguous(memory_format=torch.channels_last)
        mean, logvar = self.quant_conv(self.encoder(cells)).chunk(2, dim=1)
        return mean, logvar

    def pixels(self, z_BCYX: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), not clamped."""
        return _unfold(self.decoder(self.post_quant_conv(z_BCYX)), self.config.patch_size)


def _fold(x_BCHW: Tensor, p: int) -> Tensor:
    """p x p pixels become channels, ordered colour, column, row (released code)."""
    b, c, h, w = x_BCHW.shape
    cells = x_BCHW.reshape(b, c, h // p, p, w // p, p).permute(0, 1, 5, 3, 2, 4)
    return cells.reshape(b, c * p * p, h // p, w // p)


def _unfold(x_BCYX: Tensor, p: int) -> Tensor:
    """The inverse. pixel_shuffle wants colour, row, column."""
    b, c, y, x = x_BCYX.shape
    return F.pixel_shuffle(x_BCYX.reshape(b, c // (p * p), p, p, y, x).transpose(2, 3).reshape(b, c, y, x), p)


def denormalised(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give normalised latents their channels' mean and deviation back.

    Args:
        z: Latents; mean and std have shapes that fit theirs.
        mean: Per channel.
        std: Per channel.

    Returns:
        z * std + mean; in half precision divided by the rounded inverse, as released (wan/modules/vae2_2.py, decode).
    """
    return (z / (1.0 / std) if std.dtype in HALVES else z * std) + mean


class FrameVAE(Frames):
    """Clips of one frame only; tests hold it equal to `VAE`. parts: the halves to build."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, config: VAEConfig, parts: tuple[str, ...] = ("encoder", "decoder")) -> None:
        super().__init__(config, parts)
        self.parts = parts
        for name, values in (("mean_C11", config.mean), ("std_C11", config.std)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(-1, 1, 1), persistent=False)

    def encode(self, pixels_C1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (3, 1, H, W) or a batch of them -> normalised mean and log-variance, each (C, 1, Y, X) or batched.
        UserError unless H and W are multiples of the stride."""
        height, width = pixels_C1HW.shape[-2:]
        check_size(height, width, self.config.stride)
        mean, logvar = self.moments(_flat(pixels_C1HW).to(self.std_C11.dtype))
        mean = (mean - self.mean_C11) * (1.0 / self.std_C11)  # as in `VAE.encode`
        lead = pixels_C1HW.shape[:-4]
        return _framed(mean, lead), _framed(logvar, lead)

    def decode(self, z_C1YX: Tensor, *, clamp: bool = True) -> Tensor:
        """Normalised latents (C, 1, Y, X) or a batch of them -> pixels (3, 1, H, W) in [-1, 1], or a batch."""
        z_BCYX = denormalised(_flat(z_C1YX).to(self.std_C11.dtype), self.mean_C11, self.std_C11)
        pixels = self.pixels(z_BCYX.contiguous(memory_format=torch.channels_last))
        return _framed(pixels.clamp(-1.0, 1.0) if clamp else pixels, z_C1YX.shape[:-4])

    @classmethod
    def load(
        cls,
        path: str | Path | TensorSource,
        config: VAEConfig,
        *,
        parts: tuple[str, ...] = ("encoder", "decoder"),
        allow_pickle: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> FrameVAE:
        """Build and fill the wanted halves from released names, strictly; the other is never read. Errors as
        VAE.load."""
        with unfilled():
            frames = cls(config, parts)
        names = released_names(config)

        def place(name: str) -> str | None:
            return None if ".time_conv." in name else names.to_ours(name, parts)

        source = _last_taps(open_tensors(path, allow_pickle=allow_pickle))
        load_into(frames, source, place, dtype=dtype, device=device)
        return frames.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _flat(x_C1YX: Tensor) -> Tensor:
    """(..., C, 1, Y, X) -> (B, C, Y, X). ValueError for more than one frame."""
    if x_C1YX.shape[-3] != 1:
        raise ValueError(f"a picture has one latent frame, not {x_C1YX.shape[-3]}: code clips with VAE")
    return x_C1YX.squeeze(-3).reshape(-1, *x_C1YX.shape[-4:-3], *x_C1YX.shape[-2:])


def _framed(x_BCYX: Tensor, lead: torch.Size) -> Tensor:
    """(B, C, Y, X) -> (*lead, C, 1, Y, X)."""
    return x_BCYX.reshape(*lead, *x_BCYX.shape[1:]).unsqueeze(-3)


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
