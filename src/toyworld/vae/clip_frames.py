"""Both halves of Wan's VAE for clips as 2-D networks over stacked frames: what `picture_frames` is for pictures.

Frames lie behind each other in the batch, time first: (T * B, C, Y, X) holds the first frames of all B clips, then
their second frames. A causal 3x3x3 kernel is one 2-D convolution that sees three frames as channels, and shifting in
time is shifting the batch by B. The whole clip runs in one pass; tests hold it equal to diffusers' chunk by chunk.

The weights of `picture_frames` are the taps of the present frame, so a first frame, which has no past, is a picture:
what else is learned cannot change it. `past` and `time_conv` are new.

Axes: N stacked frames T * B, C channels, Y X rows and columns.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.vae.autoencoder import VAE
from openlance.vae.frames import DownLevel, Level
from toyworld.vae.frames import PictureVAE

PAST = 2  # earlier frames that a causal kernel sees
NEW = (".past", ".time_conv.weight", ".time_conv.bias")  # ends of the names that pictures know nothing of


class Stack:
    """How many clips the batch holds; shared by all layers of a VAE and set by every pass."""

    clips = 1

    def frames(self, x_NCYX: Tensor) -> Tensor:
        """(T, B, C, Y, X)."""
        return x_NCYX.unflatten(0, (-1, self.clips))

    def with_past(self, x_NCYX: Tensor) -> Tensor:
        """Every frame with the PAST frames before it as channels, oldest first; zeros before the beginning."""
        b = self.clips
        before = F.pad(x_NCYX, (0, 0, 0, 0, 0, 0, PAST * b, 0))
        return torch.cat([before[: -2 * b], before[b:-b], x_NCYX], dim=1)


class CausalConv(nn.Conv2d):
    """A causal 3x3x3 kernel: `weight` meets the present frame, `past` (out, 2 * in, 3, 3) the two before it."""

    def __init__(self, conv: nn.Conv2d, stack: Stack) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1)
        self.past = nn.Parameter(torch.zeros(conv.out_channels, PAST * conv.in_channels, 3, 3))
        self.stack = stack

    def forward(self, x_NCYX: Tensor) -> Tensor:
        if len(x_NCYX) == self.stack.clips:
            return super().forward(x_NCYX)
        kernel = torch.cat([self.past, self.weight], dim=1)
        return F.conv2d(self.stack.with_past(x_NCYX), kernel, self.bias, padding=1)


class HalveTime(nn.Module):
    """The first frame stays, of the others every second is made from itself and the two before it."""

    def __init__(self, resample: nn.Module, channels: int, stack: Stack) -> None:
        super().__init__()
        self.resample, self.time_conv, self.stack = resample, nn.Conv2d(3 * channels, channels, 1), stack

    def forward(self, x_NCYX: Tensor) -> Tensor:
        y_NCYX = self.resample(x_NCYX)
        if len(y_NCYX) == self.stack.clips:
            return y_NCYX
        t = self.stack.frames(y_NCYX)
        seen = torch.cat([t[0:-2:2], t[1:-1:2], t[2::2]], dim=2).flatten(0, 1)
        return torch.cat([t[0], self.time_conv(seen)])


class DoubleTime(nn.Module):
    """The first frame stays, every other one becomes two; the first one is not seen by them (released code)."""

    def __init__(self, resample: nn.Module, channels: int, stack: Stack) -> None:
        super().__init__()
        self.resample, self.time_conv, self.stack = resample, nn.Conv2d(3 * channels, 2 * channels, 1), stack

    def forward(self, x_NCYX: Tensor) -> Tensor:
        b = self.stack.clips
        if len(x_NCYX) > b:
            later = self.time_conv(self.stack.with_past(x_NCYX[b:]))
            pairs = self.stack.frames(later).unflatten(2, (2, -1)).transpose(1, 2)
            x_NCYX = torch.cat([x_NCYX[:b], pairs.flatten(0, 2)])
        return self.resample(x_NCYX)


class ClipDownLevel(DownLevel):
    stack: Stack

    def _shortcut(self, x_NCYX: Tensor) -> Tensor:
        """Pixels, and pairs of frames, become channels, which are averaged in groups; the first frame pairs with
        zeros."""
        s, t = self.factor, self.frames
        (_, c, y, x), b = x_NCYX.shape, self.stack.clips
        whole = F.pad(x_NCYX, (0, 0, 0, 0, 0, 0, b * (t - 1), 0))
        cells = whole.reshape(-1, t, b, c, y // s, s, x // s, s).permute(0, 2, 3, 1, 5, 7, 4, 6)
        return cells.reshape(-1, self.outputs, c * t * s * s // self.outputs, y // s, x // s).mean(2)


class ClipLevel(Level):
    stack: Stack

    def _shortcut(self, x_NCYX: Tensor, outputs: int) -> Tensor:
        """Channels become 2 x 2 pixels and, where time is doubled, two frames; of the first frame the second only."""
        (_, c, y, x), b, copies = x_NCYX.shape, self.stack.clips, self.copies
        spread = x_NCYX.repeat_interleave(outputs * copies * 4 // c, dim=1)
        cells = spread.reshape(-1, b, outputs, copies, 2, 2, y, x).permute(0, 3, 1, 2, 6, 4, 7, 5)
        return cells.reshape(-1, outputs, 2 * y, 2 * x)[b * (copies - 1) :]


class ClipVAE(PictureVAE):
    """Clips to latents and back, with the weights of a VAE. Pixels lie in [-1, 1]; latents are not normalised."""

    def __init__(self, vae: VAE) -> None:
        super().__init__(vae.config)
        self.stack = Stack()
        for module in list(self.modules()):
            self._see_time(module)
        self._load(vae)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _see_time(self, module: nn.Module) -> None:
        for name, child in module.named_children():
            # Within a resampler frames are apart.
            if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3) and not isinstance(module, nn.Sequential):
                setattr(module, name, CausalConv(child, self.stack))
        if isinstance(module, DownLevel):
            module.__class__, module.stack = ClipDownLevel, self.stack  # type: ignore[assignment]
            if module.frames > 1 and module.downsampler is not None:
                module.downsampler = HalveTime(module.downsampler.resample, module.outputs, self.stack)  # type: ignore
        if isinstance(module, Level):
            module.__class__, module.stack = ClipLevel, self.stack  # type: ignore[assignment]
            if module.copies > 1 and module.upsampler is not None:
                resample = module.upsampler.resample
                module.upsampler = DoubleTime(resample, resample[-1].in_channels, self.stack)  # type: ignore

    def encode_clips(self, frames_NCHW: Tensor, clips: int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of stacked latents, each (T * clips, C, Y, X)."""
        self.stack.clips = clips
        return self.encode(frames_NCHW)

    def decode_clips(self, z_NCYX: Tensor, clips: int) -> Tensor:
        """Stacked frames (F * clips, 3, H, W), not clamped."""
        self.stack.clips = clips
        return self.decode(z_NCYX)

    def new_parameters(self) -> set[str]:
        """Names of what pictures do not depend on."""
        return {name for name, _ in self.named_parameters() if name.endswith(NEW)}

    def to_vae(self, mean: Tensor, std: Tensor) -> VAE:
        """The VAE with these weights; mean and std of the latents, (C,), normalise."""
        vae = VAE(replace(self.config, mean=tuple(mean.tolist()), std=tuple(std.tolist())))
        own = self.state_dict()
        state = {name: self._taps(own, name, value).clone() for name, value in vae.wan.state_dict().items()}
        vae.wan.load_state_dict(state)
        return vae.eval()

    @staticmethod
    def _taps(own: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
        """One weight in the form of diffusers: kernels as (out, in, taps, rows, columns)."""
        value, past = own[name], own.get(name.removesuffix("weight") + "past")
        if like.ndim < 5:
            return value.reshape(like.shape)
        whole = value if past is None else torch.cat([past, value], dim=1)
        return whole.unflatten(1, (like.shape[2], -1)).transpose(1, 2)

    @torch.no_grad()
    def _load(self, vae: VAE) -> None:
        """Take over the weights of a VAE; the inverse of `to_vae`."""
        own = self.state_dict()
        for name, value in vae.wan.state_dict().items():
            if value.ndim < 5:
                own[name].copy_(value.reshape(own[name].shape))
                continue
            taps = value.transpose(1, 2).flatten(1, 2)
            past = own.get(name.removesuffix("weight") + "past")
            if past is not None:
                past.copy_(taps[:, : past.shape[1]])
            own[name].copy_(taps[:, -own[name].shape[1] :])


def stacked(pixels_BTHWC: Tensor) -> Tensor:
    """uint8 clips (B, T, H, W, 3) to stacked frames (T * B, 3, H, W) in [-1, 1]."""
    return pixels_BTHWC.permute(1, 0, 4, 2, 3).flatten(0, 1).float() / 127.5 - 1
