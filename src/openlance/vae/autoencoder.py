"""The codec of pixels and latents: diffusers' AutoencoderKLWan in its Wan2.2 form, with the release's normalisation.

Axes: B batch, C channels, T Y X latent frames, rows, columns; F H W pixel frames, rows, columns. Pixels are in [-1, 1].
The first frame is coded alone, then groups of `temporal_stride` frames, each seeing only the past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from openlance.checkpoint.names import released_names
from openlance.checkpoint.tensors import TensorSource, load_into, open_tensors, unfilled
from openlance.checkpoint.writer import write_tensors
from openlance.config.model import VAEConfig
from openlance.vae.frames import denormalised
from openlance.vae.wan import build_wan

PARTS = ("encoder", "decoder")


def sample(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """A latent drawn around the encoder's mean, any layout.

    As released: the mean is normalised per channel but the deviation exp(logvar / 2) is not rescaled with it.
    """
    return mean + torch.exp(0.5 * logvar) * eps


class VAE(nn.Module):
    """diffusers' modules under our interface. parts: the halves to build; the other half takes no memory."""

    mean_C111: Tensor
    std_C111: Tensor

    def __init__(self, config: VAEConfig, parts: Iterable[str] = PARTS) -> None:
        super().__init__()
        self.config = config
        self.parts = tuple(parts)
        if not self.parts or any(part not in PARTS for part in self.parts):
            raise ValueError(f"parts={self.parts} must name 'encoder', 'decoder' or both")
        self.wan = build_wan(config, self.parts)
        for name, values in (("mean_C111", config.mean), ("std_C111", config.std)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(-1, 1, 1, 1), persistent=False)

    def encode(self, pixels_CFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (3, F, H, W) or a batch of them -> normalised mean and log-variance, each (C, T, Y, X) or batched.

        F is 1 + k * temporal_stride, H and W multiples of the stride; UserError otherwise.
        """
        self._require("encoder")
        frames, height, width = pixels_CFHW.shape[-3:]
        self.config.check((frames, height, width))
        moments = self._batched(self.wan.encode_moments, pixels_CFHW)
        mean, logvar = moments.chunk(2, dim=-4)
        # Multiplied by the inverse, as released: in bfloat16 that is not the same as dividing.
        return (mean - self.mean_C111) * (1.0 / self.std_C111), logvar

    def decode(self, z_CTYX: Tensor, *, clamp: bool = True) -> Tensor:
        """Normalised latents (C, T, Y, X) or a batch -> pixels (3, F, H, W); training wants them before the clamp."""
        self._require("decoder")
        pixels = self._batched(self.wan.decode_latents, denormalised(z_CTYX, self.mean_C111, self.std_C111))
        return pixels.clamp(-1.0, 1.0) if clamp else pixels

    def decode_steps(self, z_CTYX: Tensor) -> Iterator[Tensor]:
        """The frames of `decode` one latent at a time: (3, f, H, W) or batched, in memory of a few frames."""
        self._require("decoder")
        z = denormalised(z_CTYX, self.mean_C111, self.std_C111).to(next(self.wan.parameters()).dtype)
        for pixels in self.wan.decode_steps(z if z.dim() == 5 else z[None]):
            yield (pixels if z.dim() == 5 else pixels[0]).clamp(-1.0, 1.0)

    def _batched(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Give `run` a batch, in the dtype of the weights."""
        x = x.to(next(self.wan.parameters()).dtype)
        return run(x) if x.dim() == 5 else run(x[None])[0]

    def _require(self, part: str) -> None:
        if part not in self.parts:
            raise ValueError(f"this VAE was built without its {part}: name it in parts")

    @classmethod
    def load(
        cls,
        path: str | Path | TensorSource,
        config: VAEConfig,
        *,
        parts: Iterable[str] = PARTS,
        allow_pickle: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> VAE:
        """Build and fill the wanted halves from released names, strictly; the other half is never read.

        UserError if the file does not fit, or is a pickle (`Wan2.2_VAE.pth`) and allow_pickle is False.
        """
        with unfilled():
            vae = cls(config, parts)
        names = released_names(config)
        source = open_tensors(path, allow_pickle=allow_pickle)
        load_into(vae.wan, source, lambda name: names.to_ours(name, vae.parts), dtype=dtype, device=device)
        return vae.to(device=device, dtype=dtype)

    def released_state(self) -> dict[str, Tensor]:
        """The weights of the halves that are here, under the names of `Wan2.2_VAE.pth`."""
        names = released_names(self.config)
        return {names.to_released(name): value for name, value in self.wan.state_dict().items()}

    def save(self, path: str | Path) -> None:
        """Write released_state() as one safetensors file."""
        write_tensors(path, self.released_state())
