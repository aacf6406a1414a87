"""Edits in a row: with a region nothing else changes, and the figure shows both."""

import json
from xml.etree import ElementTree

import numpy as np
import typer
from typer.testing import CliRunner

import openlance
from toyworld.suites.drift import LINES, Series, drift, starts, write_figure
from toyworld.suites.drift_command import drift as command

FEW = {"num_inference_steps": 2}


def test_the_starts_name_one_thing_by_its_shape():
    some = starts(Series(starts=5, turns=4))
    assert [s.name for s in some] == [s.name for s in starts(Series(starts=5, turns=4))]
    for start in some:
        alike = [o for o in start.scene.objects if o.shape == start.thing.shape]
        assert start.name == f"the {start.thing.shape}" and alike == [start.thing] and len(start.others) > 0
        assert len(start.colors) == 4 and all(a != b for a, b in zip((start.thing.color, *start.colors), start.colors))


def test_with_a_region_everything_else_is_equal_after_any_number_of_edits():
    found = drift(openlance.load("nano"), Series(starts=2, turns=2, settings=FEW))
    assert [row["equal"] for row in found["with"]] == [1, 1] and [row["rms"] for row in found["with"]] == [0, 0]
    assert found["without"][1]["rms"] > 1


def test_the_command_writes_numbers_and_a_figure(tmp_path):
    app = typer.Typer()
    app.command()(command)
    out, figure = tmp_path / "drift.json", tmp_path / "drift.svg"
    line = ["--turns", "1", "--samples", "1", "--num-inference-steps", "1", "--json", str(out), "--figure", str(figure)]
    said = CliRunner().invoke(app, line)
    assert said.exit_code == 0 and said.output.splitlines()[0].startswith("edits")
    assert set(json.loads(out.read_text())) == set(LINES) and ElementTree.parse(figure).getroot().tag.endswith("svg")


def test_the_figure_has_a_line_for_both_in_each_panel(tmp_path):
    rows = [{"psnr": 30.0, "rms": float(n), "equal": 0.0, "kept": 1 - n / 10} for n in range(5)]
    write_figure({"without": rows, "with": [row | {"rms": 0.0} for row in rows]}, tmp_path / "x.svg")
    lines = [e for e in ElementTree.parse(tmp_path / "x.svg").getroot() if e.tag.endswith("polyline")]
    assert len(lines) == 4
    ends = [[float(v) for v in line.attrib["points"].split()[-1].split(",")] for line in lines]
    assert np.isfinite(ends).all() and ends[0][1] < ends[1][1]  # what drifts stands above what does not
