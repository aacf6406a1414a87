"""The two data types of a sequence. A request, a sample and an answer are lists of segments; packed, they are rows, one
per token. Mask, positions, streams, flow time and losses are read from the columns of these and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

Kind = Enum("Kind", "TEXT PATCHES LATENTS")  # what the tokens are
Role = Enum("Role", "SYSTEM PROMPT REFERENCE SOURCE LAST HISTORY TARGET")  # why they are in the sequence

# What guidance and condition dropout take away: the prompt alone, or everything that the target is to go by (paper).
WORDS = frozenset({Role.PROMPT})
CONDITIONS = frozenset(Role) - {Role.SYSTEM, Role.TARGET}

Segments = list["Segment"]


class Pixels(Protocol):
    """An image or video before it is encoded, such as `media.Clip`: uint8 (T, H, W, 3)."""

    @property
    def pixels(self) -> np.ndarray: ...


# What stands in a segment: a text; an image or video; or what an encoder made of it, latents (T, Y, X, C) or features.
Value: TypeAlias = "str | Pixels | Tensor"


@dataclass(frozen=True, eq=False)
class Region:
    """Where a target may differ from what is given with it, or from its source.

    Args:
        inside: bool (T, H, W), pixels of the target; None is everywhere.
        said: How it was found, for people.
    """

    inside: np.ndarray | None = None
    said: str = ""

    @property
    def is_part(self) -> bool:
        """Whether something has to stay as it is."""
        return self.inside is not None and not self.inside.all()

    def cells(self, grid: tuple[int, int, int]) -> np.ndarray:
        """Give bool (T, Y, X), the latents of a grid in which any pixel may differ; the first frame has its own."""
        if self.inside is None:
            return np.ones(grid, dtype=bool)
        (t, y, x), (frames, height, width) = grid, self.inside.shape
        cells: np.ndarray = self.inside.reshape(frames, y, height // y, x, width // x).max(axis=(2, 4))
        later = cells[1:].reshape(t - 1, -1, y, x).max(axis=1) if t > 1 else cells[1:]
        return np.concatenate([cells[:1], later])


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of tokens of one kind.

    Args:
        kind: TEXT, PATCHES (what an image or video means, through the ViT) or LATENTS (how it looks, through the VAE).
        role: Why it is there; a TARGET is what the model is to produce, LAST the frame on which it is to end.
        value: A string for TEXT, a `Clip` (or latents of shape (T, Y, X, C)) otherwise; None on a TARGET leaves it
            empty.
        size: Frames, height, width in pixels of a visual segment; taken from the video when there is one.
        given: Leading frames of a visual TARGET that are already known (image-to-video): a video or latents. With a
            region, all of them but what it is about.
        region: Of a visual TARGET, where it may differ from what is given; without that from the last SOURCE, which has
            its size. None is everywhere.

    Raises:
        ValueError: If the value does not go with the kind, or a visual segment has no size.
    """

    kind: Kind
    role: Role
    value: Value | None = None
    size: tuple[int, int, int] | None = None
    given: Value | None = None
    region: Region | None = None

    def __post_init__(self) -> None:
        if self.kind is Kind.TEXT:
            if self.value is not None and not isinstance(self.value, str):
                raise ValueError(f"a text segment holds a string, not {type(self.value).__name__}; pass str(value)")
        elif self.size is None and (pixels := getattr(self.value, "pixels", None)) is not None:
            object.__setattr__(self, "size", tuple(pixels.shape[:3]))
        if self.kind is not Kind.TEXT and self.size is None:
            raise ValueError("a visual segment needs a video or a (frames, height, width): pass size=(1, 64, 64)")

    @property
    def is_empty(self) -> bool:
        """Whether it is an empty target, which sampling fills."""
        return self.role is Role.TARGET and self.value is None

    @property
    def text(self) -> str:
        """The text of a TEXT segment; that of an empty target is empty."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def tensor(self) -> Tensor:
        """What an encoder made of an image or video."""
        assert isinstance(self.value, Tensor)
        return self.value

    def known(self, grid: tuple[int, int, int], frames: int) -> np.ndarray:
        """Tell which of its tokens are given: bool (T * Y * X,).

        Args:
            grid: Of its tokens, (T, Y, X).
            frames: Leading ones of these that `given` is about.
        """
        known = np.zeros(grid, dtype=bool)
        known[:frames] = True if self.region is None else ~self.region.cells(grid)[:frames]
        return known.flatten()

    def filled(self, value: Value | None) -> Segment:
        return replace(self, value=value)

    def as_context(self) -> Segment:
        """Make it one of an earlier turn: from now on it is only read. An answer becomes HISTORY; what it was made from
        becomes a REFERENCE, so that guidance and positions are about the newest turn alone."""
        if self.role in (Role.PROMPT, Role.SOURCE, Role.LAST):
            return replace(self, role=Role.REFERENCE)
        return replace(self, role=Role.HISTORY, given=None, region=None) if self.role is Role.TARGET else self


def drop(segments: Segments, roles: Iterable[Role]) -> Segments:
    """Leave out segments of some roles; targets always stay. Condition dropout (training) and guidance (sampling) are
    this, then packing again."""
    roles = set(roles)
    return [s for s in segments if s.role not in roles or s.role is Role.TARGET]


def prompt_in(segments: Segments) -> str:
    """Read the words of a request, the newest where it has earlier turns; empty where it has none."""
    return next((s.text for s in reversed(segments) if s.role in WORDS), "")


def region_in(segments: Segments) -> Region:
    """Read where the target of a request may differ from its source."""
    return next((s.region for s in reversed(segments) if s.region is not None), Region())


def given_in(segments: Segments) -> Any:
    """Read what stays outside of the region of a request: what its target is given; None where that is nothing, or has
    no region."""
    return next((s.given for s in reversed(segments) if s.region is not None), None)


def source_in(segments: Segments, kind: Kind = Kind.LATENTS) -> Any:
    """Read what the target of an edit begins from, as it looks or is seen; None where there is none of its size."""
    target = next((s for s in reversed(segments) if s.role is Role.TARGET), None)
    last = next((s for s in reversed(segments) if s.role is Role.SOURCE and s.kind is kind), None)
    same = kind is not Kind.LATENTS or (last and target and last.size == target.size)
    return last.value if last is not None and same else None


REGION, VIDEO = "region", "video"  # beside the names of roles in `roles_of`


def roles_of(samples: Iterable[Segments]) -> set[str]:
    """Name what decides how requests are denoised: the roles of their segments in lower case, "region" where a part of
    a source stays, "video" where a video is made."""
    lists = list(samples)
    found = {s.role.name.lower() for segments in lists for s in segments}
    found |= {REGION} if any(region_in(segments).is_part for segments in lists) else set()
    moving = any(s.role is Role.TARGET and s.size is not None and s.size[0] > 1 for segments in lists for s in segments)
    return found | ({VIDEO} if moving else set())


def with_prompt(segments: Segments, text: str) -> Segments:
    """Put another text in the place of the prompt; with an empty one it is dropped."""
    if not text:
        return drop(segments, WORDS)
    return [replace(s, value=text) if s.role in WORDS else s for s in segments]


def any_video(samples: Iterable[Segments]) -> bool:
    """Tell if anything in these lists has more than one frame."""
    return any(s.size is not None and s.size[0] > 1 for segments in samples for s in segments)


# The release's modality codes, one per token: what the shift below reads.
TEMPLATE, PROMPT, TARGET, SOURCE, REFERENCE, PATCH = -1, 0, 1, 2, 3, 4
LAST = 5  # ours: the image on which a video is to end


# What the tokens of a segment are; the values of the column `kind`.
TEXT, PATCHES, LATENTS = (kind.value for kind in Kind)
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

    Args:
        index: Order inside the document.
        doc: Which sample.
        segment: Which split (attention unit) of the pack.
        full: Sees its whole segment.
        noisy: Belongs to a visual target, hence a secret to other segments.
        kind: TEXT, PATCHES or LATENTS; markers around a visual are TEXT.
        code: Modality code (above).
        token: Text id (the pad id for visual rows).
        position: (t, h, w) for rotary embedding.
        cell: Row of the latent position table, -1 elsewhere.
        label: Next token to predict, or NO_LABEL.
        target: Number of the visual target in the pack (one flow time each), -1 elsewhere.
        denoise: A latent that is moved by the flow and trained by the velocity loss.
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
        """Pick rows by their indices."""
        return Rows(*(getattr(self, f.name)[i] for f in fields(self)))

    def to(self, device: torch.device | str) -> Rows:
        return Rows(*(getattr(self, f.name).to(device) for f in fields(self)))

    def moved(self, position: Tensor) -> Rows:
        return replace(self, position=position)

    @property
    def is_latent(self) -> Tensor:
        """Latent rows go through the generation stream, all others through the understanding stream."""
        found: Tensor = self.kind == LATENTS
        return found

    @property
    def is_patch(self) -> Tensor:
        found: Tensor = self.kind == PATCHES
        return found

    @property
    def is_target(self) -> Tensor:
        """The visual target with its markers."""
        found: Tensor = self.code == TARGET
        return found

    @staticmethod
    def concat(parts: list[Rows]) -> Rows:
        return Rows(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


def visible(q: Place, k: Place) -> Tensor:
    """Decide whether query q may look at key k (paper: generalized 3D causal attention). Broadcasts: pass single tokens
    or whole grids."""
    same_segment = q.segment == k.segment
    earlier_or_island = (q.index >= k.index) | (same_segment & q.full)
    secret = k.noisy & ~same_segment  # nobody else sees a target while it is denoised
    return (q.doc == k.doc) & earlier_or_island & ~secret


def dense_mask(rows: Rows) -> Tensor:
    """Make the mask as (L, L) booleans, query by key: for tests and for people; the model never builds it for a whole
    pack."""
    i = torch.arange(len(rows))
    return visible(rows.at(i[:, None]), rows.at(i[None, :]))
