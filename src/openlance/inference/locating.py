"""Where things are in the sources of edits, asked of the model: its own grounding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from openlance.media.clip import Clip
from openlance.media.region import Box, box_mask, boxes_in
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Region, Segments, source_in
from openlance.text.phrases import thing

if TYPE_CHECKING:
    from openlance.inference.methods import Methods


def located(pipe: Methods, requests: Sequence[Segments], names: Sequence[str]) -> list[Region | None]:
    """Let the model look for things in the sources of requests, in each frame of a video.

    Args:
        pipe: The model.
        requests: Of edits.
        names: What to look for in each, such as "the red circle".

    Returns:
        The cells that each touches, and their neighbors: what replaces it may be larger. None where it is not found.
    """
    seen: list[Clip] = [source_in(request, Kind.PATCHES) for request in requests]
    frames = [(clip, t) for clip in seen for t in range(clip.frames)]
    questions = [tasks.LOCATE.format(name.strip()) for name, clip in zip(names, seen) for _ in range(clip.frames)]
    media = [[clip.with_pixels(clip.pixels[t : t + 1])] for clip, t in frames]
    answers = iter(pipe.ask(media, questions) if questions else [])
    found = list[Region | None]()
    for request, clip, name in zip(requests, seen, names, strict=True):
        size = size_of(request)
        scale = size[1] / clip.height, size[2] / clip.width
        each = [_scaled(_holding(name, next(answers)), scale, size) for _ in range(clip.frames)]
        there = [t for t, boxes in enumerate(each) if boxes]
        if not there:
            found.append(None)
            continue
        # Where a frame does not say, the nearest one that does.
        each = [each[min(there, key=lambda other: abs(other - t))] for t in range(clip.frames)]
        inside = np.concatenate([_around(pipe, boxes, size) for boxes in each])
        found.append(Region(inside, f"{name.strip()}, {box_said([boxes[0] for boxes in each])}"))
    return found


def seen(pipe: Methods, requests: Sequence[Segments], names: Sequence[str]) -> list[bool]:
    """Ask the model whether there are such things in the sources of requests; arguments as `located`. It points at
    something even where there is nothing of the kind."""
    things = [thing(name.lower()) for name in names]
    asked = [n for n, one in enumerate(things) if one is not None and one.count == 1]
    media = [[source_in(requests[n], Kind.PATCHES)] for n in asked]
    answers = pipe.ask(media, [f"is there {things[n].one}?" for n in asked]) if asked else []  # type: ignore[union-attr]
    absent = {n for n, answer in zip(asked, answers, strict=True) if re.match(r"\W*no\b", answer.lower())}
    return [n not in absent for n in range(len(names))]


def _holding(name: str, answer: str) -> list[Box]:
    """The boxes of an answer that are said to hold what was asked for. A model names what it has found, and where there
    is none of the kind it points at something else."""
    words = {word.rstrip("s") for word in re.findall(r"\w+", name.lower())}
    labels = [(box, (label or "").lower().split()) for box, label in boxes_in(answer)]
    return [box for box, label in labels if not label or label[-1].rstrip("s") in words]


def _around(pipe: Methods, boxes: Sequence[Box], size: tuple[int, int, int]) -> np.ndarray:
    """The cells of some boxes in one frame, and their neighbors: bool (1, H, W)."""
    one, grid = (1, *size[1:]), pipe.codec.latent_grid(size)
    return np.any([box_mask([box], one, grid[1:]) for box in boxes], axis=0)


def _scaled(boxes: Sequence[Box], scale: tuple[float, float], size: tuple[int, int, int]) -> list[Box]:
    """Boxes in the pixels of the target; what lies outside of it is cut off."""
    (tall, wide), (_, height, width) = scale, size
    cut = [
        (max(x0 * wide, 0.0), max(y0 * tall, 0.0), min(x1 * wide, width), min(y1 * tall, height))
        for x0, y0, x1, y1 in boxes
    ]
    return [box for box in cut if box[0] < box[2] and box[1] < box[3]]


def box_said(boxes: Sequence[Box]) -> str:
    """Name a box, the first and the last where they move."""
    ends = [f"({', '.join(f'{v:g}' for v in box)})" for box in dict.fromkeys((boxes[0], boxes[-1]))]
    return " to ".join(ends)


def size_of(request: Segments) -> tuple[int, int, int]:
    """Frames, height and width of the target of a request."""
    size = request[-1].size
    assert size is not None
    return size
