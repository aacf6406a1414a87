"""A dialogue: plain words find their way, a turn sees the picture on the table, and what was said can be repeated."""

import numpy as np
import pytest

from openlance.errors import UserError
from openlance.inference.dialogue import NEW, Dialogue
from openlance.media.clip import Clip
from openlance.sequence.pack import pack
from openlance.sequence.segment import Kind, Role


def script(talk: Dialogue) -> list:
    talk.say("draw a ring")
    talk.say("make it blue")
    answer = talk.say("what color is it?").answer
    return [turn.picture.pixels for turn in talk.turns] + [answer]


def test_the_same_words_and_seed_give_the_same_dialogue(pipe):
    one, two, other = (script(Dialogue(pipe, seed=seed, history=history)) for seed, history in ((4, 2), (4, 2), (5, 2)))
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


@pytest.mark.parametrize("text, act", [
    ("draw a ring", "draw"), ("Please draw me two stars", "draw"), ("a picture of a ring", "draw"),
    ("what is it?", "ask"), ("How many are there", "ask"), ("locate the ring", "ask"), ("it is red, right?", "ask"),
    ("make it blue", "edit"), ("paint the ring red", "edit"), ("a ring", "edit"), ("now drawn larger", "edit"),
])  # fmt: skip
def test_plain_words_draw_ask_or_edit(pipe, monkeypatch, text, act):
    talk, done = Dialogue(pipe, seed=0), []
    talk.show(np.zeros((16, 16, 3), np.uint8))
    for name in ("draw", "ask", "edit"):
        monkeypatch.setattr(talk, name, lambda *_, name=name: done.append(name))
    talk.say(text)
    talk.turns.clear()
    talk.say(text)
    assert done == [act, "draw"], "on an empty table everything draws"


def test_only_the_order_to_draw_is_left_out_of_the_prompt():
    found = {text: text[NEW.match(text).end() :] for text in ("Draw me a ring", "a picture of a ring", "create a ring")}
    assert list(found.values()) == ["a ring", "a picture of a ring", "a ring"]


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
