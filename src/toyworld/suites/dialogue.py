"""Suite of the world benchmark: dialogues of three turns (multi_turn), in which a picture that the model drew is edited
and asked about.

Every turn works on what the one before it gave. "turn_2" is the share in which the first two turns were right, and a
dialogue is right only if all three were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from openlance.eval.suite import Model, Outcome, Suite, chunks, generator, sampling_seed
from toyworld.dialogue import FORMS, Draw, Turn, relocated, sample_dialogue
from toyworld.edits import Edit
from toyworld.judge import analyse, is_right, seen_scene
from toyworld.judge_edits import judge_edit
from toyworld.questions import Question, score
from toyworld.suites.edits import beside

if TYPE_CHECKING:
    from openlance.media.clip import Clip
    from toyworld.suites.asked import Asked

_DIALOGUE = 8  # number of the suite: it sets the requests


def dialogues(form: str, bench: Asked) -> Iterator[tuple[Turn, ...]]:
    """The dialogues of one form: always the same for a seed, and the first n the same whatever `samples` is."""
    rng = generator(_DIALOGUE, FORMS.index(form), bench)
    for _ in range(bench.samples):
        yield sample_dialogue(rng, form=form, placement=bench.placement, height=bench.height, width=bench.width)


@dataclass(eq=False)
class Talk:
    """How far a dialogue has come: its pictures, what was said, which turns were right, and the clip that it is about,
    if any."""

    turns: tuple[Any, ...]
    pictures: list[Image.Image] = field(default_factory=list)
    clip: Clip | None = None
    said: dict[str, str] = field(default_factory=dict)
    right: list[bool] = field(default_factory=list)

    def note(self, **said: str) -> None:
        self.said |= {f"turn {len(self.right)} {name}": text for name, text in said.items()}


Act = Callable[[Any, "Sequence[Talk]", int, "Asked", dict[str, Any]], None]


def _talk(model: Model, form: str, bench: Asked) -> Iterator[Outcome]:
    yield from converse(model, dialogues(form, bench), (_DIALOGUE, FORMS.index(form)), _TURNS, bench)


def converse(
    model: Any, sampled: Iterator[tuple[Any, ...]], number: tuple[int, int], acts: Mapping[type, Act], bench: Asked
) -> Iterator[Outcome]:
    """Have dialogues of one form, turn by turn, and judge each turn.

    Args:
        model: What answers.
        sampled: Their turns.
        number: Of the suite, and of the form in it: they set the noise.
        acts: What is done for each type of turn.
        bench: What is asked.
    """
    for i, chunk in enumerate(chunks(sampled, bench.batch)):
        seed = sampling_seed(*number, i, bench)
        talks = [Talk(turns) for turns in chunk]
        for n, turn in enumerate(talks[0].turns):
            how = {"seed": (seed + n * 1_000_003) % 2**31, **dict(bench.settings)}
            acts[type(turn)](model, talks, n, bench, how)
        for talk in talks:
            upto = [all(talk.right[: n + 1]) for n in range(len(talk.right))]
            yield Outcome(
                right=upto[-1], said=talk.said, image=beside(*talk.pictures),
                parts={f"turn_{n + 1}": verdict for n, verdict in enumerate(upto)},
            )  # fmt: skip


def draw(model: Model, talks: Sequence[Talk], n: int, bench: Asked, how: dict[str, Any]) -> None:
    prompts = [talk.turns[n].prompt for talk in talks]
    images = model.generate(prompts, height=bench.height, width=bench.width, **how)
    for talk, image, prompt in zip(talks, images, prompts, strict=True):
        turn = talk.turns[n]
        assert isinstance(turn, Draw)
        talk.pictures.append(image.convert("RGB"))
        talk.right.append(is_right(np.asarray(talk.pictures[-1]), turn.facts))
        talk.note(prompt=prompt)


def edit(model: Model, talks: Sequence[Talk], n: int, bench: Asked, how: dict[str, Any]) -> None:
    instructions = [talk.turns[n].instruction for talk in talks]
    images = model.edit([talk.pictures[-1] for talk in talks], instructions, **how)
    for talk, image, instruction in zip(talks, images, instructions, strict=True):
        turn, before = talk.turns[n], np.asarray(talk.pictures[-1])
        assert isinstance(turn, Edit)
        talk.pictures.append(image.convert("RGB").resize(before.shape[1::-1]))
        asked = relocated(turn, seen_scene(analyse(before), turn.before.aspect))
        talk.right.append(asked is not None and judge_edit(asked, before, np.asarray(talk.pictures[-1])).right)
        talk.note(instruction=instruction)


def _ask(model: Model, talks: Sequence[Talk], n: int, bench: Asked, how: dict[str, Any]) -> None:
    questions = [talk.turns[n].question for talk in talks]
    answers = model.ask([talk.pictures[-1] for talk in talks], questions)
    for talk, question, answer in zip(talks, questions, answers, strict=True):
        turn = talk.turns[n]
        assert isinstance(turn, Question)
        talk.right.append(score(turn, answer))
        talk.note(question=question, answer=answer, **{"right answer": turn.answer})


_TURNS: dict[type, Act] = {Draw: draw, Edit: edit, Question: _ask}
MULTI_TURN = Suite(name="multi_turn", categories=FORMS, outcomes=_talk)
