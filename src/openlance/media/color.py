"""Frames of FFmpeg as the pixels that a player shows: right matrix and range, HDR as sRGB, on white, upright, square.

The rule of HDR and wide color: nonlinear numbers become light in nits, 203 nits (the reference white of ITU-R BT.2408)
become the white of sRGB, the primaries become those of BT.709, what is brighter or more colorful than the target is
clipped by channel, and the rest is written with the curve of sRGB. Nothing below the white is changed by that, so faces
and objects keep their levels; highlights, which the model has no levels for, become white.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from openlance.media.image import on_white
from openlance.media.transform import resize

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

# Code points of ITU-T H.273 for transfer characteristics and color primaries.
PQ, HLG = 16, 18
SRGB_CURVE, LINEAR = 13, 8
GAMMAS = {4: 2.2, 5: 2.8}  # BT.470 M and B/G
# CIE 1931 (x, y) of red, green and blue by code point: BT.2020, SMPTE RP 431-2 and EG 432-1 (both P3). All are taken
# with the white D65 of BT.709, (0.3127, 0.3290): white stays white.
PRIMARIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
D65 = (0.3127, 0.3290)
REFERENCE_WHITE = 203.0  # nits of graphics white in HDR (ITU-R BT.2408-7, 2.2)
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # nits of the nominal display and the gamma of its OOTF (ITU-R BT.2100-2, table 5)
BT1886_GAMMA = 2.4  # of displays of ordinary video (ITU-R BT.1886)
BT2020_LUMA = (0.2627, 0.6780, 0.0593)  # ITU-R BT.2020-2, table 4
LEVELS = 65536


def shown(frame: Any, track: Any, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn a frame of PyAV into what a player shows of it.

    Args:
        frame: a decoded frame in any pixel format.
        track: its track, which knows the shape of a pixel.
        matrix: the `display_matrix` of the video.

    Returns:
        uint8 (H, W, 3), contiguous.
    """
    pixels = _stored(frame, track)
    height, width = pixels.shape[:2]
    ratio = float(track.sample_aspect_ratio or 1)  # of oblong pixels (DVDs, old cameras), whose width is scaled
    if 1 / MOST_OBLONG <= ratio <= MOST_OBLONG:
        pixels = resize(pixels[None], height, max(round(width * ratio), 1))[0]
    return np.ascontiguousarray(turned(pixels, matrix))


def _stored(frame: Any, track: Any) -> np.ndarray:
    """uint8 (H, W, 3) as it is stored."""
    alpha = any(component.is_alpha for component in frame.format.components)
    transfer = _described(frame, track, "color_trc")
    primaries, matrix = _primaries(frame, track, transfer), _matrix(frame, transfer)
    if transfer in (PQ, HLG) or primaries != BT709:
        pixels = to_srgb(_deep_rgb(frame, matrix), transfer, primaries)
        return on_white(np.concatenate([pixels, _converted(frame, "rgba")[..., 3:]], -1)) if alpha else pixels
    if frame.format.name.startswith("gray") and _limited_gray(frame, track):
        levels = (_converted(frame, "gray16le").astype(np.float32) / 257 - 16) * (255 / 219)
        return np.repeat(levels.round().clip(0, 255).astype(np.uint8)[..., None], 3, -1)
    source = {} if frame.format.is_rgb else {"src_colorspace": matrix}
    unused = track.codec_context.name == "rawvideo" and track.container.format.name == "avi"
    if (alpha and not unused) or frame.format.has_palette:
        return on_white(_converted(frame, "rgba", **source))
    return _converted(frame, "rgb24", **source)


def _converted(frame: Any, form: str, **how: Any) -> np.ndarray:
    """Pixels in another format of FFmpeg. One thread: a process that is forked later must not wait for others of it."""
    try:
        made = frame.reformat(format=form, threads=1, **how)
    except TypeError:  # a PyAV that has no threads there
        made = frame.reformat(format=form, **how)
    pixels: np.ndarray = made.to_ndarray()
    return pixels


def _described(frame: Any, track: Any, name: str) -> int:
    """What a frame says of its colors, or its track where this PyAV has it only there."""
    value = getattr(frame, name, None)
    return int(getattr(track.codec_context, name, 2) if value is None else value)


def _primaries(frame: Any, track: Any, transfer: int) -> int:
    """BT.2020, P3, or BT.709, for which all others stand: those of BT.601 differ little, and decoders do the same."""
    named = _described(frame, track, "color_primaries")
    if named in UNKNOWN and (transfer in (PQ, HLG) or int(frame.colorspace) in (9, 10)):
        return BT2020
    return named if named in PRIMARIES else BT709


def _matrix(frame: Any, transfer: int) -> int:
    """The matrix of a frame of luma and chroma, as swscale numbers it."""
    named = int(frame.colorspace)
    if named not in UNKNOWN:
        return MATRICES.get(named, named)
    if transfer in (PQ, HLG):
        return BT2020
    return BT709 if frame.width >= HD_WIDTH or frame.height > HD_HEIGHT else BT601


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


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Read how a frame is turned, (a, b, c, d): x' = a x + c y, y' = b x + d y, y downwards (ISO/IEC 14496-12, 6.2.2).

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


def pq_nits(signal: np.ndarray) -> np.ndarray:
    """Nits of nonlinear PQ numbers in [0, 1] (SMPTE ST 2084, 5.1; ITU-R BT.2100-2, table 4)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = np.power(signal, 1 / m2)
    nits: np.ndarray = 10000.0 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1)
    return nits


def hlg_scene(signal: np.ndarray) -> np.ndarray:
    """Light of the scene in [0, 1] of nonlinear HLG numbers in [0, 1] (inverse OETF of ITU-R BT.2100-2, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def srgb_curve(light: np.ndarray) -> np.ndarray:
    """Nonlinear sRGB in [0, 1] of linear light in [0, 1] (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)


@lru_cache(maxsize=8)
def _light_table(transfer: int) -> np.ndarray:
    """Linear light, white at 1 (of HLG the light of the scene), of each 16-bit number, float32 (65536,)."""
    signal = np.arange(LEVELS) / (LEVELS - 1)
    if transfer == PQ:
        light = pq_nits(signal) / REFERENCE_WHITE
    elif transfer == HLG:
        light = hlg_scene(signal)
    elif transfer == SRGB_CURVE:
        light = np.where(signal <= 0.04045, signal / 12.92, np.power((signal + 0.055) / 1.055, 2.4))
    else:
        light = signal if transfer == LINEAR else signal ** GAMMAS.get(transfer, BT1886_GAMMA)
    return light.astype(np.float32)


@lru_cache(maxsize=8)
def _signal_table(transfer: int) -> np.ndarray:
    """uint8 (65536,) of the square roots of linear light: the curve of sRGB, or that of ordinary video again."""
    light = (np.arange(LEVELS) / (LEVELS - 1)) ** 2
    known = transfer in (PQ, HLG, SRGB_CURVE, LINEAR)
    signal = srgb_curve(light) if known else light ** (1 / GAMMAS.get(transfer, BT1886_GAMMA))
    return (signal * 255).round().astype(np.uint8)


@lru_cache(maxsize=8)
def to_bt709(primaries: int) -> np.ndarray:
    """Make the matrix from linear RGB of other primaries to that of BT.709, float32 (3, 3), for columns."""
    matrix: np.ndarray = np.linalg.inv(_to_xyz(PRIMARIES[BT709])) @ _to_xyz(PRIMARIES[primaries])
    return matrix.astype(np.float32)


def _to_xyz(corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    """RGB to CIE XYZ of primaries with the white D65 (SMPTE RP 177)."""
    *columns, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in (*corners, D65))
    return np.stack(columns, -1) * np.linalg.solve(np.stack(columns, -1), white)


def to_srgb(rgb: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Turn nonlinear RGB of HDR or wide color into sRGB.

    Args:
        rgb: uint16 (H, W, 3), 0..65535 over the nominal range.
        transfer: code point of ITU-T H.273.
        primaries: code point of ITU-T H.273, one of `PRIMARIES`.

    Returns:
        uint8 (H, W, 3).
    """
    light = _light_table(transfer)[rgb]
    if transfer == HLG:  # OOTF: light of the display, brighter by the brightness of the scene
        luminance = light @ np.array(BT2020_LUMA, np.float32)
        light *= (HLG_PEAK / REFERENCE_WHITE * np.power(luminance, HLG_GAMMA - 1))[..., None]
    if primaries != BT709:
        light = light @ to_bt709(primaries).T
    signal: np.ndarray = _signal_table(transfer)[(np.sqrt(light.clip(0, 1)) * (LEVELS - 1) + 0.5).astype(np.uint16)]
    return signal
