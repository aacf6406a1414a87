"""Edits, given objects and dialogues: who does what is asked scores one, who hands the picture back does not."""

import numpy as np
import pytest
from PIL import Image

from toyworld.dialogue import Draw
from toyworld.edits import KINDS, Edit
from toyworld.render import render
from toyworld.scene import is_heldout
from toyworld.suites.bench import BENCH_CATEGORIES, Bench, run
from toyworld.suites.dialogue import dialogues
from toyworld.suites.edits import edits, subjects

SMALL = Bench(tasks=("image_edit", "subject", "multi_turn"), samples=2, seed=3, batch=2)


def picture(scene):
    return Image.fromarray(render(scene, 64, 64))


class Oracle:
    """Knows the true picture of every request of a benchmark."""

    def __init__(self, bench):
        talks = [talk for form in BENCH_CATEGORIES["multi_turn"] for talk in dialogues(form, bench)]
        turns = [turn for talk in talks for turn in talk]
        wanted = [edit for category in BENCH_CATEGORIES["image_edit"] for edit in edits(category, bench)]
        given = [subject for category in BENCH_CATEGORIES["subject"] for subject in subjects(category, bench)]
        self.drawn = {turn.prompt: turn.scene for turn in turns if isinstance(turn, Draw)}
        self.edited = {
            (picture(e.before).tobytes(), e.instruction): e.after
            for e in (*wanted, *(turn for turn in turns if isinstance(turn, Edit)))
        }
        self.given = {(s.prompt, *(picture(r).tobytes() for r in s.references)): s.scene for s in given}
        self.answers = {
            (picture(turn.scene).tobytes(), turn.question): turn.answer for turn in turns
            if not isinstance(turn, Draw | Edit)
        }  # fmt: skip

    def generate(self, prompts, *, height, width, seed):
        return [picture(self.drawn[prompt]) for prompt in prompts]

    def edit(self, images, instructions, *, seed):
        return [picture(self.edited[i.tobytes(), said]) for i, said in zip(images, instructions, strict=True)]

    def subject(self, images, prompts, *, height, width, seed):
        asked = [(said, *(i.tobytes() for i in some)) for some, said in zip(images, prompts, strict=True)]
        return [picture(self.given[key]) for key in asked]

    def ask(self, images, questions):
        return [self.answers[i.tobytes(), said] for i, said in zip(images, questions, strict=True)]


class Lazy(Oracle):
    """Draws and answers well, but hands back what it was given to edit."""

    def edit(self, images, instructions, *, seed):
        return images

    def subject(self, images, prompts, *, height, width, seed):
        return [some[0] for some in images]

    def ask(self, images, questions):
        return ["" for _ in questions]


@pytest.fixture(scope="module")
def results():
    pytest.importorskip("rapidocr")
    return {maker: run(maker(SMALL), SMALL) for maker in (Oracle, Lazy)}


def test_an_oracle_is_always_right(results):
    for rows in results[Oracle].values():
        assert all(row["mean"] == 1 for row in rows.values()), rows


def test_who_hands_the_picture_back_kept_everything_and_did_nothing(results):
    rows = results[Lazy]["image_edit"]
    assert rows["kept"]["mean"] == 1 and rows["asked"]["mean"] == rows["mean"]["mean"] == rows["heldout"]["mean"] == 0
    assert all(row["mean"] == 0 for row in results[Lazy]["subject"].values())
    assert results[Lazy]["multi_turn"]["turn_1"]["mean"] == 1
    assert results[Lazy]["multi_turn"]["mean"]["mean"] == results[Lazy]["multi_turn"]["turn_3"]["mean"] == 0


def test_the_tables_have_the_promised_rows(results):
    rows = {task: list(found) for task, found in results[Oracle].items()}
    assert rows["image_edit"] == [*KINDS, "asked", "kept", "mean", "heldout"]
    assert rows["subject"] == ["one", "two", "mean", "heldout"]
    forms = ["draw_edit_ask", "draw_ask_edit", "draw_edit_edit"]
    assert rows["multi_turn"] == [*forms, "turn_1", "turn_2", "turn_3", "mean"]
    n = SMALL.samples * len(KINDS)
    assert results[Oracle]["image_edit"]["asked"]["n"] == results[Oracle]["image_edit"]["mean"]["n"] == n


def test_requests_depend_on_the_seed_and_not_on_how_many_there_are():
    for requests, category in ((edits, "add"), (subjects, "two"), (dialogues, "draw_edit_ask")):
        few, many = (list(requests(category, Bench(samples=n, seed=5))) for n in (2, 4))
        assert few == many[:2] and few != list(requests(category, Bench(samples=2, seed=6)))


def test_held_out_combinations_are_asked_for_only_in_their_own_row():
    bench = Bench(samples=4, seed=1, placement="loose")
    for category in ("recolour", "replace", "heldout"):
        assert {is_heldout(edit.after) for edit in edits(category, bench)} == {category == "heldout"}
    for category in BENCH_CATEGORIES["subject"]:
        assert {is_heldout(subject.scene) for subject in subjects(category, bench)} == {category == "heldout"}


def test_an_answer_is_shown_beside_what_was_given():
    seen = []
    bench = Bench(tasks=("image_edit",), samples=1, seed=2)
    pytest.importorskip("rapidocr")
    run(Lazy(bench), bench, seen.append)
    assert {s.image.size for s in seen} == {(128, 64)} and all("instruction" in s.said for s in seen)
    assert np.asarray(seen[0].image)[:, :64].tolist() == np.asarray(seen[0].image)[:, 64:].tolist()
