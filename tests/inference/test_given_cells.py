"""Given cells: any part of a visual target can be known, as the first frame of a video is. It stands at time 0, takes
no part in the loss, and comes out as it went in."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import openlance
from openlance.config.sampling import Sampling
from openlance.errors import UserError
from openlance.inference.engine import _within
from openlance.inference.regions import beyond
from openlance.inference.visual import denoise
from openlance.media import Clip, as_clip
from openlance.media.inputs import every_frame
from openlance.sequence import tasks
from openlance.sequence.explain import explain
from openlance.sequence.pack import pack as pack
from openlance.sequence.segment import Kind, Region, Role
from openlance.sequence.tasks import Views, within

FEW = Sampling(num_inference_steps=4, guidance_scale=3.0, shift=2.0, interval=(0.4, 1.0))
STRIDE = 4  # of the tiny model
MAKERS = ("image_inpaint", "outpaint", "video_inpaint", "extend")


def some_cells(size, seed=0):
    """Pixels of about half of the cells of a size, in each frame others."""
    frames, height, width = size
    cells = np.random.default_rng(seed).random((frames, height // STRIDE, width // STRIDE)) < 0.5
    return np.kron(cells, np.ones((1, STRIDE, STRIDE), bool)).astype(bool)


def part(tiny, task, inside=None, fill=3):
    """A request, or a sample with `fill`, in which a region of something is to be drawn."""
    spec = tasks.spec_of(task)
    frames = 5 if spec.makes == "video" else 1
    source = tiny.clip(1, frames=frames)
    size = (source.frames, source.height, source.width)
    target = None if fill is None else tiny.clip(fill, frames=frames)
    made = tasks.request(task, "the ring", [Views(source, source)], size, target, tiny.style)
    return within(made, Region(some_cells(size) if inside is None else inside))


def run(tiny, requests, sampling=FEW, seeds=None):
    return denoise(
        tiny.model, tiny.codec, [tiny.encoded(r) for r in requests], sampling,
        seeds=seeds or [7 + n for n in range(len(requests))],
    )  # fmt: skip


def known(tiny, request):
    """Which latents (T, Y, X) are given, and all of what is given there."""
    given = tiny.keep(request[-1].given)
    return torch.from_numpy(~request[-1].region.cells(tuple(given.shape[:3]))), given


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("how", [{}, {"cached": False}, {"solver": "dpm++"}, {"image_guidance_scale": 2.0}])
def test_given_cells_come_out_bit_equal_and_all_others_change(tiny, task, how):
    request = part(tiny, task, fill=None)
    where, given = known(tiny, request)
    made = run(tiny, [request], replace(FEW, **how))[0]
    assert 0 < where.sum() < where.numel() and torch.equal(made[where], given[where].to(made))
    assert (made[~where] != given[~where].to(made)).any(-1).all()


@pytest.mark.parametrize("task", MAKERS)
def test_cached_equals_uncached(tiny, task):
    request = part(tiny, task, fill=None)
    one, two = (run(tiny, [request], replace(FEW, cached=cached))[0] for cached in (True, False))
    torch.testing.assert_close(one, two, atol=2e-5, rtol=2e-5)


def test_a_batch_equals_its_requests_alone(tiny):
    requests = [part(tiny, task, fill=None) for task in MAKERS] + [tiny.animate(seed=None), tiny.draw(seed=None)]
    together = run(tiny, requests)
    for n, request in enumerate(requests):
        torch.testing.assert_close(together[n], run(tiny, [request], seeds=[7 + n])[0], atol=2e-5, rtol=2e-5)


def test_all_given_but_what_follows_the_first_frame_is_image_to_video(tiny):
    """The same rows, the same states and the same result to the last bit."""
    clip = tiny.clip(4, frames=5)
    size = (clip.frames, clip.height, clip.width)
    first = clip.with_pixels(clip.pixels[:1])
    moved = tiny.put("i2v", "the ring", [first], size, None)
    inside = np.ones(size, dtype=bool)
    inside[0] = False
    extended = within(tiny.put("extend", "the ring", [clip], size, None), Region(inside))
    rows = [tiny.pack([request]).rows for request in (moved, extended)]
    assert all(torch.equal(getattr(rows[0], name), getattr(rows[1], name)) for name in vars(rows[0]))
    assert torch.equal(run(tiny, [moved])[0], run(tiny, [extended])[0])


@pytest.mark.parametrize("task", MAKERS)
def test_the_loss_is_inside_alone_and_so_is_its_gradient(tiny, task):
    """Given cells are what is given, at time 0; what the target shows there changes neither loss nor gradient."""
    mine = tiny.build(seed=5)
    sample = part(tiny, task)
    where, given = known(tiny, sample)
    packed = mine.pack([sample, mine.draw()], draws=2)
    latents = [v.segment for v in packed.visuals if v.segment.kind is Kind.LATENTS]
    first = next(n for n, s in enumerate(latents) if s.role is Role.TARGET)  # all before are sources of its size
    noise, flat = mine.noised(packed), where.flatten()
    own = slice(first * len(flat), (first + 1) * len(flat))
    assert torch.equal(noise.x[own][flat], given.flatten(0, 2)[flat]) and not noise.times[own][flat].any()
    assert (noise.times[own][~flat] > 0).all()

    def gradient(noise):
        mine.model.zero_grad()
        losses = mine.losses(packed, noise)
        losses.total().backward()
        return losses, [p.grad.clone() for p in mine.model.parameters() if p.grad is not None]

    losses, gradients = gradient(noise)
    moved = int(packed.rows.denoise.sum())
    assert len(losses.per_latent) == moved == 2 * int((~flat).sum()) + 2 * 16
    other = noise.target.clone()
    other[own][flat] = 1e3
    again, same = gradient(replace(noise, target=other))
    assert torch.equal(losses.flow, again.flow) and all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))


def test_a_pack_equals_its_samples_alone(tiny):
    samples = [part(tiny, task) for task in MAKERS] + [tiny.animate(), tiny.edit()]
    packed = tiny.pack(samples)
    noise = tiny.noised(packed)
    together = tiny.hidden(packed, noise)
    latent = packed.rows.is_latent
    start = 0
    for n, sample in enumerate(samples):
        alone = tiny.pack([sample])
        rows = latent & (packed.rows.doc == n)
        mine = replace(noise, **{k: getattr(noise, k)[rows[latent]] for k in ("x", "target", "times")})
        end = start + len(alone)
        torch.testing.assert_close(together[start:end], tiny.hidden(alone, mine), atol=2e-5, rtol=2e-5)
        start = end


def test_given_cells_stay_in_every_branch_of_guidance(tiny):
    """What is dropped is the prompt and the source, not what is known of the target."""
    request = part(tiny, "image_inpaint", fill=None)
    bare = tasks.within([s for s in request if s.role not in (Role.PROMPT, Role.SOURCE)], request[-1].region)
    assert bare[-1].given is request[-1].given
    made = run(tiny, [bare], replace(FEW, guidance_scale=1.0))[0]
    where, given = known(tiny, bare)
    assert torch.equal(made[where], given[where].to(made))


def test_a_region_without_an_outside_is_a_plain_edit(tiny):
    """With everything to be changed nothing is given."""
    whole = part(tiny, "image_inpaint", np.ones((1, 16, 16), bool), fill=None)
    plain = tiny.put("image_edit", "the ring", [tiny.clip(1)], (1, 16, 16), None)
    assert torch.equal(run(tiny, [whole])[0], run(tiny, [plain])[0])


def test_strength_begins_from_the_source_inside_and_leaves_the_outside(tiny):
    request = part(tiny, "image_inpaint", fill=None)
    where, given = known(tiny, request)
    made = run(tiny, [request], replace(FEW, strength=0.5))[0]
    assert torch.equal(made[where], given[where].to(made))


def test_an_explanation_says_what_is_given(tiny):
    found = explain(part(tiny, "image_inpaint", fill=None), tiny.codec, tiny.model.config.position, str)
    assert found.parts[-1].content == "1 frame of 16x16, to be drawn, all but a region given"
    assert [s.time for s in found.splits if s.loss.startswith("velocity")] == ["0 or t"]


def test_a_turn_that_has_passed_has_nothing_given(tiny):
    past = part(tiny, "image_inpaint")[-1].as_context()
    assert past.given is None and past.region is None and past.role is Role.HISTORY


@pytest.fixture(scope="module")
def pipe():
    """A checkpoint that was trained for all that regions are for."""
    made = openlance.load("nano")
    assert all(made.defaults.knows(task) for task in MAKERS)
    return made


def untrained():
    """One that does not say so."""
    made = openlance.load("nano")
    made.defaults = replace(made.defaults, tasks=tuple(name for name in made.defaults.tasks if name not in MAKERS))
    return made


FILM = np.random.default_rng(0).integers(0, 60, (5, 64, 64, 3), dtype=np.uint8)
SHORT = {"num_inference_steps": 3, "seed": 5}


def test_who_was_trained_for_regions_is_asked_as_trained_and_others_as_before(pipe):
    inside = np.zeros((1, 64, 64), bool)
    inside[:, 8:24] = True
    source = Clip(FILM[:1])
    plain = within(pipe.front.request("image_edit", "make it green", [source]), Region(inside))
    own = pipe.held(plain)
    sample = within(pipe.front.request("image_inpaint", "make it green", [source]), Region(inside))
    rows = [pack([r], pipe.codec, pipe.config.position).rows for r in (own, sample)]
    assert all(torch.equal(getattr(rows[0], n), getattr(rows[1], n)) for n in vars(rows[0]))
    assert own[-1].given.key == sample[-1].given.key and int(rows[0].denoise.sum()) == 16
    whole = within(plain, Region(np.ones_like(inside)))
    assert pipe.held(whole) is whole and pipe.held(own) is own
    assert untrained().held(plain) is plain


def test_an_image_goes_on_beyond_its_borders(pipe):
    """Its own pixels stay, in a batch as alone."""
    pictures = [FILM[0], FILM[1]]
    made = pipe.outpaint(pictures, ["a red circle", "a blue ring"], right=16, bottom=8, **SHORT)
    assert [image.size for image in made] == [(80, 72)] * 2
    for n, (image, own) in enumerate(zip(made, pictures, strict=True)):
        assert (np.asarray(image)[:64, :64] == own).all()
        alone = pipe.outpaint(own, ["a red circle", "a blue ring"][n], right=16, bottom=8, **SHORT | {"seed": 5 + n})[0]
        assert np.abs(np.asarray(alone).astype(int) - np.asarray(image)).max() <= 1
    assert as_clip(made[0]).made.task == "outpaint" and as_clip(made[0]).made.region == "beyond its borders"


@pytest.mark.parametrize("room", [{"right": 3}, {"left": 5, "bottom": 1}, {"top": "4", "right": 32.0}])
def test_an_image_of_any_size_keeps_its_pixels_and_gets_the_size_that_is_asked_for(pipe, room):
    own = FILM[0, :61, :43]
    made = as_clip(pipe.outpaint(own, "a red circle", **room, **SHORT)[0])
    left, top, right, bottom = (int(room.get(name, 0)) for name in ("left", "top", "right", "bottom"))
    assert (made.width, made.height) == (43 + left + right, 61 + top + bottom)
    assert (made.made.width, made.made.height) == (made.width, made.height)
    assert np.array_equal(made.pixels[0, top : top + 61, left : left + 43], own)


def test_what_was_not_there_is_all_that_was_made(pipe):
    """No edge goes over to it from the grey of what is not known; in an edit one does from what was there."""
    request = beyond(pipe, tasks.spec_of("outpaint"), "a red circle", Clip(FILM[:1]), "beyond", right=16)
    drawn = Clip(np.random.default_rng(3).integers(0, 256, (1, 64, 80, 3), np.uint8))
    whole = _within(drawn, request, 8).pixels[0]
    assert np.array_equal(whole[:, :64], FILM[0]) and np.array_equal(whole[:, 64:], drawn.pixels[0, :, 64:])
    inside = np.zeros((1, 64, 64), bool)
    inside[:, :, 32:] = True
    edit = within(pipe.front.request("image_inpaint", "make it green", [Clip(FILM[:1])]), Region(inside))
    changed = _within(drawn.with_pixels(drawn.pixels[:, :, :64]), edit, 8).pixels[0]
    assert np.array_equal(changed[:, 40:], drawn.pixels[0, :, 40:64]) and np.array_equal(
        changed[:, :32], FILM[0, :, :32]
    )
    assert not np.array_equal(changed[:, 32:38], drawn.pixels[0, :, 32:38])


def test_all_frames_of_a_file_stay(pipe, tmp_path):
    for name in ("film.mp4", "film.webp"):
        Clip(np.repeat(FILM, 2, axis=0)[:7]).save(tmp_path / name)
        own = every_frame(tmp_path / name)
        assert own.frames == 7 and np.array_equal(every_frame(own).pixels, own.pixels)
        made = pipe.extend(tmp_path / name, "a red circle moves left", before=1, after=1, **SHORT)[0]
        assert made.frames == 9 and np.array_equal(made.pixels[1:8], own.pixels)
    faster = every_frame(Clip(np.repeat(FILM, 2, axis=0), fps=24.0))
    assert np.array_equal(faster.pixels, FILM) and faster.fps == 12
    with pytest.raises(UserError, match="lasts 6.7 s, and all of its frames are to stay"):
        every_frame(Clip(np.repeat(FILM, 16, axis=0), fps=12.0001))


@pytest.mark.parametrize("room", [{"after": 4}, {"before": 4}, {"before": 3, "after": 1}])
def test_a_video_goes_on_before_and_after(pipe, room):
    made = pipe.extend(FILM, "a red circle moves left", **room, **SHORT)[0]
    first = room.get("before", 0)
    assert made.frames == 9 and (made.pixels[first : first + 5] == FILM).all()
    assert made.made.task == "extend"


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda p: p.extend(FILM, "x", after=3), "would have 8 frames, and it has to be 1 + 4 k: ask for 5 or 9"),
        (lambda p: p.extend(FILM, "x"), "nothing to draw beyond it: give one of before, after"),
        (lambda p: p.extend(FILM, "x", after=-1), "after"),
        (lambda p: p.outpaint(FILM[0], "x", left=0.5), "left"),
        (lambda p: p.outpaint(FILM[0], "x", left=10**6), "left must be at most 8192"),
        (lambda p: p.outpaint(FILM[0], "x", left=8192), "the width of the whole must be at most 8192"),
        (lambda p: p.outpaint(FILM[0], "x", left=800), "give a smaller one, or ask for less room"),
        (lambda p: p.extend(FILM, "x", after=100_000), "after must be at most 10000"),
        (lambda p: untrained().extend(FILM, "x", after=4), "not trained to make what comes before or after"),
    ],
)
def test_what_cannot_be_is_one_sentence(pipe, call, said):
    with pytest.raises(UserError, match=re.escape(said) if "1 + 4" in said else said):
        call(pipe)
