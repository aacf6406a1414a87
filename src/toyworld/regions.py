"""Regions of the world's samples: which cells of a picture or clip are to be drawn, where the rest is given.

    inside = around(rng, changed(before, after))      # bool (T, H, W), whole cells
    beyond(rng, (1, 64, 64)); ends(rng, (9, 64, 64))

An edit's region holds all that the edit changes, and more, so that its outline does not tell the result.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toyworld.render import pixel_box
from toyworld.scene import Scene, pick

CELL = 8  # pixels of the latents of nano
LAST = 4  # frames that share a latent, but for the first
Size = tuple[int, int, int]  # frames, height, width in pixels
_BORDERS = ("left", "right", "top", "bottom")


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The cells in which two clips, uint8 (T, H, W, 3), differ: bool (T, Y, X)."""
    frames, height, width = before.shape[:3]
    differs = (before != after).any(-1)
    cells: np.ndarray = differs.reshape(frames, height // CELL, CELL, width // CELL, CELL).any((2, 4))
    return cells


def around(rng: np.random.Generator, cells: np.ndarray) -> np.ndarray:
    """A region of whole cells, bool (T, H, W), that holds those given, bool (T, Y, X): the box around them in each
    frame, or the same box in all, with up to two cells more on each side; sometimes a second box as well."""
    together = rng.random() < 0.3
    shown = np.broadcast_to(cells.any(0), cells.shape) if together else cells
    more = int(rng.choice(3, p=(0.2, 0.6, 0.2)))
    inside = np.stack([_boxed(frame, more) for frame in shown])
    if rng.random() < 0.15:
        inside = inside | _rectangle(rng, cells.shape[1:], 0.4)
    return pixels(inside)


def pixels(cells: np.ndarray) -> np.ndarray:
    """Cells (T, Y, X) as pixels (T, H, W)."""
    return cells.repeat(CELL, axis=1).repeat(CELL, axis=2)


def _boxed(frame: np.ndarray, more: int) -> np.ndarray:
    found, inside = np.argwhere(frame), np.zeros_like(frame)
    if len(found):
        (top, left), (bottom, right) = np.maximum(found.min(0) - more, 0), found.max(0) + 1 + more
        inside[top:bottom, left:right] = True
    return inside


def _rectangle(rng: np.random.Generator, shape: tuple[int, ...], most: float = 0.75) -> np.ndarray:
    inside, spans = np.zeros(shape, dtype=bool), list[slice]()
    for side in shape:
        length = int(rng.integers(1, max(round(side * most), 1) + 1))
        first = int(rng.integers(side - length + 1))
        spans.append(slice(first, first + length))
    inside[tuple(spans)] = True
    return inside


def beyond(rng: np.random.Generator, size: Size, sides: tuple[str, ...] = ()) -> np.ndarray:
    """What lies beyond the borders of a smaller picture: bool (T, H, W), a quarter to five eighths of a side.

    sides: of left, right, top and bottom; drawn where none is given.
    """
    frames, height, width = size
    rows, columns = height // CELL, width // CELL
    if not sides:
        sides = tuple(side for side in _BORDERS if rng.random() < 0.2) or (pick(rng, _BORDERS),)
    share = float(rng.uniform(0.25, 0.625)) / (2 if len(sides) > 2 else 1)
    tall, wide = (max(int(share * n), 1) for n in (rows, columns))
    inside = np.zeros((rows, columns), dtype=bool)
    inside[: tall * ("top" in sides)] = True
    inside[rows - tall * ("bottom" in sides) :] = True
    inside[:, : wide * ("left" in sides)] = True
    inside[:, columns - wide * ("right" in sides) :] = True
    return pixels(np.broadcast_to(inside, (frames, *inside.shape)))


def ends(rng: np.random.Generator, size: Size) -> np.ndarray:
    """What comes after a clip, before it, or both: bool (T, H, W), whole latents of time, of which some are known."""
    frames, inside = size[0], np.zeros(size, dtype=bool)
    first = [0, *range(1, frames, LAST)]  # the first frame of every latent of time
    where = rng.random()
    if where < 0.55 or len(first) < 3:
        inside[first[int(rng.integers(1, len(first)))] :] = True
    elif where < 0.85:
        inside[: first[int(rng.integers(1, len(first)))]] = True
    else:
        inside[:] = True
        kept = int(rng.integers(1, len(first) - 1))
        inside[first[kept] : first[kept + 1]] = False
    return inside


def _thing(rng: np.random.Generator, scene: Scene, size: Size) -> np.ndarray | None:
    """The cells around one of the things of a scene; None where it has none."""
    if not scene.objects:
        return None
    frames, height, width = size
    x0, y0, x1, y1 = pixel_box(pick(rng, scene.objects), height, width)
    cells = np.zeros((1, height // CELL, width // CELL), dtype=bool)
    cells[0, int(max(y0, 0)) // CELL : -(-int(y1) // CELL), int(max(x0, 0)) // CELL : -(-int(x1) // CELL)] = True
    return np.broadcast_to(around(rng, cells), size)


def hole(rng: np.random.Generator, scene: Scene, size: Size) -> np.ndarray:
    """What is to be drawn of a picture of a scene: beyond its borders most often, else around a thing or any
    rectangle."""
    kind = rng.random()
    thing = _thing(rng, scene, size) if kind < 0.2 else None
    if thing is not None:
        return thing
    if kind > 0.85:
        cells = _rectangle(rng, (size[1] // CELL, size[2] // CELL))
        return pixels(np.broadcast_to(cells, (size[0], *cells.shape)))
    return beyond(rng, size)


def in_part(rng: np.random.Generator, draw: Callable[[], np.ndarray], attempts: int = 50) -> np.ndarray | None:
    """A region that is drawn until it has an outside as well as an inside; None where none was."""
    for _ in range(attempts):
        inside = draw()
        if inside.any() and not inside.all():
            return inside
    return None
