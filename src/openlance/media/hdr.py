"""High dynamic range and wide color as the sRGB that the model knows: plain arithmetic on 16-bit numbers.

The rule: nonlinear numbers become light in nits, 203 nits (the reference white of ITU-R BT.2408) become the white of
sRGB, the primaries become those of BT.709, what is brighter or more colorful than the target is clipped by channel,
and the rest is written with the curve of sRGB. Nothing below the white is changed by that, so faces and objects keep
their levels; highlights, which the model has no levels for, become white.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# Code points of ITU-T H.273 for transfer characteristics and color primaries.
PQ, HLG = 16, 18
SRGB_CURVE, LINEAR = 13, 8
GAMMAS = {4: 2.2, 5: 2.8}  # BT.470 M and B/G
BT709 = 1
# CIE 1931 (x, y) of red, green and blue by code point: BT.2020, SMPTE RP 431-2 and EG 432-1 (both P3). All are taken
# with the white D65 of BT.709, (0.3127, 0.3290): white stays white.
PRIMARIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
D65 = (0.3127, 0.3290)
REFERENCE_WHITE = 203.0  # nits of graphics white in HDR (ITU-R BT.2408-7, 2.2)
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # nits of the nominal display and the gamma of its OOTF (ITU-R BT.2100-2, table 5)
BT1886_GAMMA = 2.4  # of displays of ordinary video (ITU-R BT.1886)
BT2020_LUMA = (0.2627, 0.6780, 0.0593)  # ITU-R BT.2020-2, table 4
LEVELS = 65536


def pq_nits(signal: np.ndarray) -> np.ndarray:
    """Nits of nonlinear PQ numbers in [0, 1] (SMPTE ST 2084, 5.1; ITU-R BT.2100-2, table 4)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = np.power(signal, 1 / m2)
    return 10000.0 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1)


def hlg_scene(signal: np.ndarray) -> np.ndarray:
    """Light of the scene in [0, 1] of nonlinear HLG numbers in [0, 1] (inverse OETF of ITU-R BT.2100-2, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def srgb_curve(light: np.ndarray) -> np.ndarray:
    """Nonlinear sRGB in [0, 1] of linear light in [0, 1] (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)


def _srgb_light(signal: np.ndarray) -> np.ndarray:
    return np.where(signal <= 0.04045, signal / 12.92, np.power((signal + 0.055) / 1.055, 2.4))


@lru_cache(maxsize=8)
def _light_table(transfer: int) -> np.ndarray:
    """Linear light, white at 1 (of HLG the light of the scene), of each 16-bit number, float32 (65536,)."""
    signal = np.arange(LEVELS) / (LEVELS - 1)
    if transfer == PQ:
        light = pq_nits(signal) / REFERENCE_WHITE
    elif transfer == HLG:
        light = hlg_scene(signal)
    elif transfer == SRGB_CURVE:
        light = _srgb_light(signal)
    else:
        light = signal if transfer == LINEAR else signal ** GAMMAS.get(transfer, BT1886_GAMMA)
    return light.astype(np.float32)


@lru_cache(maxsize=8)
def _signal_table(transfer: int) -> np.ndarray:
    """uint8 (65536,) of the square roots of linear light: the curve of sRGB, or that of ordinary video again."""
    light = (np.arange(LEVELS) / (LEVELS - 1)) ** 2
    if transfer in (PQ, HLG, SRGB_CURVE, LINEAR):
        signal = srgb_curve(light)
    else:
        signal = light ** (1 / GAMMAS.get(transfer, BT1886_GAMMA))
    return (signal * 255).round().astype(np.uint8)


@lru_cache(maxsize=8)
def to_bt709(primaries: int) -> np.ndarray:
    """The matrix that turns linear RGB of other primaries into that of BT.709, float32 (3, 3), for columns."""
    return (np.linalg.inv(_to_xyz(PRIMARIES[BT709])) @ _to_xyz(PRIMARIES[primaries])).astype(np.float32)


def _to_xyz(corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    """RGB to CIE XYZ of primaries with the white D65 (SMPTE RP 177)."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in corners]).T
    x, y = D65
    return columns * np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y]))


def to_srgb(rgb: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Turn nonlinear RGB of HDR or wide color into sRGB.

    Args:
        rgb: uint16 (H, W, 3), 0..65535 over the nominal range.
        transfer, primaries: code points of ITU-T H.273; `primaries` one of `PRIMARIES`.

    Returns:
        uint8 (H, W, 3).
    """
    light = _light_table(transfer)[rgb]
    if transfer == HLG:  # OOTF: light of the display, brighter by the brightness of the scene
        luminance = light @ np.array(BT2020_LUMA, np.float32)
        light *= (HLG_PEAK / REFERENCE_WHITE * np.power(luminance, HLG_GAMMA - 1))[..., None]
    if primaries != BT709:
        light = light @ to_bt709(primaries).T
    return _signal_table(transfer)[(np.sqrt(light.clip(0, 1)) * (LEVELS - 1) + 0.5).astype(np.uint16)]
