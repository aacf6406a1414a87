"""Bad input of benchmarks: one sentence, or counted and named."""

import copy
import json
import math
import shutil
import socket
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from openlance.cli.main import app
from openlance.errors import UserError
from openlance.eval.benchmarks import BENCHMARKS, records_of, scored, unlike
from openlance.eval.estimate import mean
from openlance.eval.judging import begin, judge
from openlance.eval.records import Record, read_records, write_records
from openlance.eval.report import markdown, sections
from openlance.eval.report_page import page
from openlance.eval.sampling import Job, Run, sample
from openlance.inference.chat_server import ChatServer
from openlance.media import Clip, write_image

OFFICIAL = {
    "geneval": "results.jsonl", "dpg": "x_detail.txt", "gedit": "m_text_change_gpt_score.csv", "imgedit": "result.json",
    "vbench": "x_eval_results.json", "mvbench": "result.json",
}  # fmt: skip


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"a": 1}', '{"a": [0.5]}', "a,b\n1,2\n", "\x00"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_results_of_another_form_are_refused_or_come_to_nothing(name, content, checkouts, tmp_path):
    file = tmp_path / OFFICIAL[name]
    file.write_text(content)
    for results in (file, tmp_path):
        try:
            score = scored(name, results, checkouts / name)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        else:  # an empty table is one with nothing in it
            assert not sum(score.found.values()) and score.incomplete and score.differs


RECORDED = {
    "geneval": ("colors", {"right": True, "why": ""}),
    "dpg": ("all", {
        "answers": {"1": "yes"}, "first": False,
        "questions": [{"number": 1, "text": "a?", "needs": [1], "category": "entity - whole"}],
    }),
    "gedit": ("text_change", {"semantics": 8.0, "quality": 7.0, "overall": 7.5, "said": {"semantics": "x"}}),
    "imgedit": ("add", {"answer": "a: 4\nb: 4\nc: 3"}),
    "vbench": ("color", {"value": 0.5, "average": 0.5, "of": 2}),
    "mvbench": ("Action Count", {"answer": "A", "letter": "A", "candidates": ["a", "b"]}),
    "world": ("t2i single", {"right": True, "second": True, "file": "a.png"}),
}  # fmt: skip
OTHERS = (None, True, -1, math.nan, "../x", [], [1], {"a": 1})


def damaged(data):
    """The same with any part of it gone, or something else."""
    places = range(len(data)) if isinstance(data, list) else list(data) if isinstance(data, dict) else ()
    for place in places:
        for other in (*OTHERS, *damaged(data[place])):
            changed = copy.copy(data)
            changed[place] = other
            yield changed
        yield {k: v for k, v in data.items() if k != place} if isinstance(data, dict) else data[:place]


@pytest.mark.parametrize("name", RECORDED)
def test_whatever_is_damaged_is_one_sentence_or_a_report(name, tmp_path):
    group, found = RECORDED[name]
    score = {"benchmark": name, "official": {"total": 1.0}, "ours": {"total": asdict(mean([[1.0]]))}}
    score |= {part: {"a": 1} for part in ("found", "expected", "whole", "failed")} | {"notes": ["x"], "made": ["x"]}
    row = {"mean": 0.5, "n": 4, "ci95": [0.1, 0.9]}
    files = {
        "records.jsonl": {"group": group, "key": "0", "k": 0, "found": found | {"prompt": "a"}, "failed": ""},
        "items.jsonl": {"group": group, "key": "0", "prompt": "a", "samples": 1, "file": "{k}.png", "beside": []},
        "manifest.json": {
            "benchmark": name, "asked": [1, 8, 8], "sampling": {"shift": 3.5}, "limit": 0, "items": "x",
            "expected": {group: 1},
        },
        "judge.json": {"judge": "m", "words": "x"},
        "score.json": {"t2i": {"mean": row | {"second": row, "agree": row}}} if name == "world" else score,
    }  # fmt: skip

    def write(file):
        (tmp_path / file).write_text(json.dumps(files[file]) + "\n")

    for file in files:
        write(file)
    reports = 0
    for file, whole in files.items():
        given = str(tmp_path / file) if file == "score.json" else str(tmp_path)
        assert markdown(sections([given]))
        for one in damaged(whole):
            (tmp_path / file).write_text(json.dumps(one) + "\n")
            try:
                reports += bool(page(sections([given]), gallery=1))
            except UserError as error:
                assert len(str(error).splitlines()) == 1 and ": " in str(error)
        write(file)
    assert reports


@pytest.mark.parametrize("name", BENCHMARKS)
def test_records_of_another_benchmark_are_refused(name, tmp_path):
    write_records(tmp_path / "records.jsonl", [Record(group="x", key="y", found={"other": 1})])
    with pytest.raises(UserError, match=f"records that are not of {name}"):
        scored(name, tmp_path)


def test_a_folder_with_two_results_says_so(tmp_path):
    for name in ("results.jsonl", "results-2.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="2 files like results"):
        records_of("geneval", tmp_path)


@pytest.mark.parametrize("keep", ["dpg_bench.csv", "prompts/12.txt"])
def test_half_a_checkout_of_dpg_is_refused(keep, checkouts, tmp_path):
    (tmp_path / keep).parent.mkdir(exist_ok=True)
    (tmp_path / keep).write_bytes((checkouts / "dpg/dpg_bench" / keep).read_bytes())
    with pytest.raises(UserError, match="has no "):
        BENCHMARKS["dpg"].rules.jobs(tmp_path)


def test_a_source_that_is_missing_is_named(checkouts, tmp_path):
    (tmp_path / "basic_edit.json").write_bytes((checkouts / "imgedit/Basic/basic_edit.json").read_bytes())
    with pytest.raises(UserError, match="has no a/b.png"):
        BENCHMARKS["imgedit"].rules.jobs(tmp_path)


def test_what_is_asked_about_missing_media_is_counted_and_exits_with_three(checkouts, tmp_path):
    shutil.copytree(checkouts / "mvbench", tmp_path / "mvbench")
    shutil.rmtree(tmp_path / "mvbench/video/tvqa/frames_fps3_hq/f")
    line = ["bench", "sample", "mvbench", "--checkout", str(tmp_path / "mvbench"), "-o", str(tmp_path / "r")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 3 and "1 not made: there is no file" in done.output
    score = scored("mvbench", tmp_path / "r")
    assert score.found == {"Action Count": 2} and sum(score.failed.values()) == 1
    assert CliRunner().invoke(app, ["bench", "score", "mvbench", str(tmp_path / "r")]).exit_code == 3
    shutil.copytree(checkouts / "mvbench", tmp_path / "mvbench", dirs_exist_ok=True)
    assert CliRunner().invoke(app, line).exit_code == 0  # what was missing is made now, and nothing else
    assert not scored("mvbench", tmp_path / "r").incomplete


def test_what_failed_in_another_process_is_made_by_this_one(nano, checkouts, tmp_path):
    jobs, run = BENCHMARKS["mvbench"].rules.jobs(checkouts / "mvbench"), Run(benchmark="mvbench", max_new_tokens=4)
    sample(nano, jobs, tmp_path / "r", run, rank=0, world=2), sample(nano, jobs, tmp_path / "r", run, rank=1, world=2)
    [first, *others] = read_records(tmp_path / "r" / "answers-0.jsonl")
    write_records(tmp_path / "r" / "answers-0.jsonl", [replace(first, found={}, failed="no video"), *others])
    assert scored("mvbench", tmp_path / "r").incomplete
    assert sample(nano, jobs, tmp_path / "r", run) == {}
    assert not scored("mvbench", tmp_path / "r").incomplete


def test_sources_that_cannot_be_read_leave_their_edits_out(nano, checkouts, tmp_path):
    items = {str(k): {"id": f"{k}.png", "prompt": "make it blue", "edit_type": "adjust"} for k in range(3)}
    (tmp_path / "basic_edit.json").write_text(json.dumps(items))
    (tmp_path / "1.png").write_bytes((checkouts / "imgedit/Basic/singleturn/a/b.png").read_bytes())
    (tmp_path / "2.png").write_bytes(b"no image")
    run = Run(benchmark="imgedit", sampling={"num_inference_steps": 1, "shift": 3.0})
    lost = sample(nano, BENCHMARKS["imgedit"].rules.jobs(tmp_path), tmp_path / "r", run)
    assert sum(lost.values()) == 2 and [p.name for p in (tmp_path / "r").glob("*.png")] == ["1.png"]


@pytest.mark.parametrize("name", ["result.json", "basic_edit.json"])
def test_keys_that_occur_twice_are_counted_and_named(name, checkouts, tmp_path):
    shutil.copy(checkouts / "imgedit/Basic/basic_edit.json", tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"7": "a: 4\nb: 4\nc: 3"}))
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(f"{text[:-1]},{text[1:]}")
    with pytest.raises(UserError, match="1 keys occur twice, first '7'"):
        scored("imgedit", tmp_path, tmp_path)


def test_other_commits_and_other_words_are_named(checkouts, tmp_path):
    one, asked = BENCHMARKS["geneval"], BENCHMARKS["geneval"].rules.jobs(checkouts / "geneval")
    said = unlike(one, asked)
    assert "colors: 8 in the checkout, the benchmark has 376" in said and said[-1].endswith(
        f"not those of {one.source}"
    )
    write_records(tmp_path / "records.jsonl", [Record(group="add", key="1", found={"answer": "a: 4\nb: 4\nc: 3"})])
    assert "there is no manifest.json that says how the results were made" in scored("imgedit", tmp_path).differs
    assert any("judged by nobody who is named" in why for why in scored("imgedit", tmp_path).differs)
    begin(tmp_path, {"judge": "gpt-4.1", "words": "0"})
    said = scored("imgedit", tmp_path).differs
    assert "prompts.json is not that of github.com/PKU-YuanGroup/ImgEdit at 547185d" in said
    assert not any("judged by" in why for why in said)
    with pytest.raises(UserError, match="was judged by another"):
        begin(tmp_path, {"judge": "another", "words": "0"})


def test_who_judged_gedit_is_told_by_the_folder_of_the_official_scorer(tmp_path):
    head = "source_image,edited_image,instruction,sementics_score,quality_score,intersection_exist,instruction_language"
    for folder, other in (("gpt4o", ""), ("qwen25vl", "judged by Qwen2.5-VL-72B-Instruct-AWQ")):
        place = tmp_path / folder / "eval_results_new"
        place.mkdir(parents=True)
        (place / "m_text_change_gpt_score.csv").write_text(f"{head}\na,k.png,x,8,7,True,en\n")
        said = " ".join(scored("gedit", place).differs)
        assert (other in said) if other else ("judged by" not in said)


@pytest.fixture
def asked(tmp_path):
    """A result that any of the judges can be asked about, and their words."""
    write_image(tmp_path / "1.png", Clip(np_picture()).pixels[0])
    questions = [{"number": 1, "text": "Is it red?", "needs": [], "category": "global"}]
    (tmp_path / "dpg_bench.csv").write_text("")
    (tmp_path / "prompts.json").write_text('{"g": "was <edit_prompt> done?"}')
    names = ("_context_no_delimit", "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC",
             "_prompts_0shot_rule_PQ")  # fmt: skip
    (tmp_path / "vie_prompts.py").write_text("\n".join(f'{name} = "x"' for name in names))
    return Job(
        group="g", key="1", task="image_edit", prompt="make it red", file="1.png",
        media=(lambda: Clip(np_picture()),), found={"questions": questions, "first": False},
    )  # fmt: skip


def scorer_of(name, writer, folder):
    one = BENCHMARKS[name]
    return one.judge(writer, one.words_in(folder))


def np_picture():
    import numpy as np

    return np.zeros((1, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("name", ["dpg", "gedit", "imgedit"])
def test_a_judge_that_times_out_is_counted(name, asked, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = ChatServer(url=f"http://127.0.0.1:{silent.getsockname()[1]}/v1", model="m", timeout=0.2)
        (record,) = judge([asked], tmp_path, scorer_of(name, server, tmp_path))
    assert "does not answer" in record.failed and "timed out" in record.failed


@pytest.mark.parametrize("name", ["dpg", "gedit", "imgedit"])
def test_an_empty_answer_is_counted_and_exits_with_three(name, asked, tmp_path):
    judge([asked], tmp_path, scorer_of(name, lambda text, images: ("", "stop"), tmp_path))
    score = scored(name, tmp_path)
    assert sum(score.failed.values()) == 1 and not score.ours["total"].n
    done = CliRunner().invoke(app, ["bench", "score", name, str(tmp_path), "--json", str(tmp_path / "s.json")])
    assert done.exit_code == 3 and "1 without a judgement" in done.output
    assert json.loads((tmp_path / "s.json").read_text())["comparable"] is False
