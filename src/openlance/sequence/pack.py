"""Packing: many lists of segments become one set of rows plus the media that fill its visual rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from openlance.config.model import PositionConfig
from openlance.sequence.chat import Codec, Span, spans
from openlance.sequence.rows import (
    LAST,
    NO_LABEL,
    PATCH,
    PROMPT,
    REFERENCE,
    SOURCE,
    TARGET,
    TEXT,
    Rows,
    block_advance,
    grid_positions,
    latent_cells,
    modality_shift,
)
from openlance.sequence.segment import Kind, Role, Segment, Segments

CODES = {
    (Kind.PATCHES, Role.REFERENCE): PATCH,
    (Kind.PATCHES, Role.SOURCE): PATCH,
    (Kind.PATCHES, Role.HISTORY): PATCH,
    (Kind.LATENTS, Role.SOURCE): SOURCE,
    (Kind.LATENTS, Role.REFERENCE): REFERENCE,
    (Kind.LATENTS, Role.HISTORY): REFERENCE,
    (Kind.LATENTS, Role.LAST): LAST,
    (Kind.LATENTS, Role.TARGET): TARGET,
}


@dataclass(frozen=True)
class Visual:
    """Where one medium goes: `rows` are the first and last+1 row of its tokens in the pack, markers excluded."""

    segment: Segment
    grid: tuple[int, int, int]
    rows: tuple[int, int]
    given: int = 0  # leading tokens of a target that are already known

    @property
    def kind(self) -> int:
        return self.segment.kind.value


@dataclass(frozen=True)
class Pack:
    """Rows of all documents in order, and their media in order of appearance."""

    rows: Rows
    visuals: list[Visual] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


def _code(span: Span, draws: bool) -> int:
    """Text is template text but for the prompt of a picture or clip, which is what guidance drops."""
    if span.owner is None or span.owner.kind is Kind.TEXT:
        return PROMPT if draws and span.owner is not None and span.owner.role is Role.PROMPT else -1
    return CODES[span.owner.kind, span.owner.role]


def _text(span: Span, code: int, segment: int, counter: int) -> dict[str, Any]:
    along = np.arange(counter, counter + len(span.ids))
    return {
        "segment": segment, "full": 0, "noisy": 0, "kind": TEXT, "code": code, "token": span.ids, "cell": -1,
        "target": -1, "denoise": 0, "learn": span.answer, "position": np.repeat(along[:, None], 3, axis=1),
    }  # fmt: skip


def _visual(span: Span, code: int, counter: int, config: PositionConfig, given: int) -> dict[str, Any]:
    """A visual block with its two markers; the markers are text rows of the same segment."""
    assert span.owner is not None and span.grid is not None
    is_target, has_cells = code == TARGET, span.owner.kind is Kind.LATENTS or config.patch_table > 0
    after = counter + 1 + block_advance(span.grid, config.tokens_per_second)
    inner = counter + 1 + grid_positions(span.grid, config.tokens_per_second)
    n = len(span.ids)

    def between(marker: int, value: Any) -> np.ndarray:
        column = np.full(n, marker)
        column[1:-1] = value
        return column

    return {
        "full": 1, "noisy": is_target, "code": code, "token": span.ids, "learn": 0,
        "kind": between(TEXT, span.owner.kind.value),
        "cell": between(-1, latent_cells(span.grid, config) if has_cells else -1),
        "denoise": between(0, (np.arange(n - 2) >= given) & is_target),
        "position": np.concatenate([[[counter] * 3], inner, [[after] * 3]]),
    }  # fmt: skip


def document(segments: Segments, codec: Codec, config: PositionConfig, draws: int = 1) -> tuple[dict, list[Visual]]:
    """Compile one sample to columns. `draws` repeats each visual target at the same positions: the mask rule makes
    every copy an island, so that several noise levels of one target share one context in a single pass."""
    parts, visuals = list[dict[str, Any]](), list[Visual]()
    paints = any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in segments)
    counter, length, segment, targets, last = 0, 0, -1, 0, None
    for span in spans(segments, codec):
        n, code = len(span.ids), _code(span, paints)
        if span.grid is None and n:
            segment += code != last
            parts.append(_text(span, code, segment, counter))
            counter, length, last = counter + n, length + n, code
        elif span.grid is not None and span.owner is not None:
            given = _given(span.owner, span.grid, codec)
            block = _visual(span, code, counter, config, given)
            if code == LAST:
                block["cell"][1:-1] += _last_frame(span.grid, segments, codec) * config.max_latent_side**2
            for _ in range(draws if code == TARGET else 1):
                segment += 1
                parts.append(block | {"segment": segment, "target": targets if code == TARGET else -1})
                visuals.append(Visual(span.owner, span.grid, (length + 1, length + n - 1), given))
                targets += code == TARGET
                length += n
            counter, last = int(block["position"][-1, 0]) + 1, None
    columns = {name: np.concatenate([_column(part, name) for part in parts]) for name in parts[0]}
    if config.shift:
        columns["position"] = modality_shift(columns["position"], columns["code"], config, draws)
    return columns, visuals


def _column(part: dict[str, Any], name: str) -> np.ndarray:
    value = np.asarray(part[name], dtype=np.int64)
    return value if value.ndim else np.full(len(part["token"]), value)


def _given(owner: Segment, grid: tuple[int, int, int], codec: Codec) -> int:
    if owner.given is None:
        return 0
    pixels = getattr(owner.given, "pixels", None)
    frames = codec.latent_grid(tuple(pixels.shape[:3]))[0] if pixels is not None else owner.given.shape[0]
    return frames * grid[1] * grid[2]


def _last_frame(grid: tuple[int, int, int], segments: Segments, codec: Codec) -> int:
    """The latent frame of the target on which a picture of this grid stands."""
    size = next((s.size for s in segments if s.kind is Kind.LATENTS and s.role is Role.TARGET), None)
    frames, *sides = codec.latent_grid(size) if size else (1, *grid[1:])
    if (1, *sides) != grid:
        raise ValueError(f"a last frame of {grid} latents does not fit a clip of {sides}: give one picture of its size")
    return frames - 1


def pack(samples: list[Segments], codec: Codec, config: PositionConfig | None = None, draws: int = 1) -> Pack:
    """Concatenate samples into one row set. Attention never crosses a document (`visible`), so that a pack equals
    its samples one by one.

    Raises ValueError when there is nothing to pack.
    """
    if not samples:
        raise ValueError("nothing to pack: pass at least one list of segments")
    config = config or PositionConfig()
    documents, visuals, offset, targets = list[dict[str, np.ndarray]](), list[Visual](), 0, 0
    for doc, segments in enumerate(samples):
        c, seen = document(segments, codec, config, draws)
        n, learn = len(c["token"]), c.pop("learn").astype(bool)
        c["label"] = np.full(n, NO_LABEL)
        c["label"][:-1] = np.where(learn[1:], c["token"][1:], NO_LABEL)
        c["index"], c["doc"] = np.arange(n), np.full(n, doc)
        c["target"] = np.where(c["target"] >= 0, c["target"] + targets, -1)
        c["segment"] = c["segment"] + (documents[-1]["segment"][-1] + 1 if documents else 0)
        targets = max(targets, int(c["target"].max()) + 1)
        visuals += [Visual(v.segment, v.grid, (v.rows[0] + offset, v.rows[1] + offset), v.given) for v in seen]
        documents.append(c)
        offset += n
    joined = {name: torch.from_numpy(np.concatenate([c[name] for c in documents])) for name in documents[0]}
    for name in ("full", "noisy", "denoise"):
        joined[name] = joined[name].bool()
    return Pack(Rows(**joined), visuals, [len(c["token"]) for c in documents])
