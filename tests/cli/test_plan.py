"""`openlance plan`: a verdict and exit code 0 for whatever can be planned, one sentence and 2 for what cannot."""

import json
import re

import pytest

from openlance.cli.main import main
from openlance.config.train import read_stage, stage


def said(capsys, *words: str) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def test_the_plan_of_the_paper(capsys):
    text = said(capsys, "3b", "--stage", "pt", "--gpus", "128xA100-80GB")
    for part in ("6.18B", "1.50T", "350,000 steps", "(88 or 96 devices), not 128", "Verdict: fits"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


def test_what_does_not_fit_says_what_to_change(capsys):
    text = said(capsys, "3b", "--stage", "sft", "--gpus", "8x4090")
    assert "does NOT fit" in text and "makes it fit" in text


def test_numbers_as_json(capsys):
    found = json.loads(said(capsys, "nano", "--stage", "sft", "--utilisation", "0.5", "--price", "1", "--json"))
    assert found["fits"] is True and found["cost"] == pytest.approx(24 * found["days"])
    asked = json.loads(
        said(capsys, "--task", "t2v", "--size", "480x848", "--frames", "121", "--memory", "16GB", "--json")
    )
    assert asked["fits"] in (True, False) and asked["memory"] == 16e9


def test_stages_are_listed_compared_and_dumped(capsys, tmp_path):
    assert all(name in said(capsys) for name in ("pt", "ct-iii", "sft"))
    assert re.search(r"^drop_all +0 -> 0.05$", said(capsys, "--stage", "pt", "--diff", "ct-i"), re.MULTILINE)
    (tmp_path / "mine.yaml").write_text(said(capsys, "--stage", "sft", "--dump", "--set", "steps=7"))
    assert read_stage(tmp_path / "mine.yaml").steps == 7 != stage("sft").steps
    assert "7 -> 15000" in said(capsys, "--file", str(tmp_path / "mine.yaml"), "--diff", "3b/sft")


@pytest.mark.parametrize(
    "words, hint",
    [
        (["--stage", "cpt"], "'pt'"),
        (["--stage", "pt", "--set", "lrr=1"], "'lr'"),
        (["--stage", "pt", "--set", "mixture.t2x=1"], "t2i"),
        (["--stage", "pt", "--gpus", "4xA10"], "A100"),
        (["--stage", "pt", "--memory", "much"], "16GB"),
        (["--task", "t2v", "--size", "850x480"], "848x480"),
        (["4b", "--stage", "pt"], "3b"),
        (["--file", "missing.yaml"], "missing.yaml"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, words, hint):
    assert main(["plan", *words]) == 2
    text = capsys.readouterr().err
    assert hint in text and text.count("\n") == 1
