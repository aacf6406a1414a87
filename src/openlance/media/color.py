"""Frames of FFmpeg as the pixels that a player shows: right matrix and range, on white, upright, square pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from openlance.media.buckets import resize
from openlance.media.hdr import HLG, LEVELS, PQ, PRIMARIES, to_srgb
from openlance.media.pixels import on_white

# Matrix coefficients by code point of ITU-T H.273 (which FFmpeg uses) as swscale numbers them, and (red, blue) of the
# luma: BT.709, FCC, BT.601 of 625 and 525 lines, SMPTE 240M, BT.2020 (constant luminance taken as not constant).
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
BT601, BT709, BT2020 = 5, 1, 9
UNKNOWN = (2, 0, 3)  # unspecified and reserved; 0, RGB, says nothing about a frame of luma and chroma
FULL, LIMITED = 2, 1
# Files that do not name their matrix are BT.709 from this size on and BT.601 below it, as players guess (mpv, VLC).
HD_WIDTH, HD_HEIGHT = 1280, 576
# Pixels more oblong than this are a mistake of the file.
MOST_OBLONG = 8.0


def shown(frame: Any, track: Any, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn a frame of PyAV into what a player shows of it.

    Args:
        frame: a decoded frame in any pixel format.
        track: its track, which knows the shape of a pixel.
        matrix: the `display_matrix` of the video.

    Returns:
        uint8 (H, W, 3), contiguous.
    """
    return np.ascontiguousarray(turned(_square(_to_rgb(frame, track), track), matrix))


def _to_rgb(frame: Any, track: Any) -> np.ndarray:
    """uint8 (H, W, 3) as it is stored."""
    names = [c.is_alpha for c in frame.format.components]
    transfer, primaries = _described(frame, track, "color_trc"), _primaries(frame, track)
    matrix = _matrix(frame, transfer)
    if transfer in (PQ, HLG) or primaries != BT709:
        pixels = to_srgb(_deep_rgb(frame, matrix), transfer, primaries)
        if not any(names):
            return pixels
        alpha = _converted(frame, "rgba")[..., 3:]
        return on_white(np.concatenate([pixels, alpha], -1))
    if frame.format.name.startswith("gray") and _limited_gray(frame, track):
        return _gray(frame)
    source = {} if frame.format.is_rgb else {"src_colorspace": matrix}
    unused = track.codec_context.name == "rawvideo" and track.container.format.name == "avi"
    if (any(names) and not unused) or frame.format.has_palette:
        return on_white(_converted(frame, "rgba", **source))
    return _converted(frame, "rgb24", **source)


def _converted(frame: Any, form: str, **how: Any) -> np.ndarray:
    """Pixels in another format of FFmpeg. One thread: a process that is forked later must not wait for others of it."""
    try:
        return frame.reformat(format=form, threads=1, **how).to_ndarray()
    except TypeError:  # a PyAV that has no threads there
        return frame.reformat(format=form, **how).to_ndarray()


def _described(frame: Any, track: Any, name: str) -> int:
    """What a frame says of its colors, or its track where this PyAV has it only there."""
    value = getattr(frame, name, None)
    return int(getattr(track.codec_context, name, 2) if value is None else value)


def _primaries(frame: Any, track: Any) -> int:
    """BT.2020, P3, or BT.709, for which all others stand: those of BT.601 differ little, and decoders do the same."""
    named = _described(frame, track, "color_primaries")
    if named in UNKNOWN and (_described(frame, track, "color_trc") in (PQ, HLG) or int(frame.colorspace) in (9, 10)):
        return BT2020
    return named if named in PRIMARIES else BT709


def _matrix(frame: Any, transfer: int) -> int:
    """The matrix of a frame of luma and chroma, as swscale numbers it."""
    named = int(frame.colorspace)
    if named in UNKNOWN:
        if transfer in (PQ, HLG):
            return BT2020
        return BT709 if frame.width >= HD_WIDTH or frame.height > HD_HEIGHT else BT601
    return MATRICES.get(named, named)


def _deep_rgb(frame: Any, matrix: int) -> np.ndarray:
    """Nonlinear RGB of a frame of any depth, uint16 (H, W, 3), its nominal range as 0..65535."""
    if frame.format.is_rgb:
        return _converted(frame, "rgb48le")
    planes = _converted(frame, "yuv444p16le").astype(np.float32)  # (H, W, 3)
    if int(frame.color_range) == FULL:
        luma, chroma = planes[..., 0] / (LEVELS - 1), (planes[..., 1:] - 32768) / (LEVELS - 1)
    else:  # 16..235 and 16..240 of 8 bits (ITU-R BT.2100-2, table 9)
        luma, chroma = (planes[..., 0] / 256 - 16) / 219, (planes[..., 1:] / 256 - 128) / 224
    red, blue = LUMA.get(matrix, LUMA[BT2020])
    r = luma + 2 * (1 - red) * chroma[..., 1]
    b = luma + 2 * (1 - blue) * chroma[..., 0]
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return (np.stack([r, g, b], -1).clip(0, 1) * (LEVELS - 1) + 0.5).astype(np.uint16)


def _limited_gray(frame: Any, track: Any) -> bool:
    """Whether gray numbers go from 16 to 235; swscale takes all gray for full."""
    if int(frame.color_range) in (FULL, LIMITED):
        return int(frame.color_range) == LIMITED
    return track.codec_context.codec.canonical_name in ("h264", "hevc", "av1", "vp9")


def _gray(frame: Any) -> np.ndarray:
    values = _converted(frame, "gray16le").astype(np.float32)
    levels = ((values / 257 - 16) * (255 / 219)).round().clip(0, 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, -1)


def _square(pixels: np.ndarray, track: Any) -> np.ndarray:
    """Frames of oblong pixels (DVDs, old cameras) with their width scaled so that pixels are square."""
    ratio = float(track.sample_aspect_ratio or 1)
    height, width = pixels.shape[:2]
    wanted = max(round(width * ratio), 1)
    if wanted == width or not 1 / MOST_OBLONG <= ratio <= MOST_OBLONG:
        return pixels
    return resize(pixels[None], height, wanted)[0]


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """(a, b, c, d) of how a frame is turned: x' = a x + c y, y' = b x + d y, y downwards (ISO/IEC 14496-12, 6.2.2).

    Ask one frame of a video: PyAV's side data and their frame hold each other until the garbage is collected.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d


def turned(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror (H, W, 3) by a display matrix, to the nearest of the eight orientations."""
    a, b, c, d = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
