"""The VAE for videos: diffusers' AutoencoderKLWan in its Wan2.2 form, run chunk by chunk, with the release's
normalization.

Axes: B batch, C channels, T Y X latent frames, rows, columns; F H W pixel frames, rows, columns. Pixels are in [-1, 1].
The first frame is coded alone, then groups of `temporal_stride` frames, each seeing only the past.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.formats import config_for_diffusers, released_names
from openlance.checkpoint.writer import write_tensors
from openlance.config.model import VAEConfig
from openlance.vae.frames import PARTS, NormalizedVAE, denormalized


def sample(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Draw a latent around the encoder's mean, any layout; eps is standard normal noise of the same shape.

    As released: the mean is normalized per channel but the deviation exp(logvar / 2) is not rescaled with it.
    """
    return mean + torch.exp(0.5 * logvar) * eps


class VAE(NormalizedVAE):
    """diffusers' modules under our interface, for videos of any length."""

    wan: Wan

    def __init__(self, config: VAEConfig, parts: Iterable[str] = PARTS) -> None:
        super().__init__(config, parts)
        self.wan = build_wan(config, self.parts)

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


def build_wan(config: VAEConfig, parts: tuple[str, ...]) -> Wan:
    """Build the wanted halves of diffusers' autoencoder, initialized as it does."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    with torch.device("meta"):  # the plan of both halves costs nothing; only the wanted ones get memory below
        whole = AutoencoderKLWan(**config_for_diffusers(config))
    wan = Wan(config.patch_size, config.temporal_stride)
    if "encoder" in parts:
        wan.encoder, wan.quant_conv = whole.encoder, whole.quant_conv
    if "decoder" in parts:
        wan.decoder, wan.post_quant_conv = whole.decoder, whole.post_quant_conv
    if not torch.empty(0).is_meta:  # a caller that is about to load weights asks for the plan only
        _materialize(wan)
    _single_frames_in_2d(wan)
    return wan


def _materialize(module: nn.Module) -> None:
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

    diffusers keeps the past of a running pass on the module; here it is a local list, so that one VAE can serve several
    threads. A video of one frame has no past and needs none.
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
        """Encode pixels to (B, 2 * C, T, Y, X): means, then log-variances, before any normalization."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        x, past = patchify(pixels_BCFHW, self.patch_size), _past(self.encoder, pixels_BCFHW)
        chunks = [x[:, :, :1], *x[:, :, 1:].split(self.temporal_stride, dim=2)] if past else [x]
        coded = [self.encoder(chunk, feat_cache=past, feat_idx=[0]) for chunk in chunks]
        return self.quant_conv(torch.cat(coded, dim=2))

    def decode_steps(self, z_BCTYX: Tensor) -> Iterator[Tensor]:
        """Decode latents in the encoder's units to pixels (B, 3, f, H, W), not clamped: one frame, then each latent's,
        in memory that does not grow with the frames."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        past = _past(self.decoder, z_BCTYX)
        for i, chunk in enumerate(z_BCTYX.split(1, dim=2)):
            decoded = self.decoder(self.post_quant_conv(chunk), feat_cache=past, feat_idx=[0], first_chunk=i == 0)
            yield unpatchify(decoded, self.patch_size)


def _past(half: nn.Module, x_BCFYX: Tensor) -> list[Tensor | None] | None:
    """What the causal convolutions of one pass remember of earlier chunks, still empty; one frame needs none."""
    return [None] * sum(isinstance(m, nn.Conv3d) for m in half.modules()) if x_BCFYX.shape[2] > 1 else None


def _single_frames_in_2d(module: nn.Module) -> None:
    """Let the causal convolutions of a module handle one frame without a past as images.

    Such a frame is preceded by zeros, so only the last temporal tap of each kernel meets anything: a 2-D convolution
    with that tap gives the same numbers and gradients in about half the time on a CPU.
    """
    conv_class, frame_class = _conv_classes()
    for layer in module.modules():
        if type(layer) is conv_class:
            layer.__class__ = frame_class  # same parameters and names, another forward


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
