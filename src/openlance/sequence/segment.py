"""The one data type of the project: a request, a sample and an answer are lists of segments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

Kind = Enum("Kind", "TEXT PATCHES LATENTS")  # what the tokens are
Role = Enum("Role", "SYSTEM PROMPT REFERENCE SOURCE LAST HISTORY TARGET")  # why they are in the sequence

# What guidance and condition dropout take away: the prompt alone, or everything that the target is to go by (paper).
WORDS = frozenset({Role.PROMPT})
CONDITIONS = frozenset(Role) - {Role.SYSTEM, Role.TARGET}

Segments = list["Segment"]


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of tokens of one kind.

    Args:
        kind: TEXT, PATCHES (what a picture means, through the ViT) or LATENTS (how it looks, through the VAE).
        role: why it is there; a TARGET is what the model is to produce, LAST the frame on which it is to end.
        value: a string for TEXT, a clip (or latents of shape (T, Y, X, C)) otherwise; None on a TARGET is a hole.
        size: frames, height, width in pixels of a visual segment; taken from the clip when there is one.
        given: leading frames of a visual TARGET that are already known (image-to-video): a clip or latents.
    """

    kind: Kind
    role: Role
    value: Any = None
    size: tuple[int, int, int] | None = None
    given: Any = None

    def __post_init__(self) -> None:
        if self.kind is Kind.TEXT:
            if self.value is not None and not isinstance(self.value, str):
                raise ValueError(f"a text segment holds a string, not {type(self.value).__name__}; pass str(value)")
        elif self.size is None and hasattr(self.value, "pixels"):
            object.__setattr__(self, "size", tuple(self.value.pixels.shape[:3]))
        if self.kind is not Kind.TEXT and self.size is None:
            raise ValueError("a visual segment needs a clip or a (frames, height, width): pass size=(1, 64, 64)")

    @property
    def is_hole(self) -> bool:
        return self.role is Role.TARGET and self.value is None

    def filled(self, value: Any) -> Segment:
        return replace(self, value=value)

    def as_context(self) -> Segment:
        """A segment of an earlier turn: from now on it is only read. An answer becomes HISTORY; what it was made from
        becomes a REFERENCE, so that guidance and positions are about the newest turn alone."""
        if self.role in (Role.PROMPT, Role.SOURCE, Role.LAST):
            return replace(self, role=Role.REFERENCE)
        return replace(self, role=Role.HISTORY, given=None) if self.role is Role.TARGET else self


def drop(segments: Segments, roles: Iterable[Role]) -> Segments:
    """Condition dropout (training) and guidance (sampling) are this, then pack again. Targets always stay."""
    roles = set(roles)
    return [s for s in segments if s.role not in roles or s.role is Role.TARGET]


def prompt_in(segments: Segments) -> str:
    """The words of a request; empty where it has none."""
    return next((s.value for s in segments if s.role in WORDS), "")


def instead(segments: Segments, text: str) -> Segments:
    """The same with another text in the place of the words; with none they are dropped."""
    if not text:
        return drop(segments, WORDS)
    return [replace(s, value=text) if s.role in WORDS else s for s in segments]


def about_clips(samples: Iterable[Segments]) -> bool:
    """Whether anything in these lists moves."""
    return any(s.size is not None and s.size[0] > 1 for segments in samples for s in segments)
