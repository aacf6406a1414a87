"""What is sent: bombs, broken files, addresses, forms of any kind. Nothing is decoded before it is looked at, and
nothing gives more than the error object."""

import base64
import io
import json
import os
import zlib

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from openlance.media import Clip
from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure
from openlance.serve.media import encoded, read

CONFIG = ServeConfig(image_bytes=1 << 20, video_bytes=1 << 20, image_pixels=10_000, video_frames=20, video_seconds=1.0)
MANY = int(os.environ.get("OPENLANCE_FUZZ", "300"))


def png_of(width: int, height: int) -> bytes:
    """A PNG that says its size and holds next to nothing."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    body = b"IDAT" + zlib.compress(bytes(64))
    chunks = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (head, body, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def gif_of(frames: int) -> bytes:
    images = [Image.new("L", (8, 8), n % 256) for n in range(frames)]
    memory = io.BytesIO()
    images[0].save(memory, "GIF", save_all=True, append_images=images[1:], duration=10)
    return memory.getvalue()


def mp4_of(frames: int, side: int) -> bytes:
    return encoded(Clip(np.random.default_rng(0).integers(0, 255, (frames, side, side, 3), np.uint8)), "mp4")


@pytest.mark.parametrize(
    "data, what",
    [
        (png_of(9000, 9000), "pixels"),
        (png_of(100, 101), "pixels"),
        (gif_of(40), "frames"),
        (mp4_of(21, 16), "seconds"),
        (encoded(Clip(np.zeros((21, 16, 16, 3), np.uint8), 60.0), "mp4"), "frames"),
        (mp4_of(2, 128), "pixels"),
        (bytes(2 << 20), "bytes"),
        (bytes(1 << 10), "not an image or video"),
        (b"", "0 bytes"),
        (png_of(20, 20), "damaged"),
        (b"#EXTM3U\nhttp://127.0.0.1/x.ts", "not an image or video"),
        (b"ffconcat version 1.0\nfile /etc/passwd", "not an image or video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image or video"),
    ],
)  # fmt: skip
def test_what_is_too_large_or_no_picture_is_refused(data, what):
    with pytest.raises(Failure, match=what) as told:
        read(data, CONFIG, "image")
    assert (told.value.status, told.value.param) == (400, "image")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.png",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png,x",
        "",
    ],
)
def test_addresses_are_not_followed(url):
    with pytest.raises(Failure) as told:
        read(url, CONFIG, "image")
    assert told.value.code == "unsupported_url"


def test_broken_base64_is_refused(png):
    with pytest.raises(Failure, match="not base64"):
        read("data:image/png;base64,@@@@", CONFIG, "image")
    assert read("data:image/png;base64," + base64.b64encode(png).decode(), CONFIG, "image").frames == 1


def test_a_body_too_large_is_refused_before_it_is_read(pipe, serving, tmp_path):
    with serving(pipe, folder=tmp_path, video_bytes=1000) as server:
        url = f"{server.url}/v1/images/generations"
        for body in (
            b"x" * 2_000_000,
            (b"x" * 1000 for _ in range(2000)),
        ):  # the second one does not say how long it is
            answer = httpx2.post(url, content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# Values that are nearly right, so that what follows the first check is reached too; none asks for much work.
NEARLY = JSON | st.sampled_from(["32x32", "auto", "a star", 1, 2, "1", [], {}, [{}], "data:image/png;base64,AAAA"])
NAMES = [
    "prompt", "size", "n", "image", "url", "seconds", "num_frames", "input_reference", "image_reference", "messages",
    "modalities", "stream", "seed", "interval", "extra_body", "extra_params", "stop", "video", "stream_options",
    "response_format", "negative_prompt", "solver", "renorm", "user",
]  # fmt: skip
BODY = st.dictionaries(st.sampled_from(NAMES), NEARLY, max_size=5)
ROUTES = ["images/generations", "images/edits", "chat/completions", "videos", "videos/edits", "videos/extensions"]


def samples() -> list[bytes]:
    image = Clip(np.random.default_rng(0).integers(0, 255, (1, 24, 24, 3), np.uint8))
    return [*(encoded(image, form) for form in ("png", "jpeg", "webp")), gif_of(3), mp4_of(3, 16)]


def broken(data: bytes, cut: int, changes: list[tuple[int, int]], more: bytes) -> bytes:
    """A file that ends early, has other bytes here and there, and goes on with something else."""
    found = bytearray(data[: cut % (len(data) + 1)] if cut else data)
    for where, value in changes:
        if found:
            found[where % len(found)] = value
    return bytes(found) + more


PLACE, BYTE = st.integers(0, 5000), st.integers(0, 255)
BROKEN = st.builds(
    broken, st.sampled_from(samples()), PLACE, st.lists(st.tuples(PLACE, BYTE), max_size=4), st.binary(max_size=40)
)


def test_no_body_gives_a_defect(server, defects):
    with defects() as told:
        fuzzed(server)
        assert told == []


@settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))
@given(route=st.sampled_from(ROUTES), body=BODY, form=st.booleans(), file=BROKEN)
def fuzzed(server, route, body, form, file):
    url = f"{server.url}/v1/{route}"
    few = {"num_inference_steps": 1, "height": 16, "width": 16} if "size" not in body else {"num_inference_steps": 1}
    if form:
        fields = {
            name: v if isinstance(v, str) else json.dumps(v) for name, v in (few | body).items() if name != "image"
        }
        answer = CLIENT.post(url, data=fields, files=[("image[]", ("../x", file)), ("video", ("y", file))])
    else:
        answer = CLIENT.post(url, content=json.dumps(few | body))
    assert answer.status_code < 500, (answer.text, body)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error" and error["code"], error


CLIENT = httpx2.Client(timeout=60)


@pytest.mark.parametrize(
    "path",
    ["/v1/videos?limit=x", "/v1/videos?order=up", "/v1/videos?after=none", "/v1/nothing", "/v1/videos/%00/content"],
)
def test_wrong_addresses_give_the_error_object(server, path):
    answer = CLIENT.get(f"{server.url}/v1/{path}")
    assert 400 <= answer.status_code < 500 and answer.json()["error"]["code"]
    assert CLIENT.put(server.url + "/v1/videos").json()["error"]["code"] == "method_not_allowed"
