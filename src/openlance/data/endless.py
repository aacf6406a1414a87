"""The procedural world as a source: endless, never twice the same, each sample a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openlance.data.fit import Fit
from openlance.data.source import Row, Sample
from openlance.data.world import WorldBatch, WorldMixture, world_batch
from openlance.data.world_clips import ClipMixture, clip_batch
from openlance.errors import UserError
from openlance.sequence.segment import Kind

# An epoch is so many blocks of so many indices; only how parts are dealt to ranks and workers depends on it.
BLOCKS, BLOCK = 1024, 64

# Sizes of pictures as (height, width) and lengths of clips in frames, by weight; a stage bounds both.
SIZES = {(64, 64): 0.72, (64, 96): 0.09, (96, 64): 0.09, (96, 96): 0.10}
FRAMES = {5: 0.05, 9: 0.79, 13: 0.08, 17: 0.08}

Draw = Callable[[int, int, Fit], WorldBatch]
NONE: dict[str, Any] = dict.fromkeys(("drawn", "asked", "edited", "subjects"), 0)
NO_CLIPS: dict[str, Any] = dict.fromkeys(("drawn", "animated", "bridged", "edited", "subjects", "asked"), 0)


def _pictures(**counts: Any) -> Draw:
    """One sample of what `counts` names. Conditions stay: a Stream drops them."""

    def draw(seed: int, index: int, fit: Fit) -> WorldBatch:
        low, high = fit.sides
        sizes = {size: w for size, w in SIZES.items() if low <= min(size) and max(size) <= high} or {(64, 64): 1.0}
        mixture = WorldMixture(
            **NONE | counts, questions=1, prompt_dropout=0.0, blind_dropout=0.0, spread=(0.0, fit.spread), sizes=sizes
        )
        return world_batch(mixture, seed, index)

    return draw


def _clips(*makers: str, **weights: dict[str, float]) -> Draw:
    """One sample of a maker of `ClipMixture`; of several in turn. weights: its scenes or edits."""

    def draw(seed: int, index: int, fit: Fit) -> WorldBatch:
        frames = {n: w for n, w in FRAMES.items() if n <= fit.max_frames} or {5: 1.0}
        settings = NO_CLIPS | {makers[index % len(makers)]: 1} | weights
        mixture = ClipMixture(**settings, prompt_dropout=0.0, dropout=0.0, spread=(0.0, fit.spread), frames=frames)
        return clip_batch(mixture, seed, index)

    return draw


_ANIMATED = ("animated", "animated", "animated", "bridged")
DRAWS: dict[str, Draw] = {
    "t2i": _pictures(drawn=1), "image_edit": _pictures(edited=1), "image_idip": _pictures(subjects=1),
    "x2t_image": _pictures(asked=1), "t2v": _clips("drawn"), "flf2v": _clips("bridged"),
    "i2v": _clips(*_ANIMATED), "video_edit": _clips("edited"),
    "video_idip": _clips("subjects"), "x2t_video": _clips("asked"),
}  # fmt: skip
# Kinds that can be weighed: their usual weights, and what draws with others.
_USUAL, _MOVING = WorldMixture(), ClipMixture()
WEIGHED: dict[str, tuple[dict[str, float], Callable[[dict[str, float]], Draw]]] = {
    "t2i": (_USUAL.scenes, lambda kinds: _pictures(drawn=1, scenes=kinds)),
    "image_edit": (_USUAL.edits, lambda kinds: _pictures(edited=1, edits=kinds)),
    "t2v": (_MOVING.scenes, lambda kinds: _clips("drawn", scenes=kinds)),
    "i2v": (_MOVING.scenes, lambda kinds: _clips(*_ANIMATED, scenes=kinds)),
    "video_edit": (_MOVING.edits, lambda kinds: _clips("edited", edits=kinds)),
}


@dataclass(frozen=True)
class WorldSource:
    """Samples of one task. A part is (seed, first index, last index + 1); the seed of an epoch comes from its reader
    where that shuffles. count: end after so many. kinds: weights of kinds of scenes or of edits (`WEIGHED`), the usual
    ones where not named."""

    task: str
    count: int = BLOCKS * BLOCK
    seed: int = 0
    kinds: Mapping[str, float] | None = None
    light = False

    def __post_init__(self) -> None:
        if self.task not in DRAWS:
            raise UserError(f"the world knows no task {self.task!r}: use one of {', '.join(DRAWS)}")
        if self.kinds is not None:
            self._check_kinds(self.kinds)

    def _check_kinds(self, said: Any) -> None:
        if self.task not in WEIGHED:
            raise UserError(
                f"kinds are weighed for {', '.join(WEIGHED)} alone: leave them out of the source of {self.task}"
            )
        usual, _ = WEIGHED[self.task]
        good = isinstance(said, dict) and all(
            key in usual and isinstance(w, (int, float)) and 0 <= w < float("inf") for key, w in said.items()
        )
        if not good or not sum((usual | said).values()) > 0:
            raise UserError(
                f"kinds is {said!r}: expected weights of 0 or more of {', '.join(usual)}, such as "
                f"{{{next(iter(usual))}: 8}}"
            )

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[tuple[int, int, int]]:
        seed = self.seed + epoch if rng is None else int(rng.integers(2**62))
        return [(seed, first, min(first + BLOCK, self.count)) for first in range(0, self.count, BLOCK)]

    def rows(self, part: tuple[int, int, int]) -> Iterator[Row]:
        seed, first, end = part
        return (Row(f"{self}, seed {seed}, row {i}", (seed, i)) for i in range(first, end))

    def stamp(self, part: tuple[int, int, int]) -> str:
        return f"{part} {self.kinds}"

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        seed, index = row.values
        batch = self._draw(seed, index, fit)
        seen = next((s.value for s in batch.samples[0] if s.kind is Kind.PATCHES), None)
        return Sample(batch.samples[0], row.place, batch.labels.get(id(seen)))

    @property
    def _draw(self) -> Draw:
        if not self.kinds:
            return DRAWS[self.task]
        usual, draw = WEIGHED[self.task]
        return draw(usual | dict(self.kinds))

    def __str__(self) -> str:
        return f"world:{self.task}"
