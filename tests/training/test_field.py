"""What people reported of training on data of their own, told by the commands; each made its own inputs and went wrong.

Elsewhere: the order of rows sorted by class (tests/data/test_order.py), PiSSA, OLoRA and biases of PEFT
(tests/model/test_adapter_files.py), edit pairs and questions, two packs against two processes
(tests/cli/test_train_lora.py), configurations of Hugging Face's data sets (tests/data/test_forms.py), Ctrl-C
(test_interrupt.py).
"""

import io
import json
import tarfile

import pytest
from PIL import Image

from openlance.checkpoint.formats import folder_of
from openlance.cli.main import main
from openlance.config.values import read_json
from openlance.data.encoded import read_about
from openlance.data.open import open_source
from openlance.text.tokenizer import Tokenizer

COLORS = ("red", "blue", "green", "yellow")
SMALL = ["--rank", "2", "--set", "draws=1", "--set", "pack_tokens=[60, 200]", "--set", "max_sample_tokens=200",
         "--set", "resolutions=[{image: [32, 32], video: [32, 32]}]", "--workers", "0"]  # fmt: skip


def folder(path, count=4, captions=True, suffix="png", shift=0):
    path.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        color = COLORS[(n + shift) % 4]
        Image.new("RGB", (64, 64), color).save(path / f"{n:03d}.{suffix}")
        if captions:
            (path / f"{n:03d}.txt").write_text(f"a {color} wall")
    return path


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    """Run a command in a folder of its own: exit code, both streams."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([*words])
        out, err = capsys.readouterr()
        return code, out + err

    return run


def test_a_finished_folder_takes_no_other_data_and_no_other_rank(said, tmp_path):
    folder(tmp_path / "a"), folder(tmp_path / "b", shift=1)
    line = ["train", "lora", "-o", "run", "--steps", "1", *SMALL]
    assert said(*line, "--data", "a")[0] == 0
    kept = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    for words, why in (
        (["--data", "b", "--lr", "5e-4"], "holds a run with data t2i=a, and t2i=b is asked for"),
        (["--data", "a", "--rank", "8", "--steps", "2"], "holds a run with rank 2, and 8 is asked for"),
        (["--data", "a", "--lr", "5e-4"], "is finished (step 1 of 1), so lr 0.0005 in the place of 0.002"),
    ):
        code, text = said(*line, *words)
        assert code == 2 and why in text and "Traceback" not in text and "delete" not in text
        assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()} == kept
    code, text = said(*line, "--data", "a")
    assert code == 0 and "is finished (step 1 of 1): nothing is trained" in text


def test_latents_of_a_picture_or_caption_that_changed_are_made_anew(said, tmp_path):
    place = folder(tmp_path / "p", suffix="bmp")
    line = ["encode", "p", "-o", "lat", "--no-vit"]
    assert "1 new shards" in said(*line)[1] and "0 new shards" in said(*line)[1]
    [shard] = (tmp_path / "lat").glob("*.safetensors")
    before = shard.read_bytes()
    Image.new("RGB", (64, 64), "white").save(place / "000.bmp")  # as many bytes
    assert "1 new shards" in said(*line)[1] and shard.read_bytes() != before

    def pack(text):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, data in (("0.bmp", (place / "000.bmp").read_bytes()), ("0.txt", text)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    for text in (b"a wrong caption", b"a right captain"):
        pack(text)
        assert "1 new shards" in said("encode", "a.tar", "-o", "tar", "--no-vit")[1]
    [shard] = (tmp_path / "tar").glob("*.safetensors")
    assert b"a right captain" in shard.read_bytes() and read_about(shard)["rows"] == 1


def test_a_byte_order_mark_is_no_part_of_a_caption(said, tmp_path):
    place = folder(tmp_path / "p")
    for text in place.glob("*.txt"):
        text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    ids = Tokenizer.from_folder(folder_of("nano")).ids
    for row, color in zip(open_source(place, "t2i").found, COLORS, strict=True):
        assert ids(row.values["caption"]) == ids(f"a {color} wall")
    listed = folder(tmp_path / "q", captions=False)
    (listed / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "000.png", "text": "a red wall"}\n')
    code, text = said("data", "inspect", "q")
    assert code == 0 and '1  "a red wall" -> [image 64x64]' in text


def test_what_a_mac_or_jupyter_hides_is_counted_and_not_trained_on(said, tmp_path):
    place = folder(tmp_path / "p")
    for hidden, name in (("__MACOSX", "._000"), (".ipynb_checkpoints", "000-checkpoint")):
        (place / hidden).mkdir()
        for suffix in ("png", "txt"):
            (place / hidden / f"{name}.{suffix}").write_bytes(b"\x00\x05\x16\x07\xb0\xff\xfe")
    code, text = said("train", "lora", "--data", "p", "-o", "run", "--steps", "1", *SMALL)
    assert code == 0 and "4 of 6" in text and "2 left out: hidden" in text


def test_what_is_left_out_is_told_before_training(said, tmp_path):
    place = folder(tmp_path / "few", 5, captions=False)
    for n in (1, 3):
        (place / f"{n:03d}.txt").write_text("a wall")
    for name in ("001", "003"):
        for suffix in ("png", "txt"):
            (place / f"{name}.{suffix}").rename(place / f"{name}.{suffix.upper()}")
    Image.new("RGB", (64, 64)).save(place / "9.jfif", format="JPEG")
    (place / "9.txt").write_text("a night")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(place)
    for data, out in (("few", "run"), ("linked", "other")):
        code, text = said("train", "lora", "--data", data, "-o", out, "--steps", "1", *SMALL)
        assert code == 0 and "3 of 6" in text and "3 left out: no caption" in text
        assert read_json(tmp_path / out / "found.json")["sources"][0]["left_out"]["no caption"]["count"] == 3


def test_columns_of_instruct_pix2pix_are_pairs_and_no_hint_maps_two_roles_to_one(said, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder(tmp_path / "p")
    red, blue = ({"bytes": (tmp_path / "p" / f"00{n}.png").read_bytes(), "path": None} for n in (0, 1))
    rows = {"original_image": [red] * 4, "edit_prompt": ["make it blue"] * 4, "edited_image": [blue] * 4}
    (tmp_path / "ip").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "ip" / "a.parquet")
    code, text = said("data", "inspect", "ip", "--json")
    [source] = json.loads(text)["sources"]
    assert code == 0 and source["task"] == "image_edit" and source["used"] == 4
    sample = open_source(tmp_path / "ip", "image_edit")
    [first, *_] = sample.rows(sample.parts(0, None)[0])
    named = sample.layout.renamed(first.values)
    assert (named["input_image_bytes"], named["output_image_bytes"]) == (red, blue)
    same = "{path: ip, columns: {input_image_bytes: edited_image, output_image_bytes: edited_image}}"
    code, text = said("train", "lora", "--task", "edit", "--data", same, "-o", "run", "--steps", "1")
    assert code == 2 and "names edited_image twice" in text and not (tmp_path / "run").exists()
