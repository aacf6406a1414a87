"""The world's judge as a reward: a true result of every kind of request gets all that it can, a wrong one less, and the
two readers of texts agree on what is written."""

import numpy as np
import pytest

from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.rl.rewards import Drawn, RewardPool
from toyworld.clip_edits import sample_clip_edit
from toyworld.clip_subjects import sample_clip_subject
from toyworld.edits import KINDS, sample_edit
from toyworld.match_text import match_text
from toyworld.motion import render_clip
from toyworld.read_text import same_text
from toyworld.render import render
from toyworld.reward import World
from toyworld.scene import sample_scene
from toyworld.subjects import sample_subject
from toyworld.suites.asked import Asked
from toyworld.suites.clips import _I2V, filmings
from toyworld.suites.images import drawings
from toyworld.vocabulary import CATEGORIES

ASKED = Asked(samples=2, seed=3)


def still(pixels):
    return Clip(pixels[None])


def drawn(truth, media, sources=()):
    prompt = truth.prompt if hasattr(truth, "prompt") else truth.instruction
    return Drawn(prompt=prompt, media=media, sources=tuple(sources), truth=truth)


def requests():
    """Every kind of request of the world with a true result, and with one in which nothing is done."""
    rng = np.random.default_rng(1)
    blank = still(np.zeros((64, 64, 3), np.uint8))
    for category in CATEGORIES:
        for truth in drawings(category, ASKED):
            yield truth, still(render(truth.scene, 64, 64)), blank, []
    for kind in KINDS:
        truth = sample_edit(rng, kind=kind)
        before, after = map(still, truth.pictures(64, 64))
        yield truth, after, before, [before]
    truth = sample_subject(rng, n=1)
    yield truth, still(render(truth.scene, 64, 64)), blank, [still(render(truth.references[0], 64, 64))]
    for suite in (0, _I2V):
        truth = next(filmings("one", ASKED, *[suite][: suite > 0]))
        clip = Clip(render_clip(truth.clip, 64, 64))
        yield truth, clip, Clip(clip.pixels[:1].repeat(9, 0)), [Clip(clip.pixels[:1])] * (suite > 0)
    truth = sample_clip_edit(rng, kind="recolour")
    before, after = map(Clip, truth.clips(64, 64))
    yield truth, after, before, [before]
    truth = sample_clip_subject(rng, n=1)
    clip = Clip(render_clip(truth.clip, 64, 64))
    yield truth, clip, Clip(clip.pixels[::-1].copy()), []


def test_true_results_of_every_request_are_right_and_undone_ones_are_not():
    pytest.importorskip("rapidocr")
    good, bad = [], []
    for truth, true, undone, sources in requests():
        good.append(drawn(truth, true, sources))
        bad.append(drawn(truth, undone, sources))
    with RewardPool("world") as pool:
        for one in good:
            pool.check(one.prompt, one.truth)
        scores, others = pool.submit(good), pool.submit(bad)
        scores, others = scores.collect(), others.collect()
    assert not pool.failed
    assert [(one.prompt, score.facts) for one, score in zip(good, scores) if score.total < 1] == []
    assert all(other.facts["world.right"] == 0 and other.total < 1 for other in others)


def test_a_text_is_worth_the_more_the_nearer_it_is():
    truth = next(d for d in drawings("text", Asked(samples=20, seed=0)) if len(d.scene.text.string) == 3)
    from dataclasses import replace

    last = "X" if truth.scene.text.string[-1] != "X" else "H"
    near = replace(truth.scene, text=replace(truth.scene.text, string=truth.scene.text.string[:-1] + last))
    blank = replace(truth.scene, text=None)
    world = World("letters")
    found = world([drawn(truth, still(render(scene, 64, 64))) for scene in (truth.scene, near, blank)])
    assert [round(facts["text"], 2) for facts in found] == [1.0, 0.67, 0.0]
    assert [facts["right"] for facts in found] == [True, False, False]


def test_what_is_no_request_of_the_world_is_refused():
    with pytest.raises(UserError, match="no request of the world"):
        World().check("a cat", None)
    with pytest.raises(UserError, match="expected world or world=letters"):
        World("other")


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 96)])
def test_the_second_reader_reads_what_is_written(size):
    rng, right = np.random.default_rng(9), []
    for _ in range(60):
        scene = sample_scene(rng, category="text", placement="free", aspect=size[1] / size[0])
        noisy = render(scene, *size) + rng.normal(0, 6, (*size, 3))
        right.append(same_text(match_text(noisy.clip(0, 255).astype(np.uint8)), scene.text.string))
    assert np.mean(right) > 0.97


def test_the_second_reader_finds_no_text_where_there_is_none():
    assert match_text(np.zeros((64, 64, 3), np.uint8)) == ""
    scene = sample_scene(np.random.default_rng(0), category="color")
    assert len(match_text(render(scene, 64, 64))) <= 1
