"""A question about a clip has one right answer, which its frames show, and no other answer is marked right."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from toyworld.clip_questions import (
    CLIP_QUESTIONS,
    ClipQuestion,
    ask_clip,
    askable_clip,
    sample_clip_question,
    score_clip,
    with_events,
)
from toyworld.motion import ClipScene, Motion, clip_is_valid, sample_clip
from toyworld.scene import Object, Scene

RED, BLUE = Object(shape="circle", color="red", x=0.25), Object(shape="star", color="blue", x=0.7)
PAIR = Scene(objects=(RED, BLUE))
UP = Motion(kind="up", amount=0.25)


def questions(category, n=30, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return [sample_clip_question(rng, category=category, **settings) for _ in range(n)]


@pytest.mark.parametrize("category", CLIP_QUESTIONS)
def test_the_right_answer_is_marked_right_and_others_wrong(category):
    asked = questions(category)
    for q in asked:
        assert score_clip(q, q.answer) and score_clip(q, q.answer.capitalize() + ".")
        assert not any(score_clip(q, wrong) for wrong in ("", "nothing", "the", "seven"))
    answers = Counter(q.answer for q in asked)
    assert answers.most_common(1)[0][1] <= 0.6 * len(asked)  # no answer is worth guessing


def test_the_first_to_appear_is_in_more_frames():
    for q in questions("order", 40):
        if "appears first" in q.question:
            first = next(o for o in q.clip.scene.objects if q.answer == f"the {o.color} {o.shape}")
            seen = Counter((o.color, o.shape) for scene in q.clip.scenes() for o in scene.objects)
            late = [m.appears for m in q.clip.motions]
            hidden = [o for o, at in zip(q.clip.scene.objects, late, strict=True) if at]
            assert all(seen[first.color, first.shape] >= seen[o.color, o.shape] + 1 for o in hidden if o is not first)


def test_counts_over_time_are_those_of_the_frames():
    for q in questions("count", 60, seed=1):
        asked_at = [at for at in ("start", "beginning", "first", "end", "last") if f"the {at}" in q.question.lower()]
        if asked_at:
            frame = 0 if asked_at[0] in ("start", "beginning", "first") else q.clip.frames - 1
            assert q.answer == str(len(q.clip.at(frame).objects))


def test_a_thing_may_be_named_in_any_way_that_means_it_alone():
    clip = ClipScene(scene=PAIR, motions=(Motion(kind="growing", amount=1.5), Motion()))
    q = ClipQuestion(category="growth", question="which object grows?", answer="the red circle", clip=clip)
    assert all(score_clip(q, said) for said in ("the red circle", "red circle", "The circle.", "a red circle"))
    assert not any(score_clip(q, said) for said in ("the blue star", "the star", "the ring", "red", "two circles"))


def test_an_action_may_be_answered_without_it():
    q = ClipQuestion(
        category="direction",
        question="what does the circle do?",
        answer="it moves up",
        clip=ClipScene(scene=PAIR, motions=(UP, Motion())),
    )
    assert score_clip(q, "moves up") and not score_clip(q, "it moves down") and not score_clip(q, "up")


def test_only_what_has_one_answer_is_asked():
    still = ClipScene(scene=PAIR, motions=(Motion(), Motion()))
    assert set(askable_clip(still)) == {"caption", "count"}
    moving = replace(still, motions=(UP, Motion()))
    assert set(askable_clip(moving)) == {"caption", "direction", "count"}
    with pytest.raises(ValueError, match="no growth question"):
        ask_clip(moving, np.random.default_rng(0), "growth")
    with pytest.raises(ValueError, match="'speed' is unknown"):
        ask_clip(moving, np.random.default_rng(0), "speed")


def test_events_keep_a_clip_valid_and_are_far_apart():
    rng, found = np.random.default_rng(2), []
    for _ in range(40):
        clip = with_events(sample_clip(rng, category="attribute", frames=5), rng)
        if clip is not None:
            found.append(clip)
            times = sorted(max(m.begins, m.appears) for m in clip.motions if m.begins)
            assert clip_is_valid(clip) and times[1] - times[0] >= 0.25
    assert len(found) > 10


def test_held_out_clips_can_be_asked_about():
    assert all(q.clip.scene for q in questions("direction", 3, heldout=True))
