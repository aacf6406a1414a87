"""Arguments of any kind, for everything that people call: taken where they have one meaning, else one sentence."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import openlance
from openlance.config.sampling import Decoding, Sampling, later_seed
from openlance.errors import UserError
from openlance.inference.dialogue import Dialogue
from openlance.inference.inputs import random_seed, seed_of, starts
from openlance.inference.lance_pipeline import LancePipeline
from openlance.inference.text import choose

LAST = 2**64 - 1
PICTURE = np.zeros((16, 16, 3), np.uint8)
SMALL = {"height": 16, "width": 16, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def lance(checkpoint) -> LancePipeline:
    """One of its own: what is asked of it changes its place and its memory."""
    return checkpoint.load()


def sentence(error: UserError) -> bool:
    said = str(error)
    return 10 < len(said) < 500 and "\n" not in said


# Seeds.


@pytest.mark.parametrize("form", [
    7, "7", " 7 ", 7.0, np.int64(7), np.uint8(7), np.array(7), torch.tensor(7), torch.tensor(7, dtype=torch.int16),
])  # fmt: skip
def test_a_seed_of_any_type_is_its_number(pipe, form):
    assert seed_of(form) == 7
    assert np.array_equal(pipe.generate("a ring", seed=form, **SMALL)[0], pipe.generate("a ring", seed=7, **SMALL)[0])


@pytest.mark.parametrize("wrong", [True, np.bool_(True), torch.tensor(False), 1.5, 2**64, -2, "", "seven", b"7", [7]])
def test_a_seed_that_is_none_is_named(pipe, wrong):
    for call in (lambda: pipe.generate("a", seed=wrong), lambda: pipe.ask(PICTURE, "a", seed=wrong),
                 lambda: Dialogue(pipe, seed=wrong)):  # fmt: skip
        with pytest.raises(UserError, match=r"^seed is .*: expected a whole number from -1 \(random\) to 2\*\*64 - 1$"):
            call()


def test_the_ends_of_the_seeds(pipe):
    assert seed_of("18446744073709551615") == seed_of(np.uint64(LAST)) == LAST and seed_of(0) == 0
    assert later_seed(LAST, 1) == 0 and later_seed(LAST - 1, 1) == LAST
    two = pipe.generate(["a ring", "a ring"], seed=LAST, **SMALL)
    assert np.array_equal(two[1], pipe.generate("a ring", seed=0, **SMALL)[0])
    talk = Dialogue(pipe, seed=LAST, num_inference_steps=1)
    talk.draw("a ring")
    again = talk.draw("a ring").picture.pixels[0]
    assert np.array_equal(again, Dialogue(pipe, seed=0, num_inference_steps=1).draw("a ring").picture.pixels[0])


def test_minus_one_and_nothing_are_random(pipe):
    torch.manual_seed(5)
    wanted = random_seed()
    for said in (-1, np.int32(-1), "-1"):
        torch.manual_seed(5)
        assert seed_of(said) == wanted
    torch.manual_seed(5)
    assert starts(None, None, 2) == [wanted, wanted + 1]


def test_generators_are_one_for_all_or_one_each(lance):
    def fresh(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    drawn = lance(["a ring"] * 2, generator=fresh(1, 2), output_type="np", **SMALL).images
    assert np.array_equal(drawn[1], lance("a ring", generator=fresh(2), output_type="np", **SMALL).images[0])
    for wrong, said in ((fresh(1), "1 generators for 2"), ([], "0 generators"), (3, "generator is 3"),
                        (["x"] * 2, "with one for each"), (np.random.default_rng(0), "is Generator")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            lance(["a ring"] * 2, generator=wrong, **SMALL)
    with pytest.raises(UserError, match="only one of them"):
        lance.generate("a", seed=1, generator=fresh(1)[0])


# Numbers and words.


@pytest.mark.parametrize("side", [16, 16.0, "16", " 16 ", np.int32(16), np.float64(16), torch.tensor(16), "1.6e1"])
def test_a_side_of_any_type_is_its_number(pipe, lance, side):
    assert pipe.generate("a", height=side, width=8, num_inference_steps=1)[0].size == (8, 16)
    assert lance("a", height=side, width=8, num_inference_steps="1").images[0].size == (8, 16)


@pytest.mark.parametrize("side", [16.5, math.nan, math.inf, [], True, "wide", 0, -16, 10**9])
def test_a_side_that_is_none_is_named(pipe, side):
    with pytest.raises(UserError, match="^height "):
        pipe.generate("a", height=side)


@pytest.mark.parametrize("count", [None, 0, 1.5, True, [], 10**9])
def test_a_count_that_is_none_is_named(pipe, lance, count):
    with pytest.raises(UserError, match="^num_images "):
        pipe.generate("a", num_images=count)
    with pytest.raises(UserError, match="^num_images_per_prompt "):
        lance("a", num_images_per_prompt=count)


def test_settings_of_any_type_are_their_numbers():
    plain = Sampling(num_inference_steps=3, guidance_scale=4.0, interval=(0.5, 1.0), cached=False)
    forms = Sampling(num_inference_steps="3", guidance_scale="4", interval=np.array([0.5, 1]), cached=np.bool_(False))
    assert forms == plain
    assert Decoding(max_new_tokens=np.int64(3), temperature="0.5") == Decoding(max_new_tokens=3, temperature=0.5)


@pytest.mark.parametrize("wrong", [
    {"interval": (0.5,)}, {"interval": 0.5}, {"interval": (1.0, 0.4)}, {"interval": {0.4, 1.0}}, {"interval": b"ab"},
    {"guidance_scale": [4]}, {"guidance_scale": 1e9}, {"guidance_scale": -1}, {"shift": 1e300}, {"shift": None},
    {"num_inference_steps": 10**9}, {"num_inference_steps": True}, {"renorm": 3}, {"renorm": "half"},
    {"renorm_min": 2}, {"solver": ["euler"]}, {"solver": "newton"}, {"step_cache": 1}, {"cached": 1},
])  # fmt: skip
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(UserError) as error:
        Sampling(**wrong)
    name = next(iter(wrong))
    assert sentence(error.value) and any(word in str(error.value) for word in (name, *name.split("_")))


@pytest.mark.parametrize("wrong", [
    {"temperature": -1}, {"temperature": math.nan}, {"temperature": [1]}, {"top_p": 0}, {"top_p": 2},
    {"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"max_new_tokens": None}, {"max_new_tokens": 10**9},
])  # fmt: skip
def test_wrong_decoding_is_named(pipe, wrong):
    with pytest.raises(UserError) as error:
        pipe.ask(PICTURE, "what?", **wrong)
    assert sentence(error.value) and next(iter(wrong)).split("_")[-1] in str(error.value)


def test_the_coldest_and_narrowest_draws_are_greedy():
    logits = torch.randn(4, 50)
    for d in (Decoding(temperature=1e-320), Decoding(temperature=1e-30), Decoding(temperature=1.0, top_p=1e-320)):
        assert torch.equal(choose(logits, d), logits.argmax(-1))


@pytest.mark.parametrize("wrong", [None, 3, [], [None], ["", "a"], b"a ring", {"a": 1}, {"a"}, np.array(["a"])])
def test_a_prompt_that_is_no_text_is_named(pipe, lance, wrong):
    for call in (pipe.generate, lance, lambda p: pipe.animate(PICTURE, p), lambda p: pipe.subject(PICTURE, p),
                 lambda p: pipe.edit(PICTURE, p)):  # fmt: skip
        with pytest.raises(UserError, match="(prompt|instruction|pair up)"):
            call(wrong)


@pytest.mark.parametrize("wrong", [None, 3, [], (), object(), {"a": 1}, "nowhere.png", Path(), [None]])
def test_a_medium_that_is_none_is_one_sentence(pipe, lance, wrong, tmp_path):
    (tmp_path / "empty.png").touch()
    for value in (wrong, tmp_path / "empty.png", tmp_path):
        for call in (lambda m: pipe.edit(m, "a"), lambda m: pipe.animate(m, "a"), lambda m: pipe.subject(m, "a"),
                     lambda m: pipe.ask(m, "?"), pipe.caption, lambda m: lance.processor("?", images=m)):  # fmt: skip
            with pytest.raises(UserError) as error:
                call(value)
            assert sentence(error.value)


def test_options_that_do_not_exist_are_named(pipe, lance, checkpoint):
    for call in (lambda: pipe.generate("a", colour=1), lambda: pipe.ask(PICTURE, "a", colour=1),
                 lambda: lance("a", colour=1), lambda: lance.processor("a", images=PICTURE, colour=1),
                 lambda: lance.generate(**lance.processor("a", images=PICTURE), colour=1),
                 lambda: Dialogue(pipe, colour=1), lambda: openlance.load(checkpoint.folder, colour=1),
                 lambda: LancePipeline.from_pretrained(checkpoint.folder, colour=1)):  # fmt: skip
        with pytest.raises(UserError, match="no option 'colour': use one of"):
            call()


def test_what_ends_a_clip_needs_what_begins_it(pipe, lance):
    with pytest.raises(UserError, match="give image"):
        lance("a", last_image=PICTURE, num_frames=3)
    with pytest.raises(UserError):
        pipe.animate(None, "a", last=PICTURE)
    with pytest.raises(UserError, match="2 images and 1 texts|pair up"):
        pipe.ask([PICTURE, PICTURE], ["one?"])


@pytest.mark.parametrize("gives, said", [
    (3, "gave 3 back"), ("x", "gave 'x' back"), ({"latents": 5}, "gave 5 back as latents"),
    ({"latents": torch.zeros(1)}, r"shape \(1,\)"), ([1], r"gave \[1\] back"),
])  # fmt: skip
def test_a_callback_that_gives_the_wrong_kind_is_named(lance, gives, said):
    with pytest.raises(UserError, match=f"callback_on_step_end .*{said}.*expected None, or"):
        lance("a", callback_on_step_end=lambda *_: gives, **SMALL)
    assert lance("a", callback_on_step_end=lambda *_: None, **SMALL).images


def test_functions_are_asked_what_they_take(pipe, lance):
    for call in (lambda f: pipe.ask(PICTURE, "what?", stream=f), lambda f: lance("a", callback_on_step_end=f, **SMALL)):
        for wrong in (3, "print", [], lambda: None):
            with pytest.raises(UserError, match="expected a function, for example"):
                call(wrong)


# Where and in what numbers.


def test_places_that_are_not_here(pipe, lance, checkpoint):
    for name in ("nonsense", "", 3.5, [], "meta", "cuda:99"):
        for call in (lance.to, lambda n: openlance.load(checkpoint.folder, device=n)):
            with pytest.raises(UserError, match="the device .* cannot be used .*: use cpu"):
                call(name)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="'cuda' cannot be used"):
            lance.to("cuda")
    assert lance.device.type == "cpu"


@pytest.mark.parametrize("name", ["bfloat16", "bf16", "torch.bfloat16", torch.bfloat16])
def test_types_of_number_go_by_name(checkpoint, name):
    assert LancePipeline.from_pretrained(checkpoint.folder, torch_dtype=name).dtype is torch.bfloat16
    assert openlance.load(checkpoint.folder, dtype=name).dtype is torch.bfloat16


def test_types_of_number_that_are_none(checkpoint):
    assert LancePipeline.from_pretrained(checkpoint.folder, torch_dtype="auto").dtype is torch.float32
    assert openlance.load(checkpoint.folder, dtype=np.float32).dtype is torch.float32
    for wrong in ("nonsense", "", 32, torch.int8, np.int64, [], {}):
        with pytest.raises(UserError, match="is no dtype to compute in.*use float32"):
            openlance.load(checkpoint.folder, dtype=wrong)


@pytest.mark.parametrize("wrong", [None, 3, "", [], b"nano", "a\0b", "x" * 5000, True])
def test_a_model_that_is_none(wrong, checkpoint):
    with pytest.raises(UserError, match="^the model is") as error:
        openlance.load(wrong)
    assert sentence(error.value)
    with pytest.raises(UserError, match="is a file, neither"):
        openlance.load(checkpoint.folder / "model.safetensors")


@pytest.mark.parametrize("wrong", ["much", "", 0, -1, [], True, {}, "12 apples", math.nan])
def test_memory_that_is_no_size(wrong, checkpoint, lance):
    for call in (lambda m: openlance.load(checkpoint.folder, memory=m), lance.enable_model_cpu_offload):
        with pytest.raises(UserError, match="^memory=.*is not a size"):
            call(wrong)


# Answers.


def test_an_answer_that_was_cut_says_so(pipe):
    cut = pipe.ask(PICTURE, "what is there to be seen?", max_new_tokens=3)
    assert isinstance(cut, str) and cut.finish_reason == "length"
    assert pickle.loads(pickle.dumps(cut)).finish_reason == "length"
    talk = Dialogue(pipe, seed=0, num_inference_steps=1, max_new_tokens=3)
    talk.draw("a ring")
    assert talk.ask("what is it?").answer.finish_reason == "length"
