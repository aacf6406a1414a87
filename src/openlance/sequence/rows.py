"""One row per token. Mask, positions, streams, flow time and losses are read from these columns and nowhere else.

Positions are multimodal: the Qwen2.5-VL index, then the modality shift (MaPE) of Lance.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from openlance.config.model import PositionConfig
from openlance.sequence.segment import Kind


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


# What the tokens of a segment are; the values of the column `kind`.
TEXT, PATCHES, LATENTS = (Kind[name].value for name in ("TEXT", "PATCHES", "LATENTS"))
NO_LABEL = -100  # the convention of torch's cross entropy


@dataclass(frozen=True, eq=False)
class Place:
    """The columns that the mask rule reads; see `Rows`."""

    index: Tensor
    doc: Tensor
    segment: Tensor
    full: Tensor
    noisy: Tensor


@dataclass(frozen=True, eq=False)
class Rows(Place):
    """Columns of length L (position: (L, 3)). Rows are compared, never interpreted.

    index: order inside the document. doc: which sample. segment: which split (attention unit) of the pack.
    full: sees its whole segment. noisy: belongs to a visual target, hence a secret to other segments.
    kind: TEXT, PATCHES or LATENTS; markers around a visual are TEXT. code: modality code (below).
    token: text id (the pad id for visual rows). position: (t, h, w) for rotary embedding.
    cell: row of the latent position table, -1 elsewhere. label: next token to predict, or NO_LABEL.
    target: number of the visual target in the pack (one flow time each), -1 elsewhere.
    denoise: a latent that is moved by the flow and trained by the velocity loss.
    """

    kind: Tensor
    code: Tensor
    token: Tensor
    position: Tensor
    cell: Tensor
    label: Tensor
    target: Tensor
    denoise: Tensor

    def __len__(self) -> int:
        return self.index.shape[0]

    def at(self, i: Tensor) -> Rows:
        return Rows(*(getattr(self, f.name)[i] for f in fields(self)))

    def to(self, device: torch.device | str) -> Rows:
        return Rows(*(getattr(self, f.name).to(device) for f in fields(self)))

    def moved(self, position: Tensor) -> Rows:
        return replace(self, position=position)

    @property
    def is_latent(self) -> Tensor:
        """Latent rows go through the generation stream, all others through the understanding stream."""
        return self.kind == LATENTS

    @property
    def is_patch(self) -> Tensor:
        return self.kind == PATCHES

    @property
    def is_target(self) -> Tensor:
        """The visual target with its markers."""
        return self.code == TARGET

    @staticmethod
    def concat(parts: list[Rows]) -> Rows:
        return Rows(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


def visible(q: Place, k: Place) -> Tensor:
    """May query q look at key k?  Broadcasts: pass single tokens or whole grids (paper: generalised 3D causal
    attention)."""
    same_segment = q.segment == k.segment
    earlier_or_island = (q.index >= k.index) | (same_segment & q.full)
    secret = k.noisy & ~same_segment  # nobody else sees a target while it is denoised
    return (q.doc == k.doc) & earlier_or_island & ~secret


def dense_mask(rows: Rows) -> Tensor:
    """(L, L) booleans, query by key: for tests and for people; the model never builds it for a whole pack."""
    i = torch.arange(len(rows))
    return visible(rows.at(i[:, None]), rows.at(i[None, :]))
