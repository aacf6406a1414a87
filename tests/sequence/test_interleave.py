"""The release's requests and training rows become the segments that it would have made of them."""

import numpy as np
import pytest

from openlance.compat.interleave import request, triple
from openlance.config.sampling import EXACT, RELEASED_RUN, RELEASED_TRAINING
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Role, drop
from openlance.sequence.tasks import TASKS, Views


def clip(frames=1, height=32, width=48):
    return Clip(np.zeros((frames, height, width, 3), np.uint8))


MEDIA = {
    "a": Views(clip(2, 28, 28), clip()),
    "b": Views(clip(2, 28, 56), clip(1, 64, 32)),
    "v": Views(clip(6, 28, 28), clip(5, 32, 32)),
}
KINDS = {"a": "image", "b": "image", "v": "video"}


def data(*listed, answer=None):
    """A request in the release's form; names in MEDIA are media, everything else is text."""
    kinds = [KINDS.get(x, "text") for x in listed]
    marks = [0] * len(listed)
    extra = ([answer], ["text"], [1]) if answer is not None else ([], [], [])
    names = ("interleave_array", "element_dtype_array", "istarget_in_interleave")
    return dict(zip(names, (list(listed) + extra[0], kinds + extra[1], marks + extra[2]), strict=True))


def ask(task, *listed, **options):
    answer = options.pop("answer", None)
    return request(task, data(*listed, answer=answer), lambda name, kind: MEDIA[name], **options)


def order(segments):
    """What stands where, in short: texts by their words, media by their names."""
    names = {id(view): f"{name}{n}" for name, views in MEDIA.items() for n, view in enumerate(views)}
    user = [s for s in segments if s.role not in (Role.SYSTEM, Role.TARGET)]
    return [s.value if s.kind is Kind.TEXT else names[id(s.value)] for s in user]


def test_a_leading_text_moves_behind_everything():
    assert order(ask("image_edit", "hat", "a")) == ["a0", "a1", "hat"]
    assert order(ask("image_edit", "a", "hat")) == ["a0", "a1", "hat"]
    assert order(ask("image_edit", "a", "hat", "b")) == ["a0", "a1", "hat", "b0", "b1"]
    assert order(ask("image_edit", "one", "two", "a")) == ["two", "a0", "a1", "one"]


def test_only_the_text_listed_last_is_dropped_by_guidance():
    segments = ask("image_idip", "one", "a", "two", size=(1, 32, 32))
    assert order(segments) == ["a0", "a1", "two", "one"]
    assert order(drop(segments, {Role.PROMPT})) == ["a0", "a1", "one"]


@pytest.mark.parametrize("listed, word", [(("hat", "a"), "image"), (("a", "hat"), "text"), (("hat", "v"), "video")])
def test_an_edit_names_the_kind_that_is_listed_last(listed, word):
    assert ask("image_edit", *listed)[0].value == RELEASED_RUN.edit.format(m=word)


def test_a_source_shows_itself_to_both_eyes_and_a_question_to_one():
    assert [s.role for s in ask("image_edit", "hat", "a")[1:3]] == [Role.SOURCE, Role.SOURCE]
    assert [s.role for s in ask("image_idip", "hat", "a", size=(1, 32, 32))[1:3]] == [Role.REFERENCE, Role.REFERENCE]
    assert order(ask("x2t_image", "a", "b", answer=["Look.", "What?", "A cat."])) == ["a0", "b0", "What?"]


def test_the_target_is_as_large_as_the_release_makes_it():
    assert ask("image_edit", "hat", "a", "b")[-1].size == (1, 64, 32)  # the last source
    assert ask("video_edit", "hat", "v")[-1].size == (5, 32, 32)
    assert ask("video_idip", "hat", "a", size=(9, 64, 64))[-1].size == (9, 64, 64)
    assert request("t2i", "hat", None, size=(50, 64, 96))[-1].size == (1, 64, 96)
    moved = ask("i2v", "wave", "a", size=(14, 480, 480))
    assert moved[-1].size == (14, 32, 48) and moved[-1].given is MEDIA["a"][1] and order(moved) == ["wave"]


def test_an_answer_alone_gets_a_caption_prompt_of_the_first_listed_kind():
    for number, text in enumerate(RELEASED_RUN.captions):
        segments = ask("x2t_video", "v", answer="A cat.", caption=number)
        assert segments[0].value == text.format(m="video") and order(segments) == ["v0"]


def test_a_request_that_cannot_be_met_is_one_sentence():
    for wrong in (
        lambda: ask("t2smell", "hat"),
        lambda: ask("i2v", "wave", size=(9, 32, 32)),
        lambda: ask("i2v", "wave", "a"),
        lambda: ask("x2t_image", "a"),
        lambda: request("t2i", "hat", None),
        lambda: request("t2i", {"prompt": "hat"}, None, size=(1, 32, 32)),
        lambda: request("t2i", data("hat") | {"element_dtype_array": []}, None, size=(1, 32, 32)),
        lambda: request("t2i", data("hat") | {"element_dtype_array": ["smell"]}, None, size=(1, 32, 32)),
    ):
        with pytest.raises(UserError) as error:
            wrong()
        assert "\n" not in str(error.value)


def test_training_pictures_get_the_clip_prompt_with_their_own_kind():
    for task, frames, word in (("t2i", 1, "image"), ("t2v", 5, "video")):
        sample = tasks.request(task, "  hat ", [], (frames, 32, 48), object(), RELEASED_TRAINING)
        assert sample[0].value == RELEASED_RUN.video.format(m=word) and sample[1].value == "hat"


@pytest.mark.parametrize("style", [EXACT, RELEASED_RUN, RELEASED_TRAINING])
@pytest.mark.parametrize("task", TASKS)
def test_a_listed_request_is_the_plain_one(task, style):
    """Media, then the prompt: what the release's files say and what a call says are worded alike."""
    spec, size = TASKS[task], (9, 32, 32)
    name = "v" if spec.reads == "video" else "a"
    if spec.makes == "text":
        listed = request(task, data(name, answer=["Look.", "what?", "hat"]), lambda n, kind: MEDIA[n], style=style)
        plain = tasks.request(spec, "what?", [MEDIA[name]], (1, 1, 1), "hat", style, said="Look.")
    else:
        listed = request(task, data(*[name] * bool(spec.reads), "hat"), lambda n, _: MEDIA[n], size=size, style=style)
        plain = tasks.request(spec, "hat", [MEDIA[name]] * bool(spec.reads), listed[-1].size, None, style)
    assert [(s.kind, s.role, s.value, s.size, s.given) for s in listed] == [
        (s.kind, s.role, s.value, s.size, s.given) for s in plain
    ]


def test_an_empty_question_is_no_text_at_all():
    said, question, text = triple(["Describe.", "", "A cat."], RELEASED_TRAINING, "image")
    sample = tasks.request("x2t_image", question, [MEDIA["a"]], (1, 1, 1), text, RELEASED_TRAINING, said=said)
    assert order(sample) == ["a0"] and sample[0].value == "Describe." and sample[-1].value == "A cat."


def test_every_task_names_a_system_prompt():
    assert all(hasattr(RELEASED_RUN, spec.prompt) for spec in TASKS.values())
