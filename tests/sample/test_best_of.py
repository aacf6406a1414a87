"""The best of several: one of those that are drawn alone, the same in a batch, and the one that the words explain."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import openlance
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.sample.best_of import choose, seeds_of
from openlance.sample.guidance import Sampling
from openlance.sample.visual import Denoiser, branch_out, denoise
from openlance.sequence import tasks
from openlance.world.render import render
from openlance.world.scene import sample_scene
from openlance.world.words import caption

ONE = Sampling(num_inference_steps=3, guidance_scale=3.0)
FOUR = replace(ONE, best_of=4)


def run(tiny, requests, sampling, seeds):
    return denoise(tiny.model, tiny.codec, requests, sampling, see=tiny.see, encode=tiny.encode, seeds=seeds)


def holes(tiny):
    return [tiny.draw(seed=None), tiny.edit(seed=None), tiny.animate(seed=None)]


@pytest.mark.parametrize("sampling", [FOUR, replace(FOUR, cached=False), replace(FOUR, image_guidance_scale=1.5)])
def test_a_batch_keeps_what_its_requests_keep_alone(tiny, sampling):
    requests = holes(tiny)
    together = run(tiny, requests, sampling, [7, 8, 9])
    for n, request in enumerate(requests):
        alone = run(tiny, [request], sampling, [7 + n])[0]
        torch.testing.assert_close(alone, together[n], rtol=0, atol=1e-4)
        drawn = [run(tiny, [request], replace(sampling, best_of=1), [seed])[0] for seed in seeds_of(7 + n, 4)]
        near = [bool((alone - one).abs().max() < 1e-4) for one in drawn]
        assert sum(near) == 1, "it is one of those that its seeds give"


def test_the_first_seed_is_the_requests_own_and_all_differ():
    seeds = [s for seed in (0, 1, 2**63 - 1) for s in seeds_of(seed, 8)]
    assert seeds[::8] == [0, 1, 2**63 - 1] and len(set(seeds)) == len(seeds)
    assert seeds_of(5, 1) == [5] and seeds_of(5, 3) == seeds_of(5, 8)[:3]
    generator = torch.Generator()
    assert seeds_of(generator, 2) == [generator, generator]


def test_words_choose_the_result_whose_velocity_they_predict():
    """With words the velocity of one result is known, without them that of none; given rows take no part."""
    torch.manual_seed(0)
    meant = torch.randn(6, 4)
    moves = torch.arange(6) >= 2
    results = [meant + 3 * torch.randn(6, 4), torch.where(moves[:, None], meant, meant + 9), 2 * meant]

    def velocities(states, times, branches):
        assert branches == 2 and all(not bool(t[:2].any()) for t in times.split(6))
        t = times[:, None].clamp(min=1e-3)
        clean = meant.repeat(len(states) // 6, 1)
        return [(states - clean) / t, states / t]

    assert choose(velocities, results, [moves] * 3, 3) == [1]
    assert choose(velocities, results[::-1] + results, [moves] * 6, 3) == [1, 4]


def test_no_guidance_is_no_guidance_whatever_is_compared(tiny):
    """The form without words is there to choose by; it moves nothing."""
    request = tiny.edit(seed=None)
    plain = replace(ONE, guidance_scale=1.0)
    kept = run(tiny, [request], replace(plain, best_of=2), [3])[0]
    drawn = [run(tiny, [request], plain, [seed])[0] for seed in seeds_of(3, 2)]
    assert sum(bool((kept - one).abs().max() < 1e-4) for one in drawn) == 1


def test_none_of_none_is_refused():
    with pytest.raises(UserError, match="best of 0 results"):
        Sampling(best_of=0)


def test_nano_keeps_the_picture_that_was_asked_for():
    """Among true pictures of five prompts, as if it had drawn them."""
    pipe, rng = openlance.load("nano"), np.random.default_rng(3)
    scenes = [sample_scene(rng, placement="loose", category="attribute") for _ in range(5)]
    pictures = [Clip(render(scene, 64, 64)[None]) for scene in scenes]
    clean = pipe.encode([tasks.keep(picture) for picture in pictures])
    kept = []
    for scene in scenes:
        request = tasks.text_to_visual(caption(scene, rng)[0], (1, 64, 64), prompts=tasks.NO_PRIOR)
        branches = branch_out(pipe.lance("und", "gen"), pipe.codec, [request] * 5, FOUR)
        denoiser = Denoiser(pipe.lance("und", "gen"), branches, None, torch.zeros(0, 1), True)
        kept += choose(denoiser.velocities, clean, [torch.ones(len(x), dtype=torch.bool) for x in clean], 5)
    assert sum(k == n for n, k in enumerate(kept)) >= 4, kept
