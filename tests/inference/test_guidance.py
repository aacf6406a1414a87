"""Guidance: 1 is off, the scales do what their formula says, and norms are limited."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from openlance.config.sampling import Sampling
from openlance.errors import UserError
from openlance.inference.visual import Denoiser, branch_out, denoise, guide, renormalize

FEW = Sampling(num_inference_steps=4, guidance_scale=1.0)


def run(tiny, requests, sampling):
    seeds = list(range(len(requests)))
    return denoise(tiny.model, tiny.codec, [tiny.encoded(r) for r in requests], sampling, seeds=seeds)


def some(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def test_a_scale_of_one_is_no_guidance():
    v, no_text, nothing = some(0, 1, 2)
    off = Sampling(guidance_scale=1.0, image_guidance_scale=1.0)
    torch.testing.assert_close(guide(v, no_text, nothing, off), v)
    torch.testing.assert_close(renormalize(v, v, torch.ones(6, dtype=torch.bool), off), v)


def test_the_two_scales():
    v, no_text, nothing = some(0, 1, 2)
    s = Sampling(guidance_scale=3.0, image_guidance_scale=2.0)
    torch.testing.assert_close(guide(v, no_text, nothing, s), nothing + 2 * (no_text - nothing) + 3 * (v - no_text))
    torch.testing.assert_close(guide(v, no_text, None, s), no_text + 3 * (v - no_text))
    torch.testing.assert_close(guide(v, None, nothing, s), nothing + 2 * (v - nothing))


@pytest.mark.parametrize("task", ["draw", "animate", "edit", "place"])
def test_off_means_one_branch(tiny, task):
    request = getattr(tiny, task)(seed=None)
    assert branch_out(tiny.model, tiny.codec, [request], FEW).count == 1
    seen = task in ("edit", "place")
    for scales, count in [((3, 1), 2), ((1, 3), 1 + seen), ((3, 3), 2 + seen)]:
        s = replace(FEW, guidance_scale=scales[0], image_guidance_scale=scales[1])
        assert branch_out(tiny.model, tiny.codec, [request], s).count == count


@pytest.mark.parametrize("renorm", ["global", "channel", "none"])
def test_a_scale_close_to_one_is_close_to_no_guidance(tiny, renorm):
    """Continuous at 1, where the extra branches vanish."""
    request = tiny.edit(seed=None)
    off = run(tiny, [request], FEW)[0]
    for scales in [(1.00001, 1.0), (1.0, 1.00001), (1.00001, 1.00001)]:
        s = replace(FEW, guidance_scale=scales[0], image_guidance_scale=scales[1], renorm=renorm)
        torch.testing.assert_close(run(tiny, [request], s)[0], off, rtol=0, atol=1e-4)


def test_image_guidance_changes_what_has_images(tiny):
    on = replace(FEW, image_guidance_scale=3.0)
    for request, changes in [
        (tiny.draw(seed=None), False),
        (tiny.edit(seed=None), True),
        (tiny.place(seed=None), True),
    ]:
        difference = (run(tiny, [request], on)[0] - run(tiny, [request], FEW)[0]).abs().max()
        assert (float(difference) > 1e-3) == changes


def test_guidance_stays_in_its_interval(tiny):
    request = tiny.draw(seed=None)
    never = replace(FEW, guidance_scale=4.0, interval=(0.0, 0.0))
    assert torch.equal(run(tiny, [request], never)[0], run(tiny, [request], FEW)[0])
    assert Sampling().acts_at(1.0) and not Sampling().acts_at(0.4) and Sampling().acts_at(0.41)


def test_branches_are_the_requests_without_their_conditions(tiny):
    """Each branch of a batch has the velocity of the shortened request run alone."""
    from openlance.sequence.segment import Role, drop

    s = replace(FEW, guidance_scale=2.0, image_guidance_scale=2.0)
    requests = [tiny.edit(seed=None), tiny.place(seed=None)]
    x = torch.cat(some(3, 4, 5, 6, 7, 8))[:32]
    roles = [set(), {Role.PROMPT}, {Role.PROMPT, Role.SOURCE, Role.REFERENCE}]
    with torch.inference_mode():
        together = velocities(tiny, requests, s, x)
        for branch, dropped in zip(together, roles):
            alone = [velocities(tiny, [drop(r, dropped)], FEW, x[:16])[0] for r, x in zip(requests, (x, x[16:]))]
            torch.testing.assert_close(branch, torch.cat(alone), rtol=0, atol=1e-5)


def velocities(tiny, requests, s, x):
    branches = branch_out(tiny.model, tiny.codec, requests, s)
    packed = branches.pack
    targets = [v for v in packed.visuals if v.segment.is_empty]
    without = replace(packed, visuals=[v for v in packed.visuals if v not in targets])
    features, context = tiny.media(without)
    denoiser = Denoiser(tiny.model, branches, features, context if context is not None else x[:0], True)
    return denoiser.velocities(x, torch.full((len(x),), 0.7), branches.count)


@pytest.mark.parametrize("renorm", ["global", "channel", "none"])
def test_a_norm_never_grows(renorm):
    conditional, guided = some(0)[0], some(1)[0] * torch.tensor([0.1, 1, 2, 3, 4, 5])[:, None]
    every = torch.ones(6, dtype=torch.bool)
    out = renormalize(guided, conditional, every, Sampling(renorm=renorm))
    if renorm == "global":
        torch.testing.assert_close(out.norm(), torch.minimum(guided.norm(), conditional.norm()))
    elif renorm == "channel":
        torch.testing.assert_close(out.norm(dim=1), torch.minimum(guided.norm(dim=1), conditional.norm(dim=1)))
    else:
        assert torch.equal(out, guided)
    floor = renormalize(guided * 1e6, conditional, every, Sampling(renorm=renorm, renorm_min=1.0))
    torch.testing.assert_close(floor, guided * 1e6)


def test_bad_settings_are_refused():
    for settings in [{"num_inference_steps": 0}, {"renorm": "half"}, {"guidance_scale": -1}, {"shift": 0}]:
        with pytest.raises(ValueError, match="must be at least|expected one of"):
            Sampling(**settings)
    for settings in [{"num_inference_steps": "many"}, {"interval": [0.4]}, {"cached": 3}, {"shift": float("nan")}]:
        with pytest.raises(UserError, match=f"{next(iter(settings))}.* (is|has) .*expected"):
            Sampling(**settings)


def test_settings_come_from_files_and_arrays_too():
    assert Sampling(interval=[0.2, 1], num_inference_steps=np.int64(4)) == Sampling(
        interval=(0.2, 1.0), num_inference_steps=4
    )


@pytest.mark.parametrize("habit", [False, True])
def test_other_words_stand_where_words_stand(tiny, habit):
    """The branch without the prompt is, with another text, the request for that text, at its own positions even where
    the release keeps those of the prompt for a branch without words; and a batch has each alone."""
    mine = tiny.build(quirks=replace(tiny.model.config.quirks, uncond_keeps_positions=habit))
    requests = [mine.encoded(mine.edit("make it blue", None)), mine.encoded(mine.edit("make it red", None))]
    s = Sampling(guidance_scale=3.0)
    branches = branch_out(mine.model, mine.codec, requests, s, ["", "a star"])
    rows, none = branches.pack.rows, branch_out(mine.model, mine.codec, requests, s).pack.rows
    other = mine.pack([mine.encoded(mine.edit("a star", None))]).rows
    assert torch.equal(rows.position[rows.doc == 3], other.position)
    assert torch.equal(rows.token[rows.doc == 3], other.token)
    for doc in range(3):
        assert torch.equal(rows.position[rows.doc == doc], none.position[none.doc == doc])
    alone = branch_out(mine.model, mine.codec, requests[:1], s).pack.rows
    assert torch.equal(rows.position[rows.doc == 2], alone.position[alone.doc == 1])
