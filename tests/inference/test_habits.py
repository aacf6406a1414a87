"""Who rounds rotary frequencies: released folders in everything they do, exact models in nothing."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import openlance
from openlance.checkpoint.formats import find, read_config
from openlance.config.model import NO_QUIRKS, Quirks, nano
from openlance.config.train import Stage
from openlance.model.attention import frequencies
from openlance.runtime.conversion import FORMS, gather, write
from openlance.training.start import open_base

NANO = Path(openlance.__file__).parent / "assets" / "nano"


def said(folder, habits):
    """Write what a folder says of its habits; None: nothing."""
    path = folder / "lance_config.json"
    content = json.loads(path.read_text())
    content.pop("faithful", None)
    path.write_text(json.dumps(content if habits is None else content | {"faithful": habits}))
    return folder


def older(**changes):
    """A table from before the frequencies were a habit."""
    return {
        name: value for name, value in asdict(replace(NO_QUIRKS, **changes)).items() if name != "rounded_frequencies"
    }


@pytest.mark.parametrize(
    "habits, wanted",
    [
        (None, Quirks()),
        ({}, Quirks()),
        (older(), NO_QUIRKS),
        (older(norm_includes_given=True), replace(NO_QUIRKS, norm_includes_given=True, rounded_frequencies=True)),
        ({"decode_without_shift": False}, Quirks(decode_without_shift=False)),
        (older() | {"rounded_frequencies": True}, replace(NO_QUIRKS, rounded_frequencies=True)),
        (asdict(Quirks(rounded_frequencies=False)), Quirks(rounded_frequencies=False)),
    ],
    ids=["nothing", "empty", "older exact", "older mixed", "one of the older", "exact but rounded", "rounded off"],
)
def test_a_folder_gets_the_habits_that_it_names_and_else_those_of_the_release(spoiled, habits, wanted):
    assert read_config(said(spoiled.folder, habits)).quirks == wanted


def test_nano_is_exact_by_name():
    assert json.loads((NANO / "lance_config.json").read_text())["faithful"] == asdict(NO_QUIRKS)
    assert read_config(NANO).quirks == nano().quirks == NO_QUIRKS


@pytest.mark.parametrize("habits", [None, older()], ids=["released", "older exact"])
def test_training_and_requests_of_a_folder_have_the_same_tables(spoiled, habits):
    pipe = openlance.load(said(spoiled.folder, habits))
    stage = Stage(name="x", steps=1, lr=1e-4, mixture={"t2i": 1}, pack_tokens=(1, 100), max_sample_tokens=100)
    base, fresh = open_base(spoiled.folder, stage), open_base(spoiled.folder, stage, init="fresh")
    position = torch.tensor([[3, 0], [7, 9]])
    tables = []
    for lance, vit in (
        (pipe.lance("und", "gen"), pipe.vit()), (base.learner.lance, base.learner.vit),
        (fresh.learner.lance, fresh.learner.vit),
    ):  # fmt: skip
        tables.append([frequencies(lance.config), *vit.tower.rotary_pos_emb(position)])
    for other in tables[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tables[0], other, strict=True))
    is_rounded = [torch.equal(t.float(), t.bfloat16().float()) for t in tables[0]]
    assert is_rounded == [habits is None] * 3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("habits", [None, older()], ids=["released", "older exact"])
def test_every_form_that_is_written_carries_them(spoiled, tmp_path, form, habits):
    files = find(said(spoiled.folder, habits))
    write(tmp_path / form, gather(files), form, show=False)
    assert find(tmp_path / form).config.quirks == files.config.quirks == (NO_QUIRKS if habits else Quirks())
