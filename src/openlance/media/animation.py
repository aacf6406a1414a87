"""Animated pictures (GIF, WebP, APNG, AVIF) and the pages of a TIFF as clips."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import MODEL_FPS, Clip
from openlance.media.image import MAX_PIXELS
from openlance.media.notices import notice
from openlance.media.pixels import BROKEN, load, upright_rgb
from openlance.media.timing import frames_by_time, tell_speed

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Formats whose frames are moments or pages. Of others they are previews, depth maps (MPO), layers (PSD) or sizes (ICO).
MOVING = ("GIF", "WEBP", "PNG", "AVIF", "TIFF", "FLI", "DCX")
# Writers keep equal frames in a row as one that is shown for longer. Steady animations of less frames a second than
# this, whose every frame is shown for two of the model's or more, therefore go by time.
SLOWEST = MODEL_FPS / 2
# Clocks of these formats, in seconds: a GIF counts hundredths, the others thousandths.
GIF_TICK, TICK = 0.01, 0.001
BROWSERS = 0.1  # seconds for which browsers show the frames of a GIF that tells no times
REDUCED, SUBFILE_TYPE = 1, 254  # TIFF: a page that is a smaller copy of another has this bit of this tag


def frames_of(image: PillowImage, name: str) -> int:
    """How many frames or pages an open file has; one where they are no moments. UserError if it breaks off."""
    if image.format not in MOVING:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(image, "n_frames", 1)
    except BROKEN as error:
        raise _damaged(name, error) from error


def read_animation(image: PillowImage, name: str) -> Clip:
    """Read the frames of an open animated picture that the model sees, by the time each is shown.

    Returns:
        A clip at 12 frames a second, each frame as `upright_rgb` has it.

    Raises:
        UserError: it is damaged, too large, or its frames differ in size.
    """
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name} has frames of {image.width}x{image.height}, which is too large: scale it down")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shown, durations = _durations(image)
            timed, gif = any(durations), image.format == "GIF"
            untold = BROWSERS if gif else 1 / MODEL_FPS
            durations = durations if timed else [untold] * len(durations)
            wanted = [shown[i] for i in _chosen(durations, GIF_TICK if gif else TICK)]
            frames = {}
            for index in sorted(set(wanted)):
                image.seek(index)
                frames[index] = upright_rgb(image, name)
    except UserError:
        raise
    except BROKEN as error:
        raise _damaged(name, error) from error
    if len({frame.shape for frame in frames.values()}) > 1:
        raise UserError(f"{name} has frames of several sizes: save one of them as a picture, or convert it to MP4")
    if not timed and len(frames) < len(shown):
        notice(
            f"{name} does not say how long its {len(shown)} frames or pages are shown: {len(frames)} of them are read"
        )
    tell_speed(name, sum(durations), len(wanted))
    return Clip(np.stack([frames[i] for i in wanted]), MODEL_FPS)


def _damaged(name: str, error: Exception) -> UserError:
    why = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{name} is damaged or truncated ({why}): get it again or convert it to MP4")


def _durations(image: PillowImage) -> tuple[list[int], list[float]]:
    """The numbers of the frames that are shown, and the seconds of each; 0 where the file does not say."""
    shown, durations = [], []
    for index in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(index)
        reduced = getattr(image, "tag_v2", {}).get(SUBFILE_TYPE, 0) & REDUCED
        # A PNG may begin with a picture for viewers that do not know animations.
        if (index == 0 and image.info.get("default_image")) or (index > 0 and reduced):
            continue
        load(image)  # a WebP tells the time of a frame only now
        shown.append(index)
        durations.append(image.info.get("duration", 0) / 1000)
    return shown, durations


def _chosen(durations: list[float], tick: float) -> list[int]:
    """Which frames the model sees; one that tells no time is shown as long as the shortest that does."""
    shortest = min(d for d in durations if d > 0)
    ends = np.cumsum([d or shortest for d in durations])
    return frames_by_time(np.concatenate([[0.0], ends[:-1]]), float(ends[-1]), tick=tick, slowest=SLOWEST - 0.1)
