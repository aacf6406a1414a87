"""The VAE for images: the interface, weights and numbers of `vae.autoencoder`, and what both have in common.

On one frame the Wan2.2 VAE is an ordinary 2-D network: a causal convolution meets only zeros before the frame, so its
last temporal tap is all of it, and the temporal resamplers wait for a second frame. This is that network, about three
times cheaper than diffusers' modules on a CPU; `toyworld.vae` trains it.

Axes: B batch, C channels, T Y X latent frames, rows and columns, F H W those of the pixels, which are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.formats import released_names
from openlance.checkpoint.tensors import TensorSource, load_into, open_tensors, unfilled
from openlance.config.model import VAEConfig
from openlance.model.precision import HALVES

PARTS = ("encoder", "decoder")
AnyVAE = TypeVar("AnyVAE", bound="NormalizedVAE")


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


class Norm(nn.Module):
    """Scales the channels of every pixel to unit root mean square, times gamma.

    Args:
        channels: How many.
        axes: That follow them: rows and columns, or frames as well.
    """

    def __init__(self, channels: int, axes: int = 2) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

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


class Resampler(nn.Module):
    """The layers between two resolutions."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.resample = nn.Sequential(*layers)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.resample(x_BCYX)


class Level(nn.Module):
    """The residual blocks of one resolution and the step to the next, with a shortcut that only copies channels."""

    def __init__(self, inputs: int, outputs: int, blocks: int, up: bool, temporal: bool) -> None:
        super().__init__()
        self.resnets = nn.Sequential(*(Residual(inputs if i == 0 else outputs, outputs) for i in range(blocks)))
        doubled = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.upsampler = Resampler(doubled, nn.Conv2d(outputs, outputs, 3, padding=1)) if up else None
        self.copies = 2 if temporal else 1

    def forward(self, x_BCYX: Tensor) -> Tensor:
        y_BCYX = self.resnets(x_BCYX)
        if self.upsampler is None:
            return y_BCYX
        return self.upsampler(y_BCYX) + self._shortcut(x_BCYX, y_BCYX.shape[1])

    def _shortcut(self, x_BCYX: Tensor, outputs: int) -> Tensor:
        """Channels become 2 x 2 pixels; where frames are doubled too, a first frame is the second of its copies."""
        b, c, y, x = x_BCYX.shape
        spread = x_BCYX.repeat_interleave(outputs * self.copies * 4 // c, dim=1)
        return F.pixel_shuffle(spread.reshape(b, outputs, self.copies, 4, y, x)[:, :, -1].flatten(1, 2), 2)


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dec_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        steps = (*reversed(config.temporal_downsample), None)  # the last level is not followed by a step
        self.conv_in = nn.Conv2d(config.z_dim, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0])
        self.up_blocks = nn.Sequential(*(
            Level(inputs, outputs, config.num_res_blocks + 1, up=temporal is not None, temporal=bool(temporal))
            for inputs, outputs, temporal in zip(widths, widths[1:], steps, strict=False)
        ))  # fmt: skip
        self.norm_out, self.conv_out = Norm(widths[-1]), nn.Conv2d(widths[-1], 3 * config.patch_size**2, 3, padding=1)

    def forward(self, z_BCYX: Tensor) -> Tensor:
        x_BCYX = self.up_blocks(self.mid_block(self.conv_in(z_BCYX)))
        return self.conv_out(F.silu(self.norm_out(x_BCYX)))


class DownLevel(nn.Module):
    """The residual blocks of one resolution and the step to the next, with a shortcut that only averages."""

    def __init__(self, inputs: int, outputs: int, blocks: int, down: bool, temporal: bool) -> None:
        super().__init__()
        self.resnets = nn.Sequential(*(Residual(inputs if i == 0 else outputs, outputs) for i in range(blocks)))
        padded = nn.ZeroPad2d((0, 1, 0, 1))  # below and to the right (released code)
        self.downsampler = Resampler(padded, nn.Conv2d(outputs, outputs, 3, stride=2)) if down else None
        self.outputs, self.factor, self.frames = outputs, 2 if down else 1, 2 if temporal else 1

    def forward(self, x_BCYX: Tensor) -> Tensor:
        y_BCYX = self.resnets(x_BCYX)
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
        self.down_blocks = nn.Sequential(*(
            DownLevel(inputs, outputs, config.num_res_blocks, down=temporal is not None, temporal=bool(temporal))
            for inputs, outputs, temporal in zip(widths, widths[1:], steps, strict=False)
        ))  # fmt: skip
        self.mid_block = Middle(widths[-1])
        self.norm_out, self.conv_out = Norm(widths[-1]), nn.Conv2d(widths[-1], 2 * config.z_dim, 3, padding=1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        x_BCYX = self.mid_block(self.down_blocks(self.conv_in(x_BCYX)))
        return self.conv_out(F.silu(self.norm_out(x_BCYX)))


class Frames(nn.Module):
    """The halves that are asked for, between pixels and moments or latents that are not normalized."""

    def __init__(self, config: VAEConfig, parts: Iterable[str] = PARTS) -> None:
        super().__init__()
        self.config = config
        if "encoder" in parts:
            self.encoder, self.quant_conv = Encoder(config), nn.Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        if "decoder" in parts:
            self.decoder, self.post_quant_conv = Decoder(config), nn.Conv2d(config.z_dim, config.z_dim, 1)

    def moments(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels (B, 3, H, W) to mean and log-variance of the latents, each (B, C, Y, X)."""
        # The channels of a cell are ordered color, column, row (released code); pixel_unshuffle has color, row, column.
        cells = F.pixel_unshuffle(pixels_BCHW.mT, self.config.patch_size).mT
        coded = self.encoder(cells.contiguous(memory_format=torch.channels_last))
        mean, logvar = self.quant_conv(coded).chunk(2, dim=1)
        return mean, logvar

    def pixels(self, z_BCYX: Tensor) -> Tensor:
        """Decode latents to pixels (B, 3, H, W), not clamped."""
        cells = self.decoder(self.post_quant_conv(z_BCYX))
        return F.pixel_shuffle(cells.mT, self.config.patch_size).mT.contiguous()


def denormalized(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give normalized latents their channels' mean and deviation back.

    Args:
        z: Latents; mean and std have shapes that fit theirs.
        mean: Per channel.
        std: Per channel.

    Returns:
        z * std + mean; in half precision divided by the rounded inverse, as released (wan/modules/vae2_2.py, decode).
    """
    return (z / (1.0 / std) if std.dtype in HALVES else z * std) + mean


class NormalizedVAE(nn.Module):
    """What the VAE for images and the one for videos share: normalized latents, one video or a batch, strict loading.

    A subclass builds `wan` and says how a batch in the type of the weights goes through it.

    Args:
        config: Sizes, and mean and deviation of the latents' channels.
        parts: The halves to build, "encoder", "decoder" or both; the other half takes no memory.
    """

    wan: nn.Module
    layout = torch.preserve_format  # of the weights in memory
    mean_C111: Tensor
    std_C111: Tensor

    def __init__(self, config: VAEConfig, parts: Iterable[str] = PARTS) -> None:
        super().__init__()
        self.config = config
        self.parts = tuple(parts)
        if not self.parts or any(part not in PARTS for part in self.parts):
            raise ValueError(f"parts={self.parts} must name 'encoder', 'decoder' or both")
        for name, values in (("mean_C111", config.mean), ("std_C111", config.std)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(-1, 1, 1, 1), persistent=False)

    def encode(self, pixels_CFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels to latents.

        Args:
            pixels_CFHW: (3, F, H, W) in [-1, 1], or a batch of them.

        Returns:
            Normalized mean and log-variance, each (C, T, Y, X) or a batch.

        Raises:
            UserError: F is not 1 + k * temporal_stride, or H or W not a multiple of the stride.
        """
        self._require("encoder")
        frames, height, width = pixels_CFHW.shape[-3:]
        self.config.check((frames, height, width))
        mean, logvar = self._moments(self._batch(pixels_CFHW))
        # Multiplied by the inverse, as released: in bfloat16 that is not the same as dividing.
        mean = (mean - self.mean_C111) * (1.0 / self.std_C111)
        return (mean, logvar) if pixels_CFHW.dim() == 5 else (mean[0], logvar[0])

    def decode(self, z_CTYX: Tensor, *, clamp: bool = True) -> Tensor:
        """Decode latents to pixels.

        Args:
            z_CTYX: Normalized latents (C, T, Y, X), or a batch of them.
            clamp: To [-1, 1]; training wants the pixels before.

        Returns:
            (3, F, H, W), or a batch.
        """
        self._require("decoder")
        pixels = self._pixels(denormalized(self._batch(z_CTYX), self.mean_C111, self.std_C111))
        pixels = pixels.clamp(-1.0, 1.0) if clamp else pixels
        return pixels if z_CTYX.dim() == 5 else pixels[0]

    def decode_steps(self, z_CTYX: Tensor) -> Iterator[Tensor]:
        """Decode some frames at a time: (3, f, H, W) or batches, which together are those of `decode`."""
        yield self.decode(z_CTYX)

    def _moments(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _pixels(self, z_BCTYX: Tensor) -> Tensor:
        raise NotImplementedError

    def _batch(self, x: Tensor) -> Tensor:
        x = x.to(self.std_C111.dtype)
        return x if x.dim() == 5 else x[None]

    def _require(self, part: str) -> None:
        if part not in self.parts:
            raise ValueError(f"this VAE was built without its {part}: name it in parts")

    @staticmethod
    def _form(source: TensorSource) -> TensorSource:
        """Released tensors in the form of `wan`."""
        return source

    @classmethod
    def load(
        cls: type[AnyVAE],
        path: str | Path | TensorSource,
        config: VAEConfig,
        *,
        parts: Iterable[str] = PARTS,
        allow_pickle: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> AnyVAE:
        """Build and fill the wanted halves from released names, strictly; the other half is never read.

        Raises:
            UserError: the file does not fit, or is a pickle (`Wan2.2_VAE.pth`) and allow_pickle is False.
        """
        with unfilled():
            vae = cls(config, parts)
        names, source = released_names(config), cls._form(open_tensors(path, allow_pickle=allow_pickle))
        load_into(vae.wan, source, lambda name: names.to_ours(name, vae.parts), dtype=dtype, device=device)
        return vae.to(device=device, dtype=dtype, memory_format=cls.layout)  # type: ignore[call-overload]


class FrameVAE(NormalizedVAE):
    """The VAE for videos of one frame; tests hold it equal to `autoencoder.VAE`. ValueError for more frames."""

    wan: Frames
    layout = torch.channels_last

    def __init__(self, config: VAEConfig, parts: Iterable[str] = PARTS) -> None:
        super().__init__(config, parts)
        self.wan = Frames(config, self.parts)

    def _moments(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.wan.moments(_only_frame(pixels_BCFHW))
        return mean.unsqueeze(2), logvar.unsqueeze(2)

    def _pixels(self, z_BCTYX: Tensor) -> Tensor:
        z_BCYX = _only_frame(z_BCTYX).contiguous(memory_format=torch.channels_last)
        return self.wan.pixels(z_BCYX).unsqueeze(2)

    @staticmethod
    def _form(source: TensorSource) -> TensorSource:
        return _last_taps(source.only(lambda name: ".time_conv." not in name))


def _only_frame(x_BCTYX: Tensor) -> Tensor:
    if x_BCTYX.shape[2] != 1:
        raise ValueError(f"an image has one latent frame, not {x_BCTYX.shape[2]}: use the VAE for videos")
    return x_BCTYX[:, :, 0]


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
