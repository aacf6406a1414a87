"""Bad input of benchmarks: one sentence, or counted and named."""

import json
import socket

import pytest
from typer.testing import CliRunner

from openlance.cli.main import app
from openlance.errors import UserError
from openlance.eval.benchmarks import BENCHMARKS, records_of, scored
from openlance.eval.judging import dpg_judge, imgedit_judge, judge, viescore
from openlance.eval.records import Record, write_records
from openlance.eval.sampling import Job
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


@pytest.fixture
def asked(tmp_path):
    """A result that any of the judges can be asked about, and their words."""
    write_image(tmp_path / "1.png", Clip(np_picture()).pixels[0])
    questions = [{"number": 1, "text": "Is it red?", "needs": [], "category": "global"}]
    (tmp_path / "prompts.json").write_text('{"g": "was <edit_prompt> done?"}')
    names = ("_context_no_delimit", "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC",
             "_prompts_0shot_rule_PQ")  # fmt: skip
    (tmp_path / "vie_prompts.py").write_text("\n".join(f'{name} = "x"' for name in names))
    return Job(
        group="g", key="1", task="image_edit", prompt="make it red", file="1.png",
        media=(lambda: Clip(np_picture()),), found={"questions": questions, "first": False},
    )  # fmt: skip


def np_picture():
    import numpy as np

    return np.zeros((1, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("make", [dpg_judge, imgedit_judge, viescore])
def test_a_judge_that_times_out_is_counted(make, asked, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = ChatServer(url=f"http://127.0.0.1:{silent.getsockname()[1]}/v1", model="m", timeout=0.2)
        (record,) = judge([asked], tmp_path, make(server, tmp_path))
    assert "does not answer" in record.failed and "timed out" in record.failed


@pytest.mark.parametrize("make, name", [(dpg_judge, "dpg"), (imgedit_judge, "imgedit"), (viescore, "gedit")])
def test_an_empty_answer_is_counted_and_exits_with_three(make, name, asked, tmp_path):
    judge([asked], tmp_path, make(lambda text, images: ("", "stop"), tmp_path))
    score = scored(name, tmp_path)
    assert sum(score.failed.values()) == 1 and not score.ours["total"].n
    done = CliRunner().invoke(app, ["bench", "score", name, str(tmp_path), "--json", str(tmp_path / "s.json")])
    assert done.exit_code == 3 and "1 without a judgement" in done.output
    assert json.loads((tmp_path / "s.json").read_text())["comparable"] is False
