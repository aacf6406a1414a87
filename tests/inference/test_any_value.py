"""Anything at all in the place of every argument of what people call: success, or a UserError of one sentence."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import openlance
from openlance.config.sampling import MOST_TOKENS
from openlance.errors import UserError
from openlance.inference.dialogue import Dialogue
from openlance.inference.lance_pipeline import LancePipeline
from openlance.media.clip import Clip

PICTURE = np.zeros((16, 16, 3), np.uint8)
SMALL = {"height": 16, "width": 16, "num_inference_steps": 1}
CLIP = SMALL | {"num_frames": 3}
FEW = {"max_new_tokens": 1}
# What nobody means: each is refused or, where a method has a use for it, taken; nothing else may come out.
ODD = [
    None, True, np.bool_(True), torch.tensor(True), 1.5, math.nan, math.inf, -1, -2, 2**64, 10**30, 10**5000, 1e-320,
    1e300, complex(1), "", "x", "nan", "1e400", "a\0b", "\udcff", "é" * 300, b"7", [], (), {}, {1}, [1], [None], [[]],
    ["", "a"], {"a": 1}, object(), type, range(3), iter([1]), lambda: 1, np.array([1, 2]), np.array([7]), np.array(7),
    torch.tensor(7), torch.tensor([1.0, 2.0]), Clip(PICTURE[None]), Path("nowhere"), Path(),
]  # fmt: skip


@pytest.fixture(scope="module")
def lance(checkpoint) -> LancePipeline:
    """One of its own: what is asked of it changes its place and its memory."""
    return checkpoint.load()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """What the checkpoint itself rewrites has no end."""
    monkeypatch.setattr("openlance.inference.enhance.OWN_TOKENS", 1)


@pytest.fixture(scope="module")
def talk(pipe) -> Dialogue:
    made = Dialogue(pipe, seed=1, num_inference_steps=1, max_new_tokens=1)
    made.draw("a ring")
    return made


def tried(call, value) -> None:
    """Success or a UserError of one sentence; anything else passes on."""
    try:
        call(value)
    except UserError as error:
        said = str(error)
        assert 10 < len(said) < 500 and "\n" not in said


def by_name(call, fixed, *names):
    return {name: lambda value, name=name: call(**(fixed | {name: value})) for name in names}


DRAWING = (
    "seed", "generator", "num_inference_steps", "guidance_scale", "image_guidance_scale", "shift",
    "interval", "renorm", "renorm_min", "solver", "step_cache", "cached",
    "negative_prompt", "enhance",
)  # fmt: skip


def is_many(tokens) -> bool:
    return isinstance(tokens, int) and 2 < tokens < MOST_TOKENS


def of_pipeline(pipe):
    asked = by_name(
        lambda **how: pipe.ask(PICTURE, "a", **how),
        FEW | {"temperature": 1.0},
        "seed",
        "stream",
        "top_p",
        "top_k",
        "repetition_penalty",
        "stop",
        "return_info",
    )
    return {
        "prompt": lambda v: pipe.generate(v, **SMALL),
        **by_name(lambda **how: pipe.generate("a", **how), SMALL, "height", "width", "num_images", *DRAWING),
        "progress": lambda v: pipe.generate("a", progress=v, **SMALL) if v is not type else None,
        "video prompt": lambda v: pipe.generate_video(v, **CLIP),
        **{f"video {n}": c for n, c in by_name(lambda **h: pipe.generate_video("a", **h), CLIP, "num_frames").items()},
        "animate image": lambda v: pipe.animate(v, "a", **CLIP),
        "animate prompt": lambda v: pipe.animate(PICTURE, v, **CLIP),
        "animate last": lambda v: pipe.animate(PICTURE, "a", last=v, **CLIP),
        "edit source": lambda v: pipe.edit(v, "a", num_inference_steps=1),
        "edit sources": lambda v: pipe.edit(v, ["a", "b"], num_inference_steps=1),
        "edit instruction": lambda v: pipe.edit(PICTURE, v, num_inference_steps=1),
        "subject images": lambda v: pipe.subject(v, "a", **SMALL),
        "subject prompt": lambda v: pipe.subject(PICTURE, v, **SMALL),
        "subject frames": lambda v: pipe.subject(PICTURE, "a", num_frames=v, **SMALL),
        "ask media": lambda v: pipe.ask(v, "a", **FEW),
        "ask several": lambda v: pipe.ask(v, ["a", "b"], **FEW),
        "ask question": lambda v: pipe.ask(PICTURE, v, **FEW),
        "ask temperature": lambda v: pipe.ask(PICTURE, "a", temperature=v, **FEW),
        # As many tokens as are allowed would be written for minutes.
        "ask tokens": lambda v: pipe.ask(PICTURE, "a", max_new_tokens=2 if is_many(v) else v),
        **{f"ask {name}": call for name, call in asked.items()},
        "caption": lambda v: pipe.caption(v, **FEW),
    }


def of_diffusers(lance):
    fixed = SMALL | {"prompt": "a"}
    names = ("prompt", "image", "video", "subject", "last_image", "height", "width", "num_frames", "generator",
             "num_inference_steps", "guidance_scale", "num_images_per_prompt", "output_type", "negative_prompt",
             "image_guidance_scale", "latents", "return_dict", "callback_on_step_end_tensor_inputs",
             "enhance")  # fmt: skip
    inputs = lance.processor("a", images=PICTURE) | FEW
    words = (
        "input_ids",
        "do_sample",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "stop",
        "generator",
        "streamer",
        "max_new_tokens",
        "requests",
    )
    place = lambda v: lance.to(v).to("cpu", dtype=torch.float32)  # noqa: E731
    return {
        **by_name(lance, fixed, *names),
        "callback": lambda v: lance(**fixed, callback_on_step_end=v) if v is not type else None,
        "callback gives": lambda v: lance(**fixed, callback_on_step_end=lambda *_: v),
        "callback gives latents": lambda v: lance(**fixed, callback_on_step_end=lambda *_: {"latents": v}),
        **{f"words {name}": call for name, call in by_name(lance.generate, inputs, *words).items()},
        "processor text": lambda v: lance.processor(v, images=PICTURE),
        "processor images": lambda v: lance.processor("a", images=v),
        "processor lists": lambda v: lance.processor(["a", "b"], images=v),
        "processor videos": lambda v: lance.processor("a", videos=v),
        "decode": lance.processor.decode,
        "batch_decode": lance.processor.batch_decode,
        "to": place,
        "adapter": lance.load_lora_weights,
        "adapter weight": lambda v: lance.load_lora_weights("nowhere", v),
        "tile": lance.vae.enable_tiling,
        "overlap": lambda v: lance.vae.enable_tiling(32, v),
        "no tiles": lambda _: lance.vae.disable_tiling(),
        "scheduler": lambda v: setattr(lance, "scheduler", v),
        "bar": lambda v: lance.set_progress_bar_config(disable=v) or lance.set_progress_bar_config(disable=True),
        "save": lambda v: None if isinstance(v, (str, Path)) else lance.save_pretrained(v),
        "few bits": lambda v: lance.quantize(v),
    }


def of_loading(folder):
    return {
        "model": openlance.load,
        **by_name(lambda **o: openlance.load(folder, **o), {}, "device", "dtype", "memory", "tokenizer", "base"),
        **by_name(
            lambda **o: LancePipeline.from_pretrained(folder, **o),
            {},
            "torch_dtype",
            "device_map",
            "revision",
            "cache_dir",
            "local_files_only",
            "token",
            "subfolder",
            "variant",
        ),
    }


def of_dialogue(talk):
    names = (
        "seed", "history", "height", "width", "max_new_tokens", "num_inference_steps", "negative_prompt", "enhance",
        "num_frames", "image", "video", "turns", "progress",
    )  # fmt: skip
    return {
        **by_name(lambda **o: Dialogue(talk.pipe, **o), {}, *names),
        **{name: getattr(talk, name) for name in ("say", "draw", "edit", "ask", "show", "branch")},
        "size": lambda v: talk.draw("a ring", height=v),
        "stream": lambda v: talk.ask("what is it?", v) if v is not type else None,
    }


@pytest.mark.parametrize("group", ["pipeline", "diffusers", "loading", "dialogue"])
@pytest.mark.filterwarnings("ignore")
def test_every_argument_takes_or_refuses_what_nobody_means(group, pipe, lance, talk, checkpoint):
    calls = {
        "pipeline": lambda: of_pipeline(pipe), "diffusers": lambda: of_diffusers(lance),
        "loading": lambda: of_loading(checkpoint.folder), "dialogue": lambda: of_dialogue(talk),
    }[group]()  # fmt: skip
    for (name, call), value in itertools.product(calls.items(), ODD):
        try:
            tried(call, value)
        except Exception as error:  # noqa: BLE001  which of hundreds it was
            pytest.fail(f"{name} of {type(value).__name__}: {type(error).__name__}: {str(error)[:200]}")


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=4))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
)


@given(value=VALUES, name=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore")
def test_no_value_gets_a_traceback(pipe, value, name):
    calls = list(of_pipeline(pipe).values())
    tried(calls[name % len(calls)], value)
