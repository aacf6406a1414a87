"""Any file as a clip: what is in it decides, not its name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import MODEL_FPS, Clip
from openlance.media.image import BROKEN, MAX_PIXELS, read_image, require_file, to_rgb
from openlance.media.video import VIDEO_SUFFIXES, frame_indices, read_video

ONE_PICTURE = ("MPO",)  # a JPEG of a phone: what follows the photo in it is a preview or a depth map, no next moment


def read_media(path: str | Path) -> Clip:
    """A picture as one frame, a video or an animated picture (GIF, WebP, APNG) as the frames that the model sees.

    UserError as from `read_image` and `read_video`.
    """
    found = require_file(path)
    frames = _frames(found)
    if frames is None:
        return read_video(found) if _is_video(found) else read_image(found)
    return read_animation(found) if frames > 1 else read_image(found)


def _frames(path: Path) -> int | None:
    """How many frames a picture file has; None if it is none. Damage is found later, where it has a message."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage and size have sentences of their own
            with Image.open(path) as image:
                return 1 if image.format in ONE_PICTURE else getattr(image, "n_frames", 1)
    except UnidentifiedImageError:
        return None
    except (*BROKEN, Image.DecompressionBombError):
        return 1


def _is_video(path: Path) -> bool:
    """Whether a file that is no picture begins as MP4, QuickTime or Matroska do, or is at least named like a video.
    (FFmpeg itself cannot be asked: it takes any text for a film.)"""
    with path.open("rb") as file:
        head = file.read(8)
    known = head[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") or head.startswith(b"\x1aE\xdf\xa3")
    return known or path.suffix.lower() in VIDEO_SUFFIXES


def read_animation(path: str | Path) -> Clip:
    """The frames of an animated picture that the model sees (see `frame_indices`), transparency on white."""
    from PIL import Image

    found = require_file(path)
    try:
        with Image.open(found) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{found} has frames of {image.width}x{image.height}, which is too large: scale it down"
                )
            durations = []
            for index in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(index)
                image.load()  # a WebP tells the time of a frame only now
                durations.append(image.info.get("duration", 0))
            wanted = _shown(durations)
            frames = {}
            for index in sorted(set(wanted)):
                image.seek(index)
                frames[index] = np.asarray(to_rgb(image))
        if len({frame.shape for frame in frames.values()}) > 1:
            raise UserError(f"{found} has frames of several sizes: save one of them as a picture, or convert it to MP4")
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"{found} is damaged or truncated ({error}): get it again or convert it to MP4") from error
    return Clip(np.stack([frames[i] for i in wanted]), MODEL_FPS)


def _shown(durations: list[float]) -> list[int]:
    """Which frames the model sees, from how long each is shown, in milliseconds. Equal frames in a row are often kept
    as one that is shown for longer, so frames are counted by time: by the shortest, or by the model's own."""
    shortest = min((d for d in durations if d > 0), default=0)
    if not shortest:
        return frame_indices(len(durations), None)
    ends = np.cumsum([d or shortest for d in durations])
    unit = min(shortest, 1000 / MODEL_FPS)
    moments = np.array(frame_indices(max(round(ends[-1] / unit), 1), 1000 / unit)) + 0.5
    return np.minimum(np.searchsorted(ends, moments * unit), len(durations) - 1).tolist()
