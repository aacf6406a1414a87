"""Several adapters with weights: by hand, by name, on the command line; for images and for questions alike."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import openlance
from openlance.checkpoint.adapters import Stored, Update, read_stored, write_stored
from openlance.checkpoint.formats import find_model
from openlance.cli.main import main
from openlance.cli.options import Checkpoint, weighted
from openlance.errors import UserError
from openlance.runtime.adapters import extracted


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two adapters of nano with random numbers, for both experts: a folder of PEFT's and a file of kohya's."""
    place, pipe = tmp_path_factory.mktemp("adapters"), openlance.load("nano")
    generator = torch.Generator().manual_seed(5)
    for name, form, layers in (("a", "peft", ("und.v", "gen.down")), ("b.safetensors", "kohya", ("und.down", "gen.v"))):
        updates = {}
        for layer in layers:
            rows, columns = pipe.lance("und", "gen").get_submodule(f"layers.0.{layer}").weight.shape
            a, b = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator) * 0.3
            updates[f"layers.0.{layer}"] = Update(a=a, b=b)
        write_stored(place / name, Stored(form=form, updates=updates, base="nano"))
    return place


def weights(pipe):
    return torch.cat([pipe.lance("und", "gen").layers[0].get_submodule(n).weight.flatten() for n in ("und.v", "gen.v")])


def test_adapters_are_used_by_name_with_weights_as_in_diffusers(two):
    pipe = openlance.load("nano")
    start = weights(pipe).clone()
    pipe.load_lora_weights(two / "a", adapter_name="style")
    pipe.load_lora_weights(two / "b.safetensors", 0.5)
    both = weights(pipe).clone()
    pipe.set_adapters(["style", "b.safetensors"], [1.0, 0.5])
    assert torch.equal(weights(pipe), both)
    pipe.set_adapters("style", 0.25)
    some = weights(pipe).clone()
    assert not torch.equal(some, start) and [a.name for a in pipe.parts.adapters] == ["a:0.25"]
    pipe.set_adapters([])
    assert torch.equal(weights(pipe), start)
    for names, said in (
        (["nothing"], "there is no adapter 'nothing': use one of style"),
        (["style"] * 2, "2 adapters and 1"),
    ):
        with pytest.raises(UserError, match=said):
            pipe.set_adapters(names, [1.0])
    with pytest.raises(UserError, match="called 'style' is loaded already"):
        pipe.load_lora_weights(two / "a", adapter_name="style")
    pipe.unload_lora_weights()
    assert not pipe.adapters and torch.equal(weights(pipe), start)


def test_the_option_of_every_command_takes_several_with_weights(two, tmp_path, monkeypatch, capsys):
    said = [f"{two / 'a'}:0.8", str(two / "b.safetensors")]
    assert weighted(said) == [(two / "a", 0.8), (two / "b.safetensors", 1.0)]
    (two / "odd:1").mkdir(exist_ok=True)
    assert weighted([str(two / "odd:1")]) == [(two / "odd:1", 1.0)]
    with pytest.raises(UserError, match="no number behind the colon: write PATH:WEIGHT"):
        weighted(["a:much"])
    monkeypatch.chdir(two)
    chosen = Checkpoint(lora=["a:0.8", "b.safetensors"])
    assert chosen.anywhere().lora == [f"{two / 'a'}:0.8", f"{two / 'b.safetensors'}:1.0"]
    pipe = openlance.load("nano")
    pipe.load_lora_weights("a", 0.8)
    pipe.load_lora_weights("b.safetensors")
    scope = {"openlance": openlance}
    exec(chosen.code, scope)
    assert torch.equal(weights(chosen.load()), weights(pipe)) and torch.equal(weights(scope["pipe"]), weights(pipe))
    picture = tmp_path / "a.png"
    few = ["--num-inference-steps", "2", "--size", "32x32", "--seed", "1"]
    options = ["--lora", "a:0.8", "--lora", "b.safetensors"]
    assert main(["generate", "t2i", "a red circle", "-o", str(picture), *few, *options]) == 0
    made = pipe.generate("a red circle", seed=1, num_inference_steps=2, width=32, height=32)[0]
    assert np.array_equal(np.asarray(made), np.asarray(openlance.media.read_image(picture).pixels[0]))
    assert openlance.read_provenance(picture).lora == ("a:0.8", "b.safetensors:1")
    capsys.readouterr()
    assert main(["ask", str(picture), "what colour?", "--max-new-tokens", "9", *options]) == 0
    assert capsys.readouterr().out.strip() == str(pipe.ask(picture, "what colour?", max_new_tokens=9))


def test_a_checkpoint_with_adapters_in_its_weights_is_the_model_with_them(two, tmp_path, capsys):
    said = ["--lora", f"{two / 'a'}:0.5", "--lora", str(two / "b.safetensors"), "--dtype", "float32"]
    assert main(["lora", "merge", str(tmp_path / "tuned"), *said]) == 0
    pipe = openlance.load("nano")
    pipe.load_lora_weights(two / "a", 0.5)
    pipe.load_lora_weights(two / "b.safetensors")
    tuned = openlance.load(tmp_path / "tuned")
    assert torch.allclose(weights(tuned), weights(pipe), atol=1e-5)
    one, other = (p.parts.distilled().layers[0].gen.v.weight for p in (tuned, pipe))
    plain = tuned.lance("und", "gen").layers[0].gen.v.weight
    assert torch.allclose(one, other, atol=1e-5) and not torch.allclose(one, plain)
    assert main(["lora", "extract", str(tmp_path / "tuned"), "-o", str(tmp_path / "back"), "--rank", "2"]) == 0
    assert "(100.0% of the squared difference" in capsys.readouterr().out
    again = openlance.load("nano")
    again.load_lora_weights(tmp_path / "back")
    assert torch.allclose(weights(again), weights(pipe), atol=1e-4)
    assert main(["lora", "extract", str(tmp_path / "tuned"), "-o", str(tmp_path / "one"), "--rank", "1"]) == 0
    share = float(capsys.readouterr().out.partition("(")[2].partition("%")[0])
    assert 20 < share < 99
    tower = next(path for path in (tmp_path / "tuned").glob("vit*.safetensors"))
    tensors = load_file(tower)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 1}, tower)
    found = extracted(find_model(tmp_path / "tuned"), find_model("nano"), 2)
    assert len(found.left_out) == 1 and found.left_out[0].startswith("vit: ")


def test_several_become_one_in_another_form(two, tmp_path, capsys):
    out = tmp_path / "both.safetensors"
    assert main(["lora", "convert", f"{two / 'a'}:0.5", str(two / "b.safetensors"), str(out), "--to", "kohya"]) == 0
    one, pipe = openlance.load("nano"), openlance.load("nano")
    one.load_lora_weights(out)
    pipe.load_lora_weights(two / "a", 0.5)
    pipe.load_lora_weights(two / "b.safetensors")
    assert torch.allclose(weights(one), weights(pipe), atol=1e-6)
    capsys.readouterr()
    assert main(["lora", "inspect", str(out), "--model", "nano", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["form"], said["rank"], said["layers"], said["of"]) == ("kohya", 2, 4, "down v")
    assert said["fits"] == "nano" and said["norm"] > 0
    assert main(["lora", "convert", str(out), str(tmp_path / "peft")]) == 0
    assert read_stored(tmp_path / "peft").updates.keys() == read_stored(out).updates.keys()


@pytest.mark.parametrize(
    "words, said",
    [
        (["lora", "convert", "a"], "a alone is not enough"),
        (["lora", "convert", "a", "x", "--to", "kohya"], "kohya's form is a file: write x.safetensors"),
        (["lora", "convert", "a", "x.safetensors"], "peft's form is a folder"),
        (["lora", "convert", "a", "x", "--to", "onnx"], "peft"),
        (["lora", "convert", "a", "b.safetensors"], "b.safetensors is there already"),
        (["lora", "merge", "x"], "nothing to merge: add --lora"),
        (["lora", "merge", "x", "--lora", "nowhere"], "nowhere holds no adapter"),
        (["lora", "extract", "nano", "-o", "x"], "differ in no matrix"),
        (["lora", "inspect", "odd", "--model", "nano"], "does not fit at layers.99.gen.q"),
        (["generate", "t2i", "a", "--lora", "a:b", "-o", "x.png"], "--lora a:b has no number behind the colon"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(two, words, said, monkeypatch, capsys):
    odd = Stored(form="peft", updates={"layers.99.gen.q": Update(a=torch.ones(1, 2), b=torch.ones(2, 1))})
    write_stored(two / "odd", odd)
    monkeypatch.chdir(two)
    before = sorted(two.iterdir())
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told and told.count("\n") == 1
    assert sorted(two.iterdir()) == before
