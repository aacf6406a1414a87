"""From a benchmark's folder to its score, with nano, on small folders of the official layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import openlance
from openlance.cli.main import app
from openlance.config.model import ModelConfig
from openlance.errors import UserError
from openlance.eval import mvbench
from openlance.eval.benchmarks import BENCHMARKS, scored
from openlance.eval.sampling import Job, Run, Seeding, read_items, sample
from openlance.media import Clip, read_media
from openlance.media.transform import MediaTransform

SAMPLING = {"num_inference_steps": 2, "shift": 3.0}


def run(name: str, size=(1, 32, 32), **more) -> Run:
    return Run(benchmark=name, size=size, sampling=SAMPLING, **more)


def test_geneval(nano, checkouts, tmp_path):
    jobs = BENCHMARKS["geneval"].rules.jobs(checkouts / "geneval")
    sample(nano, jobs, tmp_path, run("geneval", limit=1))
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == sorted(
        [f"{n:05}/{name}" for n in (0, 2) for name in ["metadata.jsonl", *(f"samples/{k:05}.png" for k in range(4))]]
        + ["items.jsonl", "manifest.json"]
    )
    assert json.loads((tmp_path / "00002/metadata.jsonl").read_text())["tag"] == "counting"
    results = tmp_path / "results.jsonl"
    said = {"prompt": "", "reason": "", "metadata": "{}", "details": "{}"}
    tags = {0: "colors", 2: "counting"}
    lines = [
        {"filename": f"x/{n:05}/samples/{k:05}.png", "tag": tags[n], "correct": k > 0, **said}
        for n in tags
        for k in range(4)
    ]
    results.write_text("\n".join(map(json.dumps, lines)))
    score = scored("geneval", results)
    assert score.incomplete == [] and score.official["total"] == 0.75
    assert any("the benchmark has" in why for why in score.differs)  # a part of it is not the benchmark


def test_an_interrupted_run_makes_what_is_missing_and_nothing_else(nano, checkouts, tmp_path):
    jobs = BENCHMARKS["geneval"].rules.jobs(checkouts / "geneval")
    sample(nano, jobs, tmp_path, run("geneval"))
    whole = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*.png"))}
    gone = sorted(whole)[1]
    gone.unlink()
    before, done = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}, list[int]()
    sample(nano, jobs, tmp_path, run("geneval"), on_done=done.append)
    assert gone.read_bytes() == whole[gone] and sum(done) == 12
    assert all(p.stat().st_mtime_ns == when for p, when in before.items())
    with pytest.raises(UserError, match="choose another -o"):
        sample(nano, jobs, tmp_path, run("geneval", seeding=Seeding(seed=1)))


def test_processes_share_the_items(nano, checkouts, tmp_path):
    jobs = BENCHMARKS["geneval"].rules.jobs(checkouts / "geneval")
    sample(nano, jobs, tmp_path / "one", run("geneval"))
    for rank in range(2):
        sample(nano, jobs, tmp_path / "two", run("geneval"), rank=rank, world=2)
    one, two = (
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*.*")} for d in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_seeds():
    job, other = (Job(group="g", key=key, task="t2i", prompt="x") for key in "ab")
    own, release = Seeding(seed=42), Seeding(seed=42, world=8, most=8)
    assert len({own.of(j, n, k) for n, j in enumerate((job, other)) for k in range(4)}) == 8
    assert own.of(job, 0, 1) == own.of(job, 5, 1) != Seeding(seed=43).of(job, 0, 1)
    assert [release.of(job, number, 2) for number in (0, 1, 8, 15)] == [44, 52, 44, 100]


def test_dpg_is_a_grid_of_four(nano, checkouts, tmp_path):
    (job,) = BENCHMARKS["dpg"].rules.jobs(checkouts / "dpg")
    sample(nano, [job], tmp_path, run("dpg"))
    grid = read_media(tmp_path / "images/12.png").pixels[0]
    seeds = [Seeding().of(job, 0, k) for k in range(4)]
    request = nano.front.request("t2i", "a red circle", asked=(1, 32, 32))
    clips = nano.fill_visual([request] * 4, nano.sampling([request], **SAMPLING), seeds)
    cells = [grid[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    assert grid.shape == (64, 64, 3) and all(np.array_equal(c, clip.pixels[0]) for c, clip in zip(cells, clips))
    detail = tmp_path / "x_detail.txt"
    detail.write_text("".join(f"12.png, ({x}, {y}, 0, 0), Is it red?, yes\n" for y in (0, 32) for x in (0, 32)))
    score = scored("dpg", detail, checkouts / "dpg")
    assert score.incomplete == [] and score.ours["total"].value == 100.0


def test_edits_with_their_sources(nano, checkouts, tmp_path):
    sample(nano, BENCHMARKS["gedit"].rules.jobs(checkouts / "gedit"), tmp_path / "gedit", run("gedit", None))
    for group in ("color_alter", "text_change"):
        place = tmp_path / "gedit" / "fullset" / group / "en"
        assert sorted(p.name for p in place.iterdir()) == ["k.png", "k_SRCIMG.png"]
        assert Image.open(place / "k_SRCIMG.png").getpixel((3, 3)) == (255, 0, 0)
        assert Image.open(place / "k.png").size == (32, 32)
    sample(nano, BENCHMARKS["imgedit"].rules.jobs(checkouts / "imgedit"), tmp_path / "imgedit", run("imgedit", None))
    result = tmp_path / "imgedit" / "result.json"
    result.write_text(json.dumps({"7": "a: 4\nb: 4\nc: 3"}))
    score = scored("imgedit", result, checkouts / "imgedit")
    assert score.incomplete == [] and score.official["adjust"] == 3.67
    assert Image.open(tmp_path / "imgedit" / "7.png").size == (32, 32)


def test_vbench_asks_a_prompt_once_and_stills_more_often(nano, checkouts, tmp_path):
    jobs = BENCHMARKS["vbench"].rules.jobs(checkouts / "vbench")
    assert {job.prompt: job.samples for job in jobs} == {"a red circle {moving}": 5, "a still circle": 25}
    sample(nano, jobs[:1], tmp_path, run("vbench", (5, 32, 32)))
    assert sorted(p.name for p in (tmp_path / "videos").iterdir()) == [
        f"a red circle {{moving}}-{k}.mp4" for k in range(5)
    ]


def test_mvbench(nano, checkouts, tmp_path):
    jobs = BENCHMARKS["mvbench"].rules.jobs(checkouts / "mvbench")
    assert [(job.group, job.found["letter"]) for job in jobs] == [("Action Count", "B")] * 2 + [
        ("Episodic Reasoning", "B")
    ]
    clips = [job.media[0]() for job in jobs]
    for usual in (nano.front.transform, MediaTransform(ModelConfig())):  # what is chosen is looked at, all of it
        assert [usual.trimmed(clip).frames for clip in clips] == [mvbench.FRAMES] * 3
    assert usual.trimmed(Clip(np.zeros((16, 28, 28, 3), np.uint8))).frames == mvbench.FRAMES < 16
    sample(nano, jobs, tmp_path, Run(benchmark="mvbench", max_new_tokens=4))
    score = scored("mvbench", tmp_path)
    assert score.incomplete == [] and score.found == {"Action Count": 2, "Episodic Reasoning": 1}
    asked = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    request = nano.front.request("x2t_video", jobs[0].prompt, [jobs[0].media[0]()])
    assert (
        asked[0]["found"]["answer"]
        == nano.fill_text([request], openlance.config.sampling.Decoding(max_new_tokens=4))[0]
    )


def official(name: str, folder: Path) -> None:
    """Results as the official scorer would write them into a folder of `bench sample`; mvbench has its answers."""
    jobs = read_items(folder).values()
    if name == "geneval":
        said = {"correct": True, "prompt": "", "reason": "", "metadata": "{}", "details": "{}"}
        lines = [
            said | {"filename": job.file.format(k=k), "tag": job.group} for job in jobs for k in range(job.samples)
        ]
        (folder / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    elif name == "dpg":
        cells = [f"12.png, ({x}, {y}, 0, 0), Is it red?, yes\n" for y in (0, 32) for x in (0, 32)]
        (folder / "images/x_detail.txt").write_text("".join(cells))
    elif name == "gedit":
        for job in jobs:
            line = f"s.png,{job.file},x,8,2,True,en"
            head = "source_image,edited_image,instruction,sementics_score,quality_score,intersection_exist"
            (folder / f"m_{job.group}_gpt_score.csv").write_text(f"{head},instruction_language\n{line}\n")
    elif name == "imgedit":
        (folder / "result.json").write_text(json.dumps({job.key: "a: 4\nb: 4\nc: 4" for job in jobs}))
    elif name == "vbench":
        prompts = {"subject_consistency": 0, "motion_smoothness": 0, "temporal_flickering": 1}
        files = [[job.file.format(k=k) for k in range(5)] for job in jobs]
        each = {d: [{"video_path": file, "video_results": 0.5} for file in files[n]] for d, n in prompts.items()}
        (folder / "x_eval_results.json").write_text(json.dumps({d: [0.5, videos] for d, videos in each.items()}))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_commands(name, checkouts, tmp_path):
    """From a checkout to a report, as docs/evaluation.md has it."""

    def run(*line: str) -> str:
        done = CliRunner().invoke(app, ["bench", *line])
        assert done.exit_code == 0, done.output
        return done.output

    folder, checkout = str(tmp_path / "r"), str(checkouts / name)
    drawn = ["--num-inference-steps", "1"] if BENCHMARKS[name].steps else []
    drawn += ["--size", "32x32"] if BENCHMARKS[name].size else []
    drawn += ["--num-frames", "5"] if name == "vbench" else []
    run("sample", name, "--checkout", checkout, "--model", "nano", "-o", folder, *drawn)
    if BENCHMARKS[name].steps:
        assert json.loads((tmp_path / "r/manifest.json").read_text())["sampling"]["shift"] == BENCHMARKS[name].shift
    official(name, tmp_path / "r")
    said = run("score", name, folder, "--checkout", checkout, "--json", str(tmp_path / "s.json"))
    assert "not comparable: " in said  # it is a part, in other settings
    score = json.loads((tmp_path / "s.json").read_text())
    assert score["comparable"] is False and score["found"] == score["expected"] and not score["incomplete"]
    run("report", folder, "--checkout", checkout, "-o", str(tmp_path / "r.html"))
    html = (tmp_path / "r.html").read_text()
    assert BENCHMARKS[name].title in html and ("data:image/webp" in html) == (name != "mvbench")


def test_results_that_are_missing_exit_with_three(checkouts, tmp_path):
    records = [
        {"group": tag, "key": "00000", "k": k, "found": {"right": True}}
        for tag in ("colors", "counting")
        for k in (0, 1)
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = CliRunner().invoke(app, ["bench", "score", "geneval", str(tmp_path)])
    assert done.exit_code == 3 and "colors: 2 judged, asked for were 376" in done.output


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_empty_checkout_gets_one_sentence(name, tmp_path):
    with pytest.raises(UserError):
        BENCHMARKS[name].rules.jobs(tmp_path)
    with pytest.raises(UserError):
        scored(name, tmp_path / "none")
