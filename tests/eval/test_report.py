"""Reports: what runs come to beside each other, and a page that needs nothing but itself."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from openlance.cli.main import app
from openlance.errors import UserError
from openlance.eval import vbench
from openlance.eval.estimate import paired
from openlance.eval.records import Record, write_records
from openlance.eval.report import markdown, sections
from openlance.eval.report_page import Thumbnails, page
from openlance.eval.sampling import Job, write_items
from openlance.eval.suite import summary
from openlance.media import Clip, write_image, write_media

# Differences.


def test_a_difference_is_tested_by_all_ways_to_swap_the_runs():
    one, two = {"a": {"x": 0.0, "y": 0.0, "z": 1.0, "w": 0.0}}, {"a": {"x": 1.0, "y": 1.0, "z": 1.0, "v": 0.0}}
    found = paired(one, two)
    assert found.n == 3 and np.isclose(found.value, 2 / 3)
    assert found.p == 0.5  # of the four ways to swap x and y, two differ as much
    back = paired(two, one)
    assert (back.value, back.low, back.high, back.p) == (-found.value, -found.high, -found.low, found.p)
    assert paired(one, one).p == 1.0 and paired(one, {"a": {}}).n == 0


@pytest.mark.parametrize("n", [10, 40])
def test_runs_that_are_alike_seldom_differ(n):
    rng = np.random.default_rng(n)
    runs = [[{"a": dict(enumerate(rng.random(n)))} for _ in range(2)] for _ in range(150)]
    seldom = np.mean([paired(*pair).p <= 0.1 for pair in runs])
    assert 0.04 <= seldom <= 0.18


def test_groups_weigh_alike_in_a_total():
    one = {"a": {str(k): 0.0 for k in range(8)}, "b": {"0": 0.0, "1": 0.0}}
    two = {"a": {str(k): 0.0 for k in range(8)}, "b": {"0": 1.0, "1": 1.0}}
    assert paired(one, two).value == 0.5


# Pages.


def geneval_run(folder, right: dict[str, list[bool]], **made):
    """A folder as `openlance bench sample geneval` and `judge` leave it."""
    jobs = [
        Job(group=tag, key=f"{tag}{n}", task="t2i", prompt=f"a <b>{tag}</b> {n}", file=f"{tag}{n}/{{k}}.png")
        for tag, each in right.items()
        for n in range(len(each))
    ]
    records = list[Record]()
    for job, said in zip(jobs, [one for each in right.values() for one in each], strict=True):
        write_image(folder / job.file.format(k=0), np.full((40, 60, 3), 200, np.uint8))
        records.append(Record(group=job.group, key=job.key, found={"right": said, "prompt": job.prompt, "why": "seen"}))
    records[-1] = Record(group=jobs[-1].group, key=jobs[-1].key, failed="the server does not answer")
    write_items(folder, jobs)
    write_records(folder / "records.jsonl", records)
    sampling = {"num_inference_steps": 50, "shift": 3.5, "guidance_scale": 4.0}
    expected = {tag: len(each) for tag, each in right.items()}
    data = {"benchmark": "geneval", "asked": [1, 768, 768], "limit": 3, "items": "", "expected": expected}
    (folder / "manifest.json").write_text(json.dumps(data | {"sampling": sampling | made}))
    return str(folder)


@pytest.fixture
def two_runs(tmp_path):
    one = geneval_run(tmp_path / "one", {"colors": [False] * 6, "counting": [True, False, True]})
    two = geneval_run(tmp_path / "two", {"colors": [True] * 6, "counting": [True, False, True]}, num_inference_steps=9)
    return [one, two]


def test_a_report_of_two_runs(two_runs, tmp_path):
    done = CliRunner().invoke(app, ["bench", "report", *two_runs, "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 3, done.output  # one is not judged
    text, html = (tmp_path / "r.md").read_text(), (tmp_path / "r.html").read_text()
    assert "| sampling.num_inference_steps | 50 | 9 |" in text
    assert re.search(r"\| colors \| \+1.000 \| .* \| 0.031 \| 6 \|", text)  # 2 of 2^6 ways
    assert "1 without a judgement: the server does not answer" in text
    assert "Lance (arXiv 2605.18678): total 0.9 follows" in text
    assert "<b>colors</b> 0" not in html and "a &lt;b&gt;colors&lt;/b&gt; 0" in html
    assert not re.search(r"<script|<link|url\(", html)
    images = re.findall(r'<img src="([^"]+)"', html)
    assert len(images) == 2 * (4 + 3) and all(one.startswith("data:image/webp;base64,") for one in images)
    assert "not judged" in html and html.count("✗ wrong") == 4 + 1 + 1


def test_runs_are_named_by_as_much_of_their_path_as_is_needed(tmp_path):
    folders = [geneval_run(tmp_path / name / "x", {"colors": [True, True]}) for name in "ab"]
    (section,) = sections(folders)
    assert [run.name for run in section.runs] == ["a/x", "b/x"]
    (tmp_path / "x.json").write_text(json.dumps({"t2i": summary({"single": [True]})}))
    (tmp_path / "a" / "x.json").write_text((tmp_path / "x.json").read_text())
    found = sections([folders[0], str(tmp_path / "a" / "x.json"), str(tmp_path / "x.json")])
    assert [run.name for section in found for run in section.runs] == ["a/x", "a/x.json", f"{tmp_path.name}/x.json"]
    with pytest.raises(UserError, match="given twice"):
        sections([folders[0], folders[0]])


def test_what_is_too_large_for_a_page_is_left_out_and_counted():
    thumbnails, clip = Thumbnails(room=700), Clip(np.zeros((9, 64, 32, 3), np.uint8))
    first = thumbnails(clip)
    assert first.startswith("data:") and thumbnails.room < 700
    assert [thumbnails(clip) for _ in range(20)][-1] == "" and thumbnails.left_out


def test_files_outside_a_folder_are_not_shown(tmp_path):
    folder = geneval_run(tmp_path / "one", {"colors": [True, True]})
    write_image(tmp_path / "secret.png", np.zeros((8, 8, 3), np.uint8))
    items = tmp_path / "one/items.jsonl"
    items.write_text(items.read_text().replace("colors0/{k}.png", "../secret.png"))
    with pytest.raises(UserError, match="a file outside the folder"):
        sections([folder])


def test_vbench_and_its_videos(tmp_path):
    job = Job(group="all", key="a cat", task="t2v", prompt="a cat", samples=2, file="videos/a cat-{k}.mp4")
    for k in range(2):
        write_media(tmp_path / job.file.format(k=k), Clip(np.zeros((5, 32, 32, 3), np.uint8)))
    write_items(tmp_path, [job])
    videos = [{"video_path": f"videos/a cat-{k}.mp4", "video_results": 0.5} for k in range(2)]
    (tmp_path / "x_eval_results.json").write_text(json.dumps({"scene": [0.5, videos]}))
    (section,) = sections([f"vbench={tmp_path}"])
    text = markdown([section])
    assert "total 85.11 is printed, 83.87 follows" in text and "| scene | 50.00" in text
    assert f"the official total takes 0 for {', '.join(n for n in vbench.DIMENSIONS if n != 'scene')}" in text
    assert len(re.findall("<img ", page([section]))) == 1  # one video of an item, its frames beside each other


def test_suites_of_our_own_have_the_same_form(tmp_path):
    results = {"t2i": summary({"single": [True, False], "heldout": [False]}), "vqa": summary({"color": [True]})}
    (tmp_path / "scores.json").write_text(json.dumps(results))
    found = sections([str(tmp_path / "scores.json")])
    assert [one.title for one in found] == ["world t2i", "world vqa"]
    assert found[0].names == ["single", "heldout", "total"] and found[0].runs[0].score.ours["total"].value == 0.5
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    record = Record(group="t2i single", key="000000", found={"right": True, "file": "a.png", "prompt": "a ring"})
    (tmp_path / "records.jsonl").write_text(json.dumps(asdict(record)) + "\n")
    (tmp_path / "manifest.json").write_text('{"benchmark": "world"}')
    (section,) = sections([str(tmp_path)])
    assert section.title == "world t2i" and "✓ right" in page([section]) and "data:image/webp" in page([section])
    (tmp_path / "manifest.json").write_text('{"benchmark": "world", "expected": {"t2i single": 2, "t2i two": 2}}')
    (section,) = sections([str(tmp_path)])  # of a run that was stopped
    assert section.runs[0].score.incomplete == [f"{name} judged, asked for were 2" for name in ("single: 1", "two: 0")]


def test_two_judges_of_one_image_stand_below_it(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    found = {"right": True, "second": False, "file": "a.png", "instruction": "make the ring red"}
    write_records(tmp_path / "records.jsonl", [Record(group="image_edit recolour", key="000000", found=found)])
    (tmp_path / "manifest.json").write_text('{"benchmark": "world"}')
    html = page(sections([str(tmp_path)]))
    assert html.count("<img ") == 1 and "make the ring red</figcaption>" in html
    assert html.index("<img ") < html.index("✓ right") < html.index("✗ wrong")


@pytest.mark.parametrize(
    "content, said",
    [(None, "has no manifest.json: say whose"), ("[1]", "must hold a JSON object"), ('{"t2i": 3}', "is not the JSON")],
)
def test_what_is_no_result_is_said(content, said, tmp_path):
    place = tmp_path if content is None else tmp_path / "x.json"
    if content is not None:
        place.write_text(content)
    with pytest.raises(UserError, match=said):
        sections([str(place)])
