"""The benchmark ranks as it should: a model that draws what is asked scores one, a blank canvas scores nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from openlance.cli.main import main
from openlance.eval.estimate import wilson
from openlance.eval.records import read_records
from openlance.eval.suite import summary
from toyworld.render import render
from toyworld.scene import is_heldout
from toyworld.suites import world_command as command
from toyworld.suites.bench import BENCH_CATEGORIES, SUITES, Bench, Scored, askings, drawings, named_tasks, run

SMALL = Bench(samples=6, seed=3, batch=4)


class Oracle:
    """Draws the scene that a prompt of the benchmark was made from, and knows the answers."""

    def __init__(self, bench):
        asked = [r for c in BENCH_CATEGORIES["vqa"] for r in askings(c, bench)]
        self.scenes = {r.prompt: r.scene for c in BENCH_CATEGORIES["t2i"] for r in drawings(c, bench)}
        self.answers = {(r.pixels.tobytes(), r.question.question): r.question.answer for r in asked}

    def generate(self, prompts, *, height, width, seed):
        return [Image.fromarray(render(self.scenes[p], height, width)) for p in prompts]

    def ask(self, images, questions):
        return [self.answers[np.asarray(i).tobytes(), q] for i, q in zip(images, questions, strict=True)]


class Blank:
    """Paints nothing and says nothing."""

    def generate(self, prompts, *, height, width, seed):
        return [Image.new("RGB", (width, height)) for _ in prompts]

    def ask(self, images, questions):
        return ["" for _ in questions]


@pytest.fixture(scope="module")
def oracle_results():
    pytest.importorskip("rapidocr")
    return run(Oracle(SMALL), SMALL)


def test_an_oracle_is_always_right_and_a_blank_canvas_never(oracle_results):
    nothing = run(Blank(), SMALL)
    for task, rows in oracle_results.items():
        assert all(row["mean"] >= 0.99 for row in rows.values()), rows
        assert all(row["mean"] == 0 for row in nothing[task].values()), nothing[task]


def test_the_table_has_the_promised_rows(oracle_results):
    t2i = ["single", "color", "two", "attribute", "position", "count", "text", "mean", "heldout"]
    vqa = ["caption", "count", "color", "shape", "existence", "relation", "grounding", "ocr", "mean", "heldout"]
    assert {task: list(rows) for task, rows in oracle_results.items()} == {"t2i": t2i, "vqa": vqa}
    own = {"mean", "n", "ci95"}
    for task, rows in oracle_results.items():  # beside it the second judge, where it can read what is asked
        assert all(set(row) in ((own, own | {"second", "agree"}) if task == "t2i" else (own,)) for row in rows.values())


def test_requests_depend_on_the_seed_and_not_on_how_many_there_are():
    few, many = (list(drawings("position", Bench(samples=n, seed=5))) for n in (3, 8))
    other = list(drawings("position", Bench(samples=3, seed=6)))
    assert few == many[:3] and few != other


def test_held_out_combinations_are_asked_for_only_in_their_own_row():
    bench = Bench(samples=10, seed=1, placement="loose")
    for category in BENCH_CATEGORIES["t2i"]:
        assert {is_heldout(r.scene) for r in drawings(category, bench)} == {category == "heldout"}


def test_held_out_scenes_are_no_part_of_the_mean():
    rows = summary({"single": [True, True], "two": [False, False], "heldout": [True, True]})
    assert rows["mean"]["mean"] == 0.5 and rows["mean"]["n"] == 4 and list(rows)[-1] == "heldout"


def test_all_names_every_task_and_a_list_those_in_it():
    assert named_tasks("all") == tuple(SUITES) and named_tasks("vqa, t2i,") == ("vqa", "t2i")
    wanted = {"t2i", "t2v", "i2v", "image_edit", "video_edit", "subject", "vqa", "video_vqa", "multi_turn"}
    wanted |= {"subject_video", "multi_turn_video", "vqa.reasoning", "image_inpaint", "outpaint", "extend"}
    assert set(SUITES) == wanted and Bench(tasks=named_tasks("all")).tasks == tuple(SUITES)


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 15 of 148 and 0 of 20.
    assert np.allclose(wilson(15, 148), (0.0624, 0.1605), atol=5e-5)
    assert np.allclose(wilson(0, 20), (0.0, 0.1611), atol=5e-5)


def test_a_mistake_in_the_settings_is_one_sentence():
    with pytest.raises(ValueError, match="'t3d'.*'all'.*t2i, t2v"):
        Bench(tasks=("t3d",))
    with pytest.raises(ValueError, match="samples=0"):
        Bench(samples=0)
    with pytest.raises(ValueError, match="placement 'wild'"):
        Bench(placement="wild")


def test_scores_are_written_whole_and_pictures_kept_with_their_verdict(tmp_path):
    results = {"t2i": summary({"single": [True, False], "heldout": [False]})}
    command.options.write_json(results, tmp_path / "new" / "scores.json")
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scores.json"]
    scored = Scored(task="t2i", category="two", index=7, right=False, said={"prompt": "a ring"},
                    image=Image.new("RGB", (16, 16)))  # fmt: skip
    command.save_image(scored, tmp_path / "pictures")
    (record,) = read_records(tmp_path / "pictures" / "records.jsonl")
    assert record.group == "t2i two" and record.found["prompt"] == "a ring" and record.found["right"] is False
    assert (tmp_path / "pictures" / "t2i-two-000007-wrong.png").is_file()


def test_every_request_moves_the_bar_and_every_category_has_a_line(capsys):
    seen = []
    bench = Bench(tasks=("vqa",), samples=2)
    results = command.with_progress(lambda tell: run(Blank(), bench, lambda s: (tell(s), seen.append(s))), total=18)
    command.show(results, "a blank model")
    assert len(seen) == 18 and {s.category for s in seen} == set(BENCH_CATEGORIES["vqa"])
    printed = capsys.readouterr().out
    assert all(category in printed for category in (*BENCH_CATEGORIES["vqa"], "mean"))


@pytest.mark.parametrize("wrong", [["--samples", "0"], ["--placement", "wild"], ["--size", "big"], ["--seed", "-1"]])
def test_the_command_refuses_what_it_cannot_do_before_it_loads_a_model(wrong, capsys):
    assert main(["bench", "world", "--model", "no-such-model", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err
