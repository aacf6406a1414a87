"""Pixels of videos as a player shows them: matrix, range, primaries and HDR, opacity, orientation, square pixels."""

from fractions import Fraction

import numpy as np
import pytest

from openlance.media import collected, color, read_media
from openlance.media.color import turned

COLOR = np.array([200, 60, 30])
MATRICES = {1: "ITU709", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}


def flat(color, height=48, width=64, frames=2):
    return np.broadcast_to(np.array(color, np.uint8), (frames, height, width, len(color)))


def middle(data):
    pixels = read_media(data).pixels[0].astype(int)
    return pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]


@pytest.mark.parametrize("span", [1, 2])
@pytest.mark.parametrize("named", [1, 5, 6, 7])
def test_the_matrix_and_the_range_that_a_file_names_are_used(named, span, film):
    matrix = {"dst_colorspace": MATRICES[named], "dst_color_range": span}
    tags = {"colorspace": named, "color_range": span}
    data = film(flat(COLOR), pixels="yuv444p", matrix=matrix, tags=tags, encoder={"crf": "1"})
    assert np.abs(middle(data) - COLOR).max() <= 2


@pytest.mark.parametrize(
    "height, width, matrix", [(48, 64, "ITU601"), (576, 720, "ITU601"), (720, 1280, "ITU709"), (1280, 720, "ITU709")]
)
def test_a_file_that_names_no_matrix_is_guessed_by_its_size(height, width, matrix, film):
    made = {"dst_colorspace": matrix, "dst_color_range": 1}
    data = film(flat(COLOR, height, width, 1), matrix=made, tags={"colorspace": 2}, encoder={"preset": "ultrafast"})
    assert np.abs(middle(data) - COLOR).max() <= 3


@pytest.mark.parametrize("pixels", ["yuv422p", "yuv444p", "yuv420p10le", "yuv422p12le", "gbrp10le", "bgr0", "yuv411p"])
@pytest.mark.parametrize("height, width", [(48, 64), (33, 47)])
def test_every_pixel_format_and_odd_sides_come_out(pixels, height, width, film):
    clip = read_media(film(flat(COLOR, height, width), "matroska", "ffv1", pixels))
    assert clip.pixels.shape == (1, height, width, 3)
    assert np.abs(clip.pixels.astype(int) - COLOR).max() <= 3


def test_gray_of_limited_range_is_spread(film):
    import av

    frames = [av.VideoFrame.from_ndarray(np.full((48, 64), level, np.uint8), format="gray") for level in (16, 235)]
    for frame in frames:
        frame.color_range = 1
    clip = read_media(film(frames, "matroska", "ffv1", "gray", tags={"color_range": 1}, rate=2))
    assert set(np.unique(clip.pixels)) == {0, 255}


# The arithmetic of HDR in plain words, by the formulas of SMPTE ST 2084 and ITU-R BT.2100.
def plain_pq(signal):
    n, m = 0.1593017578125, 78.84375
    c2, c3 = 18.8515625, 18.6875
    p = signal ** (1 / m)
    return 10000 * (max(p - (c3 - c2 + 1), 0) / (c2 - c3 * p)) ** (1 / n)


def plain_pq_signal(nits):
    n, m = 0.1593017578125, 78.84375
    y = (nits / 10000) ** n
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** m


def plain_hlg(signal):
    return signal**2 / 3 if signal <= 0.5 else (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12


def plain_srgb(nonlinear_2020, transfer):
    """One sRGB color of one nonlinear color of BT.2020."""
    if transfer == 16:
        light = np.array([plain_pq(s) for s in nonlinear_2020])
    else:
        scene = np.array([plain_hlg(s) for s in nonlinear_2020])
        light = 1000 * (scene @ [0.2627, 0.6780, 0.0593]) ** 0.2 * scene
    matrix = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]  # ITU-R BT.2407
    light = np.clip(np.array(matrix) @ light / 203, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def coded(color, levels=1023):
    """Luma and chroma of limited range, 10 bits, of a nonlinear color of BT.2020."""
    r, g, b = color
    y = 0.2627 * r + 0.6780 * g + 0.0593 * b
    u, v = (b - y) / 1.8814, (r - y) / 1.4746
    return round(64 + 876 * y), round(512 + 896 * u), round(512 + 896 * v)


def hdr_film(film, color, transfer):
    import av

    frame = av.VideoFrame(64, 48, "yuv444p10le")
    for plane, value in zip(frame.planes, coded(color), strict=True):
        plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
    frame.colorspace, frame.color_range = 9, 1
    tags = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": transfer}
    return film([frame], "mp4", "libx264", "yuv444p10le", tags=tags, encoder={"crf": "1"})


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize(
    "color", [(0, 0, 0), (0.3, 0.3, 0.3), (0.5, 0.2, 0.1), (0.2, 0.5, 0.45), (0.1, 0.2, 0.55), (0.9, 0.9, 0.9)]
)
def test_hdr_comes_out_as_plain_arithmetic_has_it(color, transfer, film):
    assert np.abs(middle(hdr_film(film, color, transfer)) - plain_srgb(color, transfer)).max() <= 3


def test_reference_white_is_white_in_both_curves(film):
    for transfer, signal in ((16, plain_pq_signal(203)), (18, 0.75)):
        assert middle(hdr_film(film, (signal,) * 3, transfer)).min() >= 253
        assert middle(hdr_film(film, (1.0,) * 3, transfer)).tolist() == [255, 255, 255], "highlights are white"


@pytest.mark.parametrize("primaries", [9, 11, 12])
def test_white_stays_white_and_a_color_of_wide_primaries_gets_stronger(primaries):
    matrix = color.to_bt709(primaries)
    assert np.allclose(matrix @ np.ones(3), 1, atol=1e-5)
    gray = np.full((1, 1, 3), 32768, np.uint16)
    assert color.to_srgb(gray, 1, primaries).tolist() == [[[128, 128, 128]]]
    red = color.to_srgb(np.array([[[40000, 20000, 20000]]], np.uint16), 1, primaries)[0, 0].astype(int)
    assert red[0] > 156 and red[1] < 78


@pytest.mark.parametrize("turn", range(8))
def test_all_eight_orientations_of_a_clip_come_out_upright(turn, film):
    y, x = np.mgrid[:48, :64]
    still = np.stack([x * 3, y * 4, np.full_like(x, 90)], -1).astype(np.uint8)
    degrees, flip = turn % 4 * 90, turn >= 4
    data = film([still], turn=(degrees, flip, False), encoder={"crf": "1"}, pixels="yuv444p")
    expected = np.rot90(still, turn % 4)  # what is written turns counter-clockwise, then mirrors
    expected = expected[:, ::-1] if flip else expected
    found = read_media(data).pixels[0]
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 3


def test_a_display_matrix_moves_each_pixel_where_it_says():
    pixels = np.arange(6).reshape(2, 3, 1)
    signs = [(s, t) for s in (1, -1) for t in (1, -1)]
    found = set()
    for a, b, c, d in [(s, 0, 0, t) for s, t in signs] + [(0, s, t, 0) for s, t in signs]:
        made = turned(pixels, (a * 65536, b * 65536, c * 65536, d * 65536))
        moved = {(a * x + c * y, b * x + d * y): pixels[y, x, 0] for y in range(2) for x in range(3)}
        left, top = min(x for x, _ in moved), min(y for _, y in moved)
        assert all(made[y - top, x - left, 0] == value for (x, y), value in moved.items())
        found.add((made.shape, made.tobytes()))
    assert len(found) == 8


def test_oblong_pixels_become_square(film):
    frames = np.repeat(np.linspace(0, 250, 64).astype(np.uint8)[None, None, :, None], 3, -1).repeat(48, 1)
    for oblong, width in (("16:15", 68), ("2:1", 128), ("1:2", 32), ("1:1", 64)):
        clip = read_media(film(frames, oblong=Fraction(*map(int, oblong.split(":")))))
        assert (clip.height, clip.width) == (48, width)
        assert abs(int(clip.pixels[0, 24, 0, 0]) - 2) < 8 and abs(int(clip.pixels[0, 24, -1, 0]) - 250) < 8


@pytest.mark.parametrize(
    "form, codec, pixels",
    [
        ("webm", "libvpx-vp9", "yuva420p"), ("webm", "libvpx", "yuva420p"), ("mov", "prores_ks", "yuva444p10le"),
        ("mov", "qtrle", "argb"), ("mov", "png", "rgba"), ("matroska", "ffv1", "bgra"), ("nut", "ffv1", "yuva420p"),
    ],
)  # fmt: skip
def test_transparent_video_is_laid_on_white(form, codec, pixels, film):
    frames = flat((200, 60, 30, 255)).copy()
    frames[:, :, :32, 3] = 0
    frames[:, 24:, 32:, 3] = 128
    with collected():
        encoder = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
        clip = read_media(film(frames, form, codec, pixels, encoder=encoder))
    clear, solid, half = (clip.pixels[0, y, x].astype(int) for y, x in ((10, 10), (10, 50), (40, 50)))
    assert clear.min() >= 252
    assert np.abs(solid - COLOR).max() <= 8
    assert np.abs(half - (COLOR * 128 + 255 * 127) / 255).max() <= 8
