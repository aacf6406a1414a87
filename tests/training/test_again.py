"""A folder that was trained in is continued, finished, or of another run: it says so, or refuses what cannot be."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from openlance.config.lora import Lora
from openlance.config.train import Stage, stage
from openlance.config.values import as_data, build
from openlance.data.open import open_source
from openlance.data.report import look
from openlance.errors import UserError
from openlance.media.files import write_json
from openlance.runtime.distributed import Distributed
from openlance.training.again import check_again, note_found
from openlance.training.checkpoint import Checkpoints
from openlance.training.files import Settings, starts_of

PLAN = replace(stage("sft", "nano"), steps=4, lora=Lora(rank=16))


@pytest.fixture
def begun(tmp_path):
    """A run that has been started, with a checkpoint of step 2; asks it whether another start can be meant."""
    (tmp_path / "pictures").mkdir()
    had = {"out": tmp_path / "run", "model": tmp_path, "data": {"t2i": str(tmp_path / "pictures")}}
    start = {"stage": as_data(PLAN), "options": Settings(**had).recorded(), "command": []}
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    write_json(tmp_path / "run" / "run.json", [as_data(start) | {"options": as_plain(start["options"])}])

    def ask(plan=PLAN, **changes):
        check_again(plan, Settings(**had | changes), Checkpoints(tmp_path / "run", Distributed()))

    return ask


def as_plain(value):
    if isinstance(value, dict):
        return {key: as_plain(held) for key, held in value.items()}
    return list(map(as_plain, value)) if isinstance(value, (list, tuple)) else value if value is None or isinstance(
        value, (bool, int, float)) else str(value)  # fmt: skip


def test_a_run_that_goes_on_or_is_finished_says_so(begun, capsys, tmp_path, monkeypatch):
    begun()
    assert "goes on at step 3 of 4" in capsys.readouterr().err
    begun(replace(PLAN, text_weight=1.0, steps=9))
    assert "goes on at step 3 of 9, with text_weight 1.0 in the place of" in capsys.readouterr().err
    begun(replace(PLAN, steps=2))
    assert "is finished (step 2 of 2): nothing is trained" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    begun(data={"t2i": "pictures"})  # the same folder by another name
    begun(replace(PLAN, lora=Lora(rank=16, alpha=16)))  # what it is by default


def test_adapters_of_runs_that_had_them_among_their_options_are_found(begun, tmp_path, capsys):
    place = tmp_path / "run" / "run.json"
    [start] = json.loads(place.read_text())
    start["options"]["lora"] = start["stage"].pop("lora")
    write_json(place, [start])
    begun()
    assert "goes on at step 3 of 4" in capsys.readouterr().err
    assert build(Stage, starts_of(tmp_path / "run")[0]["stage"]).lora == Lora(rank=16)


def test_data_that_changed_in_their_folder_are_told(tmp_path, tiny, capsys):
    for n in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text("black")
    plan = replace(PLAN, mixture={"t2i": 1})

    def again():
        (tmp_path / "run").mkdir(exist_ok=True)
        note_found(tmp_path / "run", look({"t2i": open_source(tmp_path, "t2i")}, plan, tiny.codec))
        return capsys.readouterr().err

    assert [again(), again()] == ["", ""]
    (tmp_path / "1.txt").write_text("dark")
    assert "have changed since the run began: 2 samples then, 2 now" in again()
    (tmp_path / "1.txt").unlink()
    assert "2 samples then, 1 now" in again()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"plan": replace(PLAN, lora=Lora(rank=8))}, "rank 16, and 8 is asked for"),
        ({"plan": replace(PLAN, lora=Lora(targets="q"))}, "targets .*, and q is asked for"),
        ({"plan": replace(PLAN, lora=Lora(rank=16, alpha=4))}, "alpha 16, and 4 is asked for"),
        ({"plan": replace(PLAN, lora=None)}, "an adapter alone, and the whole model"),
        ({"data": {"t2i": "others"}}, "data t2i=.*pictures, and t2i=others is asked for"),
        ({"data": {}}, "data t2i=.*pictures, and none of its own"),
        ({"model": "elsewhere"}, "base .*, and elsewhere is asked for"),
        ({"plan": replace(PLAN, seed=5)}, "seed 0, and 5 is asked for"),
        ({"plan": replace(PLAN, steps=2, lr=1e-5)}, "is finished .* so lr 1e-05 in the place of"),
    ],
)
def test_another_run_is_refused(begun, changes, said):
    with pytest.raises(UserError, match=said):
        begun(**changes)
