"""A stage from its settings to an exported model, on a nano of few layers with tiny packs of its world."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
from PIL import Image

from openlance.config.train import stage
from openlance.errors import UserError
from openlance.training.files import Settings, stage_folders
from openlance.training.run import check_plan, earlier, run_recipe, run_stage

SMALL = replace(
    stage("sft", "nano"), steps=3, schedule="constant", lr=1e-3, pack_tokens=(200, 500), max_sample_tokens=500, draws=2,
    mixture={"t2i": 1.0, "x2t_image": 1.0}, dtype="float32", frozen=("vit", "vae"),
)  # fmt: skip


@pytest.fixture
def settings(shallow):
    return lambda out, **changes: Settings(out=out, model=shallow, **changes)


def test_a_stage_that_was_stopped_ends_with_the_same_bytes_as_one_that_was_not(settings, tmp_path):
    shown = []
    whole = run_stage(SMALL, settings(tmp_path / "whole", validate_every=2, held_out_packs=1), shown.append)
    run_stage(replace(SMALL, steps=1), settings(tmp_path / "cut"))
    with pytest.raises(UserError, match=r"in t2i, x2t_image, and the stage sft now mixes in t2i:"):
        run_stage(replace(SMALL, mixture={"t2i": 1.0}), settings(tmp_path / "cut"))
    with pytest.raises(UserError, match="trained other tensors .*weights/lance.head.weight.*begin a new run"):
        run_stage(replace(SMALL, frozen=("vit", "vae", "lance.head")), settings(tmp_path / "cut"))
    cut = run_stage(SMALL, settings(tmp_path / "cut", workers=1))
    for name in ("model.safetensors", "vit.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and shown == [whole]
    assert [row["step"] for row in rows if "validation_flow" in row] == [2]
    starts = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert [starts[0]["stage"]["steps"], starts[-1]["stage"]["steps"]] == [1, 3]


def test_data_that_nothing_mixes_in_and_tasks_without_data_are_named(settings, tmp_path):
    with pytest.raises(UserError, match="does not mix in t2v"):
        run_stage(SMALL, settings(tmp_path, data={"t2v": "world"}))
    with pytest.raises(UserError, match="mixes in t2i, x2t_image without data"):
        run_stage(replace(SMALL, source=""), settings(tmp_path))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("nothing at all")
    with pytest.raises(UserError, match="nothing is held out for t2i"):
        run_stage(SMALL, settings(tmp_path / "run", validate_every=1, data={"t2i": str(tmp_path / "pictures")}))


def test_data_of_a_recipe_may_be_for_some_of_its_stages(settings, tmp_path):
    stages = (replace(SMALL, name="one", mixture={"t2i": 1}), replace(SMALL, name="two"))
    check_plan(stages, settings(tmp_path, data={"x2t_image": {"path": "world"}}, validate_every=1))
    with pytest.raises(UserError, match="no stage mixes in t2v, for which there are data: use mixture="):
        run_recipe(stages, settings(tmp_path / "no", data={"t2v": "world"}))


def test_a_reporter_that_is_unknown_or_not_installed_is_named(settings, tmp_path):
    with pytest.raises(UserError, match="no reporter 'excel': use one of tensorboard, wandb, trackio"):
        settings(tmp_path, report_to=("excel",))
    if find_spec("wandb") is None:
        with pytest.raises(UserError, match="wandb is not installed: pip install wandb"):
            settings(tmp_path, report_to=("wandb",))


def test_the_stages_before_one_are_found_beside_it_in_order(tmp_path):
    for name in ("10-c", "2-b", "1-a", "notes-x", "alone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('[{"stage": {}, "options": {}, "command": []}]')
    assert [p.name for p in stage_folders(tmp_path)] == ["1-a", "2-b", "10-c"]
    assert [p.name for p in earlier(tmp_path / "10-c")] == ["1-a", "2-b", "10-c"]
    with pytest.raises(UserError, match="alone is a stage of a recipe"):
        earlier(tmp_path / "alone")
