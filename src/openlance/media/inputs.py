"""What people hand in, as a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import Clip


def as_clip(medium: Any) -> Clip:
    """A picture as a clip of one frame, or a video as the frames that the model sees; files are told by content."""
    if isinstance(medium, Clip):
        return medium
    if isinstance(medium, (str, Path)):
        from openlance.media.read import read_media

        return read_media(medium)
    pixels = np.asarray(medium.convert("RGB") if hasattr(medium, "convert") else medium)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UserError(
            f"a picture is uint8 (H, W, 3) and a video uint8 (T, H, W, 3), not {pixels.dtype} {pixels.shape}: "
            f"convert it first"
        )
    return Clip(pixels if pixels.ndim == 4 else pixels[None])


def as_picture(medium: Any) -> Clip:
    """The same, one frame of it: the first of a video."""
    clip = as_clip(medium)
    return clip if clip.frames == 1 else clip.with_pixels(clip.pixels[:1])
