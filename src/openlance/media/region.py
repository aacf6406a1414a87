"""Regions of images and videos: masks in every form in which people have them, boxes, and the joining of two images
along a region's edge. Here a mask is bool (T, H, W), True where something may change, whoever gave it:

    read_mask(mask, size)          # diffusers' and ComfyUI's: white, or 1, may change
    read_transparency(mask, size)  # OpenAI's: what is transparent may change
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.values import brief
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import Source
from openlance.media.image import frames_of, open_image, readable
from openlance.media.inputs import as_clip

Size = tuple[int, int, int]  # frames, height, width
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

HALF = 128  # levels from here on are white (diffusers: 0.5 of 1)
LUMA = (299, 587, 114)  # thousandths of red, green and blue in grey (ITU-R BT.601, as Pillow converts to "L")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
WHITE = "white where the picture may change and black elsewhere"


def read_mask(value: Any, size: Size, *, resized: bool = False) -> np.ndarray:
    """Read a mask in which white may change.

    Args:
        value: A path or bytes of a file, a PIL image, an array or tensor (H, W), (T, H, W) or with channels, bool,
            uint8 or 0 to 1; a Clip; a list of such images, one for each frame.
        size: Frames, height and width in pixels of what it is about. A mask of one frame is for all of them.
        resized: Whether one of another height and width is resized to it (diffusers) instead of refused.

    Returns:
        bool (T, H, W).

    Raises:
        UserError: If it is of another form, size or length, or has nothing white in it.
    """
    levels = _levels(value)
    if resized and levels.shape[1:] != size[1:]:
        levels = np.stack([_resized(frame, size) for frame in levels])
    inside = _fitting(levels, size) >= HALF
    if not inside.any():
        raise UserError(f"the mask has nothing white in it, so that nothing may change: give one that is {WHITE}")
    return inside


def read_transparency(value: Any, size: Size) -> np.ndarray:
    """Read a mask as OpenAI has them: an image file or PIL image whose transparent pixels may change. Arguments, result
    and errors as of `read_mask`."""
    image = value if hasattr(value, "getexif") else open_image(Source(value, "the mask"))
    if image is None or not _has_alpha(image):
        raise UserError("the mask has no transparency: give a PNG file that is transparent where the image may change")
    with readable("the mask"):
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))[None]
    inside = _fitting(alpha, size) < HALF
    if not inside.any():
        raise UserError("the mask has nothing transparent in it, so that nothing may change: erase what is to change")
    return inside


def _has_alpha(image: Any) -> bool:
    return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info


def _levels(value: Any) -> np.ndarray:
    """uint8 (n, h, w), grey."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise UserError(f"the mask is an empty list: give an image for each frame, {WHITE}")
        frames = [_levels(one) for one in value]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError("the frames of the mask differ in size: give all of them in the size of the video")
        return np.concatenate(frames)
    if hasattr(value, "getexif") and not isinstance(value, type):
        return _grey(value)
    if isinstance(value, (str, Path, bytes, bytearray, memoryview, Mapping)):
        given = value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value
        source = Source(given if isinstance(given, (str, Path)) else bytes(given or b""), "the mask")
        image = open_image(source)
        if image is not None:
            with image:
                if frames_of(image, "the mask") == 1:
                    return _grey(image)
        value = as_clip(given, "the mask")
    return _luma(value if isinstance(value, Clip) else as_clip(_with_channels(value), "the mask"))


def _grey(image: Any) -> np.ndarray:
    from PIL import ImageOps

    if image.mode not in MODES:
        raise UserError(f"the mask is an image of mode {image.mode}: give one of mode L, {WHITE}")
    with readable("the mask"):
        clear = _has_alpha(image) and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
    if clear:
        raise UserError(f"the mask is transparent in places, which has two meanings: give one of mode L, {WHITE}")
    with readable("the mask"):
        image = ImageOps.exif_transpose(image)
        return np.array((image.convert("RGB") if image.mode in ("P", "PA") else image).convert("L"))[None]


def _luma(clip: Clip) -> np.ndarray:
    return ((clip.pixels.astype(np.uint32) @ np.array(LUMA, np.uint32) + 500) // 1000).astype(np.uint8)


def _with_channels(value: Any) -> Any:
    """An array or tensor as `as_clip` reads it: numbers for truths, and an axis of channels behind that of frames."""
    if "bool" in str(getattr(value, "dtype", "")):
        value = value * 1.0
    shape = tuple(getattr(value, "shape", ()))
    if len(shape) == 3 and shape[-1] not in (1, 3, 4):
        return value[..., None]
    if len(shape) in (3, 4) and shape[-1] == 4:
        raise UserError(f"the mask is an array with four channels: give one of the shape (H, W), {WHITE}")
    return value


def _resized(frame: np.ndarray, size: Size) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize(size[:0:-1], Image.Resampling.LANCZOS))  # diffusers' filter


def _fitting(levels: np.ndarray, size: Size) -> np.ndarray:
    """Levels of a size; UserError if they are of another."""
    (n, height, width), (frames, *sides) = levels.shape, size
    if [height, width] != sides:
        said = f"the mask has {width}x{height} pixels and what it is about {sides[1]}x{sides[0]}"
        raise UserError(f"{said}: give a mask of that size")
    if n not in (1, frames):
        said = f"the mask has {n} frames and what it is about {frames}"
        raise UserError(f"{said}: give one frame for all, or as many")
    return np.broadcast_to(levels, size)


# Boxes.


def typed(text: str) -> Any:
    """Read a region that is typed: four numbers with commas between them are a box, anything else is words; UserError
    for what is mostly numbers and no box."""
    parts = text.split(",")
    found = [n for part in parts if (n := number_in(part)) is not None]
    if len(parts) < 2 or 2 * len(found) <= len(parts):
        return text.strip()
    if len(found) != len(parts) or len(found) != 4 or not np.isfinite(found).all():
        said = f"the region {text.strip()!r} is no box"
        raise UserError(f"{said}: give four numbers (left, top, right, bottom), such as 0,0,32,64")
    return tuple(found)


def number_in(text: str) -> float | None:
    """Read a number; None for other words."""
    try:
        return float(text)
    except ValueError:
        return None


def is_box(value: Any) -> bool:
    """Tell whether a value has the form of a box, four numbers."""
    numbers = (int, float, np.integer, np.floating)
    return isinstance(value, (tuple, list)) and len(value) == 4 and all(isinstance(v, numbers) for v in value)


def read_box(value: Any, size: Size) -> Box:
    """Read a box (left, top, right, bottom) in pixels. UserError unless it has some area inside the image."""
    _, height, width = size
    left, top, right, bottom = (float(v) for v in value)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        said = f"the region {tuple(value)} is no box in a picture of {width}x{height} pixels"
        raise UserError(f"{said}: give (left, top, right, bottom), such as {(0, 0, width // 2, height)}")
    return left, top, right, bottom


def box_mask(boxes: Sequence[Box | None], size: Size, grid: tuple[int, int] | None = None) -> np.ndarray:
    """Make a mask of a box for each frame, or of one for all.

    Args:
        boxes: As many as frames, or one; None is nothing.
        size: Frames, height and width.
        grid: Rows and columns of cells; with it the cells that a box touches and their neighbors are meant.

    Returns:
        bool (T, H, W).
    """
    frames, height, width = size
    inside = np.zeros(size, dtype=bool)
    for frame, box in zip(inside, boxes if len(boxes) == frames else [*boxes] * frames, strict=True):
        if box is None:
            continue
        (top, bottom), (left, right) = (
            _span(box[axis], box[axis + 2], side, n)
            for axis, side, n in ((1, height, grid and grid[0]), (0, width, grid and grid[1]))
        )
        frame[top:bottom, left:right] = True
    return inside


def _span(low: float, high: float, side: int, cells: int | None) -> tuple[int, int]:
    """The pixels from one edge of a box to the other; the cells that they touch and one more on either side."""
    if cells is None:
        return int(np.floor(low)), int(np.ceil(high))
    pixels = side // cells
    return max(int(low // pixels) - 1, 0) * pixels, min(int(np.ceil(high / pixels)) + 1, cells) * pixels


def boxes_in(answer: str) -> list[tuple[Box, str]]:
    """Read the boxes of an answer and what each is said to hold, in Qwen2.5-VL's form [{"bbox_2d": [left, top, right,
    bottom], "label": "circle"}]; those without area are left out."""
    found = []
    for numbers, label in re.findall(r'"bbox_2d"\s*:\s*(\[[^\[\]]*\])(?:\s*,\s*"label"\s*:\s*"([^"]*)")?', answer):
        try:
            left, top, right, bottom = (float(n) for n in json.loads(numbers))
        except (ValueError, TypeError):
            continue
        if left < right and top < bottom:
            found.append(((left, top, right, bottom), label))
    return found


# What is not there yet.

GREY = 128  # of pixels that are not known, in the encoder's middle


def widened(
    clip: Clip, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0, before: int = 0, after: int = 0
) -> tuple[Clip, np.ndarray]:
    """Give a video room beyond its borders (pixels) and its ends (frames).

    Returns:
        The larger video, `covered` where nothing is known, and bool (T, H, W), True there.
    """
    room = ((before, after), (top, bottom), (left, right))
    inside = np.pad(np.zeros(clip.pixels.shape[:3], dtype=bool), room, constant_values=True)
    return clip.with_pixels(covered(np.pad(clip.pixels, (*room, (0, 0))), inside)), inside


def covered(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Take out what is not to be known, alike in training and use: an encoder sees across the edge of a region, so that
    what surrounds it would tell what was in it.

    Args:
        pixels: uint8 (T, H, W, 3).
        inside: bool (T, H, W).

    Returns:
        Pixels that are grey inside; frames of which nothing is known are the nearest one of which something is.
    """
    known = np.flatnonzero(~inside.all(axis=(1, 2)))
    made: np.ndarray = np.where(inside[..., None], np.uint8(GREY), pixels)
    if len(known):
        made = made[known[np.abs(known[None] - np.arange(len(made))[:, None]).argmin(axis=1)]]
    return made


# Joining.


def blended(source: np.ndarray, made: np.ndarray, inside: np.ndarray, width: int) -> np.ndarray:
    """Join two videos: outside of a region the source's own pixels, inside what was made, from one to the other over a
    width inside its edge. The picture's border is no edge.

    Args:
        source: uint8 (T, H, W, 3).
        made: Likewise.
        inside: bool (T, H, W).
        width: Pixels.

    Returns:
        uint8 (T, H, W, 3).
    """
    weight = (depth(inside, width) / width).astype(np.float32)[..., None]
    mixed: np.ndarray = source + weight * (made.astype(np.float32) - source)
    return mixed.round().astype(np.uint8)


def depth(inside: np.ndarray, most: int) -> np.ndarray:
    """Count how many pixels each one is from the nearest outside of its frame, sideways or diagonally, at most `most`;
    0 is outside."""
    found, left = inside.astype(np.int32), inside
    for _ in range(most - 1):
        padded = np.pad(left, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        rows = padded[:, :-2] & padded[:, 1:-1] & padded[:, 2:]
        left = rows[:, :, :-2] & rows[:, :, 1:-1] & rows[:, :, 2:]
        found += left
    return found


def described(value: Any) -> str:
    """Say what is no region."""
    return f"the region is {brief(value)}: expected auto, none, a box (left, top, right, bottom) in pixels, or words"
