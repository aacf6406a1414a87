"""Things that move stay in view, never meet, go at constant speed, and are drawn the same for the same seed."""

from dataclasses import replace

import numpy as np
import pytest

from toyworld.motion import (
    DIRECTIONS,
    FRAMES,
    MOTIONS,
    RESIZING,
    ClipScene,
    Motion,
    clip_is_heldout,
    clip_is_valid,
    render_clip,
    sample_clip,
)
from toyworld.render import render
from toyworld.scene import Object, Scene, extent, heldout_pair, is_valid

ASPECTS = (1.0, 1.5, 2 / 3)
RED = Object(shape="circle", color="red", x=0.3)


def clips(n, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return [sample_clip(rng, frames=FRAMES[i % 4], aspect=ASPECTS[i % 3], **settings) for i in range(n)]


@pytest.mark.parametrize("placement", ["free", "loose", "canonical"])
def test_nothing_leaves_the_picture_or_meets_and_every_motion_occurs(placement):
    found = clips(30, seed=1, placement=placement)
    assert all(is_valid(scene) for clip in found for scene in clip.scenes())
    assert {m.kind for clip in found for m in clip.motions} == set(MOTIONS)


def test_speed_is_constant_and_along_one_axis():
    for clip in clips(20, seed=2):
        width, height = extent(clip.scene.aspect)
        for o, m, *later in zip(clip.scene.objects, clip.motions, *(s.objects for s in clip.scenes()), strict=True):
            values = np.array([(p.x * width, p.y * height, p.r) for p in later])
            steps = np.diff(values, axis=0)
            assert np.allclose(steps, steps[0], atol=1e-9)
            assert (values[0] == (o.x * width, o.y * height, o.r)).all()
            sign = (*DIRECTIONS[m.kind], 0) if m.kind in DIRECTIONS else (0, 0, RESIZING[::-1].index(m.kind) * 2 - 1
                    if m.kind in RESIZING else 0)  # fmt: skip
            assert (np.sign(np.round(steps[0], 12)) == sign).all()


def test_the_first_frame_is_the_scene():
    clip = clips(1, seed=3)[0]
    assert (render_clip(clip, 64, 64)[0] == render(clip.scene, 64, 64)).all()
    assert render_clip(clip, 64, 96).shape == (clip.frames, 64, 96, 3)


def test_held_out_things_appear_only_where_they_are_asked_for():
    assert not any(clip_is_heldout(clip) for clip in clips(25, seed=4))
    assert all(heldout_pair(clip.scene) for clip in clips(8, seed=5, heldout=True))


def test_equal_things_move_alike():
    for clip in clips(12, seed=6, category="count"):
        assert len(set(clip.motions)) == 1


def test_a_late_motion_waits_and_a_late_thing_is_not_there_yet():
    late = Motion(kind="right", amount=0.4, begins=0.5)
    clip = ClipScene(scene=Scene(objects=(RED,)), motions=(late,))
    assert [round(s.objects[0].x, 6) for s in clip.scenes()] == [0.3] * 5 + [0.4, 0.5, 0.6, 0.7]
    hidden = replace(clip, motions=(replace(late, appears=0.5),))
    assert [len(s.objects) for s in hidden.scenes()] == [0] * 4 + [1] * 5


def test_a_clip_whose_things_meet_is_not_valid():
    pair = Scene(objects=(RED, replace(RED, color="blue", x=0.8)))
    assert clip_is_valid(ClipScene(scene=pair, motions=(Motion(), Motion())))
    assert not clip_is_valid(ClipScene(scene=pair, motions=(Motion(kind="right", amount=0.3), Motion())))


def test_same_seed_same_clip():
    assert clips(4, seed=7) == clips(4, seed=7) != clips(4, seed=8)


def test_a_wrong_number_of_frames_or_motions_is_one_sentence():
    with pytest.raises(ValueError, match=r"5, 9, 13 or 17 frames, not 8"):
        sample_clip(np.random.default_rng(0), frames=8)
    with pytest.raises(ValueError, match="0 motions for 1 objects"):
        ClipScene(scene=Scene(objects=(RED,)), motions=())
