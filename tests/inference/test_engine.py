"""The pipeline: a batch equals its members, parts are read when needed, and every mistake is one sentence."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openlance.config.sampling import RELEASED_RUN, GenerationConfig
from openlance.errors import UserError
from openlance.inference.dialogue import Dialogue
from openlance.inference.inputs import as_clip
from openlance.media.clip import Clip
from openlance.media.image import MAX_PIXELS
from openlance.media.write import write_image

SRC = Path(__file__).parents[2] / "src"
PROMPTS = ["a red circle", "a blue square left of a star", "three rings"]
QUESTIONS = ["how many squares?", "what is it", "describe the image by its color"]


def picture(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def same(a: list, b: list, steps: int = 1) -> bool:
    """Equal pictures, but for a rounding of the last digit."""
    pairs = list(zip(a, b, strict=True))
    return all(np.abs(np.asarray(x, int) - np.asarray(y, int)).max() <= steps for x, y in pairs)


def sentence(error) -> str:
    said = str(error.value)
    assert "\n" not in said and len(said) < 900
    return said


# What comes out.


def test_prompts_in_a_batch_are_drawn_as_alone(pipe):
    together = pipe.generate(PROMPTS, seed=7)
    alone = [pipe.generate(prompt, seed=7 + n)[0] for n, prompt in enumerate(PROMPTS)]
    assert same(together, alone) and not same(together[:1], together[1:2])


def test_the_size_of_a_batch_changes_nothing(pipe, checkpoint):
    from dataclasses import replace

    split = checkpoint.load()
    split.defaults = replace(split.defaults, batch=2)
    assert same(pipe.generate(PROMPTS, seed=1), split.generate(PROMPTS, seed=1))


def test_picture_k_has_seed_plus_k_prompt_after_prompt(pipe):
    several = pipe.generate(PROMPTS[:2], num_images=2, seed=5)
    one_by_one = [pipe.generate(p, seed=s)[0] for p, s in zip(np.repeat(PROMPTS[:2], 2).tolist(), range(5, 9))]
    assert same(several, one_by_one)


def test_a_seed_is_a_generator_of_that_seed(pipe):
    drawn = pipe.generate("a ring", generator=torch.Generator().manual_seed(3))
    assert same(drawn, pipe.generate("a ring", seed=3), steps=0)
    assert not same(drawn, pipe.generate("a ring"))  # without a seed every call differs


def test_pictures_have_the_size_asked_for(pipe):
    assert pipe.generate("a ring", height=8, width=20)[0].size == (20, 8)
    assert pipe.generate("a ring")[0].size == (16, 16)


def test_a_list_of_questions_is_answered_as_one_by_one(pipe):
    images = [picture(0), picture(1, 24, 16), picture(0)]
    answers = pipe.ask(images, QUESTIONS, max_new_tokens=8)
    assert answers == [pipe.ask(i, q, max_new_tokens=8) for i, q in zip(images, QUESTIONS)]
    assert len(set(answers)) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_streamed_pieces_join_to_the_answer(pipe, seed, temperature):
    """Random weights write broken characters and stray blanks, so that everything that has to wait occurs."""
    pieces, options = [], {"max_new_tokens": 40, "temperature": temperature, "seed": seed}
    answer = pipe.ask(picture(seed), QUESTIONS[seed], stream=pieces.append, **options)
    assert "".join(pieces) == answer == pipe.ask(picture(seed), QUESTIONS[seed], **options)
    assert len(pieces) > 1


def test_a_picture_may_come_in_any_form(pipe, tmp_path):
    pixels, path = picture(4), tmp_path / "p.png"
    write_image(path, pixels)
    locked = pixels.copy()
    locked.flags.writeable = False
    mirrored = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]
    forms = [pixels, path, str(path), Image.fromarray(pixels), Clip(pixels[None]), locked, Clip(locked[None]), mirrored]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = {pipe.ask(form, "what is it?", max_new_tokens=6) for form in forms}
    assert len(answers) == 1


def test_a_picture_of_any_size_is_read(pipe):
    for height, width in ((7, 100), (33, 15), (600, 400)):
        clip = pipe.front.transform.views(as_clip(picture(0, height, width)), "text").seen
        stride = pipe.config.vit.stride
        assert clip.height % stride == clip.width % stride == 0
        assert clip.height * clip.width <= 4.5 * 16 * 16  # four times the usual area, and rounding


def test_a_caption_needs_no_question(pipe, checkpoint):
    assert pipe.caption(picture(2), max_new_tokens=6) == pipe.ask(picture(2), "", max_new_tokens=6)
    assert len(pipe.caption([picture(2), picture(3)], max_new_tokens=6)) == 2


def test_a_folder_without_preferences_gets_the_released_ones(tmp_path):
    found = GenerationConfig.read(tmp_path, few=False)
    assert found == GenerationConfig() and found.style == RELEASED_RUN and found.sampling.num_inference_steps == 30


def test_what_a_request_holds_decides_how_it_is_drawn(checkpoint, tmp_path):
    """Fields under `sampling_with` hold where a segment has that role, and what the caller says goes before them."""
    other = checkpoint.copy(tmp_path / "other")
    place, edit = other.folder / "generation_config.json", (picture(2), "make it blue")
    said = json.loads(place.read_text()) | {"sampling_with": {"source": {"image_guidance_scale": 3.0}}}
    place.write_text(json.dumps(said))
    mine, usual = other.load(), checkpoint.load()
    assert mine.sampling() == usual.sampling()

    def drawn(pipe, **how):
        return np.asarray(pipe.edit(*edit, seed=3, **how)[0])

    assert (drawn(mine) == drawn(usual, image_guidance_scale=3.0)).all()
    assert (drawn(mine, image_guidance_scale=1.0) == drawn(usual)).all()
    assert (drawn(mine) != drawn(usual)).any()
    talk = Dialogue(mine, seed=3)
    talk.show(edit[0])
    assert (talk.edit(edit[1]).picture.pixels[0] == drawn(mine)).all()
    place.write_text(json.dumps(said | {"sampling_with": {"sauce": {}}}))
    with pytest.raises(UserError, match="the role 'sauce'"):
        other.load()


# What is read.


def test_each_task_reads_only_what_it_needs(checkpoint, tmp_path):
    """In a fresh process: no library and no file that only other tasks use."""
    draws, asks = (checkpoint.copy(tmp_path / name, without=name) for name in ("vit.safetensors", "vae.safetensors"))
    code = f"""
import sys, numpy, openlance
pipe = openlance.load({str(draws.folder)!r})
pipe.generate("a red circle", seed=0)
pipe.generate_video("a red circle", num_frames=5, seed=0, num_inference_steps=1)
print("DRAWN", {{"transformers", "diffusers"}} & set(sys.modules))
pipe = openlance.load({str(asks.folder)!r})
pipe.ask(numpy.zeros((16, 16, 3), numpy.uint8), "what?", max_new_tokens=2)
print("ASKED", {{"transformers", "diffusers"}} & set(sys.modules), *pipe.lance("und").norm)
"""
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.splitlines() == ["DRAWN set()", "ASKED set() und"], done.stderr


def nan(*parts: str):
    """A change that puts a number that is not finite into each tensor whose name has one of the parts."""
    return lambda t: {n: v * torch.nan if any(p in n for p in parts) else v for n, v in t.items()}


def test_a_question_reads_no_weight_of_the_other_expert(spoiled):
    spoiled.edit("model.safetensors", nan("_moe_gen", "time_embedder", "vae2llm", "llm2vae"))
    broken = spoiled.load()
    broken.ask(picture(0), "what?", max_new_tokens=2)
    with pytest.raises(UserError, match="not finite"):
        broken.generate("a ring")


def test_a_prompt_reads_no_weight_of_the_encoder(spoiled):
    spoiled.edit("vae.safetensors", nan("encoder."))
    spoiled.load().generate("a ring")


def test_parts_are_read_once(spoiled):
    pipe = spoiled.load()
    first = pipe.generate("a ring", seed=0), pipe.ask(picture(0), "what?", max_new_tokens=4)
    for file in spoiled.folder.iterdir():
        file.unlink()
    again = pipe.generate("a ring", seed=0), pipe.ask(picture(0), "what?", max_new_tokens=4)
    assert same(first[0], again[0], steps=0) and first[1] == again[1]


# What is refused.


@pytest.mark.parametrize("options, said", [
    ({"height": 18}, "multiple of 4 .*16x16 or (20x16|16x20)"),
    ({"width": 0}, "width must be at least 1, got 0"),
    ({"height": -16}, "height must be at least 1, got -16"),
    ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
    ({"num_inference_steps": -3}, "num_inference_steps must be at least 1, got -3"),
    ({"guidance_scale": -1.0}, "guidance"),
    ({"guidance_scale": float("nan")}, "guidance"),
    ({"num_images": 0}, "num_images must be at least 1, got 0"),
    ({"renorm": "loud"}, "'loud'"),
    ({"colour": "red"}, "'colour'"),
])  # fmt: skip
def test_bad_settings_are_one_sentence(pipe, options, said):
    with pytest.raises(UserError, match=said) as error:
        pipe.generate("a ring", **options)
    sentence(error)


@pytest.mark.parametrize("prompt", ["", "  \n", ["a ring", ""], None])
def test_an_empty_prompt_is_refused(pipe, prompt):
    with pytest.raises(UserError, match="prompt"):
        pipe.generate(prompt if prompt is not None else [None])


@pytest.mark.parametrize("name, change, said", [
    ("truncated.png", lambda whole: whole[: len(whole) // 2], "damaged or truncated"),
    ("text.png", lambda whole: b"a picture", "not an image"),
    ("empty.png", lambda whole: b"", "not an image"),
    ("none.png", None, "there is no file"),
])  # fmt: skip
def test_a_bad_picture_is_refused(pipe, tmp_path, name, change, said):
    path = tmp_path / name
    write_image(tmp_path / "whole.png", picture(0))
    if change is not None:
        path.write_bytes(change((tmp_path / "whole.png").read_bytes()))
    with pytest.raises(UserError, match=said) as error:
        pipe.ask(path, "what?")
    assert name in sentence(error)


def test_a_huge_picture_is_refused(pipe, tmp_path):
    side = int(MAX_PIXELS**0.5) + 8
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match=f"{side}x{side} pixels"):
        pipe.ask(tmp_path / "huge.png", "what?")


@pytest.mark.parametrize(
    "image", [np.full((16, 16, 3), 2.0), np.zeros((16, 16, 5), "u1"), np.zeros((1, 2, 16, 16, 3), "u1")]
)
def test_an_array_that_is_no_picture_is_refused(pipe, image):
    with pytest.raises(UserError, match="is not an image or video|go from 0 to 1"):
        pipe.ask(image, "what?")


def test_questions_must_pair_up_and_only_one_is_streamed(pipe):
    with pytest.raises(UserError, match="2 images and 1 texts"):
        pipe.ask([picture(0)] * 2, ["what?"])
    with pytest.raises(UserError, match="streamed"):
        pipe.ask([picture(0)] * 2, ["what?"] * 2, stream=print)
    with pytest.raises(UserError, match="max_new_tokens must be at least 1, got 0"):
        pipe.ask(picture(0), "what?", max_new_tokens=0)


USES = {
    "model.safetensors": lambda pipe: pipe.generate("a ring"),
    "vae.safetensors": lambda pipe: pipe.generate("a ring"),
    "vit.safetensors": lambda pipe: pipe.ask(picture(0), "what?"),
}
NEEDED = {"model.safetensors": "mlp", "vae.safetensors": "decoder", "vit.safetensors": "blocks"}


def first(tensors: dict, part: str, count: int) -> list[str]:
    return sorted(name for name in tensors if part in name)[:count]


FAULTS = {
    "missing": lambda t, part: {n: v for n, v in t.items() if n not in first(t, part, 7)},
    "unexpected": lambda t, part: t | {f"{first(t, part, 1)[0]}.{k}": torch.zeros(2) for k in range(7)},
    "wrong shape": lambda t, part: t | {n: torch.zeros(3, 1, 2) for n in first(t, part, 7)},
    "not finite": lambda t, part: t | {n: t[n] / 0 for n in first(t, part, 1)},
}


@pytest.mark.parametrize("file", USES)
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_weights_are_named(spoiled, file, fault):
    spoiled.edit(file, lambda tensors: FAULTS[fault](tensors, NEEDED[file]))
    pipe = spoiled.load()
    with pytest.raises(UserError, match=fault) as error:
        USES[file](pipe)
    said = sentence(error)
    assert file in said
    if fault != "not finite":
        assert said.count(", ") + said.count("; ") >= 4 and "and 2 more" in said, "the first five are named"


@pytest.mark.parametrize("file", USES)
def test_a_missing_or_damaged_file_is_named(spoiled, file):
    path = spoiled.folder / file
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=file):
        USES[file](spoiled.load())
    path.unlink()
    with pytest.raises(UserError, match=file):
        USES[file](spoiled.load())


@pytest.mark.parametrize("file", USES)
def test_a_pickle_is_refused_even_under_another_name(spoiled, file):
    torch.save({"a": torch.zeros(2)}, spoiled.folder / file)
    with pytest.raises(UserError, match="pickle") as error:
        USES[file](spoiled.load())
    assert "allow_pickle=True" in sentence(error)


def test_the_released_codec_is_read_if_pickles_are_allowed(spoiled, pipe):
    from openlance.checkpoint.tensors import read_tensors

    weights = spoiled.folder / "vae.safetensors"
    torch.save(read_tensors(weights), spoiled.folder / "Wan2.2_VAE.pth")
    weights.unlink()
    with pytest.raises(UserError, match="Wan2.2_VAE.pth is a pickle"):
        spoiled.load().generate("a ring", seed=2)
    assert same(spoiled.load(allow_pickle=True).generate("a ring", seed=2), pipe.generate("a ring", seed=2), steps=0)
