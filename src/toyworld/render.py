"""Draw a scene. Shapes are signed distance functions in pixels, so an edge is anti-aliased at any size.

pixels = render(scene, 64, 96)         # uint8 (64, 96, 3)
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from openlance.errors import UserError
from toyworld.scene import Object, Scene, Text
from toyworld.vocabulary import BACKGROUNDS, CELL, COLORS, HALF_BOX, SPACE

STROKE = 2.6 / 64  # width of an outline, in shorter sides
STRIPE = 6.0 / 64  # period of the stripes, in shorter sides
HEM = 1.3 / 64  # width of the edge that keeps the shape of striped things readable, in shorter sides
RING_HOLE = 0.48  # inner radius of a ring, in radii
ARM = 0.37  # half width of an arm of a cross, in radii
STAR_INNER = 0.46  # inner radius of a star over its outer one
GLYPH = 96  # height of a cached letter in pixels; letters are sampled from it


def render(scene: Scene, height: int, width: int) -> np.ndarray:
    """The picture of a scene, uint8 (height, width, 3). Raises ValueError under 8 pixels a side."""
    if min(height, width) < 8:
        raise UserError(f"a picture of {width}x{height} is too small to draw: use at least 8x8")
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        _draw_object(picture, thing)
    if scene.text is not None:
        _draw_text(picture, scene.text)
    return (picture + 0.5).astype(np.uint8)


def pixel_box(thing: Object | Text, height: int, width: int) -> tuple[int, int, int, int]:
    """The bounding box of an object or text in a picture, in whole pixels: x1, y1, x2, y2."""
    short = min(height, width)
    if isinstance(thing, Text):
        hx, hy = thing.half_box()
    else:
        hx, hy = (side * thing.r for side in HALF_BOX[thing.shape])
    x, y = thing.x * width, thing.y * height
    return (round(x - hx * short), round(y - hy * short), round(x + hx * short), round(y + hy * short))


def _paint(patch: np.ndarray, alpha: np.ndarray, color: str) -> None:
    patch += alpha[..., None] * (np.asarray(COLORS[color], np.float32) - patch)


def _draw_object(picture: np.ndarray, thing: Object) -> None:
    height, width = picture.shape[:2]
    short = min(height, width)
    r, cx, cy = thing.r * short, thing.x * width, thing.y * height
    reach = 1.15 * r + 1.5
    x0, x1 = max(int(cx - reach), 0), min(int(cx + reach) + 1, width)
    y0, y1 = max(int(cy - reach), 0), min(int(cy + reach) + 1, height)
    x = (np.arange(x0, x1, dtype=np.float32) + (0.5 - cx))[None, :]
    y = (np.arange(y0, y1, dtype=np.float32) + (0.5 - cy))[:, None]
    distance = DISTANCE[thing.shape](x, y, r)
    alpha = _cover(distance)
    if thing.fill == "outlined":
        alpha = alpha - _cover(distance + max(STROKE * short, 1.0))
    elif thing.fill == "striped":
        inner = _cover(distance + HEM * short)
        alpha = alpha - inner + inner * _stripes(x, y, max(STRIPE * short, 2.0))
    _paint(picture[y0:y1, x0:x1], alpha, thing.color)


def _cover(distance: np.ndarray) -> np.ndarray:
    """The part of a pixel that lies inside, from the distance of its centre to the edge (negative inside)."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def _stripes(x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Diagonal bands through the centre of the object; half of each period is coloured."""
    along = (x + y) * np.float32(0.7071)
    from_middle = np.abs((along / period + 0.5) % 1.0 - 0.5) * period
    return _cover(from_middle - period * 0.27)


def _circle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - r


def _square(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - HALF_BOX["square"][0] * r


def _triangle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """An upright triangle that fills its box: the apex on top, in the middle."""
    hx, hy = HALF_BOX["triangle"]
    slope = np.float32(np.hypot(2 * hy, hx))
    side = (np.abs(x) * (2 * hy) - (y + hy * r) * hx) / slope
    return np.maximum(side, y - hy * r)


def _star(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """A five-pointed star, its ten edges folded onto one by its symmetry."""
    outer = r * HALF_BOX["star"][0] / np.sin(0.4 * np.pi)
    y = y - outer * (1 - (1 + np.cos(0.2 * np.pi)) / 2)  # the box is centred, the star's own centre lies lower
    sector = 0.4 * np.pi
    angle = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    radius = np.sqrt(x * x + y * y)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    ix, iy = outer * STAR_INNER * np.cos(sector / 2), outer * STAR_INNER * np.sin(sector / 2)
    ex, ey = ix - outer, iy  # edge from the tip (outer, 0) to the notch (ix, iy)
    return (ey * (px - outer) - ex * py) / np.hypot(ex, ey)


def _cross(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - ARM * r, y - r), np.maximum(x - r, y - ARM * r))


def _ring(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    middle, half = r * (1 + RING_HOLE) / 2, r * (1 - RING_HOLE) / 2
    return np.abs(np.sqrt(x * x + y * y) - middle) - half


DISTANCE: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring,
}  # fmt: skip


@lru_cache(maxsize=64)
def glyph(letter: str) -> np.ndarray:
    """One bold letter in its cell, float32 (GLYPH, CELL * GLYPH) in [0, 1]; wide letters are squeezed to fit."""
    from PIL import Image, ImageDraw, ImageFont

    font, stroke = ImageFont.load_default(size=GLYPH * 1.2), GLYPH // 22
    canvas = Image.new("L", (3 * GLYPH, 3 * GLYPH))
    ImageDraw.Draw(canvas).text((GLYPH, GLYPH), letter, font=font, fill=255, stroke_width=stroke)
    canvas = canvas.crop(canvas.getbbox())
    # Every capital and digit gets the full height: their true heights differ by the overshoot of round ones only.
    room = round(CELL * GLYPH)
    wide = min(round(canvas.width * GLYPH / canvas.height), room)
    left = (room - wide) // 2
    cell = np.zeros((GLYPH, room), np.float32)
    cell[:, left : left + wide] = np.asarray(canvas.resize((wide, GLYPH)), np.float32) / 255
    return cell


def _draw_text(picture: np.ndarray, text: Text) -> None:
    height, width = picture.shape[:2]
    short, (hx, hy) = min(height, width), text.half_box()
    left, top = text.x * width - hx * short, text.y * height - hy * short
    tall, wide = text.height * short, text.height * CELL * short
    for i, letter in enumerate(text.string):
        _draw_glyph(picture, glyph(letter), (left + i * (CELL + SPACE) * tall, top, wide, tall), text.color)


def _draw_glyph(picture: np.ndarray, cell: np.ndarray, box: tuple[float, float, float, float], color: str) -> None:
    """Put a cell into a box (left, top, width, height) of the picture: each pixel is the mean of 4x4 samples."""
    left, top, wide, tall = box
    x0, y0 = max(int(left), 0), max(int(top), 0)
    x1, y1 = min(int(left + wide) + 2, picture.shape[1]), min(int(top + tall) + 2, picture.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    u = ((np.arange(4 * (x1 - x0)) + 0.5) / 4 + x0 - left) / wide * cell.shape[1]
    v = ((np.arange(4 * (y1 - y0)) + 0.5) / 4 + y0 - top) / tall * cell.shape[0]
    inside = ((v >= 0) & (v < cell.shape[0]))[:, None] & ((u >= 0) & (u < cell.shape[1]))[None, :]
    rows, columns = (np.clip(w.astype(int), 0, n - 1) for w, n in zip((v, u), cell.shape, strict=True))
    samples = np.where(inside, cell[np.ix_(rows, columns)], np.float32(0))
    alpha = samples.reshape(y1 - y0, 4, x1 - x0, 4).mean((1, 3), dtype=np.float32)
    _paint(picture[y0:y1, x0:x1], alpha, color)
