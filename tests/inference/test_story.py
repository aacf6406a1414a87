"""Stories: images and texts in turn, each as the dialogue makes it; and descriptions before drawing."""

from dataclasses import replace

import numpy as np
import pytest

import openlance
from openlance.errors import UserError
from openlance.inference.dialogue import Dialogue
from openlance.inference.enhance import thinker
from openlance.media import read_media
from openlance.media.clip import Clip
from openlance.sequence.segment import Kind, Role

LINES = ["draw a red circle", "describe the picture", "make the circle green", "what color is the circle?"]
SMALL = {"height": 16, "width": 16, "num_inference_steps": 1, "max_new_tokens": 3}


@pytest.fixture(scope="module")
def nano():
    return openlance.load("nano")


def test_a_story_is_what_the_dialogue_makes_of_its_lines(nano, tmp_path):
    how = {"seed": 4, "num_inference_steps": 2, "height": 32, "width": 32}
    story, talk = nano.story(LINES, **how), Dialogue(nano, **how)
    for line, result in zip(LINES, story.results, strict=True):
        turn = talk.say(line)
        expected = turn.answer if turn.answer is not None else turn.picture.pixels
        assert np.array_equal(result.pixels if isinstance(result, Clip) else result, expected)
    page = story.save(tmp_path / "story")
    text = page.read_text(encoding="utf-8")
    assert text.count("> ") == 4 and "![a red circle](0.png)" in text and story.results[3] in text
    assert np.array_equal(read_media(page.parent / "2.png").pixels, story.results[2].pixels)


def test_a_story_begins_with_what_is_brought_along(pipe):
    black = np.zeros((16, 16, 3), np.uint8)
    one, two = pipe.story(["what is it?", "make it red"], image=black, seed=1, **SMALL).results
    assert isinstance(one, str) and isinstance(two, Clip)


@pytest.mark.parametrize("lines", [[], ["draw a ring", " "], [3]])
def test_a_line_that_is_none_is_named_before_anything_is_made(pipe, lines):
    with pytest.raises(UserError, match="line"):
        pipe.story(lines, **SMALL)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["draw a ring", "animate"], "does not say what happens"),
        (["draw a ring", "film a star", "animate: it moves"], "a video moves already"),
    ],
)
def test_a_line_that_cannot_be_by_then_is_named_before_anything_is_made(pipe, lines, said, monkeypatch):
    monkeypatch.setattr(type(pipe), "fill_visual", None)
    with pytest.raises(UserError, match=said):
        pipe.story(lines, **SMALL)


def test_a_checkpoint_that_was_not_trained_to_think_is_refused_by_name(nano):
    for call in (lambda: nano.generate("a", think=True), lambda: nano.story(["a"], think=True)):
        with pytest.raises(UserError, match="^nano was not trained to describe a result before it draws it"):
            call()


def test_thinking_puts_the_models_own_words_in_front_of_the_target(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "defaults", replace(pipe.defaults, thinks=True))
    asked = []

    def fill(requests, *_):
        asked.append(requests[0])
        return ["a ring in the middle"]

    monkeypatch.setattr(pipe, "fill_text", fill)
    request = pipe.front.request("t2i", "a ring", asked=(1, 16, 16))
    made = thinker(pipe, True)(request)
    assert asked[0][-1].kind is Kind.TEXT and asked[0][-1].is_empty and asked[0][-2].value == "a ring"
    assert [(s.kind, s.role, s.value) for s in made[-2:]] == [
        (Kind.TEXT, Role.PROMPT, "a ring in the middle"), (Kind.LATENTS, Role.TARGET, None),
    ]  # fmt: skip
    assert thinker(pipe, False) is None
