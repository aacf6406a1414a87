"""`openlance train lora` for every task and mixtures of them; one process with two packs a step is two processes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import openlance
from openlance.checkpoint.adapters import read_stored
from openlance.checkpoint.formats import folder_of
from openlance.cli.main import main
from openlance.config.train import Resolution, Stage
from openlance.training import run as training
from openlance.training.start import lora_stage

SMALL = ["--set", "draws=1", "--set", "pack_tokens=[100, 350]", "--set", "max_sample_tokens=350", "--set", "warmup=0",
         "--set", "resolutions=[{image: [32, 32], video: [32, 32]}]"]  # fmt: skip
COLORS = ("red", "blue", "yellow", "purple")


def picture(color, path):
    image = Image.new("RGB", (64, 64), (240, 210, 150))
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=color)
    image.save(path)


@pytest.fixture(scope="module")
def small(shallow):
    """What a command says to train little, and quickly."""
    return ["--model", str(shallow), *SMALL]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Edit pairs as InstructPix2Pix has them, and questions about the same pictures."""
    folder, rows = tmp_path_factory.mktemp("data") / "pairs", []
    folder.mkdir()
    for n, color in enumerate(COLORS):
        picture(color, folder / f"{n}a.png")
        picture("green", folder / f"{n}b.png")
        rows.append({"input_image": f"{n}a.png", "output_image": f"{n}b.png", "instruction": "make the circle green"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder.parent / "asked").mkdir()
    rows = [
        {"image": f"../pairs/{n}a.png", "question": "what colour is it?", "answer": c} for n, c in enumerate(COLORS)
    ]
    (folder.parent / "asked" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def stage_of(run):
    return json.loads((run / "run.json").read_text())[-1]["stage"]


@pytest.mark.parametrize(
    "words, mixture, then",
    [
        (["--task", "image_edit", "--data", "PAIRS"], {"image_edit": 1}, "edit IN"),
        (["--data", "edit=PAIRS"], {"image_edit": 1}, "edit IN"),
        (["--data", "PAIRS", "--set", "mixture={image_edit: 1}"], {"image_edit": 1}, "edit IN"),
        (["--task", "vqa", "--data", "ASKED"], {"x2t_image": 1}, "ask IN"),
        (["--data", "edit=PAIRS", "--data", "vqa=ASKED"], {"image_edit": 1, "x2t_image": 1}, "edit IN"),
        (["--data", "vqa=ASKED", "--data", "edit=PAIRS", "--set", "mixture={vqa: 3, edit: 1}"],
         {"x2t_image": 3, "image_edit": 1}, "ask IN"),
        (["--task", "subject", "--data", "PAIRS"], {"image_idip": 1}, "generate subject IMAGE --prompt"),
        (["--task", "i2v", "--data", "world"], {"i2v": 1}, "generate i2v IMAGE"),
        (["--task", "t2v", "--data", "world"], {"t2v": 1}, 'generate t2v "a caption"'),
    ],
)  # fmt: skip
def test_every_task_and_mixtures_of_them_train_an_adapter(pairs, small, tmp_path, capsys, words, mixture, then):
    said = [word.replace("PAIRS", str(pairs)).replace("ASKED", str(pairs.parent / "asked")) for word in words]
    out = tmp_path / "run"
    assert main(["train", "lora", *said, "-o", str(out), "--steps", "1", "--rank", "2", *small]) == 0
    assert f"try: openlance {then}" in capsys.readouterr().out and stage_of(out)["mixture"] == mixture
    [row] = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    text, drawn = (any((task[:3] == "x2t") is kind for task in mixture) for kind in (True, False))
    assert row["text"] > 0 or not text
    assert row["flow"] > 0 or not drawn
    moved = {name for name, u in read_stored(out).updates.items() if u.b.abs().max() > 0}
    assert any(".und." in name for name in moved) and (not drawn or any(".gen." in name for name in moved))


def test_rank_alpha_dropout_and_targets_are_what_was_asked_for_and_another_run_goes_on_from_there(
    small, shallow, tmp_path, capsys
):
    first, second = tmp_path / "first", tmp_path / "second"
    chosen = ["--rank", "3", "--alpha", "6", "--dropout", "0.25", "--targets", "gen.q, gen.down"]
    assert main(["train", "lora", "--data", "world", "-o", str(first), "--steps", "1", *chosen, *small]) == 0
    said = json.loads((first / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["lora_dropout"]) == (3, 6, 0.25)
    start = read_stored(first)
    assert {name.partition(".gen.")[2] for name in start.updates} == {"q", "down"}
    more = ["--adapter", str(first), "--lr", "1e-12", "--steps", "1"]
    assert main(["train", "lora", "--data", "world", "-o", str(second), *more, *small]) == 0
    end = read_stored(second)
    assert end.updates.keys() == start.updates.keys() and end.targets == start.targets
    for name, u in end.updates.items():
        assert torch.allclose(u.a, start.updates[name].a) and torch.allclose(u.b, start.updates[name].b, atol=1e-9)
        assert u.scale == 2 and u.b.abs().max() > 0
    pipe = openlance.load(str(shallow))
    pipe.load_lora_weights(second)
    assert np.asarray(pipe.generate("a red circle", seed=1, num_inference_steps=1, width=32, height=32)[0]).any()


def test_a_run_goes_on_with_another_number_of_processes_as_if_it_had_been_one(
    pairs, small, tmp_path, capsys, on_two_processes
):
    steady = ["--set", "schedule=constant", "--rank", "1", "--dropout", "0.2", "--save-every", "1", *small]
    command = ["train", "lora", "--data", f"edit={pairs}", *steady]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*command, "-o", str(whole), "--steps", "2", "--set", "accumulate=2"]) == 0
    on_two_processes(lambda: main([*command, "-o", str(cut), "--steps", "1"]))
    capsys.readouterr()
    assert main([*command, "-o", str(cut), "--steps", "2", "--set", "accumulate=3"]) == 2
    assert "has 2 packs in a step, not 3: use --set accumulate=2" in capsys.readouterr().err
    assert main([*command, "-o", str(cut), "--steps", "2"]) == 0
    assert "2 packs in a step: with 1 in the place of 2 processes, accumulate=2" in capsys.readouterr().err
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (whole, cut)]
    for mine, other in zip(*logs, strict=True):
        assert [mine[k] for k in ("step", "flow", "norm", "lr")] == pytest.approx(
            [other[k] for k in ("step", "flow", "norm", "lr")], rel=1e-4
        )
    one, two = (read_stored(run).updates for run in (whole, cut))
    assert all(torch.allclose(one[n].b, two[n].b, atol=1e-5) for n in one)


def test_the_stage_of_an_adapter_has_room_for_its_samples():
    nano = folder_of("nano")
    stage = lora_stage(nano, ["t2i"], steps=5, lr=1e-3)
    assert stage.resolutions == (Resolution(image=(64, 64), video=(64, 64)),) and stage.text_weight == 0
    mixed = lora_stage(nano, ["t2v", "x2t_image"], steps=5, lr=1e-3)
    assert mixed.text_weight > 0 and mixed.max_sample_tokens > stage.max_sample_tokens and mixed.max_frames == 9
    assert lora_stage(nano, ["image_edit"], steps=5, lr=1e-3).drop_all > 0


def test_frozen_matrices_in_half_precision_change_nothing(small, tmp_path, monkeypatch):
    """Autocast rounds them before each product anyway; nor does computing layers again."""
    command = ["train", "lora", "--data", "edit=world", "--data", "vqa=world", "--preserve", "t2i=world", *small]
    command += ["--set", "dtype=bfloat16", "--rank", "2", "--steps", "2"]
    command += ["--set", "pack_tokens=[100, 150]", "--set", "max_sample_tokens=150"]  # bfloat16 is slow on old CPUs
    begun = list[set[torch.dtype]]()

    def begin(*given):
        processes, base = start(*given)
        layers = base.learner.lance.layers
        begun.append({p.dtype for p in layers.parameters() if p.dim() > 1 and not p.requires_grad})
        return processes, base

    start = training.begin
    monkeypatch.setattr(training, "begin", begin)
    assert main([*command, "-o", str(tmp_path / "halved")]) == 0
    assert main([*command, "--set", "checkpointing=true", "-o", str(tmp_path / "again")]) == 0
    monkeypatch.setattr(Stage, "halves_frozen", lambda self, sharded: False)
    assert main([*command, "-o", str(tmp_path / "whole")]) == 0
    assert begun == [{torch.bfloat16}, {torch.bfloat16}, {torch.float32}]
    files = {(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("halved", "again", "whole")}
    assert len(files) == 1
