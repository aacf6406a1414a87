"""Pictures taken apart by classical vision: background, colours, connected pieces.

Nothing here knows shapes or facts. All arithmetic happens in an opponent space that is a linear map of RGB, so that
the blends of an anti-aliased edge lie on the straight line between the two colours that meet there.
"""

import numpy as np

# Rows: lightness, red-green, yellow-blue. Chroma weighs twice as much as lightness: generated pictures err mostly in
# lightness, and two colour names rarely differ in it alone.
OPPONENT = np.array([[1 / 3, 1 / 3, 1 / 3], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]], np.float32)


def to_opponent(rgb: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in 0..255 to float32 (..., 3); distances are comparable to distances in RGB."""
    return np.asarray(rgb, np.float32) @ OPPONENT.T


def background_color(pixels: np.ndarray) -> np.ndarray:
    """The colour float32 (3,) RGB of the frame around the picture: the mean of its most frequent coarse colour.

    The mode, not the mean, because objects may touch the border.
    """
    ring = max(2, min(pixels.shape[:2]) // 16)
    sides = (pixels[:ring], pixels[-ring:], pixels[ring:-ring, :ring], pixels[ring:-ring, -ring:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    border = border.astype(np.float32)
    bins = (border / 24).astype(np.int64) @ np.array([1, 16, 256])
    center = border[bins == np.bincount(bins).argmax()].mean(0)
    for _ in range(2):  # the mode may sit on the edge of a bin: shift to the true centre
        near = np.abs(border - center).max(-1) < 30
        if near.any():
            center = border[near].mean(0)
    return center


def nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Name of the palette entry closest to one RGB colour."""
    names = list(palette)
    table = to_opponent(np.array([palette[n] for n in names]))
    return names[int(((table - to_opponent(color)) ** 2).sum(-1).argmin())]


def label(classes: np.ndarray) -> np.ndarray:
    """Connected pieces of equal non-zero class, eight neighbours; int32 (H, W), 0 outside, else 1.. in reading order.

    Runs of equal pixels within a row are joined to touching runs of the row above by union-find.
    """
    height, width = classes.shape
    starts = np.ones((height, width), bool)
    starts[:, 1:] = classes[:, 1:] != classes[:, :-1]
    run = np.cumsum(starts).reshape(height, width) - 1
    parent = list(range(int(run[-1, -1]) + 1))
    upper, lower = classes[:-1], classes[1:]
    edges = []
    for dx in (-1, 0, 1):
        a, b = slice(max(0, -dx), width - max(0, dx)), slice(max(0, dx), width - max(0, -dx))
        same = (upper[:, a] == lower[:, b]) & (upper[:, a] != 0)
        edges.append(run[:-1][:, a][same].astype(np.int64) * (run[-1, -1] + 1) + run[1:][:, b][same])
    for edge in np.unique(np.concatenate(edges)).tolist():
        a, b = divmod(edge, len(parent))
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        parent[max(a, b)] = min(a, b)
    for i in range(len(parent)):  # parents come before children, so one pass flattens the forest
        parent[i] = parent[parent[i]]
    roots = np.where(classes != 0, np.asarray(parent, np.int64)[run] + 1, 0)
    return np.unique(np.append(roots, 0), return_inverse=True)[1][:-1].reshape(height, width).astype(np.int32)


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Grow a boolean mask (H, W) by a square of 2 * radius + 1 pixels."""
    height, width = mask.shape
    padded = np.pad(mask, radius)
    rows = np.logical_or.reduce([padded[i : i + height] for i in range(2 * radius + 1)])
    return np.logical_or.reduce([rows[:, i : i + width] for i in range(2 * radius + 1)])


def coverage(x: np.ndarray, color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel is paint: x (..., 3) and color (3,) are opponent colours relative to the background.

    Returns (alpha in 0..1, the distance that the blend background + alpha * color leaves unexplained).
    """
    alpha = np.clip(x @ color / max(float(color @ color), 1e-6), 0.0, 1.0)
    return alpha, np.sqrt(((x - alpha[..., None] * color) ** 2).sum(-1))


def resample(mask: np.ndarray, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    """Cut box (x0, y0, x1, y1), pixel edges, from a float mask (H, W) with an empty rim; stretch it bilinearly to
    (side, side)."""
    x0, y0, x1, y1 = box
    steps = (np.arange(side) + 0.5) / side
    xs = np.clip(x0 - 0.5 + steps * (x1 - x0), 0, mask.shape[1] - 1.001)
    ys = np.clip(y0 - 0.5 + steps * (y1 - y0), 0, mask.shape[0] - 1.001)
    ix, iy = xs.astype(int), ys.astype(int)
    fx, fy = (xs - ix).astype(np.float32), (ys - iy).astype(np.float32)[:, None]
    rows = mask[iy] * (1 - fy) + mask[iy + 1] * fy
    return rows[:, ix] * (1 - fx) + rows[:, ix + 1] * fx
