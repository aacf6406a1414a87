"""A dialogue: a turn sees what is on the table, what was said can be repeated, and turns are values."""

from dataclasses import replace

import numpy as np
import pytest

from openlance.errors import UserError
from openlance.inference.dialogue import Dialogue
from openlance.media.clip import Clip
from openlance.sequence.pack import pack
from openlance.sequence.segment import Kind, Role


def script(talk: Dialogue) -> list:
    talk.say("draw a ring")
    talk.say("make it blue")
    answer = talk.say("what color is it?").answer
    return [turn.picture.pixels for turn in talk.turns] + [answer]


def test_the_same_words_and_seed_give_the_same_dialogue(pipe):
    one, two, other = (script(Dialogue(pipe, seed=seed, history=2, max_new_tokens=16)) for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for a, b in zip(one[:-1], two[:-1])) and one[-1] == two[-1]
    assert not np.array_equal(one[0], other[0])


def test_without_history_a_turn_is_the_call_of_its_own(pipe):
    talk = Dialogue(pipe, seed=3)
    drawn = talk.draw("a ring").picture
    changed, answer = talk.edit("make it blue").picture, talk.ask("what is it?").answer
    assert np.array_equal(drawn.pixels[0], pipe.generate("a ring", seed=3)[0])
    assert np.array_equal(changed.pixels[0], pipe.edit(drawn, "make it blue", seed=4)[0])
    assert answer == pipe.ask(changed, "what is it?", max_new_tokens=256)


@pytest.fixture
def asked(pipe, monkeypatch) -> list:
    """The requests, instead of what would come of them."""
    seen: list = []
    monkeypatch.setattr(
        pipe, "fill_visual", lambda r, *_, **__: [seen.append(r[0]) or Clip(np.zeros((*r[0][-1].size, 3), "u1"))]
    )
    monkeypatch.setattr(pipe, "fill_text", lambda r, *_: [seen.append(r[0]) or "blue"])
    return seen


def words(request: list) -> list[str]:
    return [s.value for s in request if s.kind is Kind.TEXT and s.role is not Role.SYSTEM and s.value]


def test_a_turn_sees_the_turns_before_it_as_context(pipe, asked):
    talk = Dialogue(pipe, seed=0, history=2)
    for text in ("draw a ring", "make it blue", "what color is it?", "add a star"):
        talk.say(text)
    assert words(asked[0]) == ["a ring"]
    assert words(asked[2]) == ["a ring", "make it blue", "what color is it?"]
    assert words(asked[3]) == ["make it blue", "what color is it?", "blue", "add a star"]
    assert [s.role for s in asked[3]].count(Role.PROMPT) == 1
    assert [s.value for s in asked[3] if s.role is Role.HISTORY and s.kind is Kind.LATENTS] == [talk.turns[1].picture]
    assert all(len(pack([request], pipe.codec, pipe.config.position)) for request in asked)


FEW = {"num_inference_steps": 1, "height": 16, "width": 16, "num_frames": 5, "max_new_tokens": 3}


def test_clips_are_those_of_the_calls(pipe):
    talk = Dialogue(pipe, seed=3, **FEW)
    drawn, film = talk.draw("a ring").picture, talk.film("a ring moves left").picture
    changed = talk.edit("make it blue").picture
    answer = talk.ask("what moves?").answer
    talk.show(drawn)
    moved = talk.animate("it moves up").picture
    few, size = {"num_inference_steps": 1}, {"height": 16, "width": 16, "num_frames": 5}
    alone = pipe.generate_video("a ring moves left", seed=4, **size, **few)[0]
    assert np.array_equal(film.pixels, alone.pixels)
    assert np.array_equal(changed.pixels, pipe.edit(film, "make it blue", seed=5, **few)[0].pixels)
    assert answer == pipe.ask(changed, "what moves?", max_new_tokens=3)
    assert np.array_equal(moved.pixels, pipe.animate(drawn, "it moves up", num_frames=5, seed=6, **few)[0].pixels)
    assert [turn.seed for turn in talk.turns] == [3, 4, 5, None, None, 6]


def test_a_clip_goes_from_one_image_to_another(pipe):
    talk = Dialogue(pipe, seed=3, **FEW)
    first, last = (np.full((16, 16, 3), n, np.uint8) for n in (50, 200))
    talk.show(first, last)
    made = talk.animate("it grows").picture
    asked = {"num_frames": 5, "seed": 3, "num_inference_steps": 1}
    assert np.array_equal(made.pixels, pipe.animate(first, "it grows", last=last, **asked)[0].pixels)


def test_a_branch_is_the_same_dialogue_until_it_says_something_else(pipe):
    talk = Dialogue(pipe, seed=3, history=2, **FEW)
    said = ("draw a ring", "make it blue", "animate: it moves up", "make it red")
    for text in said:
        talk.say(text)
    other = talk.branch(2)
    assert other.turns == talk.turns[:2] and other.picture is talk.turns[1].picture
    for text in said[2:]:
        other.say(text)
    assert [t.seed for t in other.turns] == [t.seed for t in talk.turns] == [3, 4, 5, 6]
    assert all(np.array_equal(a.picture.pixels, b.picture.pixels) for a, b in zip(talk.turns, other.turns))
    other.say("film a star")
    other.undo()
    talk.undo()
    assert len(other.turns) == 4 and len(talk.turns) == 3
    assert talk.branch().turns == talk.turns and talk.branch(0).draw("a ring").seed == 3
    resumed = Dialogue(pipe, seed=9, turns=talk.turns[:1], **FEW)
    assert resumed.branch().edit("make it blue").seed == resumed.edit("make it blue").seed == 9
    assert talk.branch().say("make it red").seed == talk.say("make it red").seed == 7  # after what was taken back
    talk.undo()
    for wrong in (lambda: talk.branch(4), lambda: talk.branch(-1), lambda: Dialogue(pipe, turns=["a ring"])):
        with pytest.raises(UserError):
            wrong()


def test_turns_before_decide_on_the_settings_as_all_conditions_do(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "defaults", replace(pipe.defaults, sampling_with={"history": {"num_inference_steps": 3}}))
    steps = list[int]()
    for n in (0, 2):
        talk = Dialogue(pipe, seed=1, history=n)
        for text in ("draw a ring", "make it blue"):
            steps.append(talk.say(text).picture.made.settings["num_inference_steps"])
    assert steps[0] == steps[1] == steps[2] != 3 == steps[3]


def test_images_and_videos_have_settings_of_their_own(pipe, monkeypatch):
    seen: list = []

    def fill(requests, how, *_, **__):
        seen.append((requests[0][-1].size, how.num_inference_steps))
        return [Clip(np.zeros((*requests[0][-1].size, 3), np.uint8))]

    monkeypatch.setattr(pipe, "fill_visual", fill)
    talk = Dialogue(
        pipe, seed=0, num_inference_steps=3, height=24, image={"num_inference_steps": 4},
        video={"height": 16, "width": 16, "num_frames": 5},
    )  # fmt: skip
    usual = pipe.defaults
    for text in ("draw a ring", "animate: it moves", "film a ring", "make it blue"):
        talk.say(text)
    talk.film("a ring", num_frames=9, num_inference_steps=7, height=32)
    talk.draw("a ring", width=40)
    assert seen == [
        ((1, 24, usual.width), 4), ((5, 24, usual.width), 3), ((5, 16, 16), 3), ((5, 16, 16), 3), ((9, 32, 16), 7),
        ((1, 24, 40), 4),
    ]  # fmt: skip
    for wrong in ({"image": {"num_frames": 5}}, {"video": {"num_frames": 6}}, {"video": {"colour": 1}}, {"image": 3},
                  {"video": {"height": 7}}, {"num_frames": 0}):  # fmt: skip
        with pytest.raises(UserError):
            Dialogue(pipe, **wrong)
    with pytest.raises(UserError, match="no length"):
        talk.draw("a ring", num_frames=5)


def test_what_is_taken_back_leaves_the_picture_before_it(pipe, asked):
    talk = Dialogue(pipe, seed=0)
    own = np.full((16, 16, 3), 7, np.uint8)
    talk.show(own)
    talk.edit("make it blue")
    assert talk.undo().said == "make it blue"
    assert np.array_equal(talk.picture.pixels[0], own)
    talk.undo()
    assert talk.picture is None
    for call in (talk.undo, lambda: talk.edit("x"), lambda: talk.ask("x"), lambda: talk.draw(" ")):
        with pytest.raises(UserError):
            call()


def test_a_clip_on_the_table_is_edited_as_one(pipe, asked):
    talk = Dialogue(pipe, seed=0)
    talk.show(np.zeros((5, 16, 16, 3), np.uint8))
    assert talk.say("make it blue").picture.frames == 5
    assert asked[0][-1].size == (5, 16, 16)
