"""The one form in which pictures and videos travel: a block of frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Frames per second of every clip the model reads or makes (released code).
MODEL_FPS = 12.0


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a picture (one frame) or a video.

    pixels: uint8 (T, H, W, 3), RGB, 0..255.  fps: frames per second, without meaning for a picture.
    """

    pixels: np.ndarray
    fps: float = MODEL_FPS

    def __post_init__(self) -> None:
        shape, kind = self.pixels.shape, self.pixels.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"a clip needs uint8 pixels (T, H, W, 3) with no empty axis, not {kind} {tuple(shape)}")
        if not self.fps > 0:
            raise ValueError(f"a clip needs a positive frame rate, not {self.fps}")

    @property
    def frames(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[2])

    def with_pixels(self, pixels: np.ndarray) -> Clip:
        """The same frame rate with other frames."""
        return Clip(pixels, self.fps)
