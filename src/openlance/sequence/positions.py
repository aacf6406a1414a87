"""Multimodal positions: the Qwen2.5-VL index, then the modality shift (MaPE) of Lance."""

from __future__ import annotations

import numpy as np

from openlance.config.model import PositionConfig


def grid_positions(grid: tuple[int, int, int], tokens_per_second: int) -> np.ndarray:
    """(n, 3) offsets of a block of (T, Y, X) tokens in raster order."""
    t, y, x = np.indices(grid).reshape(3, -1)
    return np.stack([t * tokens_per_second, y, x], axis=1)


def block_advance(grid: tuple[int, int, int], tokens_per_second: int) -> int:
    """How far the text counter moves over a visual block."""
    t, y, x = grid
    return max(tokens_per_second * (t - 1), y - 1, x - 1) + 1


def latent_cells(grid: tuple[int, int, int], config: PositionConfig) -> np.ndarray:
    """(n,) rows of the latent position table; a side above `max_latent_side` runs into the next row as released."""
    t, y, x = np.indices(grid).reshape(3, -1)
    side = config.max_latent_side
    return (t * side + y) * side + x


# The release's modality codes, one per token: what the shift below reads.
TEMPLATE, PROMPT, TARGET, SOURCE, REFERENCE, PATCH = -1, 0, 1, 2, 3, 4
LAST = 5  # ours: the picture on which a clip is to end


def modality_shift(position: np.ndarray, code: np.ndarray, config: PositionConfig, draws: int = 1) -> np.ndarray:
    """Shift one document. position: (L, 3); code: (L,) modality codes.

    ViT blocks and reference latents start at a fixed frame; the latents of an edit's source lend their coordinates to
    each draw of the target when the two have equally many tokens (released code; only the counts are compared). A
    picture on which the target is to end takes the coordinates of its last frame.
    """
    shifted = position.copy()
    for which, start in ((PATCH, config.patches_start), (REFERENCE, config.reference_start)):
        rows = np.flatnonzero(code == which)
        if len(rows):
            shifted[rows, 0] += start - position[rows[0], 0]
    source, target = np.flatnonzero(code == SOURCE), np.flatnonzero(code == TARGET)
    if len(source) and draws * len(source) == len(target):
        shifted[target] = np.tile(position[source], (draws, 1))
    last = np.flatnonzero(code == LAST)[1:-1]  # without its markers
    if len(last) and len(target):
        closing = len(target) // draws - 1  # the marker behind the first draw
        shifted[last] = shifted[target[closing - len(last) : closing]]
    return shifted
