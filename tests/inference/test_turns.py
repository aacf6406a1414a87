"""One reading of a conversation: words and what is there decide, and turns that somebody else kept become what a
dialogue would have kept."""

from dataclasses import fields

import numpy as np
import pytest

from openlance.errors import UserError
from openlance.inference.dialogue import Dialogue
from openlance.inference.turns import Heard, newest, retold, table, wanted
from openlance.media.clip import Clip
from openlance.sequence.pack import pack

IMAGE, OTHER = (Clip(np.full((1, 16, 16, 3), n, np.uint8)) for n in (1, 2))
VIDEO = Clip(np.zeros((5, 16, 16, 3), np.uint8))


@pytest.mark.parametrize("text, on_image, on_video, on_nothing, rest", [
    ("draw a ring", "t2i", "t2i", "t2i", "a ring"),
    ("Please draw me two stars", "t2i", "t2i", "t2i", "two stars"),
    ("a picture of a ring", "t2i", "t2i", "t2i", "a picture of a ring"),
    ("film a ring moving left", "t2v", "t2v", "t2v", "a ring moving left"),
    ("Film: a ring moves left", "t2v", "t2v", "t2v", "a ring moves left"),
    ("a video of a ring", "t2v", "t2v", "t2v", "a video of a ring"),
    ("draw a short clip of a ring", "t2v", "t2v", "t2v", "a short clip of a ring"),
    ("make a video of a ring", "t2v", "t2v", "t2v", "a video of a ring"),
    ("animate: it moves up", "i2v", None, "t2v", "it moves up"),
    ("animate it, it moves up", "i2v", None, "t2v", "it moves up"),
    ("please animate the picture so that it moves up", "i2v", None, "t2v", "it moves up"),
    ("animate the ring moving up", "i2v", None, "t2v", "the ring moving up"),
    ("make a video of it: it moves up", "i2v", None, "t2v", "it moves up"),
    ("what is it?", "x2t_image", "x2t_video", "t2i", "what is it?"),
    ("How many are there", "x2t_image", "x2t_video", "t2i", "How many are there"),
    ("it is red, right?", "x2t_image", "x2t_video", "t2i", "it is red, right?"),
    ("make it blue", "image_edit", "video_edit", "t2i", "make it blue"),
    ("a ring", "image_edit", "video_edit", "t2i", "a ring"),
    ("now drawn larger", "image_edit", "video_edit", "t2i", "now drawn larger"),
    ("filming is fun", "image_edit", "video_edit", "t2i", "filming is fun"),
])  # fmt: skip
def test_words_and_what_is_there_decide(text, on_image, on_video, on_nothing, rest):
    for there, task in (([IMAGE], on_image), ([VIDEO], on_video), ([], on_nothing)):
        if task is None:
            with pytest.raises(UserError, match="moves already"):
                wanted(text, there)
            continue
        found = wanted(f" {text} ", there)
        assert (found.spec.name, found.text) == (task, rest)
        assert list(found.clips) == (there if found.spec.reads else [])


@pytest.mark.parametrize("text, there, modalities, task", [
    ("film a ring", [], ["image"], "t2i"), ("draw a ring", [], ["video"], "t2v"), ("a ring", [], ["video"], "t2v"),
    ("animate it", [IMAGE], ["image"], "image_edit"), ("make it blue", [IMAGE], ["video"], "i2v"),
    ("make it blue", [IMAGE, OTHER], ["video"], "flf2v"), ("what is it?", [IMAGE], ["image"], "image_edit"),
    ("what is it?", [VIDEO], ["video", "text"], "x2t_video"), ("draw a ring", [IMAGE], ["text"], "x2t_image"),
    ("make it blue", [IMAGE, OTHER], ["image", "video"], "image_edit"), ("what is it?", [], ["text"], "x2t_image"),
    ("make it blue", [VIDEO, IMAGE], ["image", "video"], "video_edit"),
])  # fmt: skip
def test_nothing_comes_that_may_not_come(text, there, modalities, task):
    found = wanted(text, there, modalities=modalities)
    assert found.spec.name == task and found.spec.makes in modalities


def test_what_is_shown_beside_the_words_is_what_they_are_about():
    assert wanted("draw it larger", [VIDEO], shown=[IMAGE]).spec.name == "image_edit"
    found = wanted("film it moving up", [VIDEO], shown=[IMAGE, OTHER])
    assert found.spec.name == "flf2v" and found.clips == (IMAGE, OTHER) and found.text == "it moving up"
    assert wanted("film it in blue", [IMAGE], shown=[VIDEO]).spec.name == "video_edit"


def test_what_cannot_be_made_is_said():
    for call, param in ((lambda: wanted("make it blue", [VIDEO], modalities=["image"]), "modalities"),
                        (lambda: wanted("animate: it moves", [IMAGE] * 3), None),
                        (lambda: wanted("animate it", [IMAGE]), None), (lambda: wanted("film:"), None)):  # fmt: skip
        with pytest.raises(UserError) as told:
            call()
        assert told.value.param == param


def test_turns_that_somebody_kept_become_what_a_dialogue_keeps(pipe):
    few = {"num_inference_steps": 1, "height": 16, "width": 16, "num_frames": 5, "max_new_tokens": 3}
    talk = Dialogue(pipe, seed=0, **few)
    said = ["draw a ring", "make it blue", "what color is it?", "animate: it moves up", "make it red", "what moves?",
            "film a star"]  # fmt: skip
    for text in said:
        talk.say(text)
    heard = [
        Heard(text=text, answer=turn.answer) if turn.answer is not None else Heard(text=text, made=[turn.picture])
        for text, turn in zip(said, talk.turns)
    ]
    mine = [turn.segments for turn in talk.turns]
    for kept, told in zip(mine, retold(pipe.front, heard), strict=True):
        one, other = (pack([segments], pipe.codec, pipe.config.position).rows for segments in (kept, told))
        assert all(getattr(one, f.name).tolist() == getattr(other, f.name).tolist() for f in fields(one))
        held = [[s.value.key for s in segments if hasattr(s.value, "key")] for segments in (kept, told)]
        assert held[0] == held[1]
    assert table(heard) == [talk.picture] and table(heard[:3]) == [talk.turns[2].picture]
    assert newest(mine, 2) == mine[-2:] and newest(mine, 0) == []


def test_what_another_model_made_of_words_is_kept_too(pipe):
    odd = [Heard(answer="hello"), Heard(text="film it", made=[VIDEO]), Heard(text="draw a ring", made=[IMAGE]),
           Heard(text="animate it", shown=[IMAGE] * 3, made=[VIDEO])]  # fmt: skip
    assert [len(pack([turn], pipe.codec).visuals) for turn in retold(pipe.front, odd)] == [0, 1, 1, 1]
