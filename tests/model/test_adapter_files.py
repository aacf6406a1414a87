"""Files of adapters: PEFT's variants give PEFT's own result or are refused by name; other keys go in and out."""

import copy
import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from openlance.checkpoint.adapters import CONFIG, DIFFUSERS, WEIGHTS, our_module, read_stored, write_stored
from openlance.checkpoint.formats import RELEASED_MODULES, released_name
from openlance.errors import UserError
from openlance.model.lora import merge, read_adapter

peft = pytest.importorskip("peft")
TARGETS = r"layers\.\d+\.(und|gen)\.(q|v|down)"


def written(tiny, folder, seed=0, **kind):
    """An adapter of PEFT with random numbers, saved by PEFT; returns the model that PEFT computes with."""
    config = peft.LoraConfig(**{"target_modules": TARGETS, "r": 4, "lora_alpha": 6} | kind)
    model = peft.get_peft_model(copy.deepcopy(tiny.model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    model.save_pretrained(str(folder))
    return model.base_model.model


def outputs(tiny, model):
    packed = tiny.pack(tiny.samples())
    with torch.no_grad():
        return type(tiny)(model, tiny.codec).hidden(packed, tiny.noised(packed))


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q": 2, r"layers\.0\.gen\.v": 3}, "alpha_pattern": {"und.v": 1, "down": 9}},
        {"rank_pattern": {"down": 7}, "use_rslora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"bias": "all", "lora_bias": True, "use_rslora": True},
        {"target_modules": ["q", "latent_in", "time.up", "head"]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"fan_in_fan_out": True, "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_adapters_of_peft_compute_what_peft_computes(tiny, tmp_path, kind):
    theirs = written(tiny, tmp_path, **kind).eval()
    plain, ours = outputs(tiny, tiny.model), copy.deepcopy(tiny.model)
    read_adapter(tmp_path).merge(ours)
    wanted = outputs(tiny, theirs)
    assert (wanted - plain).abs().max() > 1e-2
    assert torch.allclose(outputs(tiny, ours), wanted, atol=2e-5)


def test_weights_of_several_adapters_are_those_of_peft(tiny, tmp_path):
    model = written(tiny, tmp_path / "a", 1)
    written(tiny, tmp_path / "b", 2, r=3, target_modules="layers.*gen.(q|up)")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(tiny.model), str(tmp_path / "a"), adapter_name="a")
    model.load_adapter(str(tmp_path / "b"), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.8, -0.5], "both", combination_type="cat")
    model.set_adapter("both")
    ours = copy.deepcopy(tiny.model)
    merge(ours, [read_adapter(tmp_path / "a", 0.8), read_adapter(tmp_path / "b", -0.5)])
    assert torch.allclose(outputs(tiny, ours), outputs(tiny, model.base_model.model), atol=2e-5)


def test_a_part_of_a_trained_bias_is_that_part_of_the_way(tiny, tmp_path):
    written(tiny, tmp_path, bias="all")
    start, half, whole = (copy.deepcopy(tiny.model) for _ in range(3))
    merge(half, [read_adapter(tmp_path, 0.25), read_adapter(tmp_path, 0.25)])
    read_adapter(tmp_path).merge(whole)
    a, b, c = (m.layers[1].gen.q.bias for m in (start, half, whole))
    assert torch.allclose(b - a, (c - a) / 2, atol=1e-6) and (c - a).abs().max() > 0.01


@pytest.mark.parametrize(
    "kind, named",
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"init_lora_weights": "pissa_niter_2"}, "init_lora_weights=pissa_niter_2"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["time.up"]}, "modules_to_save=['time.up']"),
        ({"target_modules": ["embed"]}, "a LoRA of an embedding"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication="),
    ],
    ids=str,
)
def test_what_is_more_than_an_addition_of_low_rank_is_refused_by_name(tiny, tmp_path, kind, named):
    written(tiny, tmp_path, **kind)
    with pytest.raises(UserError, match=re.escape(named)):
        read_adapter(tmp_path)


def test_a_kind_that_comes_later_is_refused_by_its_field(tiny, tmp_path):
    written(tiny, tmp_path)
    said = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(said | {"use_newest": True}))
    with pytest.raises(UserError, match="not a plain LoRA .use_newest=True"):
        read_adapter(tmp_path)


def test_pissa_that_peft_made_plain_is_read(tiny, tmp_path):
    model = peft.get_peft_model(
        copy.deepcopy(tiny.model), peft.LoraConfig(target_modules=TARGETS, r=4, init_lora_weights="pissa")
    )
    model.peft_config["default"].init_lora_weights = True  # as PEFT's recipe for it says
    model.save_pretrained(str(tmp_path / "start"))
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(torch.ones_like(p) * 0.02)
    model.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours = copy.deepcopy(tiny.model)
    read_adapter(tmp_path / "plain").merge(ours)
    assert torch.allclose(outputs(tiny, ours), outputs(tiny, model.base_model.model), atol=5e-4)


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_an_adapter_goes_through_every_form_unchanged(tiny, tmp_path, form):
    written(tiny, tmp_path / "start", rank_pattern={"q": 2}, alpha_pattern={"v": 3}, use_rslora=True)
    start = read_stored(tmp_path / "start")
    place = tmp_path / "there.safetensors" if form == "kohya" else tmp_path / "there"
    write_stored(place, start.__class__(form=form, updates=start.updates, base=start.base))
    back = read_stored(place)
    assert back.form == form and back.updates.keys() == start.updates.keys()
    for name, u in back.updates.items():
        assert torch.equal(u.a, start.updates[name].a) and torch.equal(u.b, start.updates[name].b)
        assert u.scale == pytest.approx(start.updates[name].scale, rel=1e-6)


def test_our_forms_are_those_of_the_others(tiny, tmp_path):
    written(tiny, tmp_path / "start", alpha_pattern={"v": 3})
    start = read_stored(tmp_path / "start")
    write_stored(tmp_path / "k.safetensors", start.__class__(form="kohya", updates=start.updates))
    keys = load_file(tmp_path / "k.safetensors")
    stem = "lora_unet_language_model_model_layers_0_self_attn_q_proj_moe_gen"
    assert keys[f"{stem}.lora_down.weight"].shape[0] == 4 and float(keys[f"{stem}.alpha"]) == 6
    write_stored(tmp_path / "d", start.__class__(form="diffusers", updates=start.updates))
    with safe_open(tmp_path / "d" / DIFFUSERS, framework="pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert said["transformer.r"] == 4 and said["transformer.lora_alpha"] == 6


def test_diffusers_reads_what_we_write_and_we_what_it_writes(tiny, tmp_path):
    from diffusers import ModelMixin
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.loaders import PeftAdapterMixin

    class Released(ModelMixin, ConfigMixin, PeftAdapterMixin):
        """The decoder's layers under their released names."""

        def __init__(self):
            super().__init__()
            for name, module in tiny.model.named_modules():
                if isinstance(module, torch.nn.Linear):
                    *path, last = released_name(f"{name}.weight").split(".")[:-1]
                    place = self
                    for step in path:
                        if not hasattr(place, step):
                            place.add_module(step, torch.nn.Module())
                        place = getattr(place, step)
                    place.add_module(last, copy.deepcopy(module))

    written(tiny, tmp_path / "start", rank_pattern={"q": 2}, alpha_pattern={"v": 3})
    start = read_stored(tmp_path / "start")
    write_stored(tmp_path / "d", start.__class__(form="diffusers", updates=start.updates))
    theirs, ours = Released(), copy.deepcopy(tiny.model)
    theirs.load_lora_adapter(str(tmp_path / "d"), prefix="transformer", weight_name=DIFFUSERS)
    read_adapter(tmp_path / "start").merge(ours)
    for name in ("layers.0.gen.q", "layers.1.und.v", "layers.1.gen.down"):
        mine = dict(ours.named_modules())[name]
        x = torch.randn(3, mine.in_features)
        other = theirs.get_submodule(released_name(f"{name}.weight").removesuffix(".weight"))
        assert torch.allclose(mine(x), other(x), atol=1e-5)
    theirs.save_lora_adapter(str(tmp_path / "again"), adapter_name=next(iter(theirs.peft_config)))
    again = read_stored(tmp_path / "again")
    assert again.updates.keys() == start.updates.keys()
    assert all(u.scale == pytest.approx(start.updates[n].scale) for n, u in again.updates.items())


@pytest.mark.parametrize(
    "down, up, prefix, underscores",
    [
        ("lora_down.weight", "lora_up.weight", "lora_unet_", True),
        ("lora_down.weight", "lora_up.weight", "diffusion_model.", False),
        ("lora_A.weight", "lora_B.weight", "diffusion_model.", False),
        ("lora_A.default.weight", "lora_B.default.weight", "transformer.", False),
        ("lora.down.weight", "lora.up.weight", "transformer.", False),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight", "", False),
    ],
)
@pytest.mark.parametrize("released", [True, False])
def test_keys_of_other_programs_are_understood(tiny, tmp_path, down, up, prefix, underscores, released):
    ours = "layers.1.gen.q"
    name = "language_model.model.layers.1.self_attn.q_proj_moe_gen" if released else ours
    stem = prefix + (name.replace(".", "_") if underscores else name)
    weight = dict(tiny.model.named_modules())[ours].weight
    a, b = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    save_file({f"{stem}.{down}": a, f"{stem}.{up}": b, f"{stem}.alpha": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    before = weight.detach().clone()
    model = copy.deepcopy(tiny.model)
    read_adapter(tmp_path / "x.safetensors", 0.5).merge(model)
    assert torch.allclose(model.layers[1].gen.q.weight - before, 0.5 * 0.5 * b @ a, atol=1e-5)


def test_every_module_is_known_by_both_names_with_dots_and_underscores():
    for ours, released in RELEASED_MODULES.items():
        for name in (ours, released):
            name, wanted = name.replace("*", "17"), ours.replace("*", "17")
            assert our_module(name) == our_module(name.replace(".", "_")) == wanted


@pytest.mark.parametrize(
    "extra, named",
    [
        ({"lora_unet_layers_0_gen_q.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
        ({"lora_unet_layers_0_gen_q.dora_scale": torch.ones(2, 2)}, "DoRA"),
        ({"lora_unet_layers_0_gen_q.diff_b": torch.ones(2)}, "full rank"),
        ({"what": torch.ones(2)}, "what"),
        ({"lora_te_text_model_x.lora_down.weight": torch.ones(2, 2)}, "lora_te_text_model_x"),
        ({"layers.0.gen.q.alpha": torch.ones(2)}, "alpha holds 2 numbers"),
        ({"layers.0.gen.k.alpha": torch.tensor(1.0)}, "it has layers.0.gen.k.alpha and no matrices"),
        ({"layers.0.gen.q.lora_A.weight": torch.ones(1, 2, dtype=torch.int8)}, "not a whole adapter at layers.0.gen.q"),
    ],
    ids=str,
)
def test_tensors_that_have_no_place_are_named(tmp_path, extra, named):
    good = {"layers.0.gen.q.lora_A.weight": torch.ones(1, 2), "layers.0.gen.q.lora_B.weight": torch.ones(2, 1)}
    save_file(good | extra, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=named):
        read_adapter(tmp_path / "x.safetensors")


def test_a_file_without_its_settings_or_half_of_itself_is_refused(tiny, tmp_path):
    written(tiny, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    half = {name: t for name, t in tensors.items() if "gen.q.lora_B" not in name}
    save_file(half, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="not a whole adapter at .*gen.q"):
        read_adapter(tmp_path)
    save_file(tensors, tmp_path / WEIGHTS)
    said = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(said | {"target_modules": "(("}))  # a pattern that is none
    assert not read_stored(tmp_path).targets
    save_file({"layers.0.gen.q.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no adapter, but whole weights .*that is a model"):
        read_adapter(tmp_path / "model.safetensors")
    (tmp_path / CONFIG).unlink()
    with pytest.raises(UserError, match="holds no adapter: give a folder with adapter_config.json"):
        read_adapter(tmp_path)
