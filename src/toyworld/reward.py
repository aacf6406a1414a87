"""The world's judge as a reward, `world`: which facts of a request hold in what was drawn for it.

    world                                # texts are read as the benchmark reads them
    world=letters                        # by the letters of the world, so that the benchmark's reader is the second one

The request is `Drawn.truth`: a `Drawing`, `Edit` or `Subject` of pictures, a `Filming`, `ClipEdit` or `ClipSubject` of
clips. "right" is what the benchmark counts; the other facts are its parts, and tell results apart that are both wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np

from openlance.errors import UserError
from openlance.rl.rewards.ocr import rapid_ocr
from openlance.rl.rewards.reward import Drawn, Reward
from openlance.rl.rewards.spelling import closeness
from toyworld.clip_edits import ClipEdit, judge_clip_edit
from toyworld.clip_subjects import ClipSubject
from toyworld.edits import Edit
from toyworld.facts import Fact, Lettering
from toyworld.judge import judge, nothing_else
from toyworld.judge_edits import judge_edit
from toyworld.match_text import match_text
from toyworld.read_text import fold, read_text
from toyworld.subjects import Subject
from toyworld.suites.clips import Filming, judge_filming
from toyworld.suites.images import Drawing

Read = Callable[[np.ndarray, np.ndarray], str]
READERS: dict[str, Read] = {"": read_text, "letters": lambda pixels, paint: match_text(pixels)}
REQUESTS = (Drawing, Edit, Subject, Filming, ClipEdit, ClipSubject)


class World(Reward):
    """Scores requests of the world.

    Facts: "right"; "asked", of a picture the share of what its prompt says, of an edit whether it was done; "kept", of
    an edit; "object", "motion" and "first_frame" of a clip; "text", how near a text that was asked for is to what is
    read, by edit distance over the longer one.
    """

    name = "world"
    # What decides counts most; that its parts count half is the recommendation of the trial before (docs/nano.md).
    facts = {"right": 1.0} | dict.fromkeys(("asked", "kept", "object", "motion", "first_frame", "text"), 0.5)
    cost = "4 ms for a picture of 64x64, 40 ms where a text is read (8 with =letters), 30 ms for a clip of 9 frames"
    exploits = (
        "stray paint under 14 pixels of 64x64, shades between two named colours, and letters that the reader takes for "
        "the right ones and people do not"
    )
    takes = "letters: texts are read by the letters of the world"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        if argument not in READERS:
            raise UserError(f"the reward world is {argument!r}: expected world or world=letters")

    def check(self, prompt: str, truth: Any = None) -> None:
        if not isinstance(truth, REQUESTS):
            raise UserError(
                f"the reward world cannot score {prompt[:80]!r}, which is no request of the world: take requests from "
                "the source world, or another reward"
            )

    def load(self) -> None:
        if not self.argument:
            rapid_ocr()

    def __call__(self, drawn: Sequence[Drawn]) -> list[Mapping[str, float]]:
        return [facts_of(one.truth, one, READERS[self.argument]) for one in drawn]


@singledispatch
def facts_of(truth: Any, drawn: Drawn, read: Read) -> dict[str, float]:
    """Return the facts of a result of a request, 0 to 1 each."""
    raise TypeError(f"{type(truth).__name__} is no request of the world")


@facts_of.register
def _(truth: Drawing | Subject, drawn: Drawn, read: Read) -> dict[str, float]:
    reading = _Once(read)
    verdicts = judge(drawn.media.pixels[0], nothing_else(truth.facts), read=reading)
    return {"right": all(verdicts.values()), "asked": float(np.mean(list(verdicts.values())))} | _spelled(
        truth.facts, reading
    )


@facts_of.register
def _(truth: Edit, drawn: Drawn, read: Read) -> dict[str, float]:
    reading = _Once(read)
    found = judge_edit(truth, drawn.sources[0].pixels[0], drawn.media.pixels[0], read=reading)
    return {"right": found.right, "asked": found.asked, "kept": found.kept} | _spelled(truth.asked, reading)


@facts_of.register
def _(truth: ClipEdit, drawn: Drawn, read: Read) -> dict[str, float]:
    found = judge_clip_edit(truth, drawn.sources[0].pixels, drawn.media.pixels)
    return {"right": found.right, "asked": found.asked, "kept": found.kept}


@facts_of.register
def _(truth: Filming, drawn: Drawn, read: Read) -> dict[str, float]:
    right, parts = judge_filming(truth, drawn.media.pixels, drawn.sources[0].pixels[0] if drawn.sources else None)
    return {"right": right, **parts}


@facts_of.register
def _(truth: ClipSubject, drawn: Drawn, read: Read) -> dict[str, float]:
    right, parts = judge_filming(truth, drawn.media.pixels)
    return {"right": right, **parts}


class _Once:
    """A reader that remembers what it has read."""

    def __init__(self, read: Read) -> None:
        self.read, self.string = read, ""

    def __call__(self, pixels: np.ndarray, paint: np.ndarray) -> str:
        self.string = self.read(pixels, paint)
        return self.string


def _spelled(facts: Sequence[Fact], reading: _Once) -> dict[str, float]:
    wanted = next((fact.string for fact in facts if isinstance(fact, Lettering)), None)
    return {} if wanted is None else {"text": closeness(fold(reading.string), fold(wanted))}
