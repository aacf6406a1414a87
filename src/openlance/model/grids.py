"""What the sequence needs to know of the tokenizer, the ViT and the VAE: ids and grids."""

from __future__ import annotations

from dataclasses import dataclass

from openlance.config.model import ModelConfig
from openlance.media.buckets import check_size
from openlance.model.vit import cell_grid
from openlance.text.tokenizer import Tokenizer

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class SequenceCodec:
    """Implements `openlance.sequence.chat.Codec` for a tokenizer and a configuration."""

    tokenizer: Tokenizer
    config: ModelConfig
    im_start: int = 0
    im_end: int = 0
    vision_start: int = 0
    vision_end: int = 0
    visual_pad: int = 0

    def __post_init__(self) -> None:
        for name in ("im_start", "im_end", "vision_start", "vision_end", "visual_pad"):
            object.__setattr__(self, name, getattr(self.tokenizer, name))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.ids(text)

    def patch_grid(self, size: Grid) -> Grid:
        """Merged ViT cells (t, y, x) of (frames, height, width) pixels."""
        return cell_grid(self.config.vit, size)

    def latent_grid(self, size: Grid) -> Grid:
        """Latent cells (t, y, x); surplus frames beyond 4k + 1 have none (released code)."""
        frames, height, width = size
        vae = self.config.vae
        check_size(height, width, vae.stride)
        return (frames - 1) // vae.temporal_stride + 1, height // vae.stride, width // vae.stride
