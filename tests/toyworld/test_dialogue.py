"""A dialogue stays with one picture, and an edit of a picture that looks different from its scene is judged fairly."""

from dataclasses import replace

import numpy as np
import pytest

from toyworld.dialogue import EDITED, FORMS, Draw, relocated, sample_dialogue
from toyworld.edits import Edit, sample_edit
from toyworld.facts import Background, Count, holds
from toyworld.judge import analyse, seen_scene
from toyworld.judge_edits import judge_edit
from toyworld.questions import Question, score
from toyworld.render import render
from toyworld.scene import is_heldout


@pytest.mark.parametrize("form", FORMS)
def test_each_turn_is_about_the_scene_that_the_one_before_leaves(form):
    rng, kinds = np.random.default_rng(0), {"draw": Draw, "edit": Edit, "ask": Question}
    for _ in range(10):
        turns = sample_dialogue(rng, form=form)
        assert [type(turn) for turn in turns] == [kinds[name] for name in form.split("_")]
        scene = turns[0].scene
        assert all(holds(scene, fact) for fact in turns[0].facts) and not is_heldout(scene)
        for turn in turns[1:]:
            assert (turn.before if isinstance(turn, Edit) else turn.scene) == scene
            assert not isinstance(turn, Question) or score(turn, turn.answer)
            scene = turn.after if isinstance(turn, Edit) else scene


def mirrored(scene):
    """The same things elsewhere and a little smaller, the way another picture of one prompt may look."""
    return replace(scene, objects=tuple(replace(o, x=1 - o.x, r=o.r * 0.97) for o in scene.objects))


@pytest.mark.parametrize("kind", EDITED)
def test_an_edit_of_another_picture_of_the_same_things_is_judged_by_what_is_seen_there(kind):
    rng = np.random.default_rng(1)
    drawn = (sample_edit(rng, kind=kind) for _ in range(12))
    for edit in [edit for edit in drawn if edit.before.text is None][:5]:
        before, after = (render(mirrored(scene), 64, 64) for scene in (edit.before, edit.after))
        moved = relocated(edit, seen_scene(analyse(before)))
        assert judge_edit(moved, before, after).right, edit
        unedited = judge_edit(moved, before, before)
        assert not unedited.asked and unedited.kept, edit


def test_an_edit_of_a_picture_of_other_things_has_no_meaning():
    edit = sample_edit(np.random.default_rng(0), kind="recolour")
    assert relocated(edit, replace(edit.before, objects=())) is None


def test_a_question_has_one_answer_in_every_picture_of_the_prompt():
    """Fill, size and background are the model's where the prompt does not name them: none of them is asked for."""
    rng, grounds = np.random.default_rng(2), []
    for _ in range(80):
        draw, question, _ = sample_dialogue(rng, form="draw_ask_edit")
        words = set(question.question.rstrip("?").split())
        if "background" in words:
            grounds.append(draw)
        named = [fact.thing for fact in draw.facts if isinstance(fact, Count)]
        for look in words & {"small", "large", "striped", "outlined", "solid"}:
            assert any(look in (thing.size, thing.fill) for thing in named), (draw.prompt, question)
    assert grounds and all(any(isinstance(fact, Background) for fact in draw.facts) for draw in grounds)


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="'draw'.*draw_edit_ask"):
        sample_dialogue(np.random.default_rng(0), form="draw")
