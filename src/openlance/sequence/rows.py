"""One row per token. Mask, positions, streams, flow time and losses are read from these columns and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from openlance.sequence import positions
from openlance.sequence.segment import Kind

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
    kind: TEXT, PATCHES or LATENTS; markers around a visual are TEXT. code: modality code (`positions.py`).
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
        return self.code == positions.TARGET

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
