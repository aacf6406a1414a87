"""The one form in which pictures and videos travel: a block of frames."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openlance.config.values import brief, number
from openlance.errors import UserError
from openlance.media.provenance import KEY, Provenance

if TYPE_CHECKING:
    from PIL.Image import Image

# Frames per second of every clip the model reads or makes (released code).
MODEL_FPS = 12.0


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """Frames of a picture (one frame) or a video.

    pixels: uint8 (T, H, W, 3), RGB, 0..255.  fps: frames per second, without meaning for a picture.  made: how, where a
    model drew it here and that is to be known; files and Pillow images carry it along.
    """

    pixels: np.ndarray
    fps: float = MODEL_FPS
    made: Provenance | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, np.ndarray):
            raise UserError(f"the pixels of a clip are {brief(self.pixels)}: expected an array, uint8 (T, H, W, 3)")
        shape, kind = self.pixels.shape, self.pixels.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UserError(f"a clip needs uint8 pixels (T, H, W, 3) with no empty axis, not {kind} {tuple(shape)}")
        if not number("fps", self.fps) > 0:
            raise UserError(f"a clip needs a positive frame rate, not {self.fps}")
        object.__setattr__(self, "fps", number("fps", self.fps))

    def __repr__(self) -> str:
        return f"Clip({self.frames} frames of {self.width}x{self.height}, {self.fps:g} a second)"

    @cached_property
    def key(self) -> bytes:
        """What the frames show, in 16 bytes: equal for equal pixels, wherever they came from."""
        numbers = np.ascontiguousarray(self.pixels)
        return hashlib.blake2b(numbers.data, digest_size=16, key=repr(numbers.shape).encode()).digest()

    @property
    def frames(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[2])

    def save(self, path: str | Path) -> None:
        """Write .mp4, or animated .webp or .gif; one frame as .png, .jpg or .webp. UserError for other names."""
        from openlance.media.write import write_media

        write_media(path, self)

    def images(self) -> list[Image]:
        """Give its frames as Pillow images. Where it is known how they were made, their `info` says so, and their
        `save` writes it into the file (`media.signed`)."""
        from PIL import Image

        frames = [Image.fromarray(np.ascontiguousarray(frame)) for frame in self.pixels]
        if self.made is not None:
            from openlance.media.signed import SignedImage

            for frame in frames:
                frame.__class__ = SignedImage
                frame.info[KEY] = self.made.text
        return frames

    def with_pixels(self, pixels: np.ndarray) -> Clip:
        """The same frame rate with other frames, of which nobody knows how they were made."""
        return Clip(pixels, self.fps)
