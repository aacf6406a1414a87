"""A given object comes into a new scene as it looks, and the judge sees whether it did."""

from dataclasses import replace

import numpy as np
import pytest

from toyworld.facts import holds
from toyworld.judge import is_right
from toyworld.render import render
from toyworld.scene import is_heldout, is_valid
from toyworld.subjects import Subject, sample_subject
from toyworld.vocabulary import COLORS


def sampled(n: int, count: int = 15, seed: int = 0, **settings) -> list[Subject]:
    rng = np.random.default_rng(seed)
    return [sample_subject(rng, n=n, **settings) for _ in range(count)]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("heldout", [False, True])
def test_the_true_picture_is_right_and_another_object_in_its_place_is_wrong(n, heldout):
    for subject in sampled(n, heldout=heldout):
        assert is_heldout(subject.scene) is heldout and is_valid(subject.scene)
        assert all(holds(subject.scene, fact) for fact in subject.facts)
        assert is_right(render(subject.scene, 64, 64), subject.facts)
        first, *rest = subject.scene.objects
        taken = {subject.scene.background, *(o.color for o in subject.scene.objects)}
        other = replace(first, color=next(c for c in COLORS if c not in taken))
        wrong = replace(subject.scene, objects=(other, *rest))
        assert not is_right(render(wrong, 64, 64), subject.facts)


@pytest.mark.parametrize("n", [1, 2])
def test_each_given_picture_shows_its_object_alone_and_the_prompt_never_says_how_it_looks(n):
    for subject in sampled(n, seed=1):
        assert len(subject.references) == n and all(is_valid(scene) for scene in subject.references)
        for scene, o in zip(subject.references, subject.scene.objects, strict=False):
            (given,) = scene.objects
            assert (given.shape, given.color, given.fill) == (o.shape, o.color, o.fill)
            assert o.shape not in subject.prompt or any(o.shape == p.shape for p in subject.scene.objects[n:])


def test_training_gives_no_held_out_object():
    for subject in (*sampled(1, seed=2), *sampled(2, seed=3)):
        assert not any(is_heldout(scene) for scene in (*subject.references, subject.scene))


def test_prompts_vary_and_the_same_seed_says_the_same():
    said = [s.prompt for s in sampled(1, 30, seed=4)]
    assert len(set(said)) > 25 and said == [s.prompt for s in sampled(1, 30, seed=4)]
    with pytest.raises(ValueError, match="3 given objects"):
        sample_subject(np.random.default_rng(0), n=3)
