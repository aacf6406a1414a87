"""Weights in few bits: near the real ones, much smaller, only where they are wanted, and the same from a file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from openlance.checkpoint.formats import find
from openlance.config.train import stage
from openlance.errors import UserError
from openlance.inference.lance_pipeline import LancePipeline
from openlance.runtime.components import load_lance
from openlance.runtime.conversion import gather, write
from openlance.runtime.inspection import inspect
from openlance.runtime.quantization import KINDS, RECIPES, QuantLinear, from_codes, quantize, to_codes
from openlance.training.start import open_base

HALF = {"int8": 0.5 / 127, "fp8": 2**-4, "int4": 0.5 / 7}  # largest error over the largest number of a group


def linear_of(kind, linear):
    return QuantLinear(*to_codes(linear.weight, KINDS[kind]), linear.bias)


@pytest.mark.parametrize("columns", [128, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_is_exact_to_half_a_level(kind, columns):
    linear = nn.Linear(columns, 8)
    made = linear_of(kind, linear)
    groups = made.scale.shape[1]
    back = (from_codes(made.weight, torch.float32).unflatten(1, (groups, -1)) * made.scale[:, :, None]).flatten(1)
    largest = linear.weight.unflatten(1, (groups, -1)).abs().amax(-1).repeat_interleave(columns // groups, dim=1)
    assert bool(((back - linear.weight).abs() <= HALF[kind] * largest * 1.01).all())
    x = torch.randn(5, columns)
    torch.testing.assert_close(made(x), torch.nn.functional.linear(x, back, linear.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_only_the_experts_change_and_shrink(tiny, name):
    model = tiny.build(seed=4).model
    before = model.state_dict()
    saved = quantize(model, name)
    changed = {path for path, m in model.named_modules() if isinstance(m, QuantLinear)}
    assert len(changed) == 2 * 2 * 7 and all(path.startswith("layers.") for path in changed)
    assert saved > 0.6 * sum(before[f"{path}.weight"].numel() * 4 for path in changed)
    assert torch.equal(model.latent_in.weight, before["latent_in.weight"])


@pytest.mark.parametrize("name, near", [("int8", 0.05), ("fp8", 0.15), ("int4", 0.4)])
@torch.no_grad()
def test_what_is_drawn_stays_near(tiny, name, near):
    exact, small = tiny.build(seed=4), tiny.build(seed=4)
    quantize(small.model, name)
    packed = exact.pack([exact.edit()])
    noise = exact.noised(packed)
    a, b = (t.hidden(packed, noise) for t in (exact, small))
    assert 0 < float((a - b).norm() / a.norm()) < near


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_a_quantized_file_is_what_quantizing_in_memory_gives(checkpoint, tmp_path, name, shards):
    write(tmp_path / "small", gather(find(checkpoint.folder), quantize=name), shards=shards, show=False)
    files = find(tmp_path / "small")
    assert inspect(tmp_path / "small", values=True).complete
    for streams in (("und",), ("und", "gen")):
        loaded = load_lance(files.decoder(), files.config, streams=streams)
        made = load_lance(find(checkpoint.folder).decoder(), files.config, streams=streams)
        quantize(made, name)
        found, expected = loaded.state_dict(), made.state_dict()
        assert found.keys() == expected.keys()
        assert all(found[key].dtype == expected[key].dtype for key in found)
        assert all(torch.equal(found[key].float(), expected[key].float()) for key in found)
    low = load_lance(files.decoder(), files.config, dtype=torch.bfloat16)
    assert low.layers[0].gen.up.weight.dtype == made.layers[0].gen.up.weight.dtype


def test_a_quantized_folder_is_one_pipeline_like_any_other(checkpoint, tmp_path):
    write(tmp_path / "small", gather(find(checkpoint.folder), quantize="int4"), show=False)
    small, whole = (LancePipeline(f, memory="1GB") for f in (tmp_path / "small", checkpoint.folder))
    draw = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 1}
    assert small.generate("a dog", **draw)[0].size == (32, 32)
    whole.quantize("int4")
    assert small.generate("a dog", **draw)[0].tobytes() == whole.generate("a dog", **draw)[0].tobytes()
    assert small.parts.plan.bytes < whole.parts.plan.bytes


def test_what_cannot_be_done_is_said(checkpoint, tmp_path):
    with pytest.raises(UserError, match="use one of int8, fp8, int4"):
        LancePipeline(checkpoint.folder).quantize("int2")
    write(tmp_path / "small", gather(find(checkpoint.folder), quantize="int8"), show=False)
    for refused in (
        lambda: gather(find(tmp_path / "small")),
        lambda: open_base(tmp_path / "small", stage("sft-ii", "nano")),
        lambda: quantize(load_lance(find(tmp_path / "small").decoder(), find(tmp_path / "small").config), "fp8"),
    ):
        with pytest.raises(UserError, match="quantized"):
            refused()


def test_a_scale_without_its_weight_is_named(checkpoint, tmp_path):
    write(tmp_path / "small", gather(find(checkpoint.folder), quantize="int8"), show=False)
    path = tmp_path / "small" / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name, value in tensors.items() if value.dtype == torch.int8)
    save_file({name: value for name, value in tensors.items() if name != lost}, path)
    with pytest.raises(UserError, match=f"without {lost}"):
        LancePipeline(tmp_path / "small").ask(np.zeros((32, 32, 3), np.uint8), "what?", max_new_tokens=1)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_neither_overflows_nor_divides_by_nothing(kind):
    linear = nn.Linear(256, 8, bias=False).half()
    linear.weight.data[0] = 0
    made = linear_of(kind, linear)
    assert bool(made(torch.full((2, 256), 30.0, dtype=torch.float16)).isfinite().all())


def test_quantization_and_adapters_come_and_go_apart(checkpoint):
    """The last kind counts, and taking adapters away leaves it."""
    pipe = checkpoint.load()
    for kind in ("int4", "int8"):
        pipe.quantize(kind)
    pipe.unload_lora_weights()
    assert pipe.lance("und").layers[0].und.up.weight.dtype == torch.int8
