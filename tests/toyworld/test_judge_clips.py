"""The judge of clips says yes to a true clip and no to a changed one."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from toyworld.clips import Moves, caption_clip, clip_facts
from toyworld.facts import Count, Thing
from toyworld.judge import nothing_else
from toyworld.judge_clips import judge_clip, verdict
from toyworld.motion import MOTIONS, REVERSED, ClipScene, Motion, render_clip, sample_clip
from toyworld.scene import Object, Scene

RED, BLUE = Thing("circle", "red"), Thing("square", "blue")
PAIR = Scene(objects=(Object(shape="circle", color="red", x=0.25), Object(shape="square", color="blue", x=0.7)))
CLIP = ClipScene(scene=PAIR, motions=(Motion(kind="up", amount=0.25), Motion()), frames=5)
PIXELS = render_clip(CLIP, 64, 64)
FACTS = clip_facts(CLIP)


@pytest.mark.parametrize("seed", range(8))
def test_every_kind_of_fact_holds_in_99_percent_of_true_clips(seed):
    rng, held = np.random.default_rng(seed), defaultdict(list)
    for i in range(25):
        height, width = ((64, 64), (64, 64), (64, 96))[i % 3]
        clip = sample_clip(rng, frames=5, aspect=width / height)
        facts = caption_clip(clip, rng)[1]
        looks = nothing_else(f for f in facts if not isinstance(f, Moves))
        moves = [f for f in facts if isinstance(f, Moves)]
        for fact, holds in judge_clip(render_clip(clip, height, width), [*looks, *moves]).items():
            held[type(fact)].append(holds)
    assert all(np.mean(v) >= 0.99 for v in held.values()), {k: np.mean(v) for k, v in held.items()}


def test_soft_edges_and_noise_are_tolerated():
    rng, right = np.random.default_rng(0), []
    for _ in range(15):
        clip = sample_clip(rng, frames=5)
        pixels = render_clip(clip, 64, 64).astype(np.float32)
        pixels = (pixels + np.roll(pixels, 1, 2) + np.roll(pixels, 1, 1)) / 3 + rng.normal(0, 6, pixels.shape)
        found = verdict(np.clip(pixels, 0, 255).astype(np.uint8), clip_facts(clip))
        right.append(found.objects and found.motion)
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize("kind", [m for m in MOTIONS if m != "up"])
def test_another_motion_is_seen(kind):
    amount = {"growing": 1.6, "shrinking": 1.6, "still": 0.0}.get(kind, 0.15)
    other = replace(CLIP, motions=(Motion(kind=kind, amount=amount), Motion()))
    found = verdict(render_clip(other, 64, 64), FACTS)
    assert found.objects and not found.motion


def test_a_frozen_clip_does_not_move():
    found = verdict(np.repeat(PIXELS[:1], 5, 0), FACTS)
    assert found.objects and not found.motion


def test_a_clip_backwards_moves_the_other_way():
    turned = [replace(f, motion=REVERSED.get(f.motion, f.motion)) if isinstance(f, Moves) else f for f in FACTS]
    assert verdict(PIXELS[::-1], turned).motion and not verdict(PIXELS[::-1], FACTS).motion


def test_a_jump_or_trembling_is_no_motion():
    first, last = PIXELS[:1], PIXELS[-1:]
    assert not verdict(np.concatenate([first] * 8 + [last]), FACTS).motion
    assert not verdict(np.concatenate([first, last, first, last, first]), FACTS).motion


def test_what_moves_is_not_mistaken_for_what_stays():
    swapped = replace(CLIP, motions=CLIP.motions[::-1])
    assert judge_clip(render_clip(swapped, 64, 64), [Moves(RED, "up"), Moves(BLUE, "still")]) == {
        Moves(RED, "up"): False, Moves(BLUE, "still"): False
    }  # fmt: skip


def test_a_thing_of_another_look_may_still_move_as_said():
    """Looks and motion are two scores: a circle that became a ring is wrong, its way up is right."""
    ring = replace(CLIP, scene=replace(PAIR, objects=(replace(PAIR.objects[0], shape="ring"), PAIR.objects[1])))
    found = verdict(render_clip(ring, 64, 64), FACTS)
    assert not found.objects and found.motion


def test_a_thing_that_vanishes_or_comes_from_nowhere_is_seen():
    without = render_clip(
        replace(CLIP, scene=replace(PAIR, objects=PAIR.objects[:1]), motions=CLIP.motions[:1]), 64, 64
    )
    half = np.concatenate([PIXELS[:2], without[2:]])
    assert not verdict(half, FACTS).objects
    only_red = (Count(RED), Moves(RED, "up"))
    assert verdict(without, only_red).objects and not verdict(half, only_red).objects


def test_a_picture_is_no_clip():
    with pytest.raises(ValueError, match="frames, height, width, 3"):
        judge_clip(PIXELS[0], FACTS)
