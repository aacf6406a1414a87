"""Videos in, videos out: the frames the release would pick, and H.264 files that every browser plays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import MODEL_FPS, Clip
from openlance.media.files import atomic_path
from openlance.media.image import MAX_PIXELS, require_file

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
# Longer clips are not cut but sped up: the frames of the whole clip are spread over this time (released code).
MAX_SECONDS = 6.0
# Taken where the file does not say (released code).
UNKNOWN_FPS = 24
# The temporal stride of the video VAE; the first frame stands alone, so clips have 4k + 1 frames.
TEMPORAL_STRIDE = 4


def frame_indices(total: int, fps: float | None) -> list[int]:
    """Which frames of a video of `total` frames at `fps` the model sees: at most 69 of them, 4k + 1, about 12 a second.

    The rule of the released code: file rate rounded, duration capped at 6 s, floor to a multiple of 4 and add one
    (take 3 off where it is a multiple already), then even integer steps from the first to the last frame.
    """
    if total < 1:
        raise UserError("a video without frames cannot be sampled: give one that has at least one frame")
    rate = round(fps) if fps else 0
    seconds = min(total / (rate or UNKNOWN_FPS), MAX_SECONDS)
    count = round(MODEL_FPS * seconds)
    if count % TEMPORAL_STRIDE:
        count = count // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
    else:
        count = max(count - TEMPORAL_STRIDE + 1, 1)
    return np.linspace(0, total - 1, count, dtype=int).tolist()


def read_video(path: str | Path, data: bytes | None = None) -> Clip:
    """The frames of a video that the model sees (see frame_indices), upright, as a Clip at 12 frames a second.

    With `data`, the bytes of a file, path is only its name in errors. UserError if the file is missing, unreadable,
    truncated, or its frames are too large.
    """
    import av

    found = require_file(path) if data is None else Path(path)
    try:
        total, fps = _count_frames(found, data)
        wanted = frame_indices(total, fps)
        chosen = set(wanted)
        kept = {i: _upright(frame) for i, frame in enumerate(_decode(found, data)) if i in chosen}
    except UserError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{found} is not a video that can be read ({why}): convert it to MP4") from error
    if len({frame.shape for frame in kept.values()}) > 1:
        raise UserError(f"{found} changes its size on the way: convert it to a video of one size")
    return Clip(np.stack([kept[i] for i in wanted]), MODEL_FPS)


def _decode(path: Path, data: bytes | None) -> Iterator:
    """Every frame of the first video stream, as PyAV frames, in the order of display."""
    import av

    with av.open(str(path) if data is None else io.BytesIO(data), "r") as container:
        if not container.streams.video:
            raise UserError(f"{path} has no picture track: give a video file")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.width * frame.height > MAX_PIXELS:
                raise UserError(
                    f"{path} has frames of {frame.width}x{frame.height}, more than the {MAX_PIXELS // 10**6} "
                    f"megapixels allowed: scale it down first"
                )
            yield frame


def _count_frames(path: Path, data: bytes | None) -> tuple[int, float | None]:
    """(frames, frames per second or None); headers are often wrong about the frames, so these are counted."""
    import av

    with av.open(str(path) if data is None else io.BytesIO(data), "r") as container:
        stream = container.streams.video[0] if container.streams.video else None
        declared = stream.frames if stream is not None else 0
        rate = stream.average_rate if stream is not None else None
    total = sum(1 for _ in _decode(path, data))
    if not total:
        raise UserError(f"{path} has no whole frame: get it again or give another video")
    if total < declared * 0.9:  # edit lists hide a few frames; a tenth missing means that the end of the file is
        raise UserError(f"{path} is truncated: only {total} of its {declared} frames can be read; get the file again")
    return total, float(rate) if rate else None


def _upright(frame) -> np.ndarray:
    """uint8 (H, W, 3), turned as the file's display matrix asks (phones store videos lying on their side)."""
    pixels = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as numpy turns
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def write_video(path: str | Path, clip: Clip, *, crf: int = 18) -> None:
    """Write a clip as H.264, yuv420p, .mp4, at clip.fps; the file appears whole or not at all.

    Its colours are BT.709 and say so, since players guess by the size otherwise; its index comes first, for browsers.

    crf: quality, 0 (largest) to 51 (smallest); 18 is visually lossless. Sides must be even, as 4:2:0 colour needs.
    """
    import av

    target = Path(path)
    if target.suffix.lower() != ".mp4":
        raise UserError(f"cannot write a video as {target.name!r}: end its name in .mp4")
    if clip.height % 2 or clip.width % 2:
        raise UserError(f"a video of {clip.height}x{clip.width} has an odd side: use sides that are even")
    index_first = {"movflags": "faststart"}
    with atomic_path(target) as temporary, av.open(str(temporary), "w", format="mp4", options=index_first) as container:
        stream = container.add_stream("libx264", rate=Fraction(clip.fps).limit_denominator(1001))
        for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, name, 1)  # BT.709 of limited range, in ffmpeg's numbers
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium"}
        for pixels in clip.pixels:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
