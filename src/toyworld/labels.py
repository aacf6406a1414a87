"""What the renderer knows about every place of a picture: targets of the vision tower's auxiliary loss."""

from __future__ import annotations

import numpy as np

from toyworld.render import DISTANCE
from toyworld.scene import Scene
from toyworld.vocabulary import CELL, COLORS, FILLS, LETTERS, SHAPES, SPACE

POINT = 4  # pixels between two labelled points
COLOR_NAMES = tuple(COLORS)
# Classes per channel: what stands there (nothing, a shape, a letter), its colour, its fill.
CHANNELS = (1 + len(SHAPES) + len(LETTERS), 1 + len(COLOR_NAMES), 1 + len(FILLS))


def dense_labels(scene: Scene, height: int, width: int) -> np.ndarray:
    """int64 (3, height / POINT, width / POINT): classes at the points, 0 where nothing stands."""
    short = min(height, width)
    y = (np.arange(height // POINT) + 0.5)[:, None] * POINT
    x = (np.arange(width // POINT) + 0.5)[None, :] * POINT
    out = np.zeros((3, height // POINT, width // POINT), np.int64)
    for o in scene.objects:
        distance = DISTANCE["circle" if o.shape == "ring" else o.shape](x - o.x * width, y - o.y * height, o.r * short)
        classes = (1 + SHAPES.index(o.shape), 1 + COLOR_NAMES.index(o.color), 1 + FILLS.index(o.fill))
        for channel, value in zip(out, classes, strict=True):
            channel[distance < 0] = value
    if scene.text is not None:
        text = scene.text
        hx, hy = (side * short for side in text.half_box())
        along = (x - text.x * width + hx) / (text.height * short)  # in letter heights
        number, inside = np.divmod(along, CELL + SPACE)
        on = (inside < CELL) & (number >= 0) & (number < len(text.string)) & (abs(y - text.y * height) < hy)
        letters = np.array([1 + len(SHAPES) + LETTERS.index(c) for c in text.string])
        which = np.broadcast_to(letters[np.clip(number, 0, len(letters) - 1).astype(int)], on.shape)
        color = np.full(on.shape, 1 + COLOR_NAMES.index(text.color))
        for channel, found in zip(out, (which, color, np.ones_like(color)), strict=True):
            channel[on] = found[on]
    return out
