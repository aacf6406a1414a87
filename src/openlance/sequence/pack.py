"""Packing: many lists of segments become one set of rows plus the images and videos that fill its visual rows.

Positions are multimodal: the Qwen2.5-VL index, then the modality shift (MaPE) of Lance.

Around the segments stands a chat. Its template is the one of Qwen2.5-VL as the release renders it: a system turn, then
user and assistant turns. Text is tokenized per stretch between special tokens, so that ids equal those of the whole
rendered string, while a special token spelled out inside user text stays plain text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from openlance.config.model import Grid, PositionConfig, Size
from openlance.sequence import segment as values
from openlance.sequence.segment import PATCH, REFERENCE, SOURCE, TARGET, TEXT, Kind, Role, Rows, Segment, Segments


class Codec(Protocol):
    """What the sequence must know of tokenizer, ViT and VAE; nothing else of them is visible here."""

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    visual_pad: int

    def ids(self, text: str) -> list[int]: ...
    def patch_grid(self, size: Size) -> Grid: ...
    def latent_grid(self, size: Size) -> Grid: ...


class Span(NamedTuple):
    """Tokens of one owner: a segment, or the template (None). answer: they are of an assistant turn whose text is to be
    learned."""

    owner: Segment | None
    ids: list[int]
    grid: Grid | None = None
    answer: bool = False


ASSISTANT = (Role.TARGET, Role.HISTORY)


def turns(segments: Segments) -> Iterator[tuple[str, Segments]]:
    """Group segments as (speaker, segments) in order; there is always a user turn before the first assistant turn."""
    if system := [s for s in segments if s.role is Role.SYSTEM]:
        yield "system", system
    rest = [s for s in segments if s.role is not Role.SYSTEM]
    if not rest or rest[0].role in ASSISTANT:
        yield "user", []
    for answers, held in groupby(rest, lambda s: s.role in ASSISTANT):
        yield "assistant" if answers else "user", list(held)


def spans(segments: Segments, codec: Codec) -> list[Span]:
    """Render the chat. It stops at the first empty text target, where decoding begins."""
    found = list[Span]()
    for special, run in groupby(_pieces(segments, codec), lambda piece: isinstance(piece, Span)):
        pieces = list(run)
        found += pieces if special else _tokenized(pieces, codec)  # type: ignore[arg-type]
    return found


class _Text(NamedTuple):
    """A text that is yet to be tokenized, together with its neighbors up to the next special tokens."""

    text: str
    owner: Segment | None = None
    answer: bool = False


def _pieces(segments: Segments, codec: Codec) -> Iterator[Span | _Text]:
    for number, (speaker, held) in enumerate(turns(segments)):
        if number:
            yield _Text("\n")
        yield Span(None, [codec.im_start])
        yield _Text(speaker + "\n")
        for s in held:
            if s.kind is not Kind.TEXT:
                assert s.size is not None
                grid = codec.patch_grid(s.size) if s.kind is Kind.PATCHES else codec.latent_grid(s.size)
                pads = [codec.visual_pad] * (grid[0] * grid[1] * grid[2])
                yield Span(s, [codec.vision_start, *pads, codec.vision_end], grid)
            elif s.value is None:
                return
            else:
                yield _Text(s.text, s, s.role is Role.TARGET)
        answers = any(s.kind is Kind.TEXT and s.role is Role.TARGET for s in held)
        yield Span(None, [codec.im_end], answer=answers)


def _tokenized(stretch: list[_Text], codec: Codec) -> Iterator[Span]:
    """The ids of a stretch between special tokens, shared out among the owners of its texts."""
    written = list(accumulate(piece.text for piece in stretch))
    ids, start = codec.ids(written[-1]), 0
    for piece, text in zip(stretch, written):
        # A text that ends inside a word may have more tokens than the longer one.
        end = len(ids) if piece is stretch[-1] else max(start, min(len(codec.ids(text)), len(ids)))
        yield Span(piece.owner, ids[start:end], answer=piece.answer)
        start = end


def grid_positions(grid: Grid, tokens_per_second: int) -> np.ndarray:
    """Compute the (n, 3) offsets of a block of (T, Y, X) tokens in raster order."""
    t, y, x = np.indices(grid).reshape(3, -1)
    return np.stack([t * tokens_per_second, y, x], axis=1)


def block_advance(grid: Grid, tokens_per_second: int) -> int:
    """Compute how far the text counter moves over a visual block."""
    t, y, x = grid
    return max(tokens_per_second * (t - 1), y - 1, x - 1) + 1


def latent_cells(grid: Grid, config: PositionConfig) -> np.ndarray:
    """Compute the (n,) rows of the latent position table; a side above `max_latent_side` runs into the next row as
    released."""
    t, y, x = np.indices(grid).reshape(3, -1)
    side = config.max_latent_side
    return (t * side + y) * side + x


def modality_shift(position: np.ndarray, code: np.ndarray, config: PositionConfig, draws: int = 1) -> np.ndarray:
    """Shift one document.

    ViT blocks and reference latents start at a fixed frame; the latents of an edit's source lend their coordinates to
    each draw of the target when the two have equally many tokens (released code; only the counts are compared). A
    last frame takes the coordinates of the target's last frame.

    Args:
        position: (L, 3), of the Qwen2.5-VL index.
        code: (L,) modality codes.
        config: Where the blocks begin.
        draws: How many copies of the target there are.
    """
    shifted = position.copy()
    for which, start in ((PATCH, config.patches_start), (REFERENCE, config.reference_start)):
        rows = np.flatnonzero(code == which)
        if len(rows):
            shifted[rows, 0] += start - position[rows[0], 0]
    source, target = np.flatnonzero(code == SOURCE), np.flatnonzero(code == TARGET)
    if len(source) and draws * len(source) == len(target):
        shifted[target] = np.tile(position[source], (draws, 1))
    last = np.flatnonzero(code == values.LAST)[1:-1]  # without its markers
    if len(last) and len(target):
        closing = len(target) // draws - 1  # the marker behind the first draw
        shifted[last] = shifted[target[closing - len(last) : closing]]
    return shifted


CODES = {(Kind.PATCHES, role): PATCH for role in (Role.REFERENCE, Role.SOURCE, Role.HISTORY)}
KEPT = {Role.SOURCE: SOURCE, Role.REFERENCE: REFERENCE, Role.HISTORY: REFERENCE, Role.TARGET: TARGET}
CODES |= {(Kind.LATENTS, role): code for role, code in (KEPT | {Role.LAST: values.LAST}).items()}


@dataclass(frozen=True)
class Visual:
    """Where one image or video goes.

    Args:
        segment: What it is.
        grid: Its tokens.
        rows: The first and last+1 row of its tokens in the pack, markers excluded.
        given: Which tokens (n,) of a target are already known.
    """

    segment: Segment
    grid: Grid
    rows: tuple[int, int]
    given: np.ndarray = field(compare=False)

    @property
    def kind(self) -> int:
        return int(self.segment.kind.value)

    @property
    def known(self) -> Tensor:
        """The values (m, C) of those tokens; what is given is a tensor."""
        assert isinstance(self.segment.given, Tensor)
        flat = self.segment.given.flatten(0, 2)
        return flat[torch.from_numpy(self.given[: len(flat)])]

    def clean(self) -> Tensor:
        """All of its tokens (n, C) at time 0: what fills it and, where that is known, what is given."""
        flat = self.segment.tensor.flatten(0, 2)
        if not self.given.any():
            return flat
        return flat.index_copy(0, torch.from_numpy(self.given.nonzero()[0]).to(flat.device), self.known.to(flat))


@dataclass(frozen=True)
class Pack:
    """Rows of all documents in order, and their images and videos in order of appearance."""

    rows: Rows
    visuals: list[Visual] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


def _code(span: Span, draws: bool) -> int:
    """Text is template text but for the prompt of an image or video, which is what guidance drops."""
    if span.owner is None or span.owner.kind is Kind.TEXT:
        return values.PROMPT if draws and span.owner is not None and span.owner.role is Role.PROMPT else -1
    return CODES[span.owner.kind, span.owner.role]


def _text(span: Span, code: int, segment: int, counter: int) -> dict[str, Any]:
    along = np.arange(counter, counter + len(span.ids))
    return {
        "segment": segment, "full": 0, "noisy": 0, "kind": TEXT, "code": code, "token": span.ids, "cell": -1,
        "target": -1, "denoise": 0, "learn": span.answer, "position": np.repeat(along[:, None], 3, axis=1),
    }  # fmt: skip


def _visual(span: Span, code: int, counter: int, config: PositionConfig, given: np.ndarray) -> dict[str, Any]:
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
        "denoise": between(0, ~given & is_target),
        "position": np.concatenate([[[counter] * 3], inner, [[after] * 3]]),
    }  # fmt: skip


def document(
    segments: Segments, codec: Codec, config: PositionConfig, draws: int = 1
) -> tuple[dict[str, np.ndarray], list[Visual]]:
    """Compile one sample to columns.

    `draws` repeats each visual target at the same positions: the mask rule makes every copy an island, so that several
    noise samples of one target share one context in a single pass.
    """
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
            given = given_cells(span.owner, span.grid, codec)
            block = _visual(span, code, counter, config, given)
            if code == values.LAST:
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


def given_cells(owner: Segment, grid: Grid, codec: Codec) -> np.ndarray:
    """Tell which tokens (n,) of a segment are given."""
    frames, given = 0, owner.given
    if isinstance(given, Tensor):
        frames = given.shape[0]
    elif given is not None and not isinstance(given, str):
        frames = codec.latent_grid(tuple(given.pixels.shape[:3]))[0]
    return owner.known(grid, frames)


def _last_frame(grid: Grid, segments: Segments, codec: Codec) -> int:
    """The latent frame of the target on which an image of this grid stands."""
    size = next((s.size for s in segments if s.kind is Kind.LATENTS and s.role is Role.TARGET), None)
    frames, *sides = codec.latent_grid(size) if size else (1, *grid[1:])
    if (1, *sides) != grid:
        raise ValueError(f"a last frame of {grid} latents does not fit a video of {sides}: give one image of its size")
    return frames - 1


def pack(samples: list[Segments], codec: Codec, config: PositionConfig | None = None, draws: int = 1) -> Pack:
    """Concatenate samples into one row set. Attention never crosses a document (`visible`), so that a pack equals
    its samples one by one.

    Args:
        samples: At least one.
        codec: Tokenizer and grids.
        config: How tokens are placed.
        draws: Noise samples per visual target.

    Raises:
        ValueError: If there is nothing to pack.
    """
    if not samples:
        raise ValueError("nothing to pack: pass at least one list of segments")
    config = config or PositionConfig()
    documents, visuals, offset, targets = list[dict[str, np.ndarray]](), list[Visual](), 0, 0
    for doc, segments in enumerate(samples):
        c, seen = document(segments, codec, config, draws)
        n, learn = len(c["token"]), c.pop("learn").astype(bool)
        c["label"] = np.full(n, values.NO_LABEL)
        c["label"][:-1] = np.where(learn[1:], c["token"][1:], values.NO_LABEL)
        c["index"], c["doc"] = np.arange(n), np.full(n, doc)
        c["target"] = np.where(c["target"] >= 0, c["target"] + targets, -1)
        c["segment"] = c["segment"] + (documents[-1]["segment"][-1] + 1 if documents else 0)
        targets = max(targets, int(c["target"].max()) + 1)
        visuals += [replace(v, rows=(v.rows[0] + offset, v.rows[1] + offset)) for v in seen]
        documents.append(c)
        offset += n
    joined = {name: torch.from_numpy(np.concatenate([c[name] for c in documents])) for name in documents[0]}
    for name in ("full", "noisy", "denoise"):
        joined[name] = joined[name].bool()
    return Pack(Rows(**joined), visuals, [len(c["token"]) for c in documents])
