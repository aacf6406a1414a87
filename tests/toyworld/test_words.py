import re

import numpy as np
import pytest

from toyworld.facts import Background, Count, Lettering, Region, Relation, Thing, holds
from toyworld.scene import Object, Scene, Text, sample_scene
from toyworld.vocabulary import CATEGORIES
from toyworld.words import caption, describe, parse, tells_scene

KINDS = (*CATEGORIES, "mixed")
CIRCLE, SQUARE = Thing("circle", "red"), Thing("square", "blue")


def sampled(category: str, n: int = 60) -> list[tuple[Scene, np.random.Generator]]:
    rng = np.random.default_rng(11)
    return [(sample_scene(rng, category=category, placement=(0.0, 0.5, 1.0)[i % 3]), rng) for i in range(n)]


@pytest.mark.parametrize("category", KINDS)
def test_parse_inverts_every_caption(category):
    for scene, rng in sampled(category):
        text, facts = caption(scene, rng)
        assert set(parse(text)) == set(facts), text
        assert facts and len(set(facts)) == len(facts)


@pytest.mark.parametrize("category", KINDS)
def test_a_caption_says_only_what_is_true(category):
    for scene, rng in sampled(category):
        text, facts = caption(scene, rng)
        assert all(holds(scene, fact) for fact in facts), text


@pytest.mark.parametrize("category", KINDS)
def test_a_description_says_everything(category):
    for scene, _ in sampled(category):
        text = describe(scene)
        assert text == describe(scene) and tells_scene(scene, text)
        facts = parse(text)
        assert Background(scene.background) in facts
        assert sum(fact.n for fact in facts if isinstance(fact, Count)) == len(scene.objects)


@pytest.mark.parametrize("category", KINDS)
def test_a_description_fits_no_other_scene(category):
    first, *others = (scene for scene, _ in sampled(category, 30))
    different = [s for s in others if describe(s) != describe(first)]
    assert different and not any(tells_scene(s, describe(first)) and tells_scene(first, describe(s)) for s in different)


def test_what_is_not_black_is_said():
    for scene, rng in sampled("color", 100):
        facts = caption(scene, rng)[1]
        assert scene.background == "black" or Background(scene.background) in facts


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a red circle left of a blue square", (Count(CIRCLE), Count(SQUARE), Relation(CIRCLE, "left", SQUARE))),
        ("There is a red circle under a blue square.",
         (Count(CIRCLE), Count(SQUARE), Relation(CIRCLE, "below", SQUARE))),
        ("two green triangles", (Count(Thing("triangle", "green"), 2),)),
        ("Three small striped red crosses on a gray background",
         (Count(Thing("cross", "red", "striped", "small"), 3), Background("grey"))),
        ("a large yellow star on a black background",
         (Count(Thing("star", "yellow", None, "large")), Background("black"))),
        ("a cyan ring and a white cross", (Count(Thing("ring", "cyan")), Count(Thing("cross", "white")))),
        ("a red circle at the top left, and a blue square in the center",
         (Count(CIRCLE), Count(SQUARE), Region(CIRCLE, "top", "left"), Region(SQUARE, "middle", "centre"))),
        ('the text "A7"', (Lettering("A7"),)),
        ('a photo of the word "GO" in red on white', (Lettering("GO", "red"), Background("white"))),
        ("a star", (Count(Thing("star")),)),
        ("red circle, blue square", (Count(CIRCLE), Count(SQUARE))),
        ("a dog on a sofa", ()), ("a red red circle", ()), ("a red", ()), ("", ()), ("blue", ()),
        ("a red circle left of a blue square left of a star", ()),
    ],
)  # fmt: skip
def test_plain_prompts_mean_what_they_say(text, facts):
    assert set(parse(text)) == set(facts)


PAIR = Scene(
    objects=(
        Object(shape="circle", color="red", x=0.25),
        Object(shape="square", color="blue", fill="striped", size="small", r=0.125, x=0.75),
    ),
    background="white",
)


@pytest.mark.parametrize(
    "text",
    ["a red circle and a striped blue square", "a small striped blue square, a red circle on white",
     "a red circle left of a striped blue square",
     "a solid red circle and a blue striped square on a white background"],
)  # fmt: skip
def test_a_right_caption_may_leave_out_size_and_background(text):
    assert tells_scene(PAIR, text)


@pytest.mark.parametrize(
    "text",
    ["a red circle", "a red circle and a blue square", "a red square and a striped blue circle",
     "a red circle and a large striped blue square", "a red circle and a striped blue square on a black background",
     "two red circles and a striped blue square", "a red circle right of a striped blue square", "what?", "",
     'a red circle, a striped blue square and the text "A"'],
)  # fmt: skip
def test_a_wrong_caption_is_wrong(text):
    assert not tells_scene(PAIR, text)


def test_text_is_told_letter_by_letter():
    scene = Scene(text=Text(string="A7", color="red"))
    assert describe(scene) == 'the text "A7" in red on a black background'
    assert tells_scene(scene, 'the text "A7"')
    assert not tells_scene(scene, 'the text "A1"') and not tells_scene(scene, 'the blue text "A7"')


def test_a_caption_that_does_not_suit_the_scene_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="relation"):
        caption(Scene(objects=(Object(shape="star", color="red"),)), rng, "position")
    solid, striped = (
        Object(shape="star", color="red", fill=fill, x=x) for fill, x in (("solid", 0.2), ("striped", 0.7))
    )
    with pytest.raises(ValueError, match="no caption"):  # "a red star and a striped red star": which is the first?
        caption(Scene(objects=(solid, striped)), rng)


def test_wording_varies_within_a_small_vocabulary():
    texts = {caption(scene, rng)[0] for kind in KINDS for scene, rng in sampled(kind)}
    words = {word for text in texts for word in re.findall(r"[a-z]+", re.sub(r"[\"'].*[\"']", "", text.lower()))}
    assert len(texts) > 300 and len(words) < 120
    openings = {text.split()[0].lower() for text in texts}
    assert {"a", "an", "two", "there", "draw", "the"} <= openings
