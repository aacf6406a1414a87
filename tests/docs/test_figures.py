"""What the pages show is what the code says: figures, tables of scores, memory of the released model."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openlance.cli.main import main

ROOT = Path(__file__).parents[2]


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures, scores, words, release = map(tool, ("figures", "scores", "words", "release"))


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_is_what_the_rows_say(name):
    assert figures.FIGURES[name]() == (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", scores.PAGES)
def test_scores_are_those_of_the_newest_results(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    assert page == scores.filled(page) and page.count("| `chat`, `story` | 0.") == 1


def test_the_memory_of_the_released_model_is_what_plan_counts(capsys):
    page = (ROOT / "docs" / "tutorials" / "released-3b.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- fit -->\n(.*?)<!-- /fit -->", page, re.S)[1].strip().splitlines()[2:]
    told = [[float(cell) for cell in line.split("|")[2:5]] for line in table]
    asked = (["t2i", "768x768"], ["image_edit", "768x768"], ["t2v", "848x480", "--frames", "121"])
    turns, both = "in turn with the decoder", "understanding and generation weights"
    rows = (
        "everything stays", f"(?<!layer; )vision tower and VAE are loaded {turns}",
        "understanding weights are streamed layer by layer; vision tower and VAE are loaded only while they work",
        f"{both} are streamed layer by layer; vision tower and VAE are loaded {turns}",
    )  # fmt: skip
    for column, (task, size, *more) in enumerate(asked):
        assert main(["plan", "--task", task, "--size", size, *more]) == 0
        text = re.sub(r"\s+", " ", capsys.readouterr().out)
        found = [re.search(rf"{words} ([\d.]+)", text)[1] for words in rows]
        assert [row[column] for row in told] == [pytest.approx(float(value), abs=0.051) for value in found]


def test_the_memory_of_its_adapters_is_what_plan_counts(capsys):
    page = (ROOT / "docs" / "tutorials" / "released-3b.md").read_text(encoding="utf-8")
    told = re.search(r"<!-- lora -->\n(.*?)<!-- /lora -->", page, re.S)[1].strip().splitlines()[2].split("|")[1:-1]
    for cell, task in zip(told, ("t2i", "edit", "subject", "vqa"), strict=True):
        assert (
            main(["plan", "3b", "--stage", "lora", "--gpus", "4090", "--set", f"mixture={{{task}: 1}}", "--json"]) == 0
        )
        found = json.loads(capsys.readouterr().out)
        assert found["memory"]["peak"] == pytest.approx(float(cell), abs=0.051)
        assert found["memory"]["peak"] < found["usable"] and f"({found['usable']:.1f} GiB" in page


def test_the_fields_words_are_kept(tmp_path, monkeypatch):
    assert words.main() == 0
    monkeypatch.setattr(words, "ROOT", tmp_path)
    page, source = tmp_path / "a.md", tmp_path / "a.py"
    page.write_text("Fill the hole. `hole` and\n\n    a hole\n\nare names; 0 images are none.\n")
    source.write_text(
        '"""A team of guests, told by content."""\nHOLE = "hole"\nraise ValueError("safetensors need no leave.")\n'
    )
    assert [line.split(": write")[0] for line in words.found(page)] == ["a.md:1: 'hole'", "a.md:5: 'images are none'"]
    assert len(list(words.found(source))) == 3


def test_a_release_dates_what_is_unreleased():
    before = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- x\n\n## [0.1.0] - 2026-11-26\n"
    after = release.released(before, "0.2.0", "2026-12-01")
    assert after == before.replace("## [Unreleased]\n", "## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n")
    with pytest.raises(ValueError, match="nothing unreleased"):
        release.released(after, "0.3.0", "2026-12-02")
    with pytest.raises(ValueError, match="later version"):
        release.released(before, "0.1.0", "2026-12-02")


def test_the_version_is_the_same_everywhere():
    import openlance

    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "citation.md").read_text(encoding="utf-8")
    assert f"\nversion: {openlance.__version__}\n" in citation and f"{{{openlance.__version__}}}" in page


def test_every_command_has_a_page():
    """In a process of its own, since mkdocs is none of the tests' packages: the hook's own functions need no mkdocs."""
    code = (
        "import sys, types; sys.path.insert(0, 'tools');"
        "m = sys.modules['mkdocs.structure.files'] = types.ModuleType('f'); m.File = object;"
        "import json, pages; print(json.dumps(dict(pages.command_pages())))"
    )
    found = json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
    assert {"generate", "serve", "train", "demo", "verify"} <= found.keys()
    assert "| `--num-images" in found["generate"] and "## openlance train lora" in found["train"]


def test_the_messages_that_the_questions_quote_are_said():
    said = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "openlance").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", said)  # a message over several lines
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    quoted = re.findall(r'(?m)^"(.+?)"(?=[:,])', page)
    parts = [part.strip(" :") for quote in quoted for part in quote.split("...") if part.strip(" :()")]
    assert len(parts) > 8 and [part for part in parts if part not in said] == []
