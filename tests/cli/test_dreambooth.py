"""`openlance train dreambooth`: half of what is trained on are the model's own results, made once and kept."""

import io
import json

import numpy as np
from PIL import Image

from openlance.checkpoint.adapters import read_stored
from openlance.cli.main import main

SMALL = ["--steps", "1", "--rank", "1", "--set", "draws=1", "--set", "pack_tokens=[60, 150]", "--set",
         "max_sample_tokens=150"]  # fmt: skip


def test_a_subject_is_trained_beside_results_of_its_class(tmp_path, capsys):
    photos, out = tmp_path / "zib", tmp_path / "run"
    photos.mkdir()
    for n in range(2):
        Image.new("RGB", (64, 64), (90 * n, 0, 90)).save(photos / f"{n}.png")
    (photos / "1.txt").write_text("a zib at night")
    line = ["train", "dreambooth", "--data", str(photos), "--prompt", "a zib", "--class-images", "3", *SMALL]
    assert main([*line, "--class-prompt", "a circle", "-o", str(out)]) == 0
    rows = [json.loads(text) for text in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["a zib", "a zib at night"] * 2 + ["a circle"] * 3
    assert any(u.b.abs().max() > 0 for u in read_stored(out).updates.values())
    drawn = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (out / "prior").glob("*.png")}
    assert len({data for data, _ in drawn.values()}) == 3, "each has noise of its own"
    (out / "prior" / "0002.png").unlink()
    capsys.readouterr()
    assert main([*line, "--class-prompt", "a circle", "-o", str(out)]) == 0
    again = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (out / "prior").glob("*.png")}
    one, other = (np.asarray(Image.open(io.BytesIO(made.pop("0002.png")[0]))).astype(int) for made in (drawn, again))
    assert np.abs(one - other).max() <= 1 and again == drawn, "alone, where it was drawn beside others"
    assert "is finished" in capsys.readouterr().err


def test_another_class_or_no_word_of_its_own_is_one_sentence(tmp_path, capsys):
    out = tmp_path / "run"
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    (out / "prior").mkdir(parents=True)
    (out / "prior" / "made.json").write_text(json.dumps({"prompt": "a circle", "model": "nano"}))
    line = ["train", "dreambooth", "--data", str(tmp_path / "0.png"), "--prompt", "a zib", "-o", str(out), *SMALL]
    assert main([*line[:3], str(tmp_path), *line[4:], "--class-prompt", "a square"]) == 2
    assert "holds results of nano for 'a circle'" in capsys.readouterr().err
    assert main([*line[:3], str(tmp_path), *line[4:], "--class-prompt", "a  zib"]) == 2
    assert "a word of its own" in capsys.readouterr().err
    assert main([*line, "--class-prompt", "a square"]) == 2
