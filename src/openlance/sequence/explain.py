"""What becomes of a list of segments, in words: its parts, its splits, their positions and their mask.

Nothing here decides anything: every word is read from the rows of the pack and from `visible`, so that the text cannot
drift from what a model does. A split is a run of rows with one attention unit, the column `segment` of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from openlance.config.model import PositionConfig
from openlance.sequence.pack import Codec, Pack, Span, pack, spans
from openlance.sequence.segment import NO_LABEL, TEXT, Kind, Rows, Segment, Segments, visible

Text = Callable[[list[int]], str]  # ids -> text, special tokens shown
Ends = tuple[tuple[int, ...], tuple[int, ...]]  # (t, h, w) of a first and of a last token


@dataclass(frozen=True, kw_only=True)
class Part:
    """A segment: `content` is its text or its size; tokens is None for an empty target that is written token by
    token."""

    kind: str
    role: str
    content: str
    tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Split:
    """A run of rows that attend alike.

    Args:
        content: The text, or the grid of an image or video.
        first: Its first row, a marker included.
        last: Its last row, likewise.
        stream: This and the next four are the columns of the table in `docs/concepts/sequence.md`; the two markers
            around latents, whose stream is "gen", take the stream "und".
        index: Positions of the first and the last token, markers left out, before the shift.
        shifted: Likewise after the shift.
    """

    content: str
    first: int
    last: int
    stream: str
    attends: str
    later: bool
    time: str
    loss: str
    index: Ends
    shifted: Ends

    @property
    def tokens(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What became of a list of segments."""

    parts: list[Part]
    template: int  # tokens of the chat template, which belong to no segment
    splits: list[Split]
    rows: Rows

    @property
    def tokens(self) -> int:
        return len(self.rows)


def explain(segments: Segments, codec: Codec, config: PositionConfig, text: Text) -> Explanation:
    """Pack one request or sample and say what every part of it became.

    Args:
        segments: The request or sample.
        codec: Tokenizer and grids.
        config: How tokens are placed.
        text: Turns ids into text, special tokens shown.
    """
    written = [span for span in spans(segments, codec) if span.ids]
    before = pack([segments], codec, replace(config, shift=False))
    after = pack([segments], codec, config)
    parts = [_part(segment, written) for segment in segments]
    splits = [_split(int(n), before, after, text) for n in torch.unique(after.rows.segment)]
    template = sum(len(span.ids) for span in written if span.owner is None)
    return Explanation(parts=parts, template=template, splits=splits, rows=after.rows)


def _part(segment: Segment, written: list[Span]) -> Part:
    open_text = segment.kind is Kind.TEXT and segment.is_empty
    tokens = None if open_text else sum(len(span.ids) for span in written if span.owner is segment)
    return Part(kind=segment.kind.name, role=segment.role.name, content=_content(segment), tokens=tokens)


def _content(segment: Segment) -> str:
    if segment.kind is Kind.TEXT:
        return "(to be written)" if segment.value is None else segment.text
    assert segment.size is not None
    frames, height, width = segment.size
    shape = f"{frames} frame{'s' * (frames != 1)} of {width}x{height}"
    given = getattr(getattr(segment.given, "pixels", segment.given), "shape", (0,))[0]
    part = segment.region is not None and segment.region.is_part
    known = "all but a region given" if part else f"first {given} given"
    return shape + (", to be drawn" if segment.is_empty else "") + (f", {known}" if given else "")


def _split(number: int, before: Pack, after: Pack, text: Text) -> Split:
    rows = after.rows
    at = (rows.segment == number).nonzero()[:, 0]
    first, last = int(at[0]), int(at[-1])
    inner = at[rows.kind[at] != TEXT]
    here, ends = rows.at(at), inner if len(inner) else at
    top, bottom, end = (rows.at(torch.tensor(n)) for n in (first, last, len(rows) - 1))
    newcomer = replace(end, index=end.index + 1, segment=end.segment + 1)  # right after all, in a split of its own
    grids = (v for v in after.visuals if v.rows[0] == first + 1)
    grid = next((f"{'x'.join(map(str, v.grid))} {v.segment.kind.name.lower()}" for v in grids), "")
    return Split(
        content=grid or text(here.token.tolist()),
        first=first,
        last=last,
        stream="gen" if bool(here.is_latent.any()) else "und",
        attends="both ways" if last > first and bool(visible(top, bottom)) else "causally",
        later=bool(visible(newcomer, bottom)),
        time=_time(here),
        loss=_loss(here),
        index=_ends(before.rows, ends),
        shifted=_ends(rows, ends),
    )


def _time(here: Rows) -> str:
    moved, latents = int(here.denoise.sum()), int(here.is_latent.sum())
    if not latents or not moved:
        return "0" if latents else "-"
    leading = bool(here.denoise[here.is_latent][latents - moved :].all())
    return "t" if moved == latents else "0, then t" if leading else "0 or t"


def _loss(here: Rows) -> str:
    moved, learned = int(here.denoise.sum()), int((here.label != NO_LABEL).sum())
    if moved:
        return f"velocity ({moved})"
    return f"next token ({learned})" if learned else "-"


def _ends(rows: Rows, at: torch.Tensor) -> Ends:
    return tuple(rows.position[at[0]].tolist()), tuple(rows.position[at[-1]].tolist())


def mask_picture(explanation: Explanation, most: int = 4) -> list[list[list[bool]]]:
    """Draw the mask on a few rows of each split, the first and the last always among them.

    Args:
        explanation: What is drawn.
        most: A split of n rows is drawn with the cube root of n cells, at most this many.

    Returns:
        For each split as query the lines of one block, each with its columns; those of all key splits follow each
        other.
    """
    rows = explanation.rows
    chosen = [_spread(split.first, split.last, most) for split in explanation.splits]
    keys = rows.at(torch.tensor([row for some in chosen for row in some])[None, :])
    return [visible(rows.at(torch.tensor(some)[:, None]), keys).tolist() for some in chosen]


def _spread(first: int, last: int, most: int) -> list[int]:
    count = min(max(round((last - first + 1) ** (1 / 3)), 1), most)
    return torch.linspace(first, last, count).round().long().tolist() if count > 1 else [last]
