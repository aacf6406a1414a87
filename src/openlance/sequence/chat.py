"""From segments to a chat: which text stands around them, and which token belongs to which segment.

The template is the one of Qwen2.5-VL as the release renders it: a system turn, then user and assistant turns. Text is
tokenised per stretch between special tokens, so that ids equal those of the whole rendered string, while a special
token spelled out inside user text stays plain text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from openlance.sequence.segment import Kind, Role, Segment, Segments

Grid = tuple[int, int, int]


class Codec(Protocol):
    """What the sequence must know of tokenizer, ViT and VAE; nothing else of them is visible here."""

    @property
    def im_start(self) -> int: ...
    @property
    def im_end(self) -> int: ...
    @property
    def vision_start(self) -> int: ...
    @property
    def vision_end(self) -> int: ...
    @property
    def visual_pad(self) -> int: ...
    def ids(self, text: str) -> list[int]: ...
    def patch_grid(self, size: Grid) -> Grid: ...
    def latent_grid(self, size: Grid) -> Grid: ...


@dataclass
class Span:
    """Tokens of one owner: a segment, or the template (None)."""

    owner: Segment | None
    ids: list[int]
    grid: Grid | None = None
    answer: bool = False  # part of an assistant turn whose text is to be learned


ASSISTANT = (Role.TARGET, Role.HISTORY)


def turns(segments: Segments) -> Iterator[tuple[str, Segments]]:
    """(speaker, segments) in order; there is always a user turn before the first assistant turn."""
    system = [s for s in segments if s.role is Role.SYSTEM]
    if system:
        yield "system", system
    speaker, held = "user", list[Segment]()
    for s in segments:
        if s.role is Role.SYSTEM:
            continue
        now = "assistant" if s.role in ASSISTANT else "user"
        if now != speaker:
            yield speaker, held
            speaker, held = now, []
        held.append(s)
    yield speaker, held


class Writer:
    """Collects spans; text waits until the next special token and is then tokenised in one stretch."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.spans = codec, list[Span]()
        self.waiting: list[tuple[str, Segment | None, bool]] = []

    def text(self, text: str, owner: Segment | None = None, answer: bool = False) -> None:
        self.waiting.append((text, owner, answer))

    def flush(self) -> None:
        """Share the ids of the stretch out among the owners of its pieces."""
        whole = self.codec.ids("".join(piece for piece, _, _ in self.waiting))
        text, start = "", 0
        for n, (piece, owner, answer) in enumerate(self.waiting, 1):
            text += piece
            end = len(whole) if n == len(self.waiting) else min(len(self.codec.ids(text)), len(whole))
            self.spans.append(Span(owner, whole[start:end], answer=answer))
            start = end
        self.waiting.clear()

    def special(self, ids: list[int], owner: Segment | None = None, grid: Grid | None = None, answer: bool = False):
        if self.waiting:
            self.flush()
        self.spans.append(Span(owner, ids, grid, answer))


def spans(segments: Segments, codec: Codec) -> list[Span]:
    """Render. Stops at the first empty text target, where decoding begins."""
    out = Writer(codec)
    for number, (speaker, held) in enumerate(turns(segments)):
        if number:
            out.text("\n")
        out.special([codec.im_start])
        out.text(speaker + "\n")
        for s in held:
            if s.kind is not Kind.TEXT:
                assert s.size is not None
                grid = codec.patch_grid(s.size) if s.kind is Kind.PATCHES else codec.latent_grid(s.size)
                pads = [codec.visual_pad] * (grid[0] * grid[1] * grid[2])
                out.special([codec.vision_start, *pads, codec.vision_end], s, grid)
            elif s.value is None:
                out.flush()
                return out.spans
            else:
                out.text(s.value, s, answer=s.role is Role.TARGET)
        out.special([codec.im_end], answer=any(s.kind is Kind.TEXT and s.role is Role.TARGET for s in held))
    return out.spans
