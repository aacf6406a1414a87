"""What a pipeline makes says how, and can be made again from that; the record knows the weights."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import openlance
from openlance.checkpoint import tensors as f
from openlance.checkpoint.formats import folder_of
from openlance.cli.main import main
from openlance.media import Clip, as_clip, read_provenance
from openlance.sequence import tasks

STEP = {"num_inference_steps": 1}
SMALL = STEP | {"height": 16, "width": 32}


@pytest.fixture(scope="module")
def pipe():
    return openlance.load("nano")


def test_a_picture_can_be_made_again_from_what_it_says(pipe):
    made = pipe.generate(["a red circle", "a ring"], seed=5, negative_prompt=["", "blue"], guidance_scale=3.0, **SMALL)
    told = [as_clip(image).made for image in made]
    assert [(t.prompt, t.negative_prompt, t.seed) for t in told] == [("a red circle", "", 5), ("a ring", "blue", 6)]
    t = told[1]
    assert (t.task, t.model, t.width, t.height, t.num_frames) == ("t2i", "nano", 32, 16, 1)
    again = pipe.generate(
        t.prompt, negative_prompt=t.negative_prompt, seed=t.seed, width=t.width, height=t.height, **t.settings
    )[0]
    assert np.abs(np.asarray(again).astype(int) - np.asarray(made[1])).max() <= 1 and as_clip(again).made == t


def test_a_call_of_diffusers_tells_the_seed_of_a_fresh_generator(pipe):
    fresh, used = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
    torch.randn(1, generator=used)
    made = pipe(["x", "y"], generator=[fresh, used], **SMALL).images
    assert [as_clip(image).made.seed for image in made] == [9, None]
    twice = pipe(["x", "y"], generator=torch.Generator().manual_seed(9), **SMALL).images
    assert [as_clip(image).made.seed for image in twice] == [9, None]


def test_who_does_not_want_it_gets_none():
    image = openlance.load("nano", metadata=False).generate("x", **SMALL)[0]
    assert image.info == {}


@pytest.mark.parametrize("spec", tasks.TASKS.values(), ids=lambda spec: spec.name)
def test_a_request_tells_its_task(pipe, spec):
    clip = Clip(np.zeros((5 if spec.reads == "video" else 1, 16, 16, 3), np.uint8))
    request = pipe.front.request(spec, "x", [clip] if spec.reads else [])
    found = tasks.task_of(request)
    assert found.template is spec.template and found.makes == spec.makes
    assert tasks.task_of(tasks.dialogue(request, request)) is None


def test_the_commands_write_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save("a.png")
    step = ["--num-inference-steps", "1", "--seed", "3"]
    monkeypatch.setattr("sys.stdin", io.StringIO("draw a ring\nmake it blue\n"))
    (tmp_path / "in.json").write_text(json.dumps({"one": "a star"}))
    for line in (
        "edit a.png x -o e.webp", "generate i2v a.png y --num-frames 5 -o c.mp4", "chat -o talk --size 16x16",
        "run in.json --task t2i -o many --height 16 --width 16", "edit a.png x -o bare.png --no-metadata",
    ):  # fmt: skip
        assert main([*line.split(), *step]) == 0
    told = {path: read_provenance(path) for path in ("e.webp", "c.mp4", "talk/000.png", "talk/001.png", "many/one.png")}
    assert [(t.task, t.prompt, t.seed) for t in told.values()] == [
        ("image_edit", "x", 3), ("i2v", "y", 3), ("t2i", "a ring", 3), ("image_edit", "make it blue", 4),
        ("t2i", "a star", 3),
    ]  # fmt: skip
    assert len({t.model_hash for t in told.values()}) == 1 and read_provenance("bare.png") is None
    capsys.readouterr()
    assert main(["inspect", "c.mp4"]) == 0 and "prompt                y" in capsys.readouterr().out
    assert main(["inspect", "c.mp4", "--json"]) == 0 and json.loads(capsys.readouterr().out)["seed"] == 3
    assert main(["inspect", "bare.png"]) == 1 and "does not say how it was made" in capsys.readouterr().out
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    assert main(["inspect", "bad.png"]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_codes_of_a_terminal_are_not_printed(tmp_path, capsys):
    made = as_clip(openlance.load("nano").generate("a \x1b[31m red\u202e circle", **SMALL)[0])
    made.save(tmp_path / "a.png")
    assert main(["inspect", str(tmp_path / "a.png")]) == 0
    assert r"a \x1b[31m red\u202e circle" in capsys.readouterr().out


@pytest.mark.parametrize("whole", [1 << 26, 1 << 10])
def test_the_hash_is_of_the_weights_and_of_nothing_else(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(f, "WHOLE", whole)
    monkeypatch.setattr(f, "ENDS", 1 << 16)
    weights = folder_of("nano") / "model.safetensors"
    copy = tmp_path / "other.safetensors"
    shutil.copy(weights, copy)
    assert f.fingerprint(weights) == f.fingerprint(copy) and len(f.fingerprint(copy)) == 16
    entries, start = f.read_header(copy)
    begin = start + entries["language_model.model.layers.0.mlp.down_proj.weight"]["data_offsets"][0]
    data = bytearray(copy.read_bytes())
    data[begin] ^= 1
    copy.write_bytes(data)
    assert f.fingerprint(weights) != f.fingerprint(copy)
