"""Files that people reported elsewhere, made again: each comes out right or is refused by its true name."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openlance.errors import UserError
from openlance.media import as_clip, collected, read_media

FIELD = Path(__file__).parents[3] / "shared" / "field" / "infer"
pytestmark = pytest.mark.skipif(not FIELD.exists(), reason="the files are not here")


@pytest.mark.parametrize("name", ["exif6.jpg", "alpha.png", "pal.png", "base.png"])
def test_a_pil_image_is_its_file(name):
    clip = read_media(FIELD / name)
    assert np.array_equal(as_clip(Image.open(FIELD / name)).pixels, clip.pixels)
    if name == "alpha.png":
        assert (clip.pixels == 255).all(-1).mean() > 0.3, "on white"


@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.mp4", "vfr.gif"])
def test_a_variable_rate_goes_by_time(name):
    levels = read_media(FIELD / name).pixels.mean((1, 2, 3))
    assert len(levels) == 41
    counts = [int((abs(levels - level) < 8).sum()) for level in (20, 70, 120, 170, 220)]
    assert all(1 <= count <= 2 for count in counts[:4]) and counts[4] == 41 - sum(counts[:4])


def test_every_slide_is_seen():
    with collected() as lines:
        levels = read_media(FIELD / "slides.mp4").pixels.mean((1, 2, 3)).round()
    assert len(np.unique(levels)) == 10 and "50.0 s" in lines[0]


def test_half_a_file_is_refused_or_said():
    with pytest.raises(UserError, match="truncated"):
        read_media(FIELD / "cut_half.mkv")
    with collected() as lines:
        assert read_media(FIELD / "cut_half.ts").frames == 21
    assert "MPEG transport stream" in lines[0] and "48 frames" in lines[0]


def test_hdr_is_as_bright_as_it_was_meant():
    pixels = read_media(FIELD / "hdr_pq.mp4").pixels[0].reshape(-1, 3).astype(int)
    circle = pixels[pixels[:, 0] > 200]
    assert len(circle) > 300 and np.abs(np.median(circle, 0) - [217, 24, 37]).max() <= 3


def test_a_turned_clip_is_upright():
    clip = read_media(FIELD / "rot90.mp4")
    assert (clip.height, clip.width) == (96, 96) and clip.frames == 5


def test_a_phone_picture_is_whole():
    pytest.importorskip("pillow_heif")
    clip = read_media(FIELD / "phone_grid.heic")
    assert clip.pixels.shape == (1, 512, 512, 3)


def test_a_phone_picture_without_a_reader_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match=r"HEIC .*openlance\[media\]"):
        read_media(FIELD / "phone_grid.heic")
