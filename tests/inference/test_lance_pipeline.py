"""The manners of diffusers and transformers over the engine: the same results under other names."""

import numpy as np
import pytest
import torch

import openlance
from openlance.errors import UserError
from openlance.inference.lance_pipeline import LancePipeline

SEED = 5


def seeded():
    return torch.Generator().manual_seed(SEED)


@pytest.fixture(scope="session")
def lance(checkpoint) -> LancePipeline:
    return LancePipeline.from_pretrained(checkpoint.folder)


@pytest.fixture
def picture(tiny):
    return tiny.clip(3).pixels[0]


def test_it_is_the_engine_under_another_name(lance, picture):
    assert openlance.LancePipeline is openlance.Pipeline is LancePipeline is type(lance)
    drawn = lance("a ring", generator=seeded()).images[0]
    assert np.array_equal(drawn, lance.generate("a ring", seed=SEED)[0])
    edited = lance("make it red", image=picture, generator=seeded()).images[0]
    assert np.array_equal(edited, lance.edit(picture, "make it red", seed=SEED)[0])
    moved = lance("it moves", image=picture, num_frames=5, generator=seeded(), output_type="np").frames
    same = lance.animate(picture, "it moves", num_frames=5, seed=SEED)[0].pixels
    assert moved.shape == (1, 5, 16, 16, 3) and np.array_equal((moved[0] * 255).round().astype(np.uint8), same)


def test_the_input_decides_what_is_made(lance, tiny, picture):
    clip = tiny.clip(4, frames=5).pixels
    made = {
        "clip": lance("a ring", num_frames=5, output_type="latent"),
        "edited clip": lance("make it red", video=clip, output_type="latent"),
        "subject": lance("it stands on white", subject=picture, output_type="latent"),
        "two subjects": lance("they stand on white", subject=[picture, picture], output_type="latent"),
    }
    assert made["clip"].frames.shape == made["edited clip"].frames.shape == (1, 4, 3, 4, 4)
    assert made["subject"].images.shape == made["two subjects"].images.shape == (1, 4, 1, 4, 4)
    assert made["clip"].images is None and made["subject"].frames is None


def test_an_input_is_resized_to_what_is_asked_for(lance, picture):
    assert lance("make it red", image=picture, height=8, width=24).images[0].size == (24, 8)


@pytest.mark.parametrize("kind, shape", [("np", (2, 16, 16, 3)), ("pt", (2, 3, 16, 16)), ("latent", (2, 4, 1, 4, 4))])
def test_output_types(lance, kind, shape):
    made = lance(["a ring", "a star"], generator=[seeded(), seeded()], output_type=kind).images
    assert made.shape == shape and (kind == "latent" or 0 <= float(made.min()) <= float(made.max()) <= 1)


def test_the_callback_sees_every_step_and_may_change_it(lance):
    seen = []

    def look(pipe, step, t, given):
        assert pipe is lance
        seen.append((step, t, given["latents"].shape))

    plain = lance("a ring", num_inference_steps=3, generator=seeded(), output_type="latent").images
    watched = lance(
        "a ring", num_inference_steps=3, generator=seeded(), output_type="latent", callback_on_step_end=look
    )
    assert torch.equal(plain, watched.images) and [s[0] for s in seen] == [0, 1, 2] and seen[-1][1] == 0
    assert seen[0][2] == plain.shape

    def blank(pipe, step, t, given):
        return {"latents": torch.zeros_like(given["latents"])} if t == 0 else None

    changed = lance(
        "a ring", num_inference_steps=3, generator=seeded(), output_type="latent", callback_on_step_end=blank
    )
    assert not changed.images.any()


def test_several_pictures_of_each_prompt(lance):
    made = lance(["a ring", "a star"], num_images_per_prompt=2, generator=seeded(), output_type="np").images
    assert len(made) == 4 and not np.array_equal(made[0], made[1])


def test_offload_tiling_and_moving_leave_pictures_as_they_are(checkpoint):
    pipe = LancePipeline.from_pretrained(checkpoint.folder, torch_dtype=torch.float32)
    plain = pipe("a ring", generator=seeded(), output_type="np").images
    pipe.enable_model_cpu_offload()
    assert np.array_equal(pipe("a ring", generator=seeded(), output_type="np").images, plain)
    pipe.vae.enable_tiling(tile=3, overlap=2)
    tiled = pipe("a ring", generator=seeded(), output_type="np").images
    assert tiled.shape == plain.shape and not np.array_equal(tiled, plain), (
        "near, but a tile sees no further than itself"
    )
    pipe.vae.disable_tiling()
    assert np.array_equal(pipe.to("cpu")("a ring", generator=seeded(), output_type="np").images, plain)
    assert pipe.to(torch.bfloat16).dtype is torch.bfloat16 and pipe("a ring").images


def test_what_was_kept_of_earlier_calls_does_not_move_along(checkpoint, picture):
    """Keys, values and features belong to the place and the numbers that they were made with."""

    def latents(pipe):
        return pipe("a ring", image=picture, generator=seeded(), output_type="latent").images

    pipe = LancePipeline.from_pretrained(checkpoint.folder, torch_dtype=torch.bfloat16)
    pipe.prefixes.limit = 4096
    before, after = latents(pipe), latents(pipe.to(torch.float32))
    fresh = latents(LancePipeline.from_pretrained(checkpoint.folder, torch_dtype=torch.float32))
    assert torch.equal(after, fresh) and not torch.equal(after, before)


class Kept:
    """A streamer of the usual form."""

    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended = True


def test_questions_in_transformers_form(lance, picture):
    inputs = lance.processor(text="how many?", images=picture)
    streamer = Kept()
    ids = lance.generate(**inputs, max_new_tokens=6, streamer=streamer)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(ids[:, :length], inputs["input_ids"]) and streamer.ended
    assert torch.equal(torch.cat([v.flatten() for v in streamer.values]), ids[0])
    said = lance.processor.batch_decode(ids[:, length:], skip_special_tokens=True)[0].strip()
    assert said == lance.ask(picture, "how many?", max_new_tokens=6)


def test_a_batch_of_questions(lance, tiny, picture):
    clip = tiny.clip(4, frames=5).pixels
    inputs = lance.processor(text=["how many?", "what color is the ring?"], images=[picture, [picture, picture]])
    ids = lance.generate(**inputs, max_new_tokens=4)
    answers = lance.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    assert answers[0].strip() == lance.ask(picture, "how many?", max_new_tokens=4) and len(answers) == 2
    assert lance.generate(**lance.processor(text="what?", videos=clip), max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("given, said", [
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": "a", "output_type": "jpg"}, "'jpg'"),
    ({"prompt": "a", "image": "x.png", "video": "y.mp4"}, "image and video"),
    ({"prompt": ["a", "b"], "generator": [torch.Generator()]}, "1 generators for 2"),
    ({"prompt": "a", "colour": "red"}, "'colour'"),
    ({"prompt": "a", "height": 17}, "multiple of"),
    ({"prompt": "a", "width": -16}, "width must be at least 1"),
    ({"prompt": "a", "num_images_per_prompt": 0}, "per_prompt must be at least 1"),
])  # fmt: skip
def test_mistakes_are_one_sentence(lance, given, said):
    with pytest.raises(UserError, match=said) as error:
        lance(**given)
    assert "\n" not in str(error.value)
