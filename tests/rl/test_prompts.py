"""Prompts for rewards that read texts: as many as asked for, no two alike, the same for a seed; each can be scored."""

import json
from collections import Counter

import pytest

from openlance.cli.main import main
from openlance.errors import UserError
from openlance.rl.prompts import KINDS, Prompt, read_prompts, text_prompts
from openlance.rl.rewards.ocr import Ocr
from openlance.rl.rewards.spelling import quoted


@pytest.mark.parametrize("language, count", [("en", 20_000), ("zh", 2_000), ("en+zh", 1_000)])
def test_every_prompt_is_another_one_and_can_be_scored(language, count):
    made = text_prompts(count, language=language)
    assert len({one.prompt for one in made}) == len(made) == count
    for one in made:
        Ocr().check(one.prompt)
        assert len(quoted(one.prompt)) == (2 if one.kind == "two" else 1)
    assert made[:100] == text_prompts(100, language=language) != text_prompts(100, seed=1, language=language)


def test_the_kinds_come_in_their_shares():
    counts = Counter(one.kind for one in text_prompts(4000))
    assert {kind: counts[kind] / 4000 for kind in KINDS} == pytest.approx(
        {kind: share for kind, (share, _) in KINDS.items()}, abs=0.03
    )
    assert Counter(one.kind.partition(" ")[0] for one in text_prompts(10, language="en+zh"))["zh"] == 5


def test_what_cannot_be_made_is_named():
    with pytest.raises(UserError, match="language is 'fr'.*en, zh, en\\+zh"):
        text_prompts(3, language="fr")
    with pytest.raises(UserError, match="count must be at least 1"):
        text_prompts(0)


def test_the_command_writes_what_the_reader_reads(tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    assert main(["data", "prompts", "-n", "50", "--seed", "3", "-o", str(path)]) == 0
    assert read_prompts(path) == text_prompts(50, seed=3)
    assert main(["data", "prompts", "-n", "50", "-o", str(tmp_path / "prompts.txt")]) == 2
    assert "-o prompts.jsonl" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1


def test_files_of_lines_and_of_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n a dog \n\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat", "more": 1}\n{"prompt": "a dog", "kind": "animal"}\n')
    assert read_prompts(tmp_path / "a.txt") == [Prompt("a cat"), Prompt("a dog")]
    assert read_prompts(tmp_path / "a.jsonl") == [Prompt("a cat"), Prompt("a dog", "animal")]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is empty: write one prompt per line"),
        ('{"prompt": "a"}\n\n{"prompt": "b"}', "line 2 of .* is empty"),
        ('{"prompt": "a"}\n{"prompt": ', "line 2 of .* is no JSON"),
        ('{"text": "a"}', "line 1 of .* has no prompt"),
        (json.dumps(["a"]), "line 1 of .* has no prompt"),
    ],
)
def test_a_damaged_line_is_named(text, said, tmp_path):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        read_prompts(tmp_path / "a.jsonl")
