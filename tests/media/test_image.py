"""Pictures: whatever the file is like, upright 8-bit RGB comes out, or one sentence."""

import numpy as np
import pytest
from PIL import Image

from openlance.errors import UserError
from openlance.media import Clip, atomic_path, read_image, write_image
from openlance.media import image as image_module

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_a_written_picture_reads_back_unchanged(tmp_path):
    write_image(tmp_path / "new" / "a.png", RGB)
    clip = read_image(tmp_path / "new" / "a.png")
    assert (clip.frames, clip.height, clip.width) == (1, 20, 30)
    assert np.array_equal(clip.pixels[0], RGB)
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["a.png"]


def test_transparent_pixels_become_white(tmp_path):
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[:10] = 0
    Image.fromarray(np.concatenate([RGB, alpha], 2)).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png").pixels[0]
    assert (pixels[:10] == 255).all() and np.array_equal(pixels[10:], RGB[10:])


def test_a_palette_with_a_transparent_colour_is_put_on_white(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "a.png", transparency=0)
    pixels = read_image(tmp_path / "a.png").pixels[0]
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[1, 1].tolist() == [200, 100, 50]


def test_exif_orientation_turns_the_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png").pixels[0], np.rot90(RGB, -1))


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    ramp = np.linspace(0, 65535, 30).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png").pixels[0]
    assert np.array_equal(pixels[..., 0], (ramp / 257).round().astype(np.uint8))
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "F", "I"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.tiff")
    assert read_image(tmp_path / "a.tiff").pixels.shape == (1, 20, 30, 3)


def test_cmyk_jpegs_keep_their_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(read_image(tmp_path / "a.jpg").pixels[0, 8, 8].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, keep, suffix):
    whole, cut = tmp_path / f"a{suffix}", tmp_path / f"cut{suffix}"
    write_image(whole, RGB)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"cut") as caught:
        read_image(cut)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_text_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for path, reason in (
        (tmp_path / "none.png", "no file"),
        (tmp_path, "folder"),
        (tmp_path / "text.png", "not an image"),
    ):
        with pytest.raises(UserError, match=reason):
            read_image(path)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(image_module, "MAX_PIXELS", 20 * 30 - 1)
    write_image(tmp_path / "a.png", RGB)
    with pytest.raises(UserError, match="30x20 pixels"):
        read_image(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused(tmp_path):
    header = b"P5 60000 60000 255\n"  # 3.6 gigapixels that are not there
    (tmp_path / "bomb.ppm").write_bytes(header)
    with pytest.raises(UserError, match="megapixels"):
        read_image(tmp_path / "bomb.ppm")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.png"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_unwritable_places_and_unknown_suffixes_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.png", tmp_path / "a.xyz"):
        with pytest.raises(UserError, match="cannot write"):
            write_image(path, RGB)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="folder"):
        write_image(tmp_path / "folder.png", RGB)


def test_a_clip_is_uint8_rgb_frames():
    for wrong in (RGB, RGB[None].astype(np.float32), RGB[None, ..., :2], RGB[None, :0]):
        with pytest.raises(ValueError, match="uint8"):
            Clip(wrong)
