"""Whatever form a picture or clip is handed in, the same pixels come out; what is neither is one sentence."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openlance.errors import UserError
from openlance.media import Clip, as_clip, as_image, collected, read_media, write_media

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
ALPHA = np.linspace(0, 255, 600).reshape(20, 30, 1).astype(np.uint8)
RGBA = np.concatenate([RGB, ALPHA], -1)
LINEAR = np.linspace(0, 65535, 600).reshape(20, 30)


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def palette(**options):
    return Image.fromarray(RGB).quantize(16), "PNG", options


FILES = {
    "rgb": (Image.fromarray(RGB), "PNG", {}),
    "jpeg": (Image.fromarray(RGB), "JPEG", {}),
    "webp": (Image.fromarray(RGBA), "WEBP", {"lossless": True}),
    "alpha": (Image.fromarray(RGBA), "PNG", {}),
    "gray with alpha": (Image.fromarray(RGBA).convert("LA"), "PNG", {}),
    "palette": palette(),
    "palette with a clear color": palette(transparency=3),
    "palette with opacities": palette(transparency=bytes(range(0, 160, 10))),
    "one bit": (Image.fromarray(RGB).convert("1"), "PNG", {}),
    "gray with a clear level": (Image.fromarray(RGB[..., 0]), "PNG", {"transparency": 7}),
    "rgb with a clear color": (Image.fromarray(RGB), "PNG", {"transparency": tuple(RGB[3, 4].tolist())}),
    "sixteen bits": (Image.fromarray(LINEAR.astype(np.uint16)), "PNG", {}),
    "sixteen bits, a clear level": (Image.fromarray(LINEAR.astype(np.uint16)), "PNG", {"transparency": 0}),
    "float": (Image.fromarray((LINEAR / 65535).astype(np.float32)), "TIFF", {}),
    "integers": (Image.fromarray((LINEAR * 30000).astype(np.int32)), "TIFF", {}),
    "cmyk": (Image.fromarray(RGB).convert("CMYK"), "JPEG", {}),
    "cmyk tiff": (Image.fromarray(RGB).convert("CMYK"), "TIFF", {}),
    "lab": (Image.new("LAB", (30, 20), (136, 80, 67)), "TIFF", {}),
    "bmp": (Image.fromarray(RGB), "BMP", {}),
    "ppm": (Image.fromarray(RGB), "PPM", {}),
    "ico": (Image.fromarray(RGBA).resize((32, 32)), "ICO", {"sizes": [(16, 16), (32, 32)]}),
    "tga": (Image.fromarray(RGBA), "TGA", {}),
    **{f"turned {n}": (Image.fromarray(RGB), "JPEG", {"exif": exif(n)}) for n in range(1, 9)},
    "turned png": (Image.fromarray(RGBA), "PNG", {"exif": exif(6)}),
    "turned tiff": (Image.fromarray(RGB), "TIFF", {"exif": exif(5)}),
    "broken profile": (Image.fromarray(RGB), "PNG", {"icc_profile": b"no profile at all"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_its_bytes_and_its_pil_image_are_the_same_pixels(kind, tmp_path):
    image, form, options = FILES[kind]
    path = tmp_path / "a.bin"
    image.save(path, form, **options)
    data = path.read_bytes()
    with collected():
        read = read_media(path)
        loaded = Image.open(io.BytesIO(data))
        loaded.load()
        forms = [
            str(path), data, bytearray(data), memoryview(data), {"bytes": data, "path": None},
            {"bytes": None, "path": path}, Image.open(path), loaded, Image.open(path).copy(), [Image.open(path)],
            read, read.pixels, read.pixels[0],
        ]  # fmt: skip
        for number, medium in enumerate(forms):
            assert np.array_equal(as_clip(medium).pixels, read.pixels), number
    assert read.frames == 1


def test_arrays_and_tensors_of_every_form_are_the_same_pixels():
    torch = pytest.importorskip("torch")
    clip = np.stack([RGB, RGB[::-1]])
    exact = [
        RGB, RGB[None], RGB / 255, (RGB / 255).astype(np.float32), torch.from_numpy(RGB), torch.from_numpy(RGB)[None],
        torch.from_numpy(RGB).permute(2, 0, 1), torch.from_numpy(RGB / 255).permute(2, 0, 1).requires_grad_(),
        Image.fromarray(RGB), np.concatenate([RGB, np.full_like(ALPHA, 255)], -1),
    ]  # fmt: skip
    for medium in exact:
        assert np.array_equal(as_clip(medium).pixels, RGB[None])
    half = torch.from_numpy(RGB / 255).to(torch.bfloat16)
    assert np.abs(as_clip(half).pixels.astype(int) - RGB).max() <= 1
    for medium in (clip, clip / 255, torch.from_numpy(clip), torch.from_numpy(clip).permute(0, 3, 1, 2), list(clip)):
        assert np.array_equal(as_clip(medium).pixels, clip) and as_clip(medium).fps == 12
        assert np.array_equal(as_image(medium).pixels, clip[:1])
    for gray in (RGB[..., 0], RGB[..., :1], RGB[..., 0] / 255, Image.fromarray(RGB[..., 0])):
        assert np.array_equal(as_clip(gray).pixels, np.repeat(RGB[None, ..., :1], 3, -1))
    assert np.array_equal(as_clip(RGBA).pixels, as_clip(Image.fromarray(RGBA)).pixels)
    assert np.array_equal(as_clip(RGBA[None] / 255).pixels, as_clip(RGBA).pixels)


def test_a_list_is_the_frames_of_one_clip(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    frames = [tmp_path / "a.png", Image.fromarray(RGB), RGB, Clip(RGB[None])]
    assert np.array_equal(as_clip(frames).pixels, np.stack([RGB] * 4))
    assert np.array_equal(as_clip(tuple(frames)).pixels, np.stack([RGB] * 4))
    with pytest.raises(UserError, match=r"several sizes, 30x20 and 20x30"):
        as_clip([RGB, np.rot90(RGB)])
    with pytest.raises(UserError, match="empty"):
        as_clip([])
    with pytest.raises(UserError, match="entry 2 .* clip of 5 frames"):
        as_clip([RGB, np.zeros((5, 20, 30, 3), np.uint8)])


def test_an_animated_pil_image_is_the_frame_it_stands_on(tmp_path):
    write_media(tmp_path / "a.gif", Clip(np.stack([np.full((8, 8, 3), 60 * i, np.uint8) for i in range(4)])))
    image = Image.open(tmp_path / "a.gif")
    for number in (0, 2, 1):
        image.seek(number)
        assert as_clip(image).pixels.shape == (1, 8, 8, 3) and as_clip(image).pixels.mean() == 60 * number


@pytest.mark.parametrize(
    "wrong",
    [
        None, 7, 3.5, True, "", b"", {}, {"bytes": None, "path": None}, {"image": 1}, object(), [1, 2], [[0]], {1},
        np.float32(1), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool), np.full((4, 4, 3), 255.0), np.full((4, 4, 3), -0.5), np.full((4, 4, 3), np.nan),
        np.zeros((1, 1, 4, 4, 3), np.uint8), np.zeros(5, np.uint8), np.array("a"), "no/such/file.png", "a\0b", b"text",
        np.zeros((4, 4, 3), complex), np.array([None, 1], dtype=object), Image, lambda: 0,
    ],
    ids=lambda wrong: repr(wrong).partition(" at 0x")[0],
)  # fmt: skip
def test_wrong_kinds_are_one_sentence(wrong):
    for read in (as_clip, as_image):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserError) as error:
                read(wrong)
        assert "\n" not in str(error.value)


def test_a_closed_image_and_one_too_large_are_one_sentence(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(UserError, match="PIL image"):
        as_clip(image)
    from openlance.media import image as image_module

    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    for medium in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        with pytest.raises(UserError, match="30x20"):
            as_clip(medium)


def test_importing_it_imports_no_reader():
    code = "import sys, openlance.media; print([m for m in ('torch', 'PIL', 'av', 'pillow_heif') if m in sys.modules])"
    ours = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ours)
    assert done.stdout.strip() == "[]"
