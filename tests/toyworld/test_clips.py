"""A caption of a clip and its facts are one: whatever is said is true, and reading it gives the facts back."""

from dataclasses import replace

import numpy as np
import pytest

from toyworld.clips import Moves, caption_clip, clip_facts, clip_holds, describe_clip, parse_clip, tells_clip
from toyworld.facts import Background, Count, Thing
from toyworld.motion import MOTIONS, ClipScene, Motion, sample_clip
from toyworld.scene import Object, Scene

RED, BLUE = Thing("circle", "red"), Thing("square", "blue")
PAIR = Scene(objects=(Object(shape="circle", color="red", x=0.3), Object(shape="square", color="blue", x=0.7)))
CLIP = ClipScene(scene=PAIR, motions=(Motion(kind="up", amount=0.3), Motion()))


@pytest.fixture(scope="module")
def sampled():
    rng = np.random.default_rng(0)
    return [(sample_clip(rng), rng) for _ in range(60)]


@pytest.mark.parametrize("article", [None, "the"])
def test_captions_are_true_and_can_be_read_back(sampled, article):
    for clip, rng in sampled:
        text, facts = caption_clip(clip, rng, article)
        assert all(clip_holds(clip, fact) for fact in facts), text
        assert set(parse_clip(text)) == set(facts), text
        assert tells_clip(clip, text), text


def test_the_fixed_wording_says_everything(sampled):
    for clip, _ in sampled:
        assert set(parse_clip(describe_clip(clip))) == set(clip_facts(clip))
    assert describe_clip(CLIP) == "a red circle moving up and a blue square staying still on a black background"


def test_wordings_vary_and_every_motion_is_said(sampled):
    texts = {caption_clip(CLIP, np.random.default_rng(i))[0] for i in range(40)}
    assert len(texts) > 15
    said = {fact.motion for clip, rng in sampled for fact in caption_clip(clip, rng)[1] if isinstance(fact, Moves)}
    assert said == set(MOTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "a red circle moving up and a blue square",
        "A blue square stays still while a red circle moves upwards.",
        "a video of one red circle that is going up, and a blue square on a black background",
        "the red circle slides up and the blue square is not moving",
    ],
)
def test_people_may_say_it_in_other_words(text):
    assert tells_clip(CLIP, text)


@pytest.mark.parametrize(
    "text",
    [
        "a red circle moving down and a blue square",
        "a red circle moving up and a blue square growing",
        "a red circle moving up",
        "a red circle moving up and a blue square on a grey background",
        "a red ring moving up and a blue square",
        "a striped red circle moving up and a blue square",
        "a small red circle moving up and a blue square",
        "something moves",
        "",
    ],
)
def test_what_is_wrong_or_missing_is_noticed(text):
    assert not tells_clip(CLIP, text)


def test_facts_are_what_they_say():
    facts = (Count(RED), Moves(RED, "up"), Moves(BLUE, "still"), Background("black"))
    assert all(clip_holds(CLIP, fact) for fact in facts)
    turned = replace(CLIP, motions=(Motion(kind="down", amount=0.3), Motion()))
    assert [clip_holds(turned, fact) for fact in facts] == [True, False, True, True]


def test_what_stays_unsaid_never_stands_before_what_is_said():
    """In "a star and a circle growing" both would grow."""
    for i in range(60):
        text = caption_clip(CLIP, np.random.default_rng(i))[0].lower()
        still_first = text.find("square") < text.find("circle")
        assert not still_first or "still" in text or "place" in text, text
