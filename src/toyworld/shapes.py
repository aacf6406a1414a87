"""Which shape and fill a soft mask shows: comparison with every shape, drawn at the mask's own size.

A template is drawn by the same distance functions as the pictures, stretched to a square and compared by soft IoU
(sum of minima over sum of maxima), so that a shape a little too wide or blurred still matches best with its own.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from toyworld.render import DISTANCE, HEM, STRIPE, STROKE
from toyworld.vocabulary import HALF_BOX

Box: TypeAlias = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

SIDE = 28  # templates and masks are compared on SIDE x SIDE samples
PHASES = 4  # stripes may be shifted: what is asked for is stripes, not where they begin
MARGIN = 0.06  # templates show this much around the box, so that a mask without a sharp edge is not rewarded


@dataclass(frozen=True, kw_only=True)
class Match:
    """The best template: its soft IoU with the mask (0..1), and the radius the shape has, in pixels."""

    shape: str
    fill: str
    score: float
    radius: float


@lru_cache(maxsize=4096)
def _templates(half_x2: int, half_y2: int, short: int) -> tuple[tuple[tuple[str, str], ...], np.ndarray, np.ndarray]:
    """(shape, fill) names, masks float32 (n, SIDE * SIDE), radii (n,); box given by its half sides in half pixels."""
    hx, hy = half_x2 / 2, half_y2 / 2
    names, masks, radii = [], [], []
    stroke, period = max(STROKE * short, 1.0), max(STRIPE * short, 2.0)
    grid = (2 * (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE - 1) * (1 + 2 * MARGIN)
    for shape, (bx, by) in HALF_BOX.items():
        r = float(np.sqrt(hx / bx * (hy / by)))  # equal area, whatever the aspect of the mask
        x, y = (grid * bx * r)[None, :], (grid * by * r)[:, None]
        inside = DISTANCE[shape](x, y, r)
        solid = np.clip(0.5 - inside, 0, 1)
        fills = [("solid", solid)]
        if shape != "ring":
            fills.append(("outlined", solid - np.clip(0.5 - inside - stroke, 0, 1)))
            inner = np.clip(0.5 - inside - HEM * short, 0, 1)
            along = (x + y) * np.float32(0.7071) / period
            for k in range(PHASES):
                wave = np.abs((along + 0.5 + k / PHASES) % 1.0 - 0.5) * period
                fills.append(("striped", solid - inner * np.clip(0.5 + wave - period * 0.27, 0, 1)))
        for fill, mask in fills:
            names.append((shape, fill))
            masks.append(mask.ravel())
            radii.append(r)
    return tuple(names), np.array(masks, np.float32), np.array(radii)


def frame(box: Box) -> Box:
    """The box (x0, y0, x1, y1) with the templates' margin around it."""
    x0, y0, x1, y1 = box
    mx, my = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    return x0 - mx, y0 - my, x1 + mx, y1 + my


def match(mask: np.ndarray, box: Box, short: int) -> Match:
    """Name the shape in `mask`, float (SIDE, SIDE), which was cut from `frame(box)` of a picture.

    short: the picture's shorter side, which sets the widths of strokes and stripes.
    """
    hx, hy = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    names, masks, radii = _templates(max(round(2 * hx), 2), max(round(2 * hy), 2), short)
    flat = mask.astype(np.float32).ravel()
    overlap = np.minimum(masks, flat).sum(1)
    score = overlap / np.maximum(masks.sum(1) + flat.sum() - overlap, 1e-6)
    # A box far from the shape's own proportions is not that shape, however well it fits once it is stretched.
    stretch = np.array([abs(np.log(hx / hy * HALF_BOX[s][1] / HALF_BOX[s][0])) for s, _ in names])
    score = score - 0.5 * np.maximum(stretch - 0.1, 0)
    best = int(score.argmax())
    return Match(shape=names[best][0], fill=names[best][1], score=float(score[best]), radius=float(radii[best]))
