"""What every suite of the benchmark is made of: its outcomes, and how they become rows of a table.

A suite yields one `Outcome` per request and knows its categories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np

from openlance.eval.estimate import wilson

if TYPE_CHECKING:
    from PIL.Image import Image


HELDOUT = "heldout"  # the category of combinations that are never trained; no part of "mean"

Row: TypeAlias = dict[str, Any]  # "mean", "n", "ci95"


class Seeded(Protocol):
    """What a benchmark asks: the same seed, the same requests."""

    @property
    def seed(self) -> int: ...


class Model(Protocol):
    """What is scored; `openlance.load(...)` returns one. Lists in, lists of their length out, in their order."""

    def generate(self, prompt: list[str], /, *, height: int, width: int, seed: int, **settings: Any) -> list[Image]:
        """One image per prompt."""

    def ask(self, image: list[Image], question: list[str], /) -> list[str]:
        """One answer per pair."""

    def edit(self, image: list[Image], instruction: list[str], /, *, seed: int, **settings: Any) -> list[Image]:
        """One image per pair, of the size of the one given."""

    def subject(
        self, images: list[list[Image]], prompt: list[str], /, *, height: int, width: int, seed: int, **settings: Any
    ) -> list[Image]:
        """One image per prompt and its given images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of one request. said: what was asked and answered; parts: verdicts that get rows of their own;
    second: the verdict of a second judge, None where it has none."""

    right: bool
    said: dict[str, str]
    image: Image
    parts: Mapping[str, bool] = field(default_factory=dict)
    second: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One part of the benchmark: its name, categories, outcomes per category, what must be loaded to mark them, and the
    task that a checkpoint has to name among its own, if it is one that others cannot do at all."""

    name: str
    categories: tuple[str, ...]
    outcomes: Callable[[Any, str, Any], Iterator[Outcome]]
    prepare: Callable[[], object] = lambda: None
    needs: str = ""


def generator(suite: int, category: int, asked: Seeded) -> np.random.Generator:
    """Where the requests of a category come from: its number and that of its suite, which must never change."""
    return np.random.default_rng([asked.seed, suite, category])


def sampling_seed(suite: int, category: int, batch: int, asked: Seeded) -> int:
    """Another seed for every batch, else prompt k of each would start from the same noise."""
    place = [asked.seed, category, batch, *([suite] if suite else [])]
    return int(np.random.SeedSequence(place).generate_state(1)[0])


_T = TypeVar("_T")


def chunks(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while chunk := list(islice(items, size)):
        yield chunk


def summary(right: Mapping[str, Sequence[bool]], parts: Mapping[str, Sequence[bool]] | None = None) -> dict[str, Row]:
    """Rows of a table: the categories, the parts, "mean" over all categories but "heldout", and that as the last."""
    rows = {name: row(sum(outcomes), len(outcomes)) for name, outcomes in right.items()}
    heldout = rows.pop(HELDOUT, None)
    total = row(sum(sum(o) for name, o in right.items() if name in rows), sum(len(right[name]) for name in rows))
    rows |= {name: row(sum(outcomes), len(outcomes)) for name, outcomes in (parts or {}).items()}
    return {**rows, "mean": total, **({HELDOUT: heldout} if heldout else {})}


def with_second(rows: Mapping[str, Row], pairs: Mapping[str, Sequence[tuple[bool, bool]]]) -> dict[str, Row]:
    """Rows of a table with what a second judge says beside it: "second", and "agree", how often both say the same.

    Args:
        rows: Of the first judge.
        pairs: Verdicts of both, by category, on what the second can judge.
    """
    kept = {name: list(each) for name, each in pairs.items() if each}
    if not kept.keys() - {HELDOUT}:
        return dict(rows)
    second = summary({name: [b for _, b in each] for name, each in kept.items()})
    agree = summary({name: [a == b for a, b in each] for name, each in kept.items()})
    more = {name: {"second": second[name], "agree": agree[name]} for name in second}
    return {name: one | more.get(name, {}) for name, one in rows.items()}


def row(successes: int, n: int) -> Row:
    """{"mean", "n", "ci95"}: the share of successes with Wilson's interval, which stays honest near 0 and 1."""
    low, high = wilson(successes, n)
    return {"mean": successes / n, "n": n, "ci95": [low, high]}
