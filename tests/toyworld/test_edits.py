"""An edit changes what it says and nothing else, and its judge sees both from pixels."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from toyworld.edit_places import exactly
from toyworld.edits import HELDOUT_KINDS, KINDS, Edit, edit_scene, sample_edit
from toyworld.facts import Lettering, holds
from toyworld.judge_edits import judge_edit
from toyworld.render import render
from toyworld.scene import Object, Scene, is_heldout, is_valid, sample_scene
from toyworld.tones import TONES, toned

SIZES = ((64, 64), (96, 96), (64, 96), (96, 64))


def sampled(kind: str, n: int, seed: int = 0, **settings) -> list[Edit]:
    rng = np.random.default_rng(seed)
    return [sample_edit(rng, kind=kind, aspect=SIZES[i % 4][1] / SIZES[i % 4][0], **settings) for i in range(n)]


def reads(edit: Edit) -> bool:
    return any(isinstance(fact, Lettering) for fact in (*edit.asked, *edit.kept))


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_edit_all_asked_and_kept_facts_hold_and_before_it_not_all_of_the_asked(kind):
    for edit in sampled(kind, 20):
        assert is_valid(edit.after) and all(holds(edit.after, fact) for fact in (*edit.asked, *edit.kept))
        assert all(holds(edit.before, fact) for fact in edit.kept)
        assert not all(holds(edit.before, fact) for fact in edit.asked)


@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_says_yes_to_a_true_edit_and_sees_that_nothing_was_asked_of_the_picture_before(kind):
    for i, edit in enumerate(sampled(kind, 12, seed=1)):
        if reads(edit):
            pytest.importorskip("rapidocr")
        before, after = edit.pictures(*SIZES[i % 4])
        assert judge_edit(edit, before, after).right, edit
        unedited = judge_edit(edit, before, before)
        assert not unedited.asked and unedited.kept, edit


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_an_edit_that_loses_another_object_did_not_keep_it(kind):
    seen = 0
    for i, edit in enumerate(sampled(kind, 14, seed=2)):
        place = next((k for k, o in enumerate(edit.after.objects) if o in edit.before.objects), None)
        if place is not None and not (kind == "remove" and len(edit.after.objects) < 2):
            lost = tuple(o for k, o in enumerate(edit.after.objects) if k != place)
            before, answer = (render(s, *SIZES[i % 4]) for s in (edit.before, replace(edit.after, objects=lost)))
            assert not judge_edit(edit, before, answer).kept, edit
            seen += 1
    assert seen >= 3


def test_another_background_is_not_kept():
    for i, edit in enumerate(sampled("recolour", 12, seed=3)):
        other = next(c for c in ("black", "grey", "white") if c != edit.after.background)
        before, _ = edit.pictures(*SIZES[i % 4])
        assert not judge_edit(edit, before, render(replace(edit.after, background=other), *SIZES[i % 4])).kept


def test_a_ground_that_turns_to_noise_is_not_kept():
    rng = np.random.default_rng(0)
    for edit in sampled("add", 2, seed=4):
        before, after = edit.pictures(64, 64)
        noise = rng.normal(0, 40, after.shape)
        assert not judge_edit(edit, before, np.clip(after + noise, 0, 255).astype(np.uint8)).kept


@pytest.mark.parametrize("kind", ["background", "tone"])
def test_letters_that_change_beside_what_was_asked_are_seen(kind):
    pytest.importorskip("rapidocr")
    texts = [edit for edit in sampled(kind, 40, seed=11) if edit.before.text is not None][:3]
    for edit in texts:
        before, _ = edit.pictures(96, 96)
        string = "".join("X" if letter != "X" else "K" for letter in edit.after.text.string)
        answer = render(replace(edit.after, text=replace(edit.after.text, string=string)), 96, 96)
        assert not judge_edit(edit, before, answer).right, edit
    assert texts


def test_an_object_too_many_is_not_kept():
    pair = Scene(objects=(Object(shape="circle", color="red", x=0.2), Object(shape="square", color="blue", x=0.8)))
    rng = np.random.default_rng(0)
    edit = next(e for _ in range(99) if (e := edit_scene(pair, rng, "recolour")) is not None)
    stray = replace(edit.after, objects=(*edit.after.objects, Object(shape="star", color="green", y=0.2, r=0.1)))
    verdict = judge_edit(edit, render(pair, 64, 64), render(stray, 64, 64))
    assert verdict.asked and not verdict.kept


def test_a_tone_leaves_every_shape_and_only_the_right_one_is_what_was_asked():
    seen = set()
    for i, edit in enumerate(sampled("tone", 24, seed=10)):
        pairs = zip(edit.before.objects, edit.after.objects, strict=True)
        assert all(replace(o, color="") == replace(new, color="") for o, new in pairs)
        for tone in TONES:
            other = toned(edit.before, tone)
            if other is not None:
                verdict = judge_edit(edit, *(render(s, *SIZES[i % 4]) for s in (edit.before, other)))
                assert verdict.asked is (other == edit.after) and (verdict.kept or not verdict.asked)
                seen.add(tone)
    assert seen == set(TONES)


def test_training_never_shows_a_held_out_combination_and_held_out_edits_always_do():
    for kind in KINDS:
        assert not any(is_heldout(e.before) or is_heldout(e.after) for e in sampled(kind, 8, seed=5))
    for kind in HELDOUT_KINDS:
        assert all(not is_heldout(e.before) and is_heldout(e.after) for e in sampled(kind, 3, seed=6, heldout=True))


@pytest.mark.parametrize("placement", ["canonical", 0.4])
def test_there_is_an_edit_of_every_kind_wherever_things_stand(placement):
    for kind in KINDS:
        assert all(edit.kind == kind for edit in sampled(kind, 6, seed=7, placement=placement))


def test_the_words_vary_and_the_same_seed_says_the_same():
    for kind in KINDS:
        said = [edit.instruction for edit in sampled(kind, 20, seed=8)]
        assert len(set(said)) > 10 and said == [edit.instruction for edit in sampled(kind, 20, seed=8)]
        assert all(text == " ".join(text.split()) and "{" not in text for text in said)


def test_only_what_the_instruction_names_changes():
    for kind in ("recolour", "refill", "reshape", "resize"):
        for edit in sampled(kind, 20, seed=9):
            before, after = (Counter(map(exactly, scene.objects)) for scene in (edit.before, edit.after))
            assert edit.before.text or len(before - after) == len(after - before) == 1


def test_a_scene_without_such_an_edit_says_so():
    rng = np.random.default_rng(0)
    assert edit_scene(sample_scene(rng, category="single"), rng, "remove") is None
    assert edit_scene(sample_scene(rng, category="single"), rng, "text") is None
    with pytest.raises(ValueError, match="'melt'.*recolour"):
        edit_scene(sample_scene(rng), rng, "melt")
    with pytest.raises(ValueError, match="held out edit of kind 'tone'"):
        sample_edit(rng, kind="tone", heldout=True)
