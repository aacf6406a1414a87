"""What every suite of the world is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openlance.errors import UserError
from toyworld.motion import check_frames
from toyworld.scene import jitter_of


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked. samples: per category; placement as in `sample_scene`; height, width: of pictures, in pixels;
    frames: of clips, 5, 9, 13 or 17.

    settings: what the model's `generate` gets besides, such as num_inference_steps.
    """

    samples: int = 100
    seed: int = 0
    placement: str | float = "free"
    height: int = 64
    width: int = 64
    frames: int = 9
    batch: int = 32
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        if self.samples < 1 or self.batch < 1 or self.seed < 0:
            raise UserError(
                f"samples={self.samples}, batch={self.batch} and seed={self.seed} are out of range: they must be at "
                "least 1, 1 and 0, such as samples=100, seed=0"
            )
        jitter_of(self.placement)
        check_frames(self.frames)
