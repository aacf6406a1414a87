"""A report tells what a checkpoint is and does: the same every time, whole whatever breaks, and nobody's name in it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import openlance
from lance_parity import report as r
from lance_parity.against import differences
from openlance.checkpoint.formats import folder_of
from openlance.cli.main import main
from openlance.errors import UserError
from openlance.media import read_image

WEIGHTS = "language_model.model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Two steps and the shortest clips: what is asked here does not depend on how good they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r, "STEPS", 1)
        patch.setattr(r, "FRAMES", 5)
        patch.setattr(r, "SIDE", 32)
        yield


@pytest.fixture(scope="module")
def found():
    return r.report(openlance.load("nano"))


def broken(tmp_path: Path) -> Path:
    """nano with a tensor too many, one too few, one that is no number, and no codec."""
    folder = tmp_path / "secret user" / "mine"
    shutil.copytree(folder_of("nano"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["extra"] = tensors.pop(sorted(tensors)[-1])
    tensors[WEIGHTS][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    (folder / "vae.safetensors").unlink()
    return folder


def test_two_reports_are_equal(found):
    again = r.report(openlance.load("nano"))
    assert not found["failed"] and not found["left_out"] and "unfinished" not in found
    rows = differences(again, json.loads(json.dumps(found)))
    assert len(rows) == 3 + len(found["results"]) and all(row.passed and "equal" in row.said for row in rows)
    results = found["results"]
    assert results["picture from words"]["pixels"] == results["the same picture again"]["pixels"]
    assert results["edited clip"]["made"]["seed"] == r.SEED and results["answer about a clip"]["answer"]
    assert all(result["seconds"] > 0 and result["peak_memory"] > 1 << 20 for result in results.values())
    types = found["parts"]["decoder"]["tensors"][WEIGHTS].split()
    assert types[:2] == ["F16", "256x768"] and len(types[2]) == 16


def test_thumbnails_show_the_frames(found):
    import base64

    strip = read_image(base64.b64decode(found["results"]["edited clip"]["thumbnail"]))
    assert (strip.height, strip.width) == (32, 96)


def test_what_is_broken_is_named_and_the_rest_is_there(tmp_path):
    saved = list[str]()
    pipe = openlance.load(broken(tmp_path))
    found = r.report(pipe, save=lambda data: saved.append(json.dumps(data)))
    failed = found["failed"]
    assert failed["names of decoder"] == "1 missing, 1 unexpected" and "vae.safetensors" in failed["names of vae"]
    assert found["parts"]["decoder"]["unexpected"] == ["extra"] and len(found["parts"]["decoder"]["missing"]) == 1
    assert found["parts"]["decoder"]["not finite"] == [WEIGHTS] and "numbers of decoder" in failed
    assert "picture from words" in failed and "names of vit" not in failed
    assert json.loads(saved[3])["unfinished"] == "picture from words" and "unfinished" not in json.loads(saved[-1])
    for private in (str(tmp_path), "secret user", str(Path.home()), str(Path.cwd())):
        assert private not in saved[-1]


def test_no_time_leaves_out_and_says_so(found):
    late = r.report(openlance.load("nano"), seconds=1e-9)
    assert late["left_out"] == list(late["seconds"]) and not late["failed"] and not late["results"]
    rows = differences(late, found)
    assert [row.passed for row in rows[:3]] == [False] * 3 and all(row.passed for row in rows[3:])


def test_an_interrupted_one_says_where(monkeypatch):
    saved = list[dict]()

    def stop(said: str, *_: int) -> None:
        if "step" in said:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        r.report(openlance.load("nano"), save=lambda data: saved.append(json.loads(json.dumps(data))), tell=stop)
    assert saved[-1]["unfinished"] == "picture from words" and "tensors" in saved[-1]["parts"]["vae"]


def changed(found, *path, value):
    copy = json.loads(json.dumps(found))
    place = copy
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return copy


@pytest.mark.parametrize("path, value, wrong", [
    (("parts", "decoder", "tensors", WEIGHTS), "F32 256x768 0123456789abcdef", "weights of decoder"),
    (("parts", "decoder", "tensors", "extra"), "F32 1 0123456789abcdef", "weights of decoder"),
    (("results", "description", "answer"), "nothing", "description"),
    (("results", "picture from words", "pixels"), "00", None),  # the thumbnail is the same
])  # fmt: skip
def test_a_difference_is_found(found, path, value, wrong):
    rows = differences(found, changed(found, *path, value=value))
    assert [row.what for row in rows if not row.passed] == ([wrong] if wrong else [])


def test_another_picture_is_another_one(found):
    other = found["results"]["edited picture"] | {"seconds": 1}
    rows = differences(found, changed(found, "results", "picture from words", value=other))
    assert [row.what for row in rows if not row.passed] == ["picture from words"]


@pytest.mark.parametrize("path, value", [
    (("parts",), []), (("results", "description"), 3), (("parts", "decoder", "tensors", WEIGHTS), 1),
    (("results", "picture from words"), {"pixels": "0", "thumbnail": "%%%"}),
    (("results", "picture from words"), {"pixels": "0", "thumbnail": "AAAA"}),
])  # fmt: skip
def test_a_damaged_report_is_one_sentence(found, path, value):
    with pytest.raises(UserError):
        differences(found, changed(found, *path, value=value))


def test_the_command_writes_and_compares(tmp_path, monkeypatch, capsys, found):
    monkeypatch.chdir(tmp_path)
    Path("old.json").write_text(json.dumps(found))
    assert main(["verify", "--checkpoint", "nano", "--report", "new.json", "--against", "old.json"]) == 0
    said = capsys.readouterr().out
    assert "new.json: all is well" in said and "DIFFERENT" not in said and "right: 'red'" in said
    assert json.loads(Path("new.json").read_text())["parts"] == found["parts"]
    Path("old.json").write_text('{"form": 1}')
    for line in ([], ["x", "--checkpoint", "nano"], ["--checkpoint", "nano", "--against", "old.json"],
                 ["--checkpoint", "nano", "--minutes", "0"], ["--checkpoint", "nowhere"]):  # fmt: skip
        assert main(["verify", *line, *(["--report", "none.json"] if line else [])]) == 2
    assert not Path("none.json").exists()
