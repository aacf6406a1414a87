"""An edited clip is right, an unchanged, frozen or otherwise damaged one is not."""

from dataclasses import replace

import numpy as np
import pytest

from toyworld.clip_edits import CLIP_EDITS, judge_clip_edit, sample_clip_edit
from toyworld.clips import Moves, clip_holds
from toyworld.motion import REVERSED, STILL, clip_is_heldout, clip_is_valid, render_clip


def edits(kind, n, seed=0, frames=5):
    rng = np.random.default_rng(seed)
    return [sample_clip_edit(rng, kind=kind, frames=frames) for _ in range(n)]


@pytest.mark.parametrize("kind", CLIP_EDITS)
def test_the_true_clip_is_right_and_the_old_one_is_not(kind):
    for edit in edits(kind, 4):
        before, after = edit.clips(64, 64)
        assert judge_clip_edit(edit, before, after).right, edit.instruction
        assert not judge_clip_edit(edit, before, before).asked, edit.instruction


@pytest.mark.parametrize("kind", ["recolour", "background", "motion"])
def test_what_moved_before_must_go_on_moving(kind):
    for edit in edits(kind, 4, seed=1):
        before, after = edit.clips(64, 64)
        frozen = judge_clip_edit(edit, before, np.repeat(after[:1], len(after), 0))
        moves = {m.kind for m in edit.after.motions}
        assert frozen.right == (moves == {STILL}), edit.instruction


def test_another_object_that_changes_is_not_kept():
    done = 0
    for edit in edits("recolour", 12, seed=2):
        others = [i for i, (a, b) in enumerate(zip(edit.before.scene.objects, edit.after.scene.objects, strict=True))
                  if a == b and edit.after.motions[i].kind in REVERSED]  # fmt: skip
        if not others:
            continue
        i = others[0]
        turned = replace(edit.after.motions[i], kind=STILL, amount=0.0)
        wrong = replace(edit.after, motions=tuple(turned if k == i else m for k, m in enumerate(edit.after.motions)))
        verdict = judge_clip_edit(edit, edit.clips(64, 64)[0], render_clip(wrong, 64, 64))
        assert verdict.asked and not verdict.kept
        done += 1
    assert done


def test_one_bad_frame_of_five_is_forgiven_and_two_are_not():
    edit = edits("recolour", 1)[0]
    before, after = edit.clips(64, 64)
    one, two = after.copy(), after.copy()
    one[2], two[2], two[3] = before[2], before[2], before[3]
    assert judge_clip_edit(edit, before, one).asked and not judge_clip_edit(edit, before, two).asked


def test_nothing_meets_and_nothing_held_out_appears():
    for kind in ("add", "move", "replace", "motion"):
        for edit in edits(kind, 5, seed=3, frames=9):
            assert clip_is_valid(edit.after) and not clip_is_heldout(edit.after)
            assert all(clip_holds(edit.after, fact) for fact in (*edit.asked, *edit.kept) if isinstance(fact, Moves))


def test_a_change_of_motion_begins_as_the_clip_did():
    for edit in edits("motion", 10, seed=4):
        assert edit.before.scene == edit.after.scene
        assert sum(a != b for a, b in zip(edit.before.motions, edit.after.motions, strict=True)) == 1


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="of kind 'text'"):
        sample_clip_edit(np.random.default_rng(0), kind="text")
    edit = edits("recolour", 1)[0]
    before, after = edit.clips(64, 64)
    with pytest.raises(ValueError, match="shape"):
        judge_clip_edit(edit, before, after[:3])
