"""The benchmark on the procedural world: prompts judged from pixels, questions marked against the scene.

    results = run(openlance.load("nano"), Bench(samples=50, seed=1, placement="loose"))
    results["t2i"]["position"]           # {"mean": 0.92, "n": 50, "ci95": [0.81, 0.97]}

A picture is right only if every fact of its prompt holds and nothing else is in it; an answer only if it is the right
one. "heldout" are scenes with combinations of colour, shape and relation that are never trained; it is scored apart
and no part of "mean".
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from openlance.errors import UserError
from openlance.world.facts import Fact
from openlance.world.judge import is_right, nothing_else
from openlance.world.questions import QUESTIONS, Question, sample_question, score
from openlance.world.read_text import reader
from openlance.world.render import render
from openlance.world.scene import Scene, jitter_of, sample_scene
from openlance.world.vocabulary import CATEGORIES, HELDOUT_CATEGORIES
from openlance.world.words import caption

HELDOUT = "heldout"
BENCH_CATEGORIES = {"t2i": (*CATEGORIES, HELDOUT), "vqa": (*QUESTIONS, HELDOUT)}
LONGEST_TEXT = 3  # characters asked for in "text"; questions about text ("ocr") go up to 4
Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval

Row: TypeAlias = dict[str, Any]  # "mean", "n", "ci95"
Results: TypeAlias = dict[str, dict[str, Row]]


class Model(Protocol):
    """What is scored; `openlance.load(...)` returns one. A list gives a list, in its order."""

    def generate(
        self, prompt: list[str], /, *, height: int, width: int, seed: int, **settings: Any
    ) -> list[Image.Image]:
        """One picture per prompt."""

    def ask(self, image: list[Image.Image], question: list[str], /) -> list[str]:
        """One answer per pair."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is asked. samples: per category; placement as in `sample_scene`; height, width: of pictures, in pixels.

    settings: what the model's `generate` gets besides, such as num_inference_steps.
    """

    tasks: tuple[str, ...] = ("t2i", "vqa")
    samples: int = 100
    seed: int = 0
    placement: str | float = "free"
    height: int = 64
    width: int = 64
    batch: int = 32
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        for task in self.tasks:
            if task not in BENCH_CATEGORIES:
                raise UserError(f"task {task!r} is unknown: use one or more of {', '.join(BENCH_CATEGORIES)}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"the tasks are {','.join(self.tasks)!r}: name each of {', '.join(BENCH_CATEGORIES)} once")
        if self.samples < 1 or self.batch < 1 or self.seed < 0:
            raise UserError(
                f"samples={self.samples}, batch={self.batch} and seed={self.seed} are out of range: they must be at "
                "least 1, 1 and 0, for example --samples 100 --seed 0"
            )
        jitter_of(self.placement)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A prompt, what must hold in its picture, and one scene of which all of it is true."""

    prompt: str
    facts: tuple[Fact, ...]
    scene: Scene


@dataclass(frozen=True, kw_only=True, eq=False)
class Asking:
    """A picture, uint8 (H, W, 3), and a question about it with its answer."""

    pixels: np.ndarray
    question: Question


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """One request with its outcome. `said`: the prompt, or question, answer and right answer; `image` as seen."""

    task: str
    category: str
    index: int
    right: bool
    said: dict[str, str]
    image: Image.Image


def _generator(task: str, category: str, bench: Bench) -> np.random.Generator:
    place = [bench.seed, list(BENCH_CATEGORIES).index(task), BENCH_CATEGORIES[task].index(category)]
    return np.random.default_rng(place)


def drawings(category: str, bench: Bench) -> Iterator[Drawing]:
    """The prompts of one category: always the same for a seed, and the first n the same whatever `samples` is."""
    rng, done = _generator("t2i", category, bench), 0
    while done < bench.samples:
        heldout = category == HELDOUT
        scene = sample_scene(
            rng, placement=bench.placement, aspect=bench.width / bench.height, heldout=heldout,
            category=HELDOUT_CATEGORIES[done % len(HELDOUT_CATEGORIES)] if heldout else category,
        )  # fmt: skip
        if scene.text is not None and len(scene.text.string) > LONGEST_TEXT:
            continue
        prompt, facts = caption(scene, rng)
        yield Drawing(prompt=prompt, facts=nothing_else(facts), scene=scene)
        done += 1


def askings(category: str, bench: Bench) -> Iterator[Asking]:
    """The questions of one category, with the true pictures they are about; as reproducible as `drawings`."""
    rng = _generator("vqa", category, bench)
    for _ in range(bench.samples):
        question = sample_question(
            rng, category=None if category == HELDOUT else category, heldout=category == HELDOUT,
            placement=bench.placement, height=bench.height, width=bench.width,
        )  # fmt: skip
        yield Asking(pixels=render(question.scene, bench.height, bench.width), question=question)


def prepare(bench: Bench) -> None:
    """Load what marks the answers. Raises UserError where it is not installed: better now than after an hour."""
    for task in bench.tasks:
        SUITES[task].prepare()


def run(model: Model, bench: Bench, on_scored: Callable[[Scored], None] | None = None) -> Results:
    """Score a model; `on_scored` sees every request as it is done. Raises UserError as `prepare` does."""
    prepare(bench)
    results: Results = {}
    for task in bench.tasks:
        right: dict[str, list[bool]] = {}
        for category in BENCH_CATEGORIES[task]:
            right[category] = []
            for i, (verdict, said, image) in enumerate(SUITES[task].outcomes(model, category, bench)):
                right[category].append(verdict)
                if on_scored is not None:
                    on_scored(Scored(task=task, category=category, index=i, right=verdict, said=said, image=image))
        results[task] = summary(right)
    return results


_Outcome: TypeAlias = tuple[bool, dict[str, str], Image.Image]


def _draw(model: Model, category: str, bench: Bench) -> Iterator[_Outcome]:
    for i, chunk in enumerate(_chunks(drawings(category, bench), bench.batch)):
        # Another seed for every batch, else prompt k of each would start from the same noise.
        place = [bench.seed, BENCH_CATEGORIES["t2i"].index(category), i]
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        prompts = [drawing.prompt for drawing in chunk]
        images = model.generate(prompts, height=bench.height, width=bench.width, seed=seed, **dict(bench.settings))
        for drawing, image in zip(chunk, images, strict=True):
            image = image.convert("RGB")
            yield is_right(np.asarray(image), drawing.facts), {"prompt": drawing.prompt}, image


def _ask(model: Model, category: str, bench: Bench) -> Iterator[_Outcome]:
    for chunk in _chunks(askings(category, bench), bench.batch):
        images = [Image.fromarray(asking.pixels) for asking in chunk]
        answers = model.ask(images, [asking.question.question for asking in chunk])
        for asking, answer, image in zip(chunk, answers, images, strict=True):
            q = asking.question
            yield score(q, answer), {"question": q.question, "answer": answer, "right answer": q.answer}, image


_T = TypeVar("_T")


def _chunks(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while chunk := list(islice(items, size)):
        yield chunk


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One task of the benchmark: its outcomes per category, and what must be loaded to mark them."""

    outcomes: Callable[[Model, str, Bench], Iterator[_Outcome]]
    prepare: Callable[[], object] = lambda: None


SUITES = {"t2i": Suite(outcomes=_draw, prepare=reader), "vqa": Suite(outcomes=_ask)}


def summary(right: Mapping[str, Sequence[bool]]) -> dict[str, Row]:
    """Rows of a table from the outcomes per category; "mean" is the mean of all but "heldout", which stands last."""
    rows = {name: row(sum(outcomes), len(outcomes)) for name, outcomes in right.items()}
    heldout = rows.pop(HELDOUT, None)
    total = row(sum(sum(o) for name, o in right.items() if name in rows), sum(len(right[name]) for name in rows))
    return {**rows, "mean": total, **({HELDOUT: heldout} if heldout else {})}


def row(successes: int, n: int) -> Row:
    """{"mean", "n", "ci95"}: the share of successes with Wilson's interval, which stays honest near 0 and 1."""
    low, high = wilson(successes, n)
    return {"mean": successes / n, "n": n, "ci95": [low, high]}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    p, z2 = successes / n, Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
