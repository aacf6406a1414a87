"""What is in a picture, from its pixels alone: `analyse(pixels).objects`, `.background`.

Background from the border, paint from the blend of two colours, connected pieces, shape by templates. Soft edges,
colour noise and broken outlines of generated pictures are tolerated; a stray blob of paint counts as an object.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from openlance.errors import UserError
from toyworld import segment_pixels as seg
from toyworld.shapes import SIDE, Box, Match, frame, match
from toyworld.vocabulary import BACKGROUNDS, SIZES

UNKNOWN = "unknown"
STRAY = 14 / 64**2  # paint below this part of the picture (of its shorter side squared) is noise, not an object
LEAST_MATCH = 0.55  # soft IoU below which a blob has no shape
REFIT_FROM = 0.4  # soft IoU below which moving the box cannot help
CLEAR_MATCH = 0.75  # soft IoU above which the box needs no second look
LEAST_CONTRAST = 28.0  # paint closer to the background than this cannot be seen (opponent units, about RGB steps)
FAR_COLOR = 120.0  # a colour this far from every name has none


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object seen. `x`, `y`: centre of its box in widths and heights; `r`: radius in shorter sides;
    `box`: x0, y0, x1, y1 in pixels; `score`: soft IoU with the shape, 0..1. Unclear ones are named "unknown"."""

    shape: str
    color: str
    fill: str
    size: str
    x: float
    y: float
    r: float
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """A picture taken apart. `paint`: bool (H, W), what is not background; `ink`: the colour of most of it."""

    background: str
    objects: tuple[Found, ...]
    paint: np.ndarray
    ink: str


@dataclass(eq=False)
class _Piece:
    """Connected paint of one colour: its mask and color (3,) in opponent units relative to the background."""

    mask: np.ndarray
    name: str
    color: np.ndarray


def analyse(pixels: np.ndarray) -> Analysis:
    """Take a picture, uint8 (H, W, 3), apart. Raises ValueError for any other array."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or min(pixels.shape[:2]) < 16:
        raise UserError(
            f"a picture to judge is uint8 (height, width, 3) of at least 16x16, not {pixels.dtype} "
            f"{pixels.shape}: convert it with np.asarray(image.convert('RGB'))"
        )
    short = min(pixels.shape[:2])
    ground = seg.background_color(pixels)
    background = seg.nearest(ground, BACKGROUNDS)
    x = seg.to_opponent(pixels) - seg.to_opponent(ground)
    names, table = _palette(background)
    colors = table - seg.to_opponent(ground)
    solid = _foreground(x, colors)
    labels = seg.label(solid.astype(np.int8))
    pieces: list[_Piece] = []
    for k in range(1, labels.max() + 1):
        pieces += _split_colors(labels == k, x, names, colors)
    least = STRAY * short * short
    pieces = [p for p in _adopt_crumbs(pieces, least) if p.mask.sum() >= least]
    seen = _merge([(piece, _look(piece, x, short)) for piece in pieces], x, short)
    area: Counter[str] = Counter()
    for piece, _ in seen:
        area[piece.name] += int(piece.mask.sum())
    paint = np.logical_or.reduce([np.zeros(x.shape[:2], bool), *(piece.mask for piece, _ in seen)])
    objects = sorted((found for _, found in seen), key=lambda found: (found.y, found.x))
    ink = area.most_common(1)[0][0] if area else UNKNOWN
    return Analysis(background=background, objects=tuple(objects), paint=paint, ink=ink)


@lru_cache(maxsize=32)
def _palette(background: str) -> tuple[tuple[str, ...], np.ndarray]:
    names = tuple(n for n in BACKGROUNDS if n != background)
    return names, seg.to_opponent(np.array([BACKGROUNDS[n] for n in names]))


def _foreground(x: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Pixels, bool (H, W), more than half covered by the colour that explains their blend with the background best."""
    length2 = (colors**2).sum(-1)
    dot, norm2 = x @ colors.T, (x**2).sum(-1)
    alpha = np.clip(dot / length2, 0, 1)
    left_over = norm2[..., None] - 2 * alpha * dot + alpha**2 * length2
    left_over[..., length2 < LEAST_CONTRAST**2] = np.inf
    best = left_over.argmin(-1)
    cover = np.take_along_axis(alpha, best[..., None], -1)[..., 0]
    return (cover > 0.5) & (norm2 > LEAST_CONTRAST**2)


def _name_color(x_N3: np.ndarray, names: tuple[str, ...], colors: np.ndarray) -> tuple[str, np.ndarray]:
    """The colour of some paint from its quarter of strongest pixels: (name, its mean colour).

    A blend with the background costs half as much as any other deviation: thin strokes rarely reach full cover.
    """
    strength = (x_N3**2).sum(-1)
    top = x_N3[strength >= np.quantile(strength, 0.6)]
    center = np.median(top, 0)
    alpha, left_over = zip(*(seg.coverage(center, c) for c in colors), strict=True)
    length = np.sqrt((colors**2).sum(-1))
    cost = np.hypot(left_over, 0.5 * (1 - np.array(alpha)) * length)
    best = int(cost.argmin())
    return (names[best] if cost[best] < FAR_COLOR else UNKNOWN), center


def _split_colors(mask: np.ndarray, x: np.ndarray, names: tuple[str, ...], colors: np.ndarray) -> list[_Piece]:
    """One piece per colour of a connected region; the rim that a blend of two colours leaves makes no piece."""
    name, center = _name_color(x[mask], names, colors)
    _, left_over = seg.coverage(x, center)
    other = mask & (left_over > 60.0)
    if other.sum() < max(12, 0.12 * mask.sum()) or not _has_core(other):
        return [_Piece(mask, name, center)]
    second, color = _name_color(x[other], names, colors)
    if second == name:
        return [_Piece(mask, name, center)]
    nearer = ((x - color) ** 2).sum(-1) < ((x - center) ** 2).sum(-1)
    other = mask & nearer & (left_over > 40.0)
    parts = []
    for part in (mask & ~other, other):
        labels = seg.label(part.astype(np.int8))
        parts += [_Piece(labels == k, *_name_color(x[labels == k], names, colors)) for k in range(1, labels.max() + 1)]
    return parts


def _has_core(mask: np.ndarray) -> bool:
    """Whether a region is anywhere at least three pixels wide: anti-aliased rims are not."""
    inner = mask[1:-1, 1:-1].copy()
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= mask[dy : dy + inner.shape[0], dx : dx + inner.shape[1]]
    return int(inner.sum()) >= 3


def _adopt_crumbs(pieces: list[_Piece], least: float) -> list[_Piece]:
    """Give paint too small to be an object to the nearest piece that it touches within two pixels."""
    large = [p for p in pieces if p.mask.sum() >= least]
    for crumb in (p for p in pieces if p.mask.sum() < least):
        reach = seg.dilate(crumb.mask, 2)
        for piece in large:
            if piece.name == crumb.name and (piece.mask & reach).any():
                piece.mask = piece.mask | crumb.mask
                break
    return large


def _alpha(piece: _Piece, x: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Soft mask of a piece, how much its colour covers each pixel near it: (float window, its top row, left column).

    The outermost line of the window is empty, which `_box` and `resample` rely on.
    """
    rows, columns = np.flatnonzero(piece.mask.any(1)), np.flatnonzero(piece.mask.any(0))
    y0, y1, x0, x1 = max(rows[0] - 3, 0), rows[-1] + 4, max(columns[0] - 3, 0), columns[-1] + 4
    alpha, left_over = seg.coverage(x[y0:y1, x0:x1], piece.color)
    alpha = np.where((left_over < 90.0) & seg.dilate(piece.mask[y0:y1, x0:x1], 2), alpha, 0.0)
    if alpha.max() <= 0.5:
        alpha = piece.mask[y0:y1, x0:x1].astype(np.float32)
    return np.pad(alpha, 1), int(y0) - 1, int(x0) - 1


def _box(alpha: np.ndarray) -> Box:
    """Box of a soft mask to a part of a pixel: an outermost line counts as much as its strongest pixel is covered."""
    (x0, x1), (y0, y1) = (_span(alpha.max(axis)) for axis in (0, 1))
    return x0, y0, x1, y1


def _span(profile: np.ndarray) -> tuple[float, float]:
    inside = np.flatnonzero(profile > 0.5)
    low, high = int(inside[0]), int(inside[-1])
    return float(low + 1 - profile[low] - profile[low - 1]), float(high + profile[high] + profile[high + 1])


def _look(piece: _Piece, x: np.ndarray, short: int) -> Found:
    """Shape, size and place of one piece."""
    height, width = x.shape[:2]
    alpha, top, left = _alpha(piece, x)
    box = _box(alpha)
    best = match(seg.resample(alpha, frame(box), SIDE), box, short)
    if REFIT_FROM < best.score < CLEAR_MATCH:
        box, best = _refit(alpha, box, best, short)
    known = best.score >= LEAST_MATCH
    r = best.radius / short
    x0, y0, x1, y1 = box[0] + left, box[1] + top, box[2] + left, box[3] + top
    return Found(
        shape=best.shape if known else UNKNOWN, fill=best.fill if known else UNKNOWN, color=piece.name,
        size=min(SIZES, key=lambda s: abs(np.log(SIZES[s] / r))), x=(x0 + x1) / 2 / width, y=(y0 + y1) / 2 / height,
        r=r, box=(x0, y0, x1, y1), score=best.score,
    )  # fmt: skip


def _refit(alpha: np.ndarray, box: Box, best: Match, short: int) -> tuple[Box, Match]:
    """Move the sides of the box one by one while the match improves: stripes may hide the tips of a shape."""
    step = short / 64
    improved, rounds = True, 0
    while improved and rounds < 3:
        improved, rounds = False, rounds + 1
        for side in range(4):
            for move in (-step, step):
                sides = [v + move * (i == side) for i, v in enumerate(box)]
                trial = (sides[0], sides[1], sides[2], sides[3])
                if min(trial[2] - trial[0], trial[3] - trial[1]) < 4:
                    continue
                found = match(seg.resample(alpha, frame(trial), SIDE), trial, short)
                if found.score > best.score + 0.005:
                    box, best, improved = trial, found, True
    return box, best


def _merge(seen: list[tuple[_Piece, Found]], x: np.ndarray, short: int) -> list[tuple[_Piece, Found]]:
    """Join neighbours of one colour where they look more like one shape together than apart."""
    reach = max(round(2 * short / 64), 1)
    unclear = [i for i, (_, found) in enumerate(seen) if found.score < 0.8]
    for i in unclear:
        for j in unclear:
            (a, look_a), (b, look_b) = seen[i], seen[j]
            if j <= i or a.name != b.name or not (seg.dilate(a.mask, reach) & seg.dilate(b.mask, reach)).any():
                continue
            both = _Piece(a.mask | b.mask, a.name, a.color)
            look = _look(both, x, short)
            if look.score > max(look_a.score, look_b.score):
                rest = [pair for k, pair in enumerate(seen) if k not in (i, j)]
                return _merge([*rest, (both, look)], x, short)
    return seen
