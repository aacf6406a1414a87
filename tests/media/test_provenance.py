"""A file says how its picture was made, in every form that is written, and its pixels stay what they were."""

import io
import json
import pickle
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import openlance
from openlance.errors import UserError
from openlance.media import Clip, Provenance, as_clip, collected, read_media, read_provenance, write_media
from openlance.media import files as p

PROMPT = 'a "red" circle\n红色圆圈 é 🎨 \\ \ud800 ' + "word " * 2000
MADE = Provenance(
    openlance="1.2.3", task="t2i", prompt=PROMPT, negative_prompt="é", seed=2**64 - 1, width=48, height=32,
    model="nano", model_hash="0123", dtype="float32", lora=("mine:0.5",),
    settings={"num_inference_steps": 3, "solver": "euler", "guidance_scale": 4.0, "interval": [0.4, 1.0]},
)  # fmt: skip
STILLS = ("a.png", "a.jpg", "a.webp")
CLIPS = ("b.mp4", "b.webp", "b.gif")


def clip(name: str) -> Clip:
    frames = 1 if name in STILLS else 5
    return Clip(np.random.default_rng(0).integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", STILLS + CLIPS)
def test_every_form_says_how_it_was_made_and_shows_the_same(tmp_path, name):
    plain, path = clip(name), tmp_path / name
    write_media(path, replace(plain, made=MADE))
    write_media(tmp_path / f"plain-{name}", plain)
    assert read_provenance(path) == read_provenance(path.read_bytes()) == MADE == openlance.read_provenance(path)
    assert read_provenance(tmp_path / f"plain-{name}") is None
    assert np.array_equal(read_media(path).pixels, read_media(tmp_path / f"plain-{name}").pixels)


def test_the_image_in_memory_says_what_its_file_says(tmp_path):
    image = replace(clip("a.png"), made=MADE).images()[0]
    write_media(tmp_path / "a.png", as_clip(image.convert("RGB")))
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.info[p.KEY] == image.info[p.KEY] and as_clip(opened).made == MADE
        assert (
            opened.info["parameters"].startswith(PROMPT[:20])
            and "Steps: 3, Sampler: euler" in opened.info["parameters"]
        )
    assert clip("a.png").images()[0].info == {}


def test_what_has_no_room_is_said(tmp_path):
    long = replace(MADE, prompt="x" * 40_000)
    for name, prompt in (("a.jpg", 40_000), ("a.png", p.LONGEST), ("b.mp4", p.LONGEST)):
        with collected() as said:
            write_media(tmp_path / name, replace(clip(name), made=replace(MADE, prompt="x" * prompt)))
        assert len(said) == 1 and name in said[0] and read_provenance(tmp_path / name) is None
    for name in set(STILLS + CLIPS) - {"a.jpg"}:
        write_media(tmp_path / name, replace(clip(name), made=long))
        assert read_provenance(tmp_path / name) == long


def test_a_later_version_may_say_more():
    data = MADE.as_data() | {"scheduler": {"name": "new"}}
    assert Provenance.parse(json.dumps(data), "x").as_data()["scheduler"] == {"name": "new"}


def png(tmp_path, *chunks: tuple[bytes, bytes]):
    """A picture with these chunks behind its header."""
    write_media(tmp_path / "h.png", clip("a.png"))
    data = (tmp_path / "h.png").read_bytes()
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    (tmp_path / "h.png").write_bytes(data[:33] + made + data[33:])
    return tmp_path / "h.png"


BOMB = zlib.compress(b"x" * (1 << 25))
BAD = ['{"openlance": ', '{"openlance": 1}', '{"openlance": "1", "seed": []}', '{"openlance": ' + "[" * 50_000]


@pytest.mark.parametrize("chunk", [
    (b"zTXt", b"openlance\0\0" + BOMB),
    (b"iTXt", b"openlance\0\1\0\0\0" + BOMB),
    *((b"tEXt", b"openlance\0" + text.encode()) for text in BAD),
    (b"tEXt", b'openlance\0{"openlance": "' + b"x" * (2 << 20) + b'"}'),
])  # fmt: skip
def test_a_hostile_picture_is_one_sentence(tmp_path, chunk):
    with pytest.raises(UserError, match=r"h\.png") as error:
        read_provenance(png(tmp_path, chunk))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("text", BAD)
def test_a_damaged_comment_is_one_sentence(tmp_path, text):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["comment"] = text
        container.add_stream("libx264", rate=12).width = 16
    with pytest.raises(UserError, match=r"a\.mp4"):
        read_provenance(tmp_path / "a.mp4")


def test_a_movie_of_any_boxes_is_read_in_no_time(tmp_path):
    path = tmp_path / "a.mp4"
    write_media(path, replace(clip("b.mp4"), made=MADE))
    data = path.read_bytes()
    at = data.index(b"\xa9cmt") - 4
    huge = data[:at] + struct.pack(">I", 0xFFFFFFF0) + data[at + 4 :]
    for changed in (data[: at + 20], b"\0\0\0\x08ftyp" * 300_000, b"\0\0\0\1ftyp" + b"\xff" * 8, huge[: at + 8]):
        path.write_bytes(changed)
        assert read_provenance(path) is None


def test_metadata_of_others_are_not_ours(tmp_path):
    chunks = PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 20")
    chunks.add_text("openlance", "hello")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", comment=b'{"name": "other"}')
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    for name in ("a.png", "a.gif", "a.bmp"):
        assert read_provenance(tmp_path / name) is None
    (tmp_path / "a.txt").write_text("text")
    for path in (tmp_path / "a.txt", tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError):
            read_provenance(path)


def signed():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
    return Clip(pixels, made=MADE).images()[0]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_what_pillow_saves_says_how_it_was_made(tmp_path, name):
    image = signed()
    image.save(tmp_path / name)
    image.copy().save(str(tmp_path / f"copy_{name}"))
    pickle.loads(pickle.dumps(image)).save(memory := io.BytesIO(), Image.registered_extensions()[Path(name).suffix])
    found = [read_provenance(x) for x in (tmp_path / name, tmp_path / f"copy_{name}", memory.getvalue())]
    assert found == [MADE] * 3


def test_signed_images_are_pillows_own_in_all_else(tmp_path):
    image, plain = signed(), Image.fromarray(np.asarray(signed()))
    assert isinstance(image, Image.Image) and np.array_equal(np.asarray(image), np.asarray(plain))
    own = PngInfo()
    own.add_text("mine", "x")
    image.save(tmp_path / "own.png", pnginfo=own)
    assert Image.open(tmp_path / "own.png").info == {"mine": "x"}
    for made in (image.resize((8, 8)), image.convert("L")):  # another image, of which only `info` knows
        assert type(made) is Image.Image and as_clip(made).made == MADE
        made.save(tmp_path / "other.png")
        assert read_provenance(tmp_path / "other.png") is None
    image.save(tmp_path / "a.bmp")
    del image.info["openlance"]
    image.save(tmp_path / "bare.png")
    assert (tmp_path / "a.bmp").stat().st_size and read_provenance(tmp_path / "bare.png") is None
