"""What a self-check expects of results is true of right ones, for all that the world asks."""

import re

import numpy as np
import pytest

from openlance.inference.checking import changed, shown
from openlance.text.instructions import change_of
from openlance.text.phrases import read
from toyworld.clip_edits import CLIP_EDITS, sample_clip_edit
from toyworld.clips import caption_clip, describe_clip
from toyworld.edits import KINDS, sample_edit
from toyworld.motion import sample_clip
from toyworld.scene import CATEGORIES, relation_between, sample_scene
from toyworld.words import caption, describe, parse

ASPECTS = (1.0, 1.5, 2 / 3)


def meant(scene, phrase):
    """Numbers of the objects that a noun phrase fits."""
    (fact,) = parse(f"one {phrase}")
    return [n for n, o in enumerate(scene.objects) if fact.thing.means(o)]


def places(scene, said):
    """Where the objects are of which there is one."""
    found = {phrase: meant(scene, phrase) for phrase in said}
    return {phrase: (scene.objects[n[0]].x, scene.objects[n[0]].y) for phrase, n in found.items() if len(n) == 1}


def holds(fact, scene, clip=None):
    """Whether a question has the answer that is expected, by what is drawn."""
    asked = fact.question
    if fact.where is not None:
        (number,) = meant(scene, asked.removeprefix("locate the "))
        return fact.where((scene.objects[number].x, scene.objects[number].y))
    if asked.startswith("how many objects"):
        return str(len(scene.objects)) == fact.answer
    if found := re.match(r"how many (.*) are there", asked):
        return str(len(meant(scene, found[1]))) in (fact.answer, *fact.alike)
    if found := re.match(r"is there an? (.*)\?", asked):
        return bool(meant(scene, found[1])) == (fact.answer == "yes")
    if found := re.match(r"where is the (.*) relative to the (.*)\?", asked):
        (a,), (b,) = meant(scene, found[1]), meant(scene, found[2])
        return relation_between(scene.objects[a], scene.objects[b], scene.aspect) == fact.answer
    if asked == "what color is the background?":
        return scene.background == fact.answer
    if asked == "read the text":
        return scene.text.string == fact.answer
    found = re.match(r"(?:does|is|what does) the (.*?) (?:move (\w+)|(growing|shrinking)|do)\?", asked)
    motions = {clip.motions[n].kind for n in meant(scene, found[1])}
    return motions == {found[2] or found[3] or "still"}


@pytest.mark.parametrize("category", CATEGORIES)
def test_of_images(category):
    rng = np.random.default_rng(3)
    for n in range(60):
        scene = sample_scene(rng, category=category, placement=float(rng.random()), aspect=ASPECTS[n % 3])
        text, _ = caption(scene, rng)
        facts = shown(read(text))
        assert facts and all(holds(fact, scene) for fact in facts), text


@pytest.mark.parametrize("kind", KINDS)
def test_of_edits(kind):
    rng = np.random.default_rng(4)
    for n in range(60):
        edit = sample_edit(rng, kind=kind, placement=float(rng.random()), aspect=ASPECTS[n % 3])
        change = change_of(edit.instruction, read(describe(edit.before)))
        at = places(edit.before, [t.said for t in (*change.stay, *change.named)])
        facts = changed(change, at)
        assert facts and all(holds(fact, edit.after) for fact in facts), (describe(edit.before), edit.instruction)


def test_of_clips():
    rng = np.random.default_rng(5)
    for _ in range(150):
        clip = sample_clip(rng, placement=float(rng.random()))
        text, _ = caption_clip(clip, rng)
        facts = shown(read(text), moves=True)
        assert facts and all(holds(fact, clip.scene, clip) for fact in facts), text


@pytest.mark.parametrize("kind", CLIP_EDITS)
def test_of_edits_of_clips(kind):
    rng = np.random.default_rng(6)
    for _ in range(40):
        edit = sample_clip_edit(rng, kind=kind)
        facts = changed(change_of(edit.instruction, read(describe_clip(edit.before))), {}, moves=True)
        said = describe_clip(edit.before), edit.instruction
        assert facts and all(holds(fact, edit.after.scene, edit.after) for fact in facts), said


def test_a_changed_motion_is_asked_for():
    rng = np.random.default_rng(7)
    for _ in range(60):
        edit = sample_clip_edit(rng, kind="motion")
        facts = changed(change_of(edit.instruction, read(describe_clip(edit.before))), {}, moves=True)
        assert not all(holds(fact, edit.before.scene, edit.before) for fact in facts), edit.instruction
