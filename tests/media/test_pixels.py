"""What a picture file says about its pixels is done: orientation, profile, depth, opacity, animation."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from openlance.errors import UserError
from openlance.media import as_clip, collected, read_image, read_media

RGB = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
# A matrix profile in the order of ICC.1:2010, 7: red, green and blue at D50, here of linear light.
CORNERS = {"rXYZ": (0.4361, 0.2225, 0.0139), "gXYZ": (0.3851, 0.7169, 0.0971), "bXYZ": (0.1431, 0.0606, 0.7141)}


def profile(space=b"RGB ", gamma=1.0, swap=False):
    """A small ICC profile with the corners of sRGB and a curve of a plain power; swap: red and green change places."""
    number = struct.Struct(">i")
    xyz = lambda values: b"XYZ \0\0\0\0" + b"".join(number.pack(round(v * 65536)) for v in values)  # noqa: E731
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"mine\0" + bytes(78 + 11)
    corners = dict(CORNERS)
    if swap:
        corners["rXYZ"], corners["gXYZ"] = corners["gXYZ"], corners["rXYZ"]
    parts = {"desc": text, "wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"RGB ":
        parts |= {name: xyz(value) for name, value in corners.items()} | {f"{c}TRC": curve for c in "rgb"}
    else:
        parts["kTRC"] = curve
    at, table, body = 128 + 4 + 12 * len(parts), b"", b""
    for name, part in parts.items():
        table += name.encode() + struct.pack(">II", at + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + b"".join(number.pack(round(v * 65536)) for v in (0.9642, 1.0, 0.8249)) + bytes(48)
    return head + struct.pack(">I", len(parts)) + table + body


def saved(image, form="PNG", **options):
    memory = io.BytesIO()
    image.save(memory, form, **options)
    return memory.getvalue()


def png(pixels, kind, *chunks):
    """A PNG of 16 bits: kind 0 gray, 2 RGB, 4 gray and opacity, 6 RGBA."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    made = [
        chunk(b"IHDR", head),
        *(chunk(*c) for c in chunks),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_all_eight_orientations_of_a_picture_come_out_upright(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Which side of the scene row 0 and column 0 of the stored picture are (EXIF 2.32, 4.6.4 A).
    stored = [
        RGB, RGB[:, ::-1], RGB[::-1, ::-1], RGB[::-1], RGB.transpose(1, 0, 2), np.rot90(RGB),
        RGB[::-1, ::-1].transpose(1, 0, 2), np.rot90(RGB, -1),
    ][orientation - 1]  # fmt: skip
    options = {"lossless": True} if form == "WEBP" else {}
    picture = Image.fromarray(np.ascontiguousarray(stored))
    assert np.array_equal(read_media(saved(picture, form, exif=exif.tobytes(), **options)).pixels[0], RGB)


def test_a_profile_is_converted_and_that_of_srgb_costs_nothing():
    picture = Image.fromarray(RGB)
    light = RGB / 255.0
    linear = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(read_media(saved(picture, icc_profile=profile())).pixels[0] - linear).max() <= 2
    swapped = read_media(saved(picture, icc_profile=profile(swap=True))).pixels[0]
    assert np.abs(swapped - linear[..., [1, 0, 2]]).max() <= 2
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read_media(saved(picture, icc_profile=srgb)).pixels[0], RGB)


def test_profiles_of_gray_and_of_palettes_and_opacity_are_converted():
    gray = Image.fromarray(RGB[..., 0])
    light = RGB[..., :1] / 255.0
    linear = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    for data in (saved(gray, icc_profile=profile(b"GRAY")), saved(gray, icc_profile=profile())):
        assert np.abs(read_media(data).pixels[0] - linear).max() <= 2
    few = Image.fromarray(RGB).quantize(8)
    plain, converted = np.asarray(few.convert("RGB")), read_media(saved(few, icc_profile=profile())).pixels
    assert np.array_equal(converted, read_media(saved(Image.fromarray(plain), icc_profile=profile())).pixels)
    clear = np.concatenate([RGB, np.zeros_like(RGB[..., :1])], -1)
    assert (read_media(saved(Image.fromarray(clear), icc_profile=profile())).pixels == 255).all()


def test_a_broken_profile_is_said_and_left_out():
    for broken in (b"nothing", profile()[:100], profile(b"GRAY")[:150]):
        with collected() as lines:
            assert np.array_equal(read_media(saved(Image.fromarray(RGB), icc_profile=broken)).pixels[0], RGB)
        assert len(lines) == 1 and "profile" in lines[0]


def test_a_pil_image_that_was_converted_keeps_no_foreign_profile():
    cmyk = Image.fromarray(RGB).convert("CMYK")
    cmyk.info["icc_profile"] = profile(b"GRAY")
    with collected() as lines:
        assert np.array_equal(as_clip(cmyk).pixels[0], np.asarray(cmyk.convert("RGB")))
    assert not lines


@pytest.mark.parametrize("kind, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_scaled_to_eight(kind, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (16, 24, channels), dtype=np.uint16)
    color = np.broadcast_to(deep[..., :3] if channels > 2 else deep[..., :1], (16, 24, 3)) / 257
    alpha = deep[..., -1:] / 65535 if channels in (2, 4) else 1
    found = read_media(png(deep, kind)).pixels[0]
    assert np.abs(found - (color * alpha + 255 * (1 - alpha))).max() <= 2  # Pillow keeps the upper half of RGB


def test_a_clear_color_of_sixteen_bits_is_clear():
    deep = np.full((4, 4, 3), 40000, np.uint16)
    deep[1, 2] = (20000, 21000, 22000)
    found = read_media(png(deep, 2, (b"tRNS", struct.pack(">HHH", 20000, 21000, 22000)))).pixels[0]
    assert found[1, 2].tolist() == [255] * 3 and found[0, 0].tolist() == [156] * 3
    found = read_media(png(deep[..., :1], 0, (b"tRNS", struct.pack(">H", 20000)))).pixels[0]
    assert found[1, 2].tolist() == [255] * 3 and found[0, 0].tolist() == [156] * 3


def test_numbers_without_a_fixed_range_are_scaled_by_it():
    ramp = np.linspace(0, 1, 24)[None].repeat(4, 0)
    eight = (ramp * 255).round().astype(np.uint8)
    holes = ramp.astype(np.float32)
    holes[0, :3] = np.nan, np.inf, -np.inf
    assert as_clip(Image.fromarray(holes)).pixels[0, 0, :3, 0].tolist() == [0, 255, 0]
    for values in (ramp.astype(np.float32), (ramp * 255).astype(np.float32), (ramp * 65535).astype(np.int32),
                   (ramp * (2**31 - 1)).astype(np.int32)):  # fmt: skip
        found = read_media(saved(Image.fromarray(values), "TIFF")).pixels[0, ..., 0]
        assert np.abs(found.astype(int) - eight).max() <= 1
    assert as_clip(Image.fromarray(np.full((2, 2), np.nan, np.float32))).pixels.max() == 0


def test_lab_and_inverted_cmyk_keep_their_colors():
    # L* 53.2, a* 80.1, b* 67.2 is the red of sRGB; TIFF keeps a* and b* as signed bytes.
    lab = Image.new("LAB", (16, 16), (round(53.2 * 2.55), 80 + 128, 67 + 128))
    assert np.abs(as_clip(lab).pixels[0, 8, 8].astype(int) - [255, 0, 0]).max() <= 12
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for data in (saved(cmyk, "JPEG"), saved(cmyk, "TIFF")):
        assert np.abs(read_media(data).pixels[0, 8, 8].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_with_clear_places_are_laid_on_white(form):
    frames = []
    for number in range(4):
        pixels = np.zeros((16, 16, 4), np.uint8)
        pixels[:, 4 * number : 4 * number + 4] = (200, 40, 10, 255)
        frames.append(Image.fromarray(pixels))
    options = {"lossless": True, "kmin": 0, "kmax": 1} if form == "WEBP" else {"disposal": 2}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], duration=500, loop=0, **options)
    clip = read_media(data)
    for number in range(4):
        expected = np.full((16, 16, 3), 255)
        expected[:, 4 * number : 4 * number + 4] = (200, 40, 10)
        assert any(np.abs(frame.astype(int) - expected).max() <= 2 for frame in clip.pixels)
    assert set(np.unique(clip.pixels[..., 0]).tolist()) <= {200, 255}


def test_files_of_several_pictures_are_read_by_what_they_are():
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    pages = read_media(saved(first, "TIFF", save_all=True, append_images=[second] * 23)).pixels
    assert len(pages) > 1 and np.array_equal(pages[0], RGB) and np.array_equal(pages[-1], RGB[::-1])
    mpo = saved(Image.new("RGB", (24, 16), (90,) * 3), "MPO", save_all=True, append_images=[second])
    assert read_media(mpo).frames == 1 and set(np.unique(read_media(mpo).pixels)) == {90}
    icon = saved(first.resize((64, 64)), "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    assert read_media(icon).pixels.shape == (1, 64, 64, 3)
    still = saved(first, "PNG", save_all=True, append_images=[second] * 3, default_image=True, duration=1000)
    assert all(np.array_equal(frame, second) for frame in read_media(still).pixels), "a still for old viewers"


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def test_without_its_reader_a_heic_picture_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("a.heic", "a.jpg", "a.mp4"):
        (tmp_path / name).write_bytes(HEIC)
        for read in (read_media, read_image):
            with pytest.raises(UserError, match=r"HEIC .*pip install 'openlance\[media\]'"):
                read(tmp_path / name)
    with pytest.raises(UserError, match="AVIF"):
        read_media(HEIC.replace(b"heic", b"avif"))


def test_a_damaged_heic_picture_is_one_sentence():
    pytest.importorskip("pillow_heif")
    with pytest.raises(UserError, match="damaged"):
        read_media(HEIC)


def test_heic_is_read_where_its_reader_is():
    heif = pytest.importorskip("pillow_heif")
    memory = io.BytesIO()
    smooth = np.kron(RGB[:4, :4], np.ones((32, 32, 1), np.uint8))
    heif.from_pillow(Image.fromarray(smooth)).save(memory, quality=95)
    clip = read_media(memory.getvalue())
    assert clip.frames == 1 and np.abs(clip.pixels[0].astype(int) - smooth).mean() < 8


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_a_picture_or_an_animation():
    smooth = np.kron(RGB[:4, :4], np.ones((32, 32, 1), np.uint8))
    data = saved(Image.fromarray(smooth), "AVIF", quality=95, speed=10)
    clip = read_media(data)
    assert clip.frames == 1 and np.abs(clip.pixels[0].astype(int) - smooth).mean() < 8
    frames = [Image.new("RGB", (32, 32), (level,) * 3) for level in (0, 100, 200)]
    moving = saved(frames[0], "AVIF", save_all=True, append_images=frames[1:], duration=400, speed=10)
    assert read_media(moving).frames == 13


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "RGB"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_uncompressed_tiff_is_turned_however_it_is_handed_in(mode, orientation, tmp_path):
    steps = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56)
    picture = Image.fromarray(steps * 20 if mode == "I;16" else (steps % 251).astype(np.uint8))
    tags, path = Image.Exif(), tmp_path / "a.tif"
    tags[0x112] = orientation
    (picture if mode == "I;16" else picture.convert(mode)).save(path, exif=tags)
    wanted = as_clip(path.read_bytes()).pixels
    assert wanted.shape == ((1, 40, 56, 3) if orientation < 5 else (1, 56, 40, 3))
    assert (read_media(path).pixels == wanted).all() and (as_clip(Image.open(path)).pixels == wanted).all()


def tiff(values, bits, form, photometric):
    """An uncompressed gray TIFF of one strip, little endian."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1),
               (278, height), (279, len(data)), (339, form)]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


@pytest.mark.parametrize(
    "kind, form, photometric", [(np.uint16, 1, 1), (np.uint16, 1, 0), (np.int16, 2, 1), (np.uint32, 1, 1)]
)
def test_gray_of_any_depth_is_scaled_by_what_its_numbers_can_be(kind, form, photometric):
    levels = np.array([[0, 60, 120, 180, 234]] * 4)
    values = (levels / 255 * np.iinfo(kind).max).astype(kind)
    if photometric == 0:
        values = np.iinfo(kind).max - values
    found = as_clip(tiff(values, np.iinfo(kind).bits, form, photometric)).pixels[0, ..., 0]
    assert np.abs(found.astype(int) - levels).max() <= 1


def test_the_opacities_of_a_palette_count():
    rgba = np.full((8, 8, 4), (94, 129, 193, 255), np.uint8)
    rgba[:4, :, 3] = 0
    palette = Image.fromarray(rgba).quantize(256, method=Image.Quantize.FASTOCTREE)
    pixels = as_clip(palette).pixels[0]
    assert palette.mode == "P" and (pixels[0] == 255).all() and (pixels[7] == (94, 129, 193)).all()


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_frames_that_tell_no_time_are_all_read_as_far_as_clips_go(suffix, tmp_path):
    pages = [Image.fromarray(np.full((16, 16, 3), 20 * n, np.uint8)) for n in range(10)]
    path = tmp_path / f"a{suffix}"
    for count, kept in ((5, 5), (10, 9)):
        pages[0].save(path, save_all=True, append_images=pages[1:count])
        with collected() as said:
            assert read_media(path).frames == kept
        assert bool(said) == (kept < count) and all(f"{kept} of them" in line for line in said)


@pytest.mark.parametrize("share", np.arange(5, 100, 5))
def test_a_gif_that_breaks_off_is_never_a_still_picture(share, tmp_path):
    random = np.random.default_rng(3)
    pages = [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(9)]
    path = tmp_path / "a.gif"
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * int(share) // 100])
    with pytest.raises(UserError):
        read_media(path)
