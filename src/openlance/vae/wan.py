"""The inside of the codec: diffusers' Wan2.2 encoder and decoder and their chunked passes.

Axes: B batch, C channels, F H W pixel frames, rows, columns, T Y X those of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.names import config_for_diffusers
from openlance.config.model import VAEConfig

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def build_wan(config: VAEConfig, parts: tuple[str, ...]) -> Wan:
    """The wanted halves of diffusers' autoencoder, initialised as it does."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    with torch.device("meta"):  # the plan of both halves costs nothing; only the wanted ones get memory below
        whole = AutoencoderKLWan(**config_for_diffusers(config))
    wan = Wan(config.patch_size, config.temporal_stride)
    if "encoder" in parts:
        wan.encoder, wan.quant_conv = whole.encoder, whole.quant_conv
    if "decoder" in parts:
        wan.decoder, wan.post_quant_conv = whole.decoder, whole.post_quant_conv
    if not torch.empty(0).is_meta:  # a caller that is about to load weights asks for the plan only
        _materialise(wan)
    return single_frames_in_2d(wan)


def _materialise(module: nn.Module) -> None:
    """Give memory to a module planned on the meta device and start its layers as their classes do."""
    module.to_empty(device="cpu")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            layer.reset_parameters()
    for name, parameter in module.named_parameters():
        if name.endswith(".gamma"):  # RMS norms start as the identity
            nn.init.ones_(parameter)


class Wan(nn.Module):
    """Encoder and decoder with their joints, run chunk by chunk.

    diffusers keeps the past of a running pass on the module; here it is a local list, so that one codec can serve
    several threads. A clip of one frame has no past and needs none.
    """

    encoder: nn.Module
    quant_conv: nn.Module
    decoder: nn.Module
    post_quant_conv: nn.Module

    def __init__(self, patch_size: int, temporal_stride: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.temporal_stride = temporal_stride

    def encode_moments(self, pixels_BCFHW: Tensor) -> Tensor:
        """Pixels -> (B, 2 * C, T, Y, X): means, then log-variances, before any normalisation."""
        x = _fold(pixels_BCFHW, self.patch_size)
        past = _Past(self.encoder) if x.shape[2] > 1 else None
        chunks = [x[:, :, :1], *x[:, :, 1:].split(self.temporal_stride, dim=2)] if past else [x]
        return self.quant_conv(torch.cat([_step(self.encoder, chunk, past) for chunk in chunks], dim=2))

    def decode_latents(self, z_BCTYX: Tensor) -> Tensor:
        """Latents in the encoder's units -> pixels (B, 3, F, H, W), not clamped."""
        return torch.cat(list(self.decode_steps(z_BCTYX)), dim=2)

    def decode_steps(self, z_BCTYX: Tensor) -> Iterator[Tensor]:
        """The same piece by piece, in memory that does not grow with the frames: one frame, then each latent's."""
        past = _Past(self.decoder) if z_BCTYX.shape[2] > 1 else None
        for i, chunk in enumerate(z_BCTYX.split(1, dim=2)):
            decoded = _step(self.decoder, self.post_quant_conv(chunk), past, first_chunk=i == 0)
            yield _unfold(decoded, self.patch_size)


class _Past:
    """What the causal convolutions of one pass remember of earlier chunks."""

    def __init__(self, half: nn.Module) -> None:
        self.frames: list = [None] * sum(isinstance(m, nn.Conv3d) for m in half.modules())


def _step(half: nn.Module, chunk: Tensor, past: _Past | None, **options: bool) -> Tensor:
    if past is None:
        return half(chunk, **options)
    return half(chunk, feat_cache=past.frames, feat_idx=[0], **options)


def _fold(x_BCFHW: Tensor, p: int) -> Tensor:
    """Blocks of p x p pixels become channels, ordered colour, column, row (released code)."""
    b, c, f, h, w = x_BCFHW.shape
    blocks = x_BCFHW.reshape(b, c, f, h // p, p, w // p, p)
    return blocks.permute(0, 1, 6, 4, 2, 3, 5).reshape(b, c * p * p, f, h // p, w // p)


def _unfold(x_BCFYX: Tensor, p: int) -> Tensor:
    """The inverse of _fold."""
    b, c, f, h, w = x_BCFYX.shape
    blocks = x_BCFYX.reshape(b, c // (p * p), p, p, f, h, w)
    return blocks.permute(0, 1, 4, 5, 3, 6, 2).reshape(b, c // (p * p), f, h * p, w * p)


def single_frames_in_2d(module: AnyModule) -> AnyModule:
    """Let the causal convolutions of a module handle one frame without a past as pictures; returns the module.

    Such a frame is preceded by zeros, so only the last temporal tap of each kernel meets anything: a 2-D convolution
    with that tap gives the same numbers and gradients in about half the time on a CPU.
    """
    conv_class, frame_class = _conv_classes()
    for layer in module.modules():
        if type(layer) is conv_class:
            layer.__class__ = frame_class  # same parameters and names, another forward
    return module


@cache
def _conv_classes() -> tuple[type, type]:
    """diffusers' causal convolution, and ours that extends it."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    class FrameConv3d(WanCausalConv3d):
        def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
            left, top, before = (int(pad) for pad in self._padding[0:5:2])  # columns, rows, frames
            if x.shape[2] > 1 or cache_x is not None or before != self.kernel_size[0] - 1:
                return super().forward(x, cache_x)
            last_tap = self.weight[:, :, -1].contiguous(memory_format=torch.channels_last)
            frame = x[:, :, 0].contiguous(memory_format=torch.channels_last)
            return F.conv2d(frame, last_tap, self.bias, self.stride[1:], (top, left)).unsqueeze(2)

    return WanCausalConv3d, FrameConv3d
