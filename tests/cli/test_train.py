"""Training commands: from a folder of pictures to an adapter that draws otherwise; mistakes are one sentence."""

import json

import numpy as np
import pytest
from PIL import Image

from openlance.cli.main import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(3):
        Image.fromarray(np.full((64, 64, 3), 80 * n, np.uint8)).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"a red circle, grey {n}")
    return folder


def test_a_folder_of_pictures_becomes_an_adapter_that_changes_what_is_drawn(pictures, shallow, tmp_path, capsys):
    import openlance

    out = tmp_path / "run"
    small = ["--model", str(shallow), "--set", "draws=1", "--set", "pack_tokens=[100, 300]", "--set"]
    small += ["max_sample_tokens=300", "--set", "warmup=0"]
    command = ["train", "lora", "--data", str(pictures), "-o", str(out), "--rank", "2", *small]
    assert main([*command, "--steps", "2", "--lr", "0.02"]) == 0
    assert "--lora" in capsys.readouterr().out
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 2
    pipe = openlance.load(str(shallow))
    before = np.asarray(pipe.generate("a red circle", seed=1, num_inference_steps=2)[0], int)
    pipe.load_lora_weights(out)
    after = np.asarray(pipe.generate("a red circle", seed=1, num_inference_steps=2)[0], int)
    assert np.abs(before - after).max() > 5
    pipe.unload_lora_weights()
    again = np.asarray(pipe.generate("a red circle", seed=1, num_inference_steps=2)[0], int)
    assert np.array_equal(before, again)
    assert main(["train", "resume", str(out), "--steps", "3"]) == 0
    moved = out.rename(tmp_path / "moved")
    assert main(["train", "resume", str(moved), "--steps", "4"]) == 0
    steps = [json.loads(line)["step"] for line in (moved / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4] and not out.exists()
    capsys.readouterr()
    assert main(["train", "resume", str(moved), "--only-step", "4"]) == 0
    assert str(pictures / "2.png") in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["nano/sf", "-o", "x"], "there is no stage 'sf': use 'sft'?"),
        (["recipe/micro", "-o", "x"], "recipe"),
        (["nano/sft", "-o", "x", "--set", "lrr=1"], "lr"),
        (["nano/sft", "-o", "x", "--data", "pictures"], "is not TASK=PATH"),
        (["nano/sft", "-o", "x", "--data", "t2x=pictures"], "is not TASK=PATH"),
        (["3b/sft", "-o", "x"], "a stage of 3b from: add --model DIR"),
        (["nano/sft", "-o", "x", "--model", "nowhere"], "nowhere"),
        (["lora", "--data", "nowhere", "-o", "x"], "there is no data at nowhere"),
        (["lora", "--data", "nowhere", "-o", "x", "--set", "frozen=[vitt]"], "nowhere"),
        (["nano/sft", "-o", "x", "--data", "t2i={path: ["], "is not YAML"),
        (["lora", "--data", "t2i=world", "-o", "x", "--set", "mixture={t2v: 1}"], "use --set \"mixture={'t2i': 1}\""),
        (["lora", "--data", "world", "-o", "x", "--set", "mixture={t2v: 1, edit: 1}"], "say which, --data t2v=world"),
        (
            ["lora", "--data", "t2i=world", "--data", "t2i=pictures", "-o", "x"],
            "give the second a name of its own, such as --data t2i@more=pictures",
        ),
        (["lora", "--data", "t2i=world", "--preserve", "world", "-o", "x"], "--preserve world is not TASK=PATH"),
        (
            ["lora", "--data", "t2i=world", "--data", "t2i@preserved=world", "--preserve", "t2i=world", "-o", "x"],
            "--data t2i@preserved=world has the name of what --preserve gives",
        ),
        (["lora", "--data", "world", "--task", "t2i@more", "-o", "x"], "the task 't2i@more' is unknown"),
        (["nano/sft", "-o", "x", "--set", "preserve=[t2i]"], "is without an adapter, and trains none: add lora"),
        (["lora", "--data", "t2i=world", "-o", "x", "--set", "preserve=[vqa]"], "preserves vqa and does not mix it in"),
        (["lora", "--data", "edits=world", "-o", "x"], "is not PATH or TASK=PATH with a task of t2i"),
        (["lora", "--data", "world", "--task", "paint", "-o", "x"], "the task 'paint' is unknown"),
        (["lora", "--data", "world", "-o", "x", "--dropout", "1"], "--dropout 1 must be from 0 to below 1"),
        (["lora", "--data", "world", "-o", "x", "--alpha", "0"], "both must be above 0"),
        (["lora", "--data", "world", "-o", "x", "--targets", "gen.(q"], "is no pattern"),
        (
            ["lora", "--data", "world", "-o", "x", "--targets", "q,zz.w", "--rank", "2", "--adapter", "y"],
            "its own rank",
        ),
        (["lora", "--data", "world", "-o", "x", "--adapter", "nowhere"], "nowhere holds no adapter"),
        (["nano/sft", "-o", "x", "--set", "source=''"], "such as --data t2v=PATH, or say"),
        (["resume", "nowhere"], "nowhere is no run"),
        (["nano", "-o", "x", "--minutes", "0"], "--minutes"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
