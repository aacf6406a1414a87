"""Where a pipeline comes from, where it is kept, and what is set on it."""

import shutil

import numpy as np
import pytest
import torch

import openlance
from openlance.checkpoint.formats import find_model
from openlance.config.sampling import GenerationConfig
from openlance.errors import UserError
from openlance.flow import SOLVERS
from openlance.inference.interfaces import SCHEDULERS
from openlance.inference.lance_pipeline import LancePipeline


def latents(pipe, **more):
    more = {"generator": torch.Generator().manual_seed(5), "output_type": "latent", "num_inference_steps": 3} | more
    return pipe("a ring", **more).images


@pytest.fixture
def picture(tiny):
    return tiny.clip(3).pixels[0]


def test_both_ways_to_load_give_one_thing(checkpoint):
    one, other = openlance.load(checkpoint.folder), LancePipeline.from_pretrained(checkpoint.folder)
    assert type(one) is type(other) is openlance.Pipeline and torch.equal(latents(one), latents(other))


@pytest.mark.parametrize("form", ["openlance", "diffusers"])
def test_what_was_saved_loads_as_it_was(checkpoint, picture, tmp_path, form):
    pipe = checkpoint.load()
    pipe.save_pretrained(tmp_path / "kept", form=form)
    again = LancePipeline.from_pretrained(tmp_path / "kept")
    for media in ({}, {"image": picture}):
        made = latents(pipe, height=16, width=16, **media), latents(again, height=16, width=16, **media)
        assert torch.allclose(*made, atol=1e-4), "the same numbers lie at other places of a file"
    for part in ("transformer", "vision_tower"):
        weights, kept = (p.components[part].state_dict() for p in (pipe, again))
        assert weights.keys() == kept.keys() and all(torch.equal(weights[name], kept[name]) for name in weights)
    with pytest.raises(UserError, match="is there already"):
        pipe.save_pretrained(tmp_path / "kept")


def test_quantized_weights_are_saved_and_a_loaded_adapter_is_not(checkpoint, tmp_path):
    pipe = checkpoint.load()
    pipe.quantize("int8")
    few = latents(pipe)
    pipe.save_pretrained(tmp_path / "few")
    assert torch.allclose(latents(openlance.load(tmp_path / "few")), few, atol=1e-3)
    pipe.parts.adapters.append(None)
    with pytest.raises(UserError, match="unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()


def test_a_model_may_lie_in_a_subfolder(checkpoint, tmp_path):
    shutil.copytree(checkpoint.folder, tmp_path / "all" / "small")
    found = LancePipeline.from_pretrained(tmp_path / "all", subfolder="small", local_files_only=True, revision="v1")
    assert found.folder == tmp_path / "all" / "small"


@pytest.mark.parametrize("given, said", [
    ({"variant": "fp16"}, "torch_dtype"), ({"colour": 1}, "no option 'colour'"), ({"revision": "a b"}, "revision is"),
    ({"subfolder": "../x"}, "subfolder is"), ({"device_map": {"a": "cpu", "b": "cuda"}}, "on one device"),
    ({"token": 3}, "token is of type int"), ({"local_files_only": "perhaps"}, "local_files_only is"),
    ({"cache_dir": 3}, "cache_dir is 3"), ({"device_map": "nowhere"}, "device 'nowhere' cannot"),
])  # fmt: skip
def test_what_cannot_be_loaded_so_is_named(checkpoint, given, said):
    with pytest.raises(UserError, match=said):
        LancePipeline.from_pretrained(checkpoint.folder, **given)


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}, {"transformer": "cpu", "vae": torch.device("cpu")}])
def test_a_map_that_names_one_device_is_that_device(checkpoint, place):
    assert LancePipeline.from_pretrained(checkpoint.folder, device_map=place).device.type == "cpu"


def test_the_hub_is_asked_as_told(checkpoint, monkeypatch, tmp_path):
    """Branches of the cache, another cache, and whom to be, for the small files and for weights that come later."""
    import huggingface_hub

    calls, cache = [], tmp_path / "cache" / "models--owner--other"

    def snapshot_download(repo, **how):
        calls.append(how)
        shutil.copytree(checkpoint.folder, cache / "snapshots" / "2222" / "deep", dirs_exist_ok=True)
        return str(cache / "snapshots" / "2222")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    how = {"revision": "v2", "cache_dir": tmp_path / "cache", "token": "secret", "local_files_only": True}
    pipe = LancePipeline.from_pretrained("owner/other", subfolder="deep", **how)
    assert len(calls) == 1 and calls[0].items() >= how.items() and "secret" not in repr(pipe.parts.files)
    (pipe.folder / "model.safetensors").unlink()
    assert latents(pipe).shape[0] == 1, "the weights are fetched when they are needed"
    assert calls[1].items() >= (how | {"revision": "2222"}).items() and calls[1]["allow_patterns"] == ["deep/*"]
    (cache / "refs").mkdir()
    (cache / "refs" / "v2").write_text("2222")
    find_model("owner/other", hub=pipe.parts.files.hub)
    assert len(calls) == 2, "what the cache has of a branch is used"


def test_components_are_the_parts(pipe):
    parts = pipe.components
    assert set(parts) == {"transformer", "vae", "vision_tower", "tokenizer", "processor", "scheduler"}
    assert parts["transformer"] is pipe.lance("und", "gen") and parts["tokenizer"] is pipe.tokenizer


# How it denoises.


class Foreign:
    """What diffusers' schedulers show of themselves."""

    def __init__(self, **config):
        self.config = config


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_is_a_solver_under_diffusers_name(checkpoint, name):
    pipe, wanted = checkpoint.load(), SCHEDULERS[name]
    named = latents(checkpoint.load(), solver=wanted)
    for value in (name, wanted, type(name, (), {}), type(name, (Foreign,), {})(**pipe.scheduler.config)):
        pipe.scheduler = value
        assert pipe.scheduler.solver == wanted and pipe.scheduler.config["_class_name"] == name
        assert torch.equal(latents(pipe), named) and pipe.scheduler.shift == 3.5
        drawn = pipe.generate("a ring", seed=5, num_inference_steps=3)[0]
        same = checkpoint.load().generate("a ring", seed=5, num_inference_steps=3, solver=wanted)[0]
        assert np.array_equal(drawn, same)
    pipe.scheduler = type(name, (Foreign,), {})(**pipe.scheduler.config | {"shift": 2.0, "flow_shift": 2.0})
    assert torch.equal(latents(pipe), latents(checkpoint.load(), solver=wanted, shift=2.0))
    kept = pipe.scheduler
    pipe.scheduler = "euler"
    pipe.scheduler = kept
    assert pipe.scheduler == kept and set(SCHEDULERS.values()) == set(SOLVERS)


@pytest.mark.parametrize("wrong", [None, 3, "DDIMScheduler", object(), dict, []])
def test_a_scheduler_that_is_none_is_named(pipe, wrong):
    with pytest.raises(UserError, match="the scheduler is .*UniPCMultistepScheduler"):
        pipe.scheduler = wrong


def test_what_is_set_for_all_requests_goes_before_what_roles_prefer():
    config = GenerationConfig(sampling_with={"source": {"solver": "unipc", "shift": 2.0}})
    changed = config.denoising(solver="dpm++")
    assert config.sampling_for(["source"]).solver == "unipc" and changed.sampling_for(["source"]).solver == "dpm++"
    assert changed.sampling_for(["source"]).shift == 2.0


def test_a_bar_is_shown_where_it_is_asked_for(checkpoint, capsys):
    pipe = checkpoint.load()
    latents(pipe)
    assert not capsys.readouterr().err
    pipe.set_progress_bar_config(disable=False, desc="drawing")
    plain = latents(pipe)
    assert "drawing: 100%" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(latents(pipe), plain) and not capsys.readouterr().err
    with pytest.raises(UserError, match="'colours'"):
        pipe.set_progress_bar_config(colours=1)


def test_moving_and_offloading_change_no_picture(checkpoint):
    pipe = checkpoint.load()
    plain = latents(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert pipe.device.type == "cpu" and torch.equal(latents(pipe), plain)
    half = latents(pipe.to(torch.bfloat16))
    assert pipe.dtype is torch.bfloat16 and not torch.equal(half, plain)
    assert torch.equal(latents(pipe.to("cpu", torch.float32)), plain)


def test_nothing_of_a_call_stays_on_the_pipeline(checkpoint, picture):
    pipe = checkpoint.load()
    latents(pipe, image=picture)
    before = {name: id(value) for name, value in vars(pipe).items()}

    def stop(p, *_):
        p.interrupt = True

    noise = torch.zeros(1, 4, 1, 4, 4)
    latents(pipe, image=picture, negative_prompt="a star", latents=noise, callback_on_step_end=stop)
    assert {name: id(value) for name, value in vars(pipe).items()} == before
