"""The release's input files with nano: every task, outputs named as there, going on after a stop, broken entries."""

import json
from pathlib import Path

import pytest
from PIL import Image

from openlance.cli.main import main
from openlance.media.inputs import read_media

EXAMPLES = Path(__file__).parents[2] / "examples" / "official"
MAKES = {
    "t2i": ".png", "t2v": ".mp4", "i2v": ".mp4", "image_edit": ".png", "video_edit": ".mp4", "x2t_image": None,
    "x2t_video": None,
}  # fmt: skip
# 5 frames, two steps and a short answer: what is shown is that the files run, not what nano makes of them.
SMALL = ["--num-inference-steps", "2", "--num-frames", "5", "--max-new-tokens", "4"]


def run(file, task, out, *more):
    return main(["run", str(file), "--task", task, "-o", str(out), *SMALL, *more])


def table(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", MAKES)
def test_the_examples_run_as_they_are(task, tmp_path, monkeypatch):
    """From any folder: the paths in the files count from the top of the repository, as the release's do."""
    monkeypatch.chdir(tmp_path)
    file = EXAMPLES / f"{task}_example.json"
    asked = json.loads(file.read_text(encoding="utf-8"))
    assert run(file, task, "out") == 0
    prompts, results = table(tmp_path / "out", "prompt.json"), table(tmp_path / "out", "result.json")
    assert len(prompts) == len(results) == len(asked)
    if MAKES[task] is None:
        medium = asked["0001"]["element_dtype_array"][0]
        assert list(prompts) == list(asked) and results[0].keys() == {medium, "question", "answer"}
        assert results[0]["question"] == asked["0001"]["interleave_array"][1][1]
        return
    names = [f"{int(Path(key).stem):06d}{MAKES[task]}" for key in asked]
    assert list(prompts) == names and sorted(p.name for p in Path("out").glob("0*")) == names
    clip = read_media(Path("out") / names[0])
    assert (clip.frames > 1) == (MAKES[task] == ".mp4")


def test_a_preset_is_scaled_to_the_model(tmp_path):
    """A picture of 128x96 in a bucket of the preset, a twelfth of the release's size."""
    file = tmp_path / "one.json"
    media = [str(EXAMPLES / "media" / "star.png"), "make it red"]
    one = {"interleave_array": media, "element_dtype_array": ["image", "text"], "istarget_in_interleave": [0, 0]}
    file.write_text(json.dumps({"7": one}))
    for preset, size in (("video_480p", (64, 48)), ("image_512res", (56, 40))):
        assert run(file, "image_edit", tmp_path / preset, "--resolution", preset) == 0
        assert Image.open(tmp_path / preset / "000007.png").size == size


def test_broken_entries_are_named_and_the_others_run(tmp_path, capsys):
    good = {"interleave_array": ["what?"], "element_dtype_array": ["text"], "istarget_in_interleave": [0]}
    entries = {
        "1": good | {"element_dtype_array": ["text", "image"]},
        "2": good | {"interleave_array": ["make it red", "nowhere.png"],
                     "element_dtype_array": ["text", "image"], "istarget_in_interleave": [0, 0]},
        "3": good | {"interleave_array": ["make it red", str(EXAMPLES / "media" / "star.png")],
                     "element_dtype_array": ["text", "image"], "istarget_in_interleave": [0, 0]},
    }  # fmt: skip
    file = tmp_path / "some.json"
    file.write_text(json.dumps(entries))
    assert run(file, "image_edit", tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert "entry '1'" in said and "pair them up" in said
    assert "entry '2'" in said and "nowhere.png" in said and "entry '3'" not in said
    assert list(table(tmp_path / "out", "prompt.json")) == ["000003.png"]


def test_a_stopped_run_goes_on_where_it_was(tmp_path, capsys):
    file, out = tmp_path / "two.json", tmp_path / "out"
    file.write_text(json.dumps({"0.png": "a red circle"}))
    assert run(file, "t2i", out) == 0
    first = (out / "000000.png").stat().st_mtime_ns
    with open(out / ".run" / "0.jsonl", "a") as journal:
        journal.write('{"key": "1.png", "dig')  # killed while it wrote
    file.write_text(json.dumps({"0.png": "a red circle", "1.png": "a blue ring"}))
    assert run(file, "t2i", out) == 0
    assert (out / "000000.png").stat().st_mtime_ns == first, "what was done stays"
    assert table(out, "prompt.json") == {"000000.png": "a red circle", "000001.png": "a blue ring"}
    file.write_text(json.dumps({"0.png": "a green circle"}))
    assert run(file, "t2i", out) == 0
    assert (out / "000000.png").stat().st_mtime_ns > first, "another prompt is made anew"
    assert run(file, "t2i", out, "--seed", "1") == 2
    assert "seed 42, not 1" in capsys.readouterr().err


@pytest.mark.parametrize("content, task, more, said", [
    ("[", "t2i", [], "not valid JSON"),
    ("{}", "t2i", [], "no requests"),
    ('{"1": "a"}', "t3i", [], "t3i"),
    ('{"1": "a"}', "t2i", ["--resolution", "video_9p"], "video_9p"),
    ('{"1": "a"}', "t2i", ["--solver", "magic"], "magic"),
    ('{"1": "a"}', "t2i", ["--enhance-prompt", "--enhance-url", "nowhere"], "nowhere"),
])  # fmt: skip
def test_mistakes_are_one_sentence(content, task, more, said, tmp_path, capsys):
    file = tmp_path / "in.json"
    file.write_text(content)
    assert run(file, task, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
