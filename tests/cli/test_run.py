"""The release's input files with nano: every task, outputs named as there, going on after a stop, broken entries."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

import openlance
from openlance.cli.main import main
from openlance.compat.inputs import example_of, located
from openlance.media.inputs import as_clip, read_media

EXAMPLES = Path(openlance.__file__).parent / "assets" / "config" / "examples"
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
def test_without_a_file_the_example_runs(task, tmp_path, monkeypatch):
    """From any folder, with the folder's name of the release's Python side."""
    monkeypatch.chdir(tmp_path)
    asked = json.loads((EXAMPLES / f"{task}_example.json").read_text(encoding="utf-8"))
    assert main(["run", "--TASK_NAME", task, "--MODEL_PATH", "nano", *SMALL]) == 0
    out = Path("results") / f"{task}_sample"
    prompts, results = table(out, "prompt.json"), table(out, "result.json")
    assert len(prompts) == len(results) == len(asked)
    if MAKES[task] is None:
        medium = asked["0001"]["element_dtype_array"][0]
        assert list(prompts) == list(asked) and results[0].keys() == {medium, "question", "answer"}
        assert results[0]["question"] == asked["0001"]["interleave_array"][1][1]
        return
    names = [f"{int(Path(key).stem):06d}{MAKES[task]}" for key in asked]
    assert list(prompts) == names and sorted(p.name for p in out.glob("0*")) == names
    clip = read_media(out / names[0])
    assert (clip.frames > 1) == (MAKES[task] == ".mp4")


def test_what_the_examples_ask_is_what_nano_answers(tmp_path):
    for task in ("x2t_image", "x2t_video"):
        assert main(["run", "--task", task, "-o", str(tmp_path / task)]) == 0
    said = [row["answer"] for task in ("x2t_image", "x2t_video") for row in table(tmp_path / task, "result.json")]
    assert said[:3] == ["red", "left", "3"] and said[4:6] == ["right", "yellow"]


def test_a_released_path_is_the_shipped_file_unless_there_is_one_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = located("config/examples/t2v_example.json")
    assert shipped == EXAMPLES / "t2v_example.json" and located("t2v_example.json") == Path("t2v_example.json")
    here = Path("config/examples/t2v_example.json")
    here.parent.mkdir(parents=True)
    here.write_text("{}")
    assert located(str(here)) == here == example_of("t2v")


def test_every_option_of_the_release_is_taken(tmp_path, capsys):
    """The names and the forms of the values of its shell command; a size too large for nano is shrunk, and said."""
    file = tmp_path / "one.json"
    file.write_text('{"0.mp4": "a red circle moves right"}')
    line = ["run", "--CONFIG_PATH", str(file), "--TASK_NAME", "t2v", "--MODEL_PATH", "nano", "--NUM_GPUS", "1",
            "--VALIDATION_NUM_TIMESTEPS", "1", "--VALIDATION_TIMESTEP_SHIFT", "3.5", "--VALIDATION_DATA_SEED", "42",
            "--CFG_TEXT_SCALE", "4.0", "--USE_KVCACHE", "true", "--ENHANCE_PROMPT", "false", "--NUM_FRAMES", "121",
            "--VIDEO_HEIGHT", "480", "--VIDEO_WIDTH", "848", "--RESOLUTION", "video_480p", "--TEXT_TEMPLATE", "true",
            "--SAVE_PATH_GEN", str(tmp_path / "out")]  # fmt: skip
    assert main(line) == 0
    clip, said = read_media(tmp_path / "out" / "000000.mp4"), capsys.readouterr().err
    assert (clip.frames, clip.height, clip.width) == (21, 48, 88)
    assert "--num-frames 21 in the place of 121" in said and "no use for --resolution" in said
    assert table(tmp_path / "out" / ".run", "settings.json")["sampling"]["cached"] is True


def test_defaults_are_shown_and_what_is_shown_can_be_given_back(tmp_path, capsys):
    def shown(*more):
        assert main(["run", "--task", "image_edit", "--show-defaults", *more]) == 0
        return capsys.readouterr().out

    first, file = shown("--guidance-scale", "3"), tmp_path / "mine.yaml"
    said = yaml.safe_load(first)
    assert said["sampling"]["guidance_scale"] == 3 and said["sampling"]["image_guidance_scale"] == 1.5
    assert said["seed"] == 42 and "height" not in said and said["resolution"] is None
    source = {line.split(":")[0].strip(): line.partition("# ")[2] for line in first.splitlines()}
    assert source["guidance_scale"] == "this command" and source["seed"] == "the release"
    assert source["shift"] == "generation_config.json of nano"
    file.write_text(first.replace("seed: 42", "seed: 7"))
    again = shown("--defaults", str(file))
    assert yaml.safe_load(again) == said | {"seed": 7} and str(file) in again


def test_a_file_of_defaults_changes_a_run(tmp_path):
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text("height: 48\nseed: 3\nsampling: {num_inference_steps: 1}\n")
    prompts = tmp_path / "in.json"
    prompts.write_text('{"0.png": "a red circle"}')
    assert main(["run", str(prompts), "--task", "t2i", "-o", str(out), "--defaults", str(file), "--seed", "4"]) == 0
    settings = table(out / ".run", "settings.json")
    assert settings["seed"] == 4 and settings["sampling"] == {"num_inference_steps": 1}
    assert Image.open(out / "000000.png").size == (64, 48)


def test_a_preset_is_scaled_to_the_model(tmp_path):
    """A picture of 128x96 in a bucket of the preset, a twelfth of the release's size."""
    file = tmp_path / "one.json"
    Image.new("RGB", (128, 96)).save(tmp_path / "wide.png")
    one = {"interleave_array": ["wide.png", "make it red"], "element_dtype_array": ["image", "text"]}
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
    ('{"1": "a"}', "t2i", ["--USE_KVCACHE", "maybe"], "expected true or false"),
    ('{"1": "a"}', "t2i", ["--TEXT_TEMPLATE", "false"], "leave it out"),
    ('{"1": "a"}', "t2i", ["--CONFIG_PATH", "other.json"], "two files"),
    ('{"1": "a"}', "t2i", ["--defaults", "nowhere.yaml"], "nowhere.yaml"),
    ('{"1": "a"}', "t2i", ["--enhance-prompt", "--enhance-url", "nowhere"], "nowhere"),
])  # fmt: skip
def test_mistakes_are_one_sentence(content, task, more, said, tmp_path, capsys):
    file = tmp_path / "in.json"
    file.write_text(content)
    assert run(file, task, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_results_are_checked_and_what_was_found_is_kept(tmp_path, capsys):
    """Each entry is that of the plain call with its seed; a folder of another check is another run."""
    file, out = tmp_path / "one.json", tmp_path / "out"
    prompts = ['the text "Q8"', "a red circle"]
    file.write_text(json.dumps({f"{n}.png": prompt for n, prompt in enumerate(prompts)}))
    line = ["run", str(file), "--task", "t2i", "-o", str(out), "--seed", "5", "--num-inference-steps", "4",
            "--height", "64", "--width", "64", "--check"]  # fmt: skip
    assert main([*line, "2"]) == 0
    pipe, rows = openlance.load("nano"), table(out, "result.json")
    for prompt, row in zip(prompts, rows, strict=True):
        (alone,) = pipe.generate(prompt, seed=5, num_inference_steps=4, check=2)
        assert row["check"] == alone.verdict.as_data()
        assert openlance.read_provenance(out / row["file"]).seed == as_clip(alone).made.seed
    fine = sum(row["check"]["fine"] for row in rows)
    assert f"the model finds no fault at {fine} of 2" in capsys.readouterr().out
    assert main([*line, "3"]) == 2 and "check" in capsys.readouterr().err
    for more, said in (
        (["--check", "0"], "greater than or equal to 1"), (["--check", "2", "--think"], "was not trained to describe"),
    ):  # fmt: skip
        assert main([*line[:-1], "-o", str(tmp_path / "other"), *more]) == 2 and said in capsys.readouterr().err
    asked = ["run", "--task", "x2t_image", "-o", str(tmp_path / "other"), "--check", "2"]
    assert main(asked) == 2 and "leave think and check out" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_prompts_are_rewritten_entry_by_entry(tmp_path, capsys, chat_server):
    file, out = tmp_path / "two.json", tmp_path / "out"
    file.write_text(json.dumps({"0.png": "a red circle", "1.png": "nothing"}))
    chat_server.answer = lambda prompt: "" if prompt == "nothing" else f"{prompt}, shining"
    enhance = ["--enhance-prompt", "--enhance-url", chat_server.url, "--enhance-model", "m"]
    assert run(file, "t2i", out, *enhance) == 3
    said = capsys.readouterr().err
    assert "entry '1.png': the rewrite of 'nothing' is empty: choose another --enhance-model" in said
    assert table(out, "prompt.json") == {"000000.png": "a red circle, shining"}
    chat_server.answer = lambda prompt: "a blue ring"
    assert run(file, "t2i", out, *enhance) == 0
    assert chat_server.prompts == ["a red circle", "nothing", "nothing"], "what was drawn is not written anew"
    assert table(out, "prompt.json") == {"000000.png": "a red circle, shining", "000001.png": "a blue ring"}
    assert run(EXAMPLES / "x2t_image_example.json", "x2t_image", tmp_path / "none", *enhance) == 2
    assert "without --enhance-prompt" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize("content, said", [
    ("hight: 48", "use 'height'"), ("sampling: {steps: 3}", "sampling"), ("seed: many", "a whole number"),
    ("height: 0", "positive"), ("- 1", "no fields"), ("a: [", "not YAML"), ("resolution: huge", "huge"),
    ("sampling: 3", "sampling"),
])  # fmt: skip
def test_a_mistake_in_a_file_of_defaults_is_one_sentence(content, said, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    assert main(["run", "--task", "t2i", "--show-defaults", "--defaults", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error and "mine.yaml" in error and error.count("\n") == 1


def test_a_task_without_an_example_asks_for_a_file(tmp_path, capsys):
    assert main(["run", "--task", "flf2v", "-o", str(tmp_path / "out")]) == 2
    assert "no example for flf2v" in capsys.readouterr().err and not (tmp_path / "out").exists()
