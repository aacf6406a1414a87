"""What people hand in, in any form, as a video: files, bytes, Pillow images, arrays, tensors, lists of frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, SupportsFloat, TypeAlias

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import (
    MAX_SECONDS,
    MODEL_FPS,
    TEMPORAL_STRIDE,
    UNKNOWN_FPS,
    Clip,
    Provenance,
    carried,
    frame_indices,
    joined,
    tell_speed,
)
from openlance.media.files import BEGIN, EXIF_IFD, KEY, LONGEST, UNICODE, USER_COMMENT, Source, begins_as_video, notice
from openlance.media.image import frames_of, metadata, on_white, one_image, open_image, read_animation
from openlance.media.video import opened, read_moments, read_video_file, survey

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Anything that `as_clip` takes.
MediaInput: TypeAlias = Any

EXPECTED = (
    "give a path, the bytes of a file, a PIL image, an array or tensor of pixels (uint8, or float from 0 to 1), "
    "a Clip, or a list of frames"
)
COMMENT = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")  # boxes, each inside the one before
MOST_BOXES = 10_000
ROUNDING = 1e-3  # how far numbers that should lie in [0, 1] may be off
# Formats of images without a signature: a video may look like one by chance.
UNSIGNED = ("TGA",)


def read_media(source: str | Path | bytes, name: str | None = None) -> Clip:
    """Read an image as one frame, a video or an animation as the frames that the model sees.

    The content decides what a file is, not its name.

    Args:
        source: a file, or its bytes.
        name: what errors and notices call it, if not by its path.

    Returns:
        uint8 frames in sRGB, upright, on white; a video has 12 a second.

    Raises:
        UserError: it is missing, neither image nor video, damaged, truncated or too large.
    """
    file = Source(source, name)
    image = _still_or_animation(file)
    if image is None:
        return read_video_file(file)
    with image:
        return read_animation(image, file.name) if frames_of(image, file.name) > 1 else one_image(image, file.name)


def read_video(source: str | Path | bytes, name: str | None = None) -> Clip:
    """Read a video, or an animation, as the frames that the model sees. Takes and returns what `read_media` does.

    Raises:
        UserError: as from `read_media`, and where the file holds a still image (a GIF of one frame is a video).
    """
    file = Source(source, name)
    image = _still_or_animation(file)
    if image is not None:
        with image:
            if image.format != "GIF" and frames_of(image, file.name) == 1:
                raise UserError(f"{file.name} is a still image, not a video: give an MP4, WebM or animated file")
    return read_media(source, name)


def read_window(
    source: str | Path | bytes, name: str | None = None, *, frames: int, place: SupportsFloat = 0.0, stride: int = 1,
    spare: float = math.inf,
) -> Clip:  # fmt: skip
    """Read a stretch of a video at the speed of life, however long and of whatever rate the video is.

    Args:
        source: a file, or its bytes.
        name: what errors and notices call it, if not by its path.
        frames: the longest video; one of 1 + 4k frames comes out.
        place: where the stretch lies, from the start of the video (0) to its end (1); asked for its number only where
            the video is longer.
        stride: every n-th of the model's 12 frames a second, so that it runs n times faster.
        spare: seconds before the last place where it may begin; the least of several videos (`spare_seconds`), so that
            it begins at one time in all of them.

    Raises:
        UserError: as from `read_video`.
    """
    file = Source(source, name)
    if _still_or_animation(file) is not None:
        return read_video(source, name)

    def moments(seconds: float) -> list[float]:
        step, count = stride / MODEL_FPS, _window(seconds, frames, stride)
        left = min(seconds - count * step, spare)
        first = float(place) * left if left > step / 1000 else 0.0
        return [first + n * step for n in range(count)]

    return read_moments(file, moments)


def spare_seconds(source: str | Path | bytes, frames: int, stride: int) -> float:
    """Tell how many seconds a video has beyond a stretch, arguments as of `read_window`; infinity for what is no video,
    or cannot be read, which reading it says."""
    try:
        file = Source(source)
        line = None if _still_or_animation(file) is not None else survey(file)
    except UserError:
        return math.inf
    if line is None or not line.count:
        return math.inf
    begin = 0.0 if line.starts is None else float(line.starts[0])
    seconds = line.count / (line.rate or UNKNOWN_FPS) if line.starts is None else float(line.end) - begin
    return max(seconds - _window(seconds, frames, stride) * stride / MODEL_FPS, 0.0)


def _window(seconds: float, frames: int, stride: int) -> int:
    """Count the frames of a stretch, 1 + 4k."""
    count = min(frames, max(int(seconds / (stride / MODEL_FPS) + 1e-3), 1))
    return (count - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1


def _still_or_animation(file: Source) -> PillowImage | None:
    """The file opened by Pillow; None if it is a video, as one that looks like an image by chance is, or neither."""
    image = open_image(file)
    if image is not None and image.format in UNSIGNED:
        with suppress(UserError), opened(file):
            image.close()
            return None
    return image


def as_clip(value: MediaInput, name: str | None = None) -> Clip:
    """Turn what was handed in into frames, whatever its form.

    Args:
        value: a path or the bytes of a file (see `read_media`); Hugging Face's {"bytes", "path"}; a PIL image (of an
            animated one the frame on which it stands); numpy (H, W), (H, W, 1|3|4) or (T, H, W, 1|3|4); a tensor of
            torch, also with its channels first; a list of images, which are the frames of one video; a Clip. Pixels are
            uint8, or float in [0, 1]; a fourth channel is opacity, laid on white. Arrays and lists count as 12 frames a
            second and keep all frames.
        name: what errors and notices call it.

    Returns:
        An image as one frame, a video as the frames that the model sees, 12 a second.

    Raises:
        UserError: it is of another kind, empty, damaged, or its frames differ in size.
    """
    if isinstance(value, Clip):
        return _at_model_rate(value, name or f"a clip of {value.frames} frames")
    if isinstance(value, (str, Path)):
        return read_media(value, name)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return read_media(bytes(value), name)
    if isinstance(value, Mapping):
        return _from_mapping(value, name)
    if isinstance(value, (list, tuple)):
        return _from_frames(value, name)
    if hasattr(value, "getexif") and not isinstance(value, type):  # Pillow, which only then is imported
        return replace(one_image(value, name or "the PIL image"), made=carried(value.info))
    return Clip(_pixels(_array(value, name or "it"), name or "an array of pixels"))


def every_frame(value: MediaInput, name: str | None = None) -> Clip:
    """Turn what was handed in into frames as `as_clip` does, but keep all of a video, of which the model sees 1 + 4 k.

    Raises:
        UserError: As from `as_clip`, and for a video that is longer than the model sees.
    """
    given = (
        next((value[key] for key in ("bytes", "path") if value.get(key)), None) if isinstance(value, Mapping) else value
    )
    if isinstance(given, Clip) and given.frames > 1 and given.fps != MODEL_FPS:
        moments = _all_moments(given.frames / given.fps, name or "the clip")
        return Clip(given.pixels[[min(int(t * given.fps + ROUNDING), given.frames - 1) for t in moments]], MODEL_FPS)
    if not isinstance(given, (str, Path, bytes, bytearray, memoryview)):
        return as_clip(value, name)
    file = Source(given if isinstance(given, (str, Path)) else bytes(given), name)
    image = _still_or_animation(file)
    if image is None:
        return read_moments(file, partial(_all_moments, name=file.name))
    with image:
        if frames_of(image, file.name) == 1:
            return one_image(image, file.name)
        return read_animation(image, file.name, partial(_all_moments, name=file.name))


def _all_moments(seconds: float, name: str) -> list[float]:
    """Every twelfth of a second."""
    if seconds > MAX_SECONDS + 1 / MODEL_FPS:
        raise UserError(f"{name} lasts {seconds:.1f} s, and all of its frames are to stay: cut it to {MAX_SECONDS:g} s")
    return [n / MODEL_FPS for n in range(max(round(seconds * MODEL_FPS), 1))]


def as_image(value: MediaInput, name: str | None = None) -> Clip:
    """Turn what was handed in into one frame: of a video the first. Takes and raises what `as_clip` does."""
    clip = as_clip(value, name)
    if clip.frames == 1:
        return clip
    notice(f"{name or 'a clip'} moves, and an image is wanted: the first of its {clip.frames} frames is taken")
    return clip.with_pixels(clip.pixels[:1])


def _at_model_rate(clip: Clip, name: str) -> Clip:
    """Frames at 12 a second, chosen as those of a video file are."""
    if clip.frames == 1 or clip.fps == MODEL_FPS:
        return clip
    wanted = frame_indices(clip.frames, clip.fps)
    tell_speed(name, clip.frames / clip.fps, len(wanted))
    return Clip(clip.pixels[wanted], MODEL_FPS)


def _from_mapping(value: Mapping[str, Any], name: str | None) -> Clip:
    """Hugging Face's form of a file: its bytes, or where they are missing its path."""
    for key in ("bytes", "path"):
        if value.get(key) is not None:
            return as_clip(value[key], name)
    keys = ", ".join(map(repr, list(value)[:4])) or "nothing"
    raise UserError(f"{name or 'a dictionary'} with {keys} holds no image: give its file as 'bytes' or 'path'")


def _from_frames(values: list[Any] | tuple[Any, ...], name: str | None) -> Clip:
    """The frames of one video."""
    called = name or "the list of frames"
    if not values:
        raise UserError(f"{called} is empty: give at least one image")
    frames = []
    for number, value in enumerate(values, start=1):
        own = isinstance(value, (str, Path, Mapping))  # its file names it better
        clip = as_clip(value, name if own else f"{called}, entry {number}")
        if clip.frames != 1:
            raise UserError(f"entry {number} of {called} is a clip of {clip.frames} frames: give clips one by one")
        frames.append(clip.pixels[0])
    return joined(frames, called)


def _array(value: Any, name: str) -> np.ndarray:
    """Pixels of an array or tensor with the channels last; of anything else a UserError."""
    if isinstance(value, np.ndarray):
        return value
    if all(hasattr(value, method) for method in ("detach", "cpu", "numpy")):  # a tensor, without importing torch
        try:
            held = value.detach().cpu()
            if "bfloat16" in str(held.dtype):  # numpy has no such numbers
                held = held.float()
            pixels = held.numpy()
        except (TypeError, RuntimeError) as error:  # sparse, or without values
            why = str(error).partition("\n")[0][:120]
            raise UserError(f"{name} is a tensor that is no pixels ({why}): {EXPECTED}") from error
        first = pixels.ndim in (3, 4) and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[-3] in (1, 3, 4)
        return np.moveaxis(pixels, -3, -1) if first else pixels  # channels before rows
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        return np.asarray(value)
    what = "None" if value is None else f"of type {type(value).__name__}"
    raise UserError(f"{name} is {what}, which is not an image or video: {EXPECTED}")


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    """uint8 (T, H, W, 3) of an array in any of the forms of `as_clip`."""
    described = f"{name} of {array.dtype} {tuple(array.shape)}"
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        shapes = "(H, W), (H, W, C) or (T, H, W, C) with 1, 3 or 4 channels and no empty axis"
        raise UserError(f"{described} is not an image or video: give {shapes}")
    frames = _levels(array if array.ndim == 4 else array[None], described)
    if frames.shape[-1] == 4:
        return np.stack([on_white(frame) for frame in frames])
    return np.ascontiguousarray(np.broadcast_to(frames, (*frames.shape[:3], 3)))


def _levels(values: np.ndarray, described: str) -> np.ndarray:
    """uint8 levels of uint8, or of floating-point numbers in [0, 1]."""
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"{described} has numbers of another kind: convert them to uint8 (0 to 255) or float (0 to 1)")
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # false for NaN as well
        span = f"values from {low:.4g} to {high:.4g}"
        raise UserError(f"{described} has {span}: floating-point pixels go from 0 to 1, those of uint8 from 0 to 255")
    return (values.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)


def read_provenance(path: str | Path | bytes) -> Provenance | None:
    """Read how an image or video was made, as its file says; None where the file does not say, or not in our words.

    Args:
        path: A PNG, JPEG, WebP, GIF or MP4 file, or its bytes.

    Raises:
        UserError: If there is no such file, it is neither image nor video, or what it says is damaged.
    """
    source = Source(path)
    if not begins_as_video(source.head()):
        text = _in_image(metadata(source, EXIF_IFD))
    else:
        with source.open() as file:
            text = _in_video(file, source.size())
    return Provenance.parse(text, source.name) if text.startswith(BEGIN) else None


def _in_image(found: Mapping[Any, Any]) -> str:
    """The record among what Pillow found beside the pixels."""
    text = found.get(KEY) or found.get("comment") or found.get(USER_COMMENT) or ""
    if isinstance(text, bytes):
        wide = text.startswith(UNICODE)
        text = text.removeprefix(UNICODE).decode("utf-16-be" if wide else "utf-8", "replace")
    return text if isinstance(text, str) else ""


def _in_video(file: BinaryIO, end: int) -> str:
    """The comment of an MP4 file. Its boxes are walked here, since ffmpeg would read one of any size into memory."""
    at, wanted = 0, list(COMMENT)
    for _ in range(MOST_BOXES):
        if at + 8 > end:
            break
        file.seek(at)
        head = file.read(16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        inside = at + (16 if size == 1 else 8)
        size = int.from_bytes(head[8:], "big") if size == 1 else size or end - at
        if size < inside - at:
            break
        if name != wanted[0]:
            at += size
            continue
        end = min(end, at + size)
        at = inside + 4 * (name == b"meta")  # which begins with its version
        del wanted[0]
        if not wanted:
            file.seek(at + 8)  # behind type and language
            return file.read(min(end - at - 8, LONGEST + 1)).decode("utf-8", "replace") if end - at > 8 else ""
    return ""
