"""Any file as a clip: what is in it decides, not its name."""

from __future__ import annotations

from pathlib import Path

from openlance.errors import UserError
from openlance.media.animation import frames_of, read_animation
from openlance.media.clip import Clip
from openlance.media.container import is_video
from openlance.media.image import one_picture, open_picture
from openlance.media.source import Source, is_movie
from openlance.media.video import read_source

# Formats of pictures without a signature: a video may look like one by chance.
UNSIGNED = ("TGA",)


def read_media(source: str | Path | bytes, name: str | None = None) -> Clip:
    """Read a picture as one frame, a video or an animated picture as the frames that the model sees.

    Args:
        source: a file, or its bytes.
        name: what errors and notices call it, if not by its path.

    Returns:
        uint8 frames in sRGB, upright, on white; a clip has 12 a second.

    Raises:
        UserError: it is missing, neither picture nor video, damaged, truncated or too large.
    """
    file = Source.of(source, name)
    image = None if is_movie(file.head()) else open_picture(file)
    if image is None:
        return read_source(file)
    with image:
        if image.format in UNSIGNED and is_video(file):
            return read_source(file)
        return read_animation(image, file.name) if frames_of(image, file.name) > 1 else one_picture(image, file.name)


def read_video(path: str | Path | bytes, data: bytes | None = None) -> Clip:
    """Read a video, or an animated picture, as the frames that the model sees; a still picture is refused.

    Args:
        path: a file, or its bytes.
        data: the bytes of a file, of which path is then only the name in errors.

    Raises:
        UserError: as from `read_media`, and where the file holds a still picture (a GIF of one frame is a clip).
    """
    file = Source.of(path) if data is None else Source.of(data, str(path))
    image = None if is_movie(file.head()) else open_picture(file)
    if image is None:
        return read_source(file)
    with image:
        if frames_of(image, file.name) == 1 and image.format != "GIF":
            raise UserError(f"{file.name} is a still picture, not a video: give an MP4, WebM or animated file")
        return read_animation(image, file.name)
