"""What was found is said before anything is trained, as a table, as data and as a page."""

import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from openlance.cli.main import main
from openlance.config.train import stage
from openlance.data.open import open_source
from openlance.data.report import look
from openlance.data.stream import length_of


@pytest.fixture
def few(tmp_path):
    """Five pictures, two of which have a text."""
    for n in range(5):
        Image.new("RGB", (64, 64), (40 * n, 0, 0)).save(tmp_path / f"{n}.png")
    for n in (1, 3):
        (tmp_path / f"{n}.txt").write_text(f"a <b>{n}</b>")
    return tmp_path


def test_a_report_counts_what_is_used_and_what_an_epoch_has(few, tiny):
    plan = replace(stage("sft", "nano"), mixture={"t2i": 3, "image_edit": 1})
    sources = {"t2i": open_source(few, "t2i"), "image_edit": open_source("world", "image_edit")}
    report = look(sources, plan, tiny.codec)
    first, second = report.entries
    each = length_of(first.samples[0].segments, tiny.codec, plan.draws)
    assert (first.census.seen, first.census.used, first.share) == (5, 2, 0.75)
    assert first.tokens == pytest.approx(2 * sum(first.lengths) / 2) and each == first.lengths[0]
    assert second.census is None and second.tokens is None and len(second.samples) == 8
    text = report.text()
    assert re.search(r"t2i +2 of 5 +75%", text) and re.search(r"image_edit +endless of endless +25%", text)
    assert "3 left out: no caption" in text and '"a <b>1</b>" -> [image 64x64]' in text
    data = report.as_data()["sources"][0]
    assert data["left_out"]["no caption"]["count"] == 3 and data["packs"] == first.tokens / plan.pack_tokens[1]
    assert json.loads(json.dumps(report.as_data()))["sources"][1]["used"] is None


def test_broken_rows_and_long_samples_are_told(few, tiny):
    (few / "3.png").write_bytes((few / "3.png").read_bytes()[:60])
    plan = replace(stage("sft", "nano"), mixture={"t2i": 1}, max_sample_tokens=20)
    text = look({"t2i": open_source(few, "t2i")}, plan, tiny.codec).text()
    assert "1 of 1 looked at are longer than 20 tokens" in text and "broken: " in text and "3.png" in text


def test_the_command_prints_a_table_json_and_a_page(few, tmp_path, capsys):
    page = tmp_path / "out" / "sheet.html"
    assert main(["data", "inspect", str(few), "--json", "-o", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    [source] = found["sources"]
    assert (source["task"], source["seen"], source["used"]) == ("t2i", 5, 2)
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/jpeg;base64,") == 2 and "<b>" not in html and "&lt;b&gt;" in html
    assert "http" not in html.replace("data:image", "")
    assert main(["data", "inspect", str(few), "--caption", "a thing"]) == 0
    assert re.search(r"t2i +5 of 5", capsys.readouterr().out)
    assert main(["data", "inspect", str(few), "-o", "sheet.png"]) == 2
    assert "not named as an HTML file" in capsys.readouterr().err
