"""The benchmark on the procedural world: prompts and edits judged from pixels, questions marked against the scene.

    results = run(openlance.load("nano"), Bench(samples=50, seed=1, placement="loose"))
    results["t2i"]["position"]           # {"mean": 0.92, "n": 50, "ci95": [0.81, 0.97]}

A picture is right only if every fact of its prompt holds and nothing else is in it; an answer only if it is the right
one. "heldout" are scenes with combinations of colour, shape and relation that are never trained; it is scored apart
and no part of "mean". A second judge, which shares nothing with the first, stands beside it where it can read what is
asked: a row then has "second" and "agree", rows of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from openlance.errors import UserError
from openlance.eval.estimate import wilson
from openlance.eval.suite import HELDOUT, Model, Row, Suite, row, summary, with_second
from toyworld.suites import clip_dialogue, clips, dialogue, edits, images, regions
from toyworld.suites.asked import Asked
from toyworld.suites.images import Asking, Drawing, askings, drawings

__all__ = [
    "BENCH_CATEGORIES", "SUITES", "Asking", "Bench", "Drawing", "Model", "Results", "Row", "Scored", "askings",
    "drawings", "named_tasks", "prepare", "row", "run", "summary", "wilson",
]  # fmt: skip

_SUITES = (
    images.T2I, clips.T2V, clips.I2V, edits.IMAGE_EDIT, clips.VIDEO_EDIT,
    edits.SUBJECT, images.VQA, clips.VIDEO_VQA, dialogue.MULTI_TURN,
    clips.SUBJECT_VIDEO, clip_dialogue.MULTI_TURN_VIDEO, images.VQA_REASONING,
    regions.IMAGE_INPAINT, regions.OUTPAINT, regions.EXTEND,
)  # fmt: skip
SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}
BENCH_CATEGORIES = {name: suite.categories for name, suite in SUITES.items()}
ALL = "all"

Results: TypeAlias = dict[str, dict[str, Row]]


@dataclass(frozen=True, kw_only=True)
class Bench(Asked):
    """What is asked, of which tasks."""

    tasks: tuple[str, ...] = ("t2i", "vqa")

    def __post_init__(self):
        for task in self.tasks:
            if task not in SUITES:
                raise UserError(f"task {task!r} is unknown: use {ALL!r}, or one or more of {', '.join(SUITES)}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"the tasks are {','.join(self.tasks)!r}: name each of {', '.join(SUITES)} once")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """One request with its outcome. `said`: the prompt, or question, answer and right answer; `image` as seen."""

    task: str
    category: str
    index: int
    right: bool
    said: dict[str, str]
    image: Image.Image
    second: bool | None = None


def named_tasks(said: str) -> tuple[str, ...]:
    """The tasks of a list with commas; "all" is every suite."""
    names = tuple(name.strip() for name in said.split(",") if name.strip())
    return tuple(SUITES) if names == (ALL,) else names


def prepare(bench: Bench) -> None:
    """Load what marks the answers. Raises UserError where it is not installed: better now than after an hour."""
    for task in bench.tasks:
        SUITES[task].prepare()


def run(model: Model, bench: Bench, on_scored: Callable[[Scored], None] | None = None) -> Results:
    """Score a model; `on_scored` sees every request as it is done. Raises UserError as `prepare` does."""
    prepare(bench)
    return {task: _score(model, task, bench, on_scored) for task in bench.tasks}


def _score(model: Model, task: str, bench: Bench, on_scored: Callable[[Scored], None] | None) -> dict[str, Row]:
    right: dict[str, list[bool]] = {}
    parts: dict[str, list[bool]] = {}
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for category in SUITES[task].categories:
        right[category] = []
        for i, outcome in enumerate(SUITES[task].outcomes(model, category, bench)):
            right[category].append(outcome.right)
            for name, verdict in outcome.parts.items() if category != HELDOUT else ():
                parts.setdefault(name, []).append(verdict)
            if outcome.second is not None:
                pairs.setdefault(category, []).append((outcome.right, outcome.second))
            if on_scored is not None:
                on_scored(
                    Scored(
                        task=task,
                        category=category,
                        index=i,
                        right=outcome.right,
                        said=outcome.said,
                        image=outcome.image,
                        second=outcome.second,
                    )  # fmt: skip
                )
    return with_second(summary(right, parts), pairs)
