"""The codec for pictures: half of `model.vae`'s interface, the same weights and numbers, without diffusers.

Axes: B batch, C channels, Y X latent rows and columns, H W those of the pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from openlance.config.model import VAEConfig, check_size
from openlance.model.names_vae import released_names
from openlance.model.vae import denormalised
from openlance.model.wan_frames import Frames
from openlance.model.weights import TensorSource, load_into, open_tensors, unfilled


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
