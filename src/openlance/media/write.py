"""One way to write what was made: the suffix chooses the form, and the file appears whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.values import path_of
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import atomic_path
from openlance.media.image import WRITABLE_SUFFIXES, write_image
from openlance.media.provenance import save_options
from openlance.media.video import write_video

ANIMATED_SUFFIXES = (".webp", ".gif")
CLIP_SUFFIXES = (".mp4", *ANIMATED_SUFFIXES)


def write_media(path: str | Path, clip: Clip) -> None:
    """Write an image (.png .jpg .webp) or a video (.mp4, or animated .webp and .gif).

    Raises:
        UserError: the suffix is another one, or the place cannot be written.
    """
    path = path_of("the file to write", path)
    suffix = path.suffix.lower()
    what, good = ("an image", WRITABLE_SUFFIXES) if clip.frames == 1 else ("a video", CLIP_SUFFIXES)
    if suffix not in (*good, *CLIP_SUFFIXES):
        raise UserError(f"cannot write {what} as {path.name!r}: end its name in {', '.join(good)}")
    if clip.frames == 1 and suffix in WRITABLE_SUFFIXES:
        write_image(path, clip)
    elif suffix in ANIMATED_SUFFIXES:
        write_animation(path, clip)
    else:
        write_video(path, clip)


def write_animation(path: str | Path, clip: Clip) -> None:
    """Write a clip as an endless .webp (quality 90) or .gif (256 colors, times in hundredths of a second)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_animation(clip, Path(path).suffix.lower().lstrip(".")))


def encode_animation(clip: Clip, form: str = "webp") -> bytes:
    """Encode a clip as an animation of form "webp" or "gif"."""
    first, *others = clip.images()
    options: dict[str, Any] = {"quality": 90, "method": 4} if form == "webp" else {"disposal": 1}
    options |= save_options(clip.made, form.upper(), f"the {form}")
    memory = io.BytesIO()
    first.save(memory, form, save_all=True, append_images=others, duration=_durations(clip), loop=0, **options)
    return memory.getvalue()


def _durations(clip: Clip) -> list[int]:
    """Milliseconds of each frame, multiples of ten as GIF has them, that together last as long as the clip."""
    ends = np.round(np.arange(clip.frames + 1) * 100 / clip.fps).astype(int) * 10
    return np.maximum(np.diff(ends), 20).tolist()  # players slow down what is shorter
