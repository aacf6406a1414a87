"""Laws of a call in diffusers' manner."""

import threading

import numpy as np
import pytest
import torch

from openlance.errors import UserError
from openlance.flow import schedule
from openlance.media import Clip, collected
from openlance.vae.frames import channels_first

SEED = 5
SIZE = {"height": 16, "width": 16}


def seeded(seed=SEED):
    return torch.Generator().manual_seed(seed)


def latents(pipe, prompt="a ring", **more):
    more = {"generator": seeded(), "output_type": "latent"} | SIZE | more
    made = pipe(prompt, **more)
    return made.images if made.images is not None else made.frames


@pytest.fixture
def picture(tiny):
    return tiny.clip(3).pixels[0]


# Batches.


def test_a_batch_equals_its_items(pipe, picture):
    """Prompts, negative prompts, pictures and noise of a batch go together."""
    noise = torch.randn(2, 4, 1, 4, 4, generator=seeded())
    words, others, pictures = ["make it red", "make it blue"], ["blurry", ""], [picture, picture[::-1].copy()]
    both = latents(pipe, words, image=pictures, negative_prompt=others, latents=noise)
    for n in range(2):
        alone = latents(pipe, words[n], image=pictures[n], negative_prompt=others[n], latents=noise[n : n + 1])
        assert torch.allclose(both[n : n + 1], alone, atol=1e-4)


def test_several_of_each_prompt_are_that_prompt_as_often(pipe):
    several = latents(pipe, ["a ring", "a star"], num_images_per_prompt=2, negative_prompt=["x", "y"])
    named = latents(pipe, ["a ring"] * 2 + ["a star"] * 2, negative_prompt=["x", "x", "y", "y"])
    assert torch.equal(several, named)


# Noise.


def test_given_noise_takes_the_place_of_a_generator(pipe):
    plain = torch.randn(16, 4, generator=seeded()).reshape(1, 1, 4, 4, 4)
    given = channels_first(plain)
    before = given.clone()
    assert torch.equal(latents(pipe, latents=given, generator=None), latents(pipe)) and torch.equal(given, before)
    assert torch.equal(latents(pipe, latents=given.double()), latents(pipe))
    clip = torch.randn(1, 4, 3, 4, 4, generator=seeded())
    assert latents(pipe, latents=clip, num_frames=5).shape == clip.shape


@pytest.mark.parametrize("wrong", [
    3, "x", [], torch.zeros(1, 4, 4, 4), torch.zeros(2, 4, 1, 4, 4), torch.zeros(1, 4, 1, 4, 4, dtype=torch.long),
    torch.full((1, 4, 1, 4, 4), torch.nan),
])  # fmt: skip
def test_noise_of_another_kind_is_named(pipe, wrong):
    with pytest.raises(UserError, match=r"^latents .*\(1, 4, 1, 4, 4\)"):
        latents(pipe, latents=wrong)


# Negative prompts.


def test_an_empty_negative_prompt_is_none_and_another_one_is_not(pipe, picture):
    for media in ({}, {"image": picture}, {"image": picture, "num_frames": 5}):
        plain = latents(pipe, **media)
        for empty in (None, "", "  ", [""]):
            assert torch.equal(latents(pipe, negative_prompt=empty, **media), plain)
        assert not torch.equal(latents(pipe, negative_prompt="a blurry star", **media), plain)
        assert torch.equal(latents(pipe, **media), plain), "nothing stays behind"


def test_methods_take_negative_prompts_as_calls_do(pipe, picture):
    """One for each prompt, whatever the number of its pictures; batches of any length."""
    made = pipe.generate(["a ring", "a star"], num_images=2, negative_prompt=["x", "y"], seed=5, **SIZE)
    for n, (prompt, other) in enumerate([("a ring", "x"), ("a ring", "x"), ("a star", "y"), ("a star", "y")]):
        call = pipe(prompt, negative_prompt=other, generator=seeded(5 + n), **SIZE).images[0]
        near = np.abs(np.asarray(made[n], int) - np.asarray(call, int))
        assert near.max() <= 1 and not np.array_equal(made[n], pipe.generate(prompt, seed=5 + n, **SIZE)[0])
    edited = pipe.edit(picture, "make it red", negative_prompt="a star", seed=5)[0]
    same = pipe("make it red", image=picture, negative_prompt="a star", generator=seeded()).images[0]
    assert np.array_equal(edited, same)
    assert np.array_equal(
        pipe.edit(picture, "red", seed=5)[0], pipe.edit(picture, "red", seed=5, negative_prompt="")[0]
    )


def test_guidance_away_from_the_prompt_itself_is_none(pipe):
    """Both branches are the same then, whatever the scale."""
    same = latents(pipe, "a ring", negative_prompt="a ring", guidance_scale=7.0, renorm="none", interval=(0.0, 1.0))
    assert torch.allclose(same, latents(pipe, "a ring", guidance_scale=1.0), atol=1e-3)


@pytest.mark.parametrize("cached", [True, False])
def test_the_cache_changes_no_negative_prompt(pipe, picture, cached):
    plain = latents(pipe, image=picture, negative_prompt="a star", cached=True, image_guidance_scale=2.0)
    other = latents(pipe, image=picture, negative_prompt="a star", cached=cached, image_guidance_scale=2.0)
    assert torch.allclose(plain, other, atol=1e-3)


@pytest.mark.parametrize("wrong, said", [
    (3, "negative_prompt is 3"), ([None], "negative_prompt is None"), (["a", "b"], "2 negative prompts and 1 prompts"),
    ([], "0 negative"), (b"x", "negative_prompt is b'x'"),
])  # fmt: skip
def test_a_negative_prompt_that_is_none_is_named(pipe, wrong, said):
    with pytest.raises(UserError, match=said):
        pipe("a ring", negative_prompt=wrong)


# Callbacks.


def test_a_call_ends_early_where_its_callback_says_so(pipe):
    seen = []

    def stop(p, step, t, given):
        assert p is pipe and not p.interrupt
        seen.append(given["latents"].clone())
        p.interrupt = step == 1
        assert p.interrupt == p._interrupt == (step == 1)

    early = latents(pipe, num_inference_steps=4, callback_on_step_end=stop)
    assert len(seen) == 2 and torch.equal(early, seen[-1]) and not pipe.interrupt
    assert not torch.equal(early, latents(pipe, num_inference_steps=4)), "the next call is whole"
    with pytest.raises(UserError, match="no call is running"):
        pipe.interrupt = True


def test_an_early_end_is_of_one_call_among_several(pipe):
    """The first waits inside its callback, having stopped; the other one, on its own thread, goes through."""
    steps = {"stopped": 0, "whole": 0}

    def call(name, stops):
        def look(p, step, t, given):
            steps[name] += 1
            p.interrupt = stops

        latents(pipe, num_inference_steps=3, callback_on_step_end=look)

    threads = [threading.Thread(target=call, args=args) for args in (("stopped", True), ("whole", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps == {"stopped": 1, "whole": 3}


def test_a_callback_sees_what_it_asks_for(pipe):
    seen = []

    def look(p, step, t, given):
        seen.append((step, t, tuple(given)))

    latents(pipe, num_inference_steps=2, callback_on_step_end=look, callback_on_step_end_tensor_inputs=[])
    assert [s[2] for s in seen] == [(), ()] and [s[1] for s in seen] == [float(t) for t in schedule(2, 3.5)[1:]]
    with pytest.raises(UserError, match="prompt_embeds.*latents"):
        latents(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["prompt_embeds"])


# What comes out, and goes in again.


def test_an_output_is_a_tuple_a_mapping_and_a_name(pipe):
    made = pipe("a ring", generator=seeded(), output_type="np", **SIZE)
    [alone] = pipe("a ring", generator=seeded(), output_type="np", return_dict=False, **SIZE)
    assert np.array_equal(made.images, alone) and made[0] is made.images is made["images"] is made.to_tuple()[0]
    assert list(made) == made.keys() == ["images"] and len(made) == 1 and dict(made.items())["images"] is made.images
    (frames,) = pipe("a ring", num_frames=5, return_dict=False, **SIZE)
    assert len(frames[0]) == 5


@pytest.mark.parametrize("several", [False, True])
def test_every_form_of_output_is_an_input(pipe, several):
    """The next call gives the same for each of them, batches included."""
    words = ["a ring", "a star"] if several else "a ring"
    wanted = {"pil": None, "np": None, "pt": None}
    for kind in wanted:
        drawn = pipe(words, generator=seeded(), output_type=kind, **SIZE).images
        wanted[kind] = latents(pipe, ["red", "blue"] if several else "red", image=drawn)
    assert torch.equal(wanted["np"], wanted["pil"]) and torch.equal(wanted["pt"], wanted["pil"])
    assert len(wanted["pil"]) == 1 + several


@pytest.mark.parametrize("several", [False, True])
def test_clips_go_in_again_in_every_form(pipe, several):
    words, made = ["a ring", "a star"] if several else "a ring", []
    for kind in ("pil", "np", "pt"):
        clips = pipe(words, num_frames=5, generator=seeded(), output_type=kind, **SIZE).frames
        made.append(latents(pipe, words, video=clips))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2]) and len(made[0]) == 1 + several


def test_one_prompt_goes_with_every_picture_of_a_batch(pipe):
    drawn = pipe(["a ring", "a star"], generator=seeded(), output_type="pt", **SIZE).images
    changed = latents(pipe, "red", image=drawn, generator=[seeded(1), seeded(2)])
    for n in range(2):
        alone = latents(pipe, "red", image=drawn[n], generator=seeded(n + 1))
        assert torch.allclose(changed[n : n + 1], alone, atol=1e-4)


def test_results_of_several_sizes_come_as_pictures_alone(pipe, tiny):
    sources = [tiny.clip(1).pixels[0], tiny.clip(2, height=8).pixels[0]]
    sizes = [p.size for p in pipe(["red", "blue"], image=sources).images]
    assert len(set(sizes)) == 2
    with pytest.raises(UserError, match="several sizes"):
        pipe(["red", "blue"], image=sources, output_type="np")


@pytest.mark.parametrize("name", ["colour", "prompt_embeds", "num_images", "seed"])
def test_an_unknown_argument_is_named(pipe, name):
    with pytest.raises(UserError, match=f"no option '{name}'"):
        pipe("a ring", **{name: 1})


def test_an_edit_has_the_length_of_its_video_and_says_so(pipe):
    film = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    assert len(pipe("make it blue", video=film, num_frames=5, num_inference_steps=1).frames[0]) == 5
    with pytest.raises(UserError, match="num_frames is 9"):
        pipe("make it blue", video=film, num_frames=9, num_inference_steps=1)
    with collected() as said:
        pipe("make it blue", image=Clip(film), num_inference_steps=1)
    assert any("first of its 5 frames" in line for line in said)
