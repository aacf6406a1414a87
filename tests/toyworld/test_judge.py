"""The judge says yes to a true picture and no to a changed one."""

import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from openlance.rl.rewards.ocr import rapid_ocr
from toyworld.facts import Background, Count, Lettering, Region, Relation, Thing
from toyworld.judge import analyse, is_right, judge, nothing_else
from toyworld.read_text import same_text
from toyworld.render import render
from toyworld.scene import Object, Scene, Text, sample_scene
from toyworld.segment_pixels import label
from toyworld.vocabulary import CATEGORIES, OPPOSITE
from toyworld.words import caption

SIZES = ((64, 64), (96, 96), (64, 96), (96, 64))
WITHOUT_TEXT = [c for c in (*CATEGORIES, "mixed") if c != "text"]
RED_LEFT = Object(shape="circle", color="red", x=0.25)
BLUE_RIGHT = Object(shape="square", color="blue", x=0.75)
PAIR = Scene(objects=(RED_LEFT, BLUE_RIGHT))
RED, BLUE = Thing("circle", "red"), Thing("square", "blue")
PROMPT = (Count(RED), Count(BLUE), Relation(RED, "left", BLUE), Background("black"))


def sampled(n, seed=0, category=None, placement="free"):
    rng = np.random.default_rng(seed)
    for i in range(n):
        height, width = SIZES[i % len(SIZES)]
        kind = category or WITHOUT_TEXT[i % len(WITHOUT_TEXT)]
        scene = sample_scene(rng, category=kind, placement=placement, aspect=width / height, heldout=False)
        yield scene, caption(scene, rng)[1], render(scene, height, width)


def blurred(pixels, rng, noise=8.0):
    """About what a small autoencoder does to a picture (33 dB): soft edges, and noise that is partly coarse."""
    soft = pixels.astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(soft, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, after = (np.take(padded, np.arange(n, n + soft.shape[axis]), axis) for n in (0, 2))
        soft = 0.75 * soft + 0.125 * (before + after)
    grain = rng.normal(0, noise, (pixels.shape[0] // 2, pixels.shape[1] // 2, 3)).repeat(2, 0).repeat(2, 1)
    return np.clip(soft + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("placement", ["free", "canonical"])
def test_every_kind_of_fact_holds_in_99_percent_of_true_renders(placement):
    verdicts = defaultdict(list)
    for _, facts, pixels in sampled(140, seed=1, placement=placement):
        for fact, holds in judge(pixels, nothing_else(facts)).items():
            verdicts[type(fact)].append(holds)
    assert set(verdicts) >= {Count, Relation, Background}
    assert all(np.mean(v) >= 0.99 for v in verdicts.values()), {k: np.mean(v) for k, v in verdicts.items()}


def test_every_property_of_every_object_is_seen():
    for scene, _, pixels in sampled(60, seed=2):
        true = sorted((o.shape, o.color, o.fill, o.size) for o in scene.objects)
        assert sorted((o.shape, o.color, o.fill, o.size) for o in analyse(pixels).objects) == true


def test_the_judge_tolerates_soft_edges_and_noise():
    rng = np.random.default_rng(0)
    right = [is_right(blurred(pixels, rng), facts) for _, facts, pixels in sampled(60, seed=3)]
    assert np.mean(right) >= 0.97


def test_a_swap_of_colours_is_seen():
    swapped = Scene(objects=(replace(RED_LEFT, color="blue"), replace(BLUE_RIGHT, color="red")))
    verdict = judge(render(swapped, 64, 64), PROMPT)
    assert list(verdict.values()) == [False, False, False, True]


def test_a_missing_object_is_seen():
    verdict = judge(render(Scene(objects=(RED_LEFT,)), 64, 64), PROMPT)
    assert list(verdict.values()) == [True, False, False, True]


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_mirrored_relation_is_seen(mirrored):
    pixels = render(PAIR, 64, 64)
    verdict = judge(pixels[:, ::-1].copy() if mirrored else pixels, PROMPT)
    assert verdict[PROMPT[2]] is not mirrored and verdict[PROMPT[0]] and verdict[PROMPT[1]]


def test_the_mirror_image_of_any_pair_has_the_opposite_relation():
    for scene, facts, pixels in sampled(40, seed=4, category="position"):
        said = next(f for f in facts if isinstance(f, Relation))
        if said.relation in ("left", "right") and all(o.fill == "solid" for o in scene.objects):
            turned = replace(said, relation=OPPOSITE[said.relation])
            assert judge(pixels[:, ::-1].copy(), [said, turned]) == {said: False, turned: True}


def test_another_background_is_seen():
    verdict = judge(render(replace(PAIR, background="grey"), 64, 64), PROMPT)
    assert list(verdict.values()) == [True, True, True, False]


@pytest.mark.parametrize("change", [{"shape": "star"}, {"shape": "ring"}, {"color": "orange"}, {"fill": "outlined"}])
def test_another_shape_colour_or_fill_is_seen(change):
    red = Count(Thing("circle", "red", "solid"))
    changed = Scene(objects=(replace(RED_LEFT, **change), BLUE_RIGHT))
    assert judge(render(PAIR, 64, 64), [red])[red] and not judge(render(changed, 64, 64), [red])[red]


def test_an_object_too_many_is_seen_even_a_shapeless_one():
    pixels = render(PAIR, 64, 64)
    assert is_right(pixels, PROMPT)
    extra = replace(PAIR, objects=(*PAIR.objects, Object(shape="ring", color="green", x=0.5, y=0.15, r=0.1)))
    assert not is_right(render(extra, 64, 64), PROMPT)
    pixels[4:8, 30:36] = (30, 160, 50)
    assert not is_right(pixels, PROMPT)


def test_a_speck_is_no_object():
    pixels = render(PAIR, 64, 64)
    pixels[5:8, 30:33] = 255
    assert is_right(pixels, PROMPT)


def test_touching_objects_of_two_colours_are_two():
    pair = Scene(objects=(Object(shape="square", color="red", x=0.35), Object(shape="square", color="blue", x=0.62)))
    found = analyse(render(pair, 64, 64)).objects
    assert sorted((o.shape, o.color) for o in found) == [("square", "blue"), ("square", "red")]


def test_a_place_is_one_cell_of_nine():
    corner = Count(RED), Region(RED, "top", "left"), Region(RED, "middle", "left"), Region(RED, "top", "right")
    verdict = judge(render(Scene(objects=(replace(RED_LEFT, x=0.2, y=0.2),)), 64, 64), corner)
    assert list(verdict.values()) == [True, True, False, False]


def test_text_is_read_and_another_text_is_seen():
    pytest.importorskip("rapidocr")
    rng = np.random.default_rng(5)
    for scene, facts, pixels in sampled(16, seed=6, category="text"):
        true = next(f for f in facts if isinstance(f, Lettering))
        other = Lettering(("X" if true.string[0] != "X" else "H") + true.string[1:], true.color)
        assert judge(pixels, [true, other, Background(scene.background)]) == {
            true: True, other: False, Background(scene.background): True
        }  # fmt: skip
        assert is_right(blurred(pixels, rng), facts)


def test_the_colour_of_a_text_counts_where_it_is_named():
    pytest.importorskip("rapidocr")
    facts = [Lettering("A7"), Lettering("A7", "cyan"), Lettering("A7", "red")]
    verdict = judge(render(Scene(text=Text(string="A7", color="cyan")), 64, 64), facts)
    assert list(verdict.values()) == [True, True, False]


def test_only_characters_that_look_alike_are_taken_for_each_other():
    assert (
        same_text("O1", "0i") and same_text("Ｌ4 n", "L4N") and not same_text("A7", "A1") and not same_text("一", "I")
    )


def test_a_missing_reader_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ValueError, match=r"rapidocr: pip install 'openlance\[rl\]'"):
        rapid_ocr.__wrapped__()


def test_a_blank_picture_shows_nothing():
    seen = analyse(np.full((64, 64, 3), (0, 0, 0), np.uint8))
    assert seen.objects == () and seen.background == "black" and not seen.paint.any()


def test_noise_is_no_picture_of_anything_and_breaks_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not is_right(noise, PROMPT)


def test_what_is_no_picture_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="uint8"):
        judge(np.zeros((64, 64, 3), np.float32), PROMPT)


def test_pieces_are_connected_over_corners_and_have_one_class():
    classes = np.array([[1, 0, 2, 2], [0, 1, 0, 2], [2, 0, 0, 0], [2, 2, 0, 1]])
    assert label(classes).tolist() == [[1, 0, 2, 2], [0, 1, 0, 2], [3, 0, 0, 0], [3, 3, 0, 4]]
