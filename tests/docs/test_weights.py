"""The table of docs/howto/weights.md, line by line: a small model in each form of weights, read or refused by name."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openlance.cli.main import main
from openlance.errors import UserError

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "weights.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "whole"
    assert main(["convert", "nano", str(folder), "--to", "openlance"]) == 0
    return folder


def matrices(tensors):
    return [name for name, value in tensors.items() if value.ndim == 2 and ".layers." in name]


def cast(tensors):
    return {name: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for name, value in tensors.items()}


def scaled(tensors):
    made = dict(tensors) | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name in matrices(tensors):
        scale = tensors[name].float().abs().max() / 448
        made[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        made[name.replace(".weight", ".scale_weight")] = scale
    return made


def prefixed(tensors):
    return {f"model.diffusion_model.{name}": value for name, value in tensors.items()}


def four_bits(tensors):
    name = matrices(tensors)[0]
    packed = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
    return dict(tensors) | {name: packed, f"{name}.absmax": torch.zeros(8), f"{name}.quant_map": torch.zeros(16)}


def put(form, tensors, folder):
    save_file({name: value.contiguous() for name, value in form(tensors).items()}, folder / "model.safetensors")


FORMS = {
    "plain fp8": (lambda t, f: put(cast, t, f), ""),
    "float32, bfloat16, float16": (lambda t, f: put(lambda t: {k: v.bfloat16() for k, v in t.items()}, t, f), ""),
    "scaled fp8": (lambda t, f: put(scaled, t, f), "unexpected: .*scale_weight"),
    "names with a prefix": (lambda t, f: put(prefixed, t, f), "unexpected: model.diffusion_model"),
    "bitsandbytes": (lambda t, f: put(four_bits, t, f), "absmax"),
    "GGUF": (lambda t, f: (f / "lance-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(64)), "missing: model.safetensors"),
    "pytorch_model.bin": (lambda t, f: torch.save(t, f / "pytorch_model.bin"), "missing: model.safetensors"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_read_or_refused_as_the_page_says(name, whole, tmp_path):
    from openlance import load

    write, said = FORMS[name]
    folder = shutil.copytree(whole, tmp_path / "form")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write(tensors, folder)
    row = next(line for line in PAGE.splitlines() if line.startswith("|") and name in line)
    assert row.split("|")[2].strip() == ("no" if said else "yes")
    assert main(["inspect", str(folder)]) == (1 if said else 0)
    if said:
        with pytest.raises(UserError) as error:
            load(folder).generate("a red circle", num_inference_steps=1)
        assert re.search(said, str(error.value))
    else:
        assert load(folder).generate("a red circle", num_inference_steps=1)[0].size == (64, 64)


def test_a_file_alone_is_no_checkpoint(whole, capsys):
    assert main(["generate", "t2i", "x", "--model", str(whole / "model.safetensors")]) == 2
    assert "give its folder" in capsys.readouterr().err and "| a single weight file instead of a folder | no |" in PAGE
