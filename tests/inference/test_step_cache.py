"""The step cache: off it changes nothing, on it saves passes, and every document decides alone."""

from dataclasses import replace

import torch

from openlance.config.sampling import Sampling
from openlance.inference.step_cache import StepCache
from openlance.inference.visual import denoise

MANY = Sampling(num_inference_steps=12, guidance_scale=3.0, solver="dpm++")


def run(tiny, requests, sampling, seeds=None):
    seeds = seeds or list(range(7, 7 + len(requests)))
    return denoise(tiny.model, tiny.codec, [tiny.encoded(r) for r in requests], sampling, seeds=seeds)


def passes(tiny, requests, sampling):
    """Rows of latents that went through the model."""
    rows = []
    hook = tiny.model.latent_in.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    made = run(tiny, requests, sampling)
    hook.remove()
    return made, sum(rows)


def test_a_threshold_of_next_to_nothing_changes_nothing(tiny):
    exact, always = (run(tiny, [tiny.edit(seed=None)], replace(MANY, step_cache=c))[0] for c in (0.0, 1e-9))
    torch.testing.assert_close(always, exact, rtol=0, atol=1e-5)


def test_fewer_passes_the_higher_the_threshold_and_latents_that_stay_near(tiny):
    requests = [tiny.draw(seed=None)]
    exact, most = passes(tiny, requests, MANY)
    near, fewer = passes(tiny, requests, replace(MANY, step_cache=0.1))
    far, least = passes(tiny, requests, replace(MANY, step_cache=0.5))
    assert least < fewer < most
    error = [float((made[0] - exact[0]).norm() / exact[0].norm()) for made in (near, far)]
    assert error[0] < 0.1 and error[0] < error[1]


def test_a_batch_equals_its_requests_alone(tiny):
    """Also uncached, where a document that runs brings its conditions along."""
    requests = [tiny.draw(seed=None), tiny.edit(seed=None), tiny.animate(seed=None)]
    for cached in (True, False):
        sampling = replace(MANY, step_cache=0.2, cached=cached, image_guidance_scale=1.5)
        together = run(tiny, requests, sampling)
        for n, request in enumerate(requests):
            torch.testing.assert_close(run(tiny, [request], sampling, [7 + n])[0], together[n], rtol=0, atol=1e-4)


def test_each_document_decides_by_its_own_velocity():
    """One branch whose velocity never changes is skipped while the other, which turns, runs."""
    ran = []

    def model(documents, x, times):
        ran.append(list(documents))
        states = zip(documents, x.split(2))
        return torch.cat([torch.ones(2, 3) if d == 0 else state * (1 + len(ran)) for d, state in states])

    cache, x = StepCache(model, [2], 0.05), torch.ones(4, 3)
    for step in range(5):
        cache((0, 1), x - 0.1 * step, torch.ones(4))
    assert ran[:2] == [[0, 1], [0, 1]] and ran[2:] == [[1]] * 3
    assert (cache.passes, cache.reused) == (7, 3)


def test_given_frames_come_out_as_they_went_in(tiny):
    request = tiny.animate(seed=None)
    first = tiny.keep(request[-1].given).flatten(0, 2)
    for solver in ("dpm++", "unipc"):
        made = run(tiny, [request], replace(MANY, solver=solver, step_cache=0.1, num_inference_steps=5))[0]
        assert torch.equal(made.reshape(-1, 4)[: len(first)], first)
