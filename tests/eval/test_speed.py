"""Speed as one table: what is measured, and what may be sent."""

import json
import statistics

import pytest
from typer.testing import CliRunner

from openlance.cli.main import app
from openlance.errors import UserError
from openlance.eval.speed import TOKENS, lines, measured, usual_tasks, wanted
from openlance.sequence.tasks import TASKS


def test_one_task_for_all_that_is_read_and_made(nano):
    pairs = [(TASKS[name].reads, TASKS[name].makes) for name in usual_tasks(nano)]
    known = {(spec.reads, spec.makes) for name, spec in TASKS.items() if nano.defaults.knows(name)}
    assert len(pairs) == len(set(pairs)) and set(pairs) == known
    rows = wanted(nano, (), [(32, 48), (64, 64)], 5, (1, 2))
    assert len(rows) == 4 * len(pairs) and (rows[0].width, rows[0].height) == (32, 48)
    with pytest.raises(UserError, match="multiple"):
        wanted(nano, (), [(33, 48)])
    with pytest.raises(UserError):
        wanted(nano, ["t3d"])


def test_every_kind_of_task_is_measured(nano):
    rows, done = wanted(nano, (), [(32, 32)], 5), list[int]()
    data = json.loads(json.dumps(measured(nano, rows, repeats=2, steps=1, on_done=done.append)))
    assert len(done) == 3 * len(rows) and data["sampling"]["num_inference_steps"] == 1
    for row in data["rows"]:
        assert len(row["seconds"]) == 2 and row["median"] == pytest.approx(statistics.median(row["seconds"]), abs=1e-4)
        assert row["per_second"] == pytest.approx(1 / row["median"], rel=0.01)
        assert (row["tokens_per_second"] > 0) is (TASKS[row["task"]].makes == "text")
        assert row["tokens_per_second"] * sum(row["seconds"]) <= 2 * TOKENS * 1.01
        assert row["peak_bytes"] > row["planned_bytes"] > 0  # the process has torch in it as well
    assert len(list(lines(data))) == 1 + len(rows)


def test_the_command_says_no_folders(tmp_path):
    file = tmp_path / "somebody" / "speed.json"
    line = ["bench", "speed", "--tasks", "x2t_image", "--size", "32x32", "--repeats", "1", "--json", str(file)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert "x2t_image  32x32" in done.output and "somebody" not in file.read_text()
    assert json.loads(file.read_text())["machine"]["device"] == "cpu"
