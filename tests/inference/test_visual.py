"""Denoising: cached or not, alone or in a batch, the same latents; given frames stay; a new task needs no new code."""

from dataclasses import replace

import pytest
import torch

from openlance.config.model import NO_QUIRKS, Quirks
from openlance.config.sampling import Sampling
from openlance.inference.visual import Denoiser, branch_out, denoise
from openlance.sequence import tasks
from openlance.sequence.segment import Role

TASKS = ["draw", "animate", "bridge", "edit", "place"]
FEW = Sampling(num_inference_steps=4, guidance_scale=3.0)


def run(tiny, requests, sampling=FEW, seeds=None, **more):
    seeds = seeds or list(range(7, 7 + len(requests)))
    encoded = [tiny.encoded(r) for r in requests]
    return denoise(tiny.model, tiny.codec, encoded, sampling, seeds=seeds, **more)


def close(a, b, atol=1e-5):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_training_and_sampling_run_the_same_model(tiny, task):
    """At one state and time the sampler's velocity is the one whose error training measures."""
    sample = getattr(tiny, task)()
    packed = tiny.pack([sample])
    noise, (features, clean) = tiny.noised(packed), tiny.media(packed)
    rows = packed.rows.at(packed.rows.is_latent.nonzero()[:, 0])
    losses, target = tiny.losses(packed, noise), rows.noisy
    branches = branch_out(tiny.model, tiny.codec, [sample], replace(FEW, guidance_scale=1.0))
    for cached in (True, False):
        denoiser = Denoiser(tiny.model, branches, features, clean[~target], cached)
        v = denoiser.velocities(noise.x[target], noise.times[target], 1)[0]
        error = (v - noise.target[target])[rows.denoise[target]].square()
        torch.testing.assert_close(error, losses.per_latent, rtol=0, atol=1e-4)


def test_one_step_is_one_velocity(tiny):
    """x - v, with the given frame at time 0 and left as it is."""
    request = tiny.animate(seed=None)
    shown = []
    sampling = Sampling(num_inference_steps=1, guidance_scale=1.0)
    made = run(tiny, [request], sampling, on_step=lambda i, t, x: shown.append(x.clone()))[0]
    branches = branch_out(tiny.model, tiny.codec, [request], sampling)
    times = (torch.arange(48) >= 16).float()
    with torch.inference_mode():
        denoiser = Denoiser(tiny.model, branches, None, torch.zeros(0, 4), True)
        v = denoiser.velocities(shown[0], times, 1)[0]
    torch.testing.assert_close(made.reshape(-1, 4), shown[0] - v * times[:, None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (3.0, 1.0), (3.0, 2.0)])
@pytest.mark.parametrize("task", TASKS)
def test_cached_equals_uncached(tiny, task, guidance):
    request = getattr(tiny, task)(seed=None)
    sampling = replace(FEW, guidance_scale=guidance[0], image_guidance_scale=guidance[1])
    ways = [run(tiny, [request], replace(sampling, cached=cached)) for cached in (True, False)]
    close(*ways)
    assert float(ways[0][0].std()) > 0.1


def test_a_batch_equals_its_requests_alone(tiny):
    """Requests of every kind together, each with its own seed."""
    requests = [getattr(tiny, task)(seed=None) for task in TASKS] + [tiny.draw("another, longer prompt", None)]
    sampling = replace(FEW, image_guidance_scale=1.5)
    together = run(tiny, requests, sampling)
    close(together, [run(tiny, [r], sampling, [7 + n])[0] for n, r in enumerate(requests)])


def test_eight_prompts_equal_those_made_alone(tiny):
    prompts = ["a", "a red circle", "three small striped triangles on a white background", "the ring", *"bcde"]
    requests = [tiny.draw(p, None) for p in prompts]
    close(run(tiny, requests), [run(tiny, [r], seeds=[7 + n])[0] for n, r in enumerate(requests)])


def test_the_same_seed_gives_the_same_latents_and_another_does_not(tiny):
    request = tiny.draw(seed=None)
    first, again, other = (run(tiny, [request], seeds=[seed])[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.1)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(run(tiny, [request], seeds=[generator])[0], first)


def test_given_frames_come_out_as_they_went_in(tiny):
    request = tiny.animate(seed=None)
    first = tiny.keep(request[-1].given).flatten(0, 2)
    for cached in (True, False):
        made = run(tiny, [request], replace(FEW, cached=cached))[0]
        assert made.shape == (3, 4, 4, 4)
        assert torch.equal(made[0].reshape(-1, 4), first)


def test_every_condition_counts(tiny):
    """Another prompt, source or first frame gives another result."""
    for task in TASKS:
        request = getattr(tiny, task)(seed=None)
        made = run(tiny, [request])[0]
        for n, s in enumerate(request):
            if s.role in (Role.PROMPT, Role.SOURCE, Role.REFERENCE, Role.LAST):
                without = run(tiny, [request[:n] + request[n + 1 :]])[0]
                assert float((made - without).abs().max()) > 1e-3, (task, s.role, s.kind)


def test_a_size_of_its_own_per_request(tiny):
    sizes = [(1, 16, 16), (1, 8, 32), (5, 16, 8)]
    requests = [tasks.text_to_visual("a star", [], size) for size in sizes]
    made = run(tiny, requests)
    assert [tuple(m.shape) for m in made] == [(1, 4, 4, 4), (1, 2, 8, 4), (3, 4, 2, 4)]
    close(made, [run(tiny, [r], seeds=[7 + n])[0] for n, r in enumerate(requests)])


def test_what_stands_after_the_target_does_not_matter(tiny):
    request = tiny.draw(seed=None)
    close(run(tiny, [request]), run(tiny, [[*request, tasks.say("and then?"), tasks.reply()]]), atol=0)


def test_steps_are_shown_as_they_come(tiny):
    shown = []
    run(tiny, [tiny.draw(seed=None)], on_step=lambda i, t, x: shown.append((i, t, x.clone())))
    assert [i for i, _, _ in shown] == [0, 1, 2, 3] and shown[0][1] == 1.0
    assert all(a[1] > b[1] for a, b in zip(shown, shown[1:]))
    assert torch.equal(shown[0][2], torch.randn(16, 4, generator=torch.Generator().manual_seed(7)))


def test_the_habits_of_the_released_sampler_change_guidance_only(tiny):
    """The release's cached form differs from the exact one, in the unconditional branch alone."""
    faithful = tiny.build(quirks=Quirks(rounded_frequencies=False))
    exact = tiny.build(quirks=NO_QUIRKS)
    request = tiny.edit(seed=None)
    plain = replace(FEW, guidance_scale=1.0)
    close(run(faithful, [request], plain), run(exact, [request], plain), atol=0)
    difference = run(faithful, [request])[0] - run(exact, [request])[0]
    assert float(difference.abs().max()) > 1e-4


def test_a_request_without_a_picture_to_make_is_refused(tiny):
    with pytest.raises(ValueError, match="no visual target"):
        run(tiny, [tiny.answer(text=None)])


def test_a_task_of_ones_own_trains_and_samples(tiny):
    """Draw what lies between two pictures, and say so first: a template and nothing else."""
    from openlance.config.sampling import Decoding
    from openlance.inference.text import decode

    def between(first, last, words=None, clip=None):
        look = [view(c) for c in (first, last) for view in (tasks.look, tasks.keep)]
        said = tasks.reply(words) if clip is None else tasks.reply(words).as_context()
        return [*look, tasks.say("what lies between?"), said, tasks.make((1, 8, 8), clip)]

    first, last, middle = tiny.clip(1), tiny.clip(2), tiny.clip(3, height=8, width=8)
    mine = tiny.build(seed=3)
    sample = between(first, last, "a ring", middle)
    sample[-2] = tasks.reply("a ring")  # in training both holes are filled and both are learned
    packed = mine.pack([sample, mine.draw()], draws=2)
    noise = mine.noised(packed)
    before = mine.losses(packed, noise)
    before.total().backward()
    with torch.no_grad():
        for parameter in mine.model.parameters():
            parameter -= 0.01 * parameter.grad
    after = mine.losses(packed, noise)
    assert after.text < before.text and after.flow < before.flow

    words = Decoding(max_new_tokens=3)
    asked = mine.encoded(between(first, last))
    ids, _ = decode(mine.model, mine.codec, [asked], words, vocabulary=mine.vocabulary)
    said = mine.codec.tokenizer.text(ids[0])
    request = [s.as_context() if s.value == said else s for s in between(first, last, said)]
    ways = [run(mine, [request], replace(FEW, cached=cached)) for cached in (True, False)]
    assert ways[0][0].shape == (1, 2, 2, 4)
    close(*ways)


def test_a_request_that_is_let_go_takes_no_further_part(tiny):
    """Its rows do not run from the next pass on; the others come out as without it, also with the step cache."""
    requests = [getattr(tiny, task)(seed=None) for task in ("draw", "edit", "animate")]

    def after_two_steps(sampling, left):
        steps, rows = [], []
        how = {"on_step": lambda i, t, x: steps.append(i), "on_pass": rows.append}
        return run(tiny, requests, sampling, wanted=lambda: left if len(steps) > 2 else [True] * 3, **how), rows

    for sampling in (FEW, replace(FEW, cached=False), replace(FEW, solver="unipc", step_cache=0.1)):
        for left in ([True, False, True], [False, False, True], [False, False, False]):
            made, rows = after_two_steps(sampling, left)
            each = [part.shape[:3].numel() for part in made]
            kept = sum(n for n, stays in zip(each, left) if stays)
            if not sampling.step_cache:
                branches = rows[0] // sum(each)
                assert rows == [branches * sum(each)] * 2 + [branches * kept] * (2 if kept else 0)
            for n, part in enumerate(made):
                assert part.isfinite().all()
                if left[n]:
                    close(run(tiny, [requests[n]], sampling, [7 + n]), [part])
