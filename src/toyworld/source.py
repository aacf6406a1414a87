"""The procedural world as a source: endless, never twice the same, each sample a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from openlance.data.front import Fit
from openlance.data.source import Row, Sample
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.sequence.segment import Kind
from openlance.sequence.tasks import (
    TASKS,
    Template,
    edit,
    edit_part,
    fill_part,
    first_and_last,
    image_to_video,
    prior,
    spec_of,
    subject_driven,
    text_to_visual,
    understand,
)
from toyworld.batches import WorldBatch, WorldMixture, world_batch
from toyworld.clip_batches import ClipMixture, clip_batch

# An epoch is so many blocks of so many indices; only how parts are dealt to ranks and workers depends on it.
BLOCKS, BLOCK = 1024, 64

# Sizes of pictures as (height, width) and lengths of clips in frames, by weight; a stage bounds both.
SIZES = {(64, 64): 0.72, (64, 96): 0.09, (96, 64): 0.09, (96, 96): 0.10}
FRAMES = {5: 0.05, 9: 0.79, 13: 0.08, 17: 0.08}

Draw = Callable[[int, int, Fit], WorldBatch]
NONE: dict[str, Any] = dict.fromkeys(("drawn", "asked", "edited", "subjects", "parts", "holes"), 0)
NO_CLIPS: dict[str, Any] = dict.fromkeys(
    ("drawn", "animated", "bridged", "edited", "subjects", "asked", "parts", "extended"), 0
)


def _pictures(**counts: Any) -> Draw:
    """One sample of what `counts` names. Conditions stay: a Stream drops them."""

    def draw(seed: int, index: int, fit: Fit) -> WorldBatch:
        low, high = fit.sides
        sizes = {size: w for size, w in SIZES.items() if low <= min(size) and max(size) <= high} or {(64, 64): 1.0}
        mixture = WorldMixture(**NONE | counts, questions=1, spread=(0.0, fit.jitter), sizes=sizes)
        return world_batch(mixture, seed, index)

    return draw


def _clips(*makers: str, **weights: dict[str, float]) -> Draw:
    """One sample of a maker of `ClipMixture`; of several in turn. weights: its scenes or edits."""

    def draw(seed: int, index: int, fit: Fit) -> WorldBatch:
        frames = {n: w for n, w in FRAMES.items() if n <= fit.max_frames} or {5: 1.0}
        settings = NO_CLIPS | {makers[index % len(makers)]: 1} | weights
        mixture = ClipMixture(**settings, spread=(0.0, fit.jitter), frames=frames)
        return clip_batch(mixture, seed, index)

    return draw


def _questions(steps: Mapping[str, float] = MappingProxyType({"one": 1.0, "two": 0.0})) -> Draw:
    """One question, of one step or of two as weighed."""
    one, two = _pictures(asked=1), _pictures(reasoned=1)
    share = steps["two"] / sum(steps.values())

    def draw(seed: int, index: int, fit: Fit) -> WorldBatch:
        return (two if np.random.default_rng((seed, index, 2)).random() < share else one)(seed, index, fit)

    return draw


_USUAL, _MOVING = WorldMixture(), ClipMixture()
_ANIMATED = ("animated", "animated", "animated", "bridged")


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Draws samples of a template that make a kind, or read it where they make a text. kinds: of scenes or edits that
    can be weighed, with their usual weights; none where they cannot."""

    template: Template
    kind: str
    draw: Callable[..., Draw]
    kinds: tuple[str, Mapping[str, float]] | None = None

    def drawing(self, said: Mapping[str, float] | None) -> Draw:
        if not said or self.kinds is None:
            return self.draw()
        name, usual = self.kinds
        return self.draw(**{name: dict(usual) | dict(said)})


_MAKERS = (
    Maker(template=text_to_visual, kind="image", draw=partial(_pictures, drawn=1), kinds=("scenes", _USUAL.scenes)),
    Maker(template=edit, kind="image", draw=partial(_pictures, edited=1), kinds=("edits", _USUAL.edits)),
    Maker(template=subject_driven, kind="image", draw=partial(_pictures, subjects=1)),
    Maker(template=edit_part, kind="image", draw=partial(_pictures, parts=1), kinds=("part_edits", _USUAL.part_edits)),
    Maker(template=fill_part, kind="image", draw=partial(_pictures, holes=1), kinds=("scenes", _USUAL.scenes)),
    Maker(template=understand, kind="image", draw=_questions, kinds=("steps", {"one": 1.0, "two": 0.0})),
    Maker(template=text_to_visual, kind="video", draw=partial(_clips, "drawn"), kinds=("scenes", _MOVING.scenes)),
    Maker(template=image_to_video, kind="video", draw=partial(_clips, *_ANIMATED), kinds=("scenes", _MOVING.scenes)),
    Maker(template=first_and_last, kind="video", draw=partial(_clips, "bridged")),
    Maker(template=edit, kind="video", draw=partial(_clips, "edited"), kinds=("edits", _MOVING.edits)),
    Maker(template=subject_driven, kind="video", draw=partial(_clips, "subjects")),
    Maker(template=edit_part, kind="video", draw=partial(_clips, "parts"), kinds=("part_edits", _MOVING.part_edits)),
    Maker(template=fill_part, kind="video", draw=partial(_clips, "extended"), kinds=("scenes", _MOVING.scenes)),
    Maker(template=understand, kind="video", draw=partial(_clips, "asked")),
)


def maker_of(task: str) -> Maker:
    """What draws samples of a task; UserError for one that the world does not know."""
    spec = spec_of(task)
    found = next((m for m in _MAKERS if m.template is spec.template and m.kind == spec.kind), None)
    if found is None:
        raise UserError(f"the world has no samples of the task {task}: give a source of your own")
    return found


@dataclass(frozen=True)
class WorldSource:
    """Samples of one task. A part is (seed, first index, last index + 1); the seed of an epoch comes from its reader
    where that shuffles. count: end after so many. kinds: weights of kinds of scenes or of edits, the usual ones where
    not named."""

    task: str
    count: int = BLOCKS * BLOCK
    seed: int = 0
    kinds: Mapping[str, float] | None = None
    light = False

    def __post_init__(self) -> None:
        maker = maker_of(self.task)
        if self.kinds is not None:
            self._check_kinds(maker, self.kinds)

    def _check_kinds(self, maker: Maker, said: Any) -> None:
        if maker.kinds is None:
            weighed = [spec.name for spec in TASKS.values() if maker_of(spec.name).kinds is not None]
            raise UserError(
                f"kinds are weighed for {', '.join(weighed)} alone: leave them out of the source of {self.task}"
            )
        usual = maker.kinds[1]
        good = isinstance(said, dict) and all(
            key in usual and isinstance(w, (int, float)) and 0 <= w < float("inf") for key, w in said.items()
        )
        if not good or not sum((dict(usual) | said).values()) > 0:
            raise UserError(
                f"kinds is {said!r}: expected weights of 0 or more of {', '.join(usual)}, such as "
                f"{{{next(iter(usual))}: 8}}"
            )

    def drawn(self, count: int, seed: int) -> WorldSource:
        """The first `count` samples of a seed."""
        return replace(self, count=count, seed=seed)

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
        batch = maker_of(self.task).drawing(self.kinds)(seed, index, fit)
        segments = batch.samples[0]
        seen = next((s.value for s in segments if s.kind is Kind.PATCHES), None)
        labels = batch.labels.get(seen.key) if isinstance(seen, Clip) else None
        segments = [*prior(spec_of(self.task), fit.front.style), *segments]
        return Sample(segments, row.place, labels, truth=batch.truths[0], kind=getattr(batch.truths[0], "kind", ""))

    def __str__(self) -> str:
        return f"world:{self.task}"


def open_world(task: str, kinds: Mapping[str, float] | None = None) -> WorldSource:
    """The source that `--data TASK=world` names, or a mapping with weights of kinds."""
    return WorldSource(task, kinds=kinds)
