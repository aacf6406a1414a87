"""Parts of a pipeline under the names at which people look for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openlance.config import values
from openlance.config.sampling import LARGEST_SIDE
from openlance.vae.lazy import LazyVAE
from openlance.vae.tiling import Tiling

if TYPE_CHECKING:
    from openlance.inference.engine import Engine


class VAESettings:
    """What is at `pipe.vae`: its settings and, when it is called, the VAE itself, each half read at its first use."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.config = engine, engine.config.vae

    def __call__(self) -> LazyVAE:
        return self.engine.parts.vae()

    def enable_tiling(self, tile: int = Tiling.tile, overlap: int = Tiling.overlap) -> None:
        """Decode and encode large pictures piece by piece; tile, overlap: latent cells."""
        self.engine.tiling = Tiling(
            tile=values.whole("tile", tile, 1, LARGEST_SIDE), overlap=values.whole("overlap", overlap, 0, LARGEST_SIDE)
        )

    def disable_tiling(self) -> None:
        self.engine.tiling = None
