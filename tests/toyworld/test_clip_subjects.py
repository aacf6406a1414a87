"""The given object is in the clip as it is on its picture, and the prompt does not name it."""

import numpy as np
import pytest

from toyworld.clip_subjects import sample_clip_subject
from toyworld.clips import Moves, clip_holds
from toyworld.judge_clips import verdict
from toyworld.motion import render_clip


@pytest.mark.parametrize("n", [1, 2])
def test_given_objects_keep_colour_fill_and_shape_and_move_as_said(n):
    rng = np.random.default_rng(n)
    for _ in range(8):
        subject = sample_clip_subject(rng, n=n, frames=5)
        assert len(subject.references) == n and "object" in subject.prompt.lower()
        assert all(clip_holds(subject.clip, fact) for fact in subject.facts)
        moving = {(f.thing.shape, f.thing.color, f.thing.fill) for f in subject.facts if isinstance(f, Moves)}
        for o in (o for scene in subject.references for o in scene.objects):
            assert (o.shape, o.color, o.fill) in moving
            assert f"{o.color} {o.shape}" not in subject.prompt
        found = verdict(render_clip(subject.clip, 64, 64), subject.facts)
        assert found.objects and found.motion


def test_three_objects_cannot_be_given():
    with pytest.raises(ValueError, match="3 given objects"):
        sample_clip_subject(np.random.default_rng(0), n=3)
