"""This server as the judge of a benchmark: nano answers, but no grades, and what has no grade is failed and counted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from openlance.cli.main import app
from openlance.eval.benchmarks import BENCHMARKS
from openlance.eval.records import read_records
from openlance.eval.sampling import Run, sample

WORDS = ("_context_no_delimit", "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC",
         "_prompts_0shot_rule_PQ")  # fmt: skip


@pytest.fixture(scope="module")
def made(pipe, png, tmp_path_factory):
    """One edit of GEdit and one of ImgEdit, in folders of the official layout, with nano's results."""
    root = tmp_path_factory.mktemp("judged")
    row = {"key": "k", "task_type": "color_alter", "instruction": "make it blue", "instruction_language": "en",
           "Intersection_exist": True, "input_image_raw": {"bytes": png, "path": None}}  # fmt: skip
    (root / "gedit" / "viescore").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), root / "gedit" / "train.parquet")
    (root / "gedit" / "viescore" / "vie_prompts.py").write_text(
        "\n".join(f'{name} = "grade <instruction>"' for name in WORDS)
    )
    (root / "imgedit" / "Basic" / "singleturn").mkdir(parents=True)
    (root / "imgedit" / "Basic" / "singleturn" / "a.png").write_bytes(png)
    item = {"7": {"id": "a.png", "prompt": "make it blue", "edit_type": "adjust"}}
    (root / "imgedit" / "Basic" / "basic_edit.json").write_text(json.dumps(item))
    (root / "imgedit" / "Basic" / "prompts.json").write_text('{"adjust": "how good is <edit_prompt>?"}')
    for name in ("gedit", "imgedit"):
        jobs = BENCHMARKS[name].rules.jobs(root / name)
        sample(pipe, jobs, root / f"{name}-results", Run(benchmark=name, sampling={"num_inference_steps": 1}))
    return root


@pytest.mark.parametrize("name, why", [("gedit", "an answer without 2 scores"), ("imgedit", "")])
def test_answers_without_grades_are_counted_and_nothing_is_guessed(name, why, made, server):
    results, checkout = str(made / f"{name}-results"), str(made / name)
    line = ["bench", "judge", name, results, "--checkout", checkout, "--judge-model", "nano"]
    done = CliRunner().invoke(app, [*line, "--judge-url", f"{server.url}/v1"])
    (record,) = read_records(made / f"{name}-results" / "records.jsonl")
    if why:  # GEdit's grades are read at once, ImgEdit's when they are added up
        assert done.exit_code == 3 and "0 judged, 1 failed" in done.output, done.output
        assert why in record.failed
    else:
        assert done.exit_code == 0, done.output
        assert record.found["answer"] and not record.failed  # nano did answer
    scored = made / f"{name}.json"
    done = CliRunner().invoke(app, ["bench", "score", name, results, "--checkout", checkout, "--json", str(scored)])
    assert done.exit_code == 3, done.output
    score = json.loads(scored.read_text())
    assert sum(score["failed"].values()) == 1 and not score["found"] and score["comparable"] is False
    assert score["ours"]["total"]["n"] == 0 if "total" in score["ours"] else not score["ours"]
