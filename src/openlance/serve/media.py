"""Images and videos in and out: data URLs and uploads become a `Clip`, within limits that are checked before a pixel is
decoded, and results become bytes. All of it is work for a thread.

Nothing that a client names is opened, no path and no file name, and no address but of a host that was listed (`fetch`).
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path

import numpy as np

from openlance.errors import UserError
from openlance.media import Clip, read_media, write_media
from openlance.media.files import Source
from openlance.media.image import frames_of, open_image
from openlance.media.inputs import UNSIGNED, every_frame
from openlance.media.region import read_transparency
from openlance.media.video import opened, survey
from openlance.media.write import encode_image
from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure, about, unkept
from openlance.serve.fetch import fetched

DATA = re.compile(r"data:[\w.+/;=-]*;base64,", re.IGNORECASE)
MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "mp4": "video/mp4"}


def read(sent: bytes | str, config: ServeConfig, param: str, whole: bool = False) -> Clip:
    """The video in the bytes of a file, in a data URL, or at the address of a host that was listed; whole: with all of
    its frames, of which the model sees 1 + 4 k.

    Raises:
        Failure: It is another address, or nothing that can be read within the limits.
    """
    with about(param):
        data = _of_url(sent, config, param) if isinstance(sent, str) else sent
        source = Source(data, param)
        frames = _frames_of_image(source, config, param)
        if frames is None:
            frames = _frames_of_video(source, config, param)
        _check(frames, config.video_frames, "frames", param)
        return every_frame(data, param) if whole else read_media(data, param)


def mask(sent: bytes | str, about_: Clip, config: ServeConfig, param: str = "mask") -> np.ndarray:
    """The mask of an image, OpenAI's (`media.region.read_transparency`); Failure as from `read`."""
    with about(param):
        data = _of_url(sent, config, param) if isinstance(sent, str) else sent
        _frames_of_image(Source(data, param), config, param)
        return read_transparency(data, (about_.frames, about_.height, about_.width))


def _of_url(url: str, config: ServeConfig, param: str) -> bytes:
    match = DATA.match(url[:200])
    if match is None:
        return fetched(url, config, param)
    _check((len(url) - match.end()) * 3 // 4, config.video_bytes, "bytes", param)
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except binascii.Error as error:
        raise Failure(f"{param}: the data URL is not base64 ({error})", code="invalid_value", param=param) from None


def _check(found: float, most: float, what: str, param: str) -> None:
    if found > most:
        message = f"{param}: {found:g} {what}, more than the {most:g} allowed"
        raise Failure(message, code="media_too_large", param=param)


def _frames_of_image(source: Source, config: ServeConfig, param: str) -> int | None:
    """How many frames an image has, None if it is none; Failure if its frames are too large."""
    image = open_image(source)
    if image is None:
        return None
    with image:
        if image.format in UNSIGNED:  # a video may look like one, and would be read as one
            raise Failure(f"{param}: send a PNG, JPEG or WebP file", code="invalid_value", param=param)
        _check(source.size(), config.image_bytes, "bytes", param)
        _check(image.width * image.height, config.image_pixels, "pixels", param)
        count = frames_of(image, param)
        _check(count * image.width * image.height, config.video_pixels, "pixels in all frames", param)
        return count


def _frames_of_video(source: Source, config: ServeConfig, param: str) -> int:
    """... of a video, which may not last too long either."""
    _check(source.size(), config.video_bytes, "bytes", param)
    with opened(source) as (_, track):
        pixels = (track.codec_context.width or 0) * (track.codec_context.height or 0)
        _check(pixels, config.image_pixels, "pixels", param)
    line = survey(source)
    _check(line.count * pixels, config.video_pixels, "pixels in all frames", param)
    _check(line.end - (0.0 if line.starts is None else float(line.starts[0])), config.video_seconds, "seconds", param)
    return line.count


def encoded(clip: Clip, form: str = "png", quality: int | None = None) -> bytes:
    """An image, or the first frame of a video, in one of the forms of `MIME`; "mp4" has all frames."""
    if form != "mp4":
        return encode_image(clip, form.upper(), quality)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        if clip.height % 2 or clip.width % 2:  # of somebody's own file: the codec has even sides
            sides = ((0, 0), (0, clip.height % 2), (0, clip.width % 2), (0, 0))
            clip = clip.with_pixels(np.pad(clip.pixels, sides, mode="edge"))
        try:
            write_media(path, clip)
        except UserError as error:  # a full disk, which is no mistake of the client's
            raise unkept(error) from error
        return path.read_bytes()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def data_url(data: bytes, form: str) -> str:
    return f"data:{MIME[form]};base64,{base64_of(data)}"
