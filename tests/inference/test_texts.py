"""Texts that hold line separators go through a run once each, and a run that was stopped goes on where it was."""

import json
from pathlib import Path

import pytest

from openlance.cli.options import read_prompts
from openlance.compat.inputs import read_entries
from openlance.compat.requests import Job
from openlance.compat.running import Record, run, settings_of
from openlance.errors import UserError

FIELD = Path(__file__).parents[3] / "shared" / "field" / "infer"
INSIDE = ["\u2028", "\u2029", "\x85", "\x7f", "\ufeff", "\t"]
PROMPTS = {f"{n:06d}.png": f"a red circle{mark}on black" for n, mark in enumerate(INSIDE)}
JOB = Job(task="t2i", size=(1, 16, 16), settings={"num_inference_steps": 1})
WORDS = Job(task="x2t_image", size=(1, 16, 16), max_new_tokens=2)


def lines(prompts, end="\n", mark=""):
    rows = [json.dumps({"index": n, "prompt": text}, ensure_ascii=False) for n, text in enumerate(prompts.values())]
    return (mark + end.join(rows) + 2 * end).encode()


FORMS = {
    "json": json.dumps(PROMPTS, ensure_ascii=False).encode(),
    "json, BOM, CRLF": ("\ufeff" + json.dumps(PROMPTS, ensure_ascii=False, indent=1).replace("\n", "\r\n")).encode(),
    "lines": lines(PROMPTS),
    "lines, BOM": lines(PROMPTS, mark="\ufeff"),
    "lines, CRLF": lines(PROMPTS, "\r\n"),
    "lines, CR": lines(PROMPTS, "\r"),
    "two files in one": lines(dict(list(PROMPTS.items())[:3]), mark="\ufeff")
    + lines(PROMPTS, mark="\ufeff").split(b"\n", 3)[3].replace(b"{", "\ufeff{".encode(), 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_entry_is_read_once(tmp_path, form):
    (tmp_path / "in.jsonl").write_bytes(FORMS[form])
    entries = read_entries(tmp_path / "in.jsonl")
    assert [e.data for e in entries] == list(PROMPTS.values())
    assert not any(e.error for e in entries) and len({e.name for e in entries}) == len(PROMPTS)


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "latin-1"])
def test_another_encoding_is_refused(tmp_path, coding):
    (tmp_path / "in.json").write_bytes('{"1": "é ring"}'.encode(coding))
    with pytest.raises(UserError, match="not UTF-8 text .*save it as UTF-8"):
        read_entries(tmp_path / "in.json")


def made(pipe, entries, folder, job=JOB):
    """Run, and give the files with their times, prompt.json and result.json."""
    record = Record(folder, settings_of(job, "tiny"))
    assert run(pipe, entries, job, record) == []
    record.finish(entries)
    tables = [json.loads((folder / name).read_text(encoding="utf-8")) for name in ("prompt.json", "result.json")]
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}, *tables


def test_every_entry_is_in_every_result_file_once(pipe, tmp_path):
    (tmp_path / "in.json").write_bytes(FORMS["json"])
    entries = read_entries(tmp_path / "in.json")
    files, prompts, results = made(pipe, entries, tmp_path / "out")
    assert prompts == PROMPTS and sorted(files) == list(PROMPTS)
    assert [row["prompt"] for row in results] == list(PROMPTS.values())
    assert made(pipe, entries, tmp_path / "out") == (files, prompts, results), "going on makes nothing again"


def test_a_journal_that_holds_separators_as_they_are_is_read(pipe, tmp_path):
    (tmp_path / "in.json").write_bytes(FORMS["json"])
    entries = read_entries(tmp_path / "in.json")
    first = made(pipe, entries, tmp_path / "out")
    journal = tmp_path / "out" / ".run" / "0.jsonl"
    rows = [json.loads(line) for line in journal.read_text(encoding="utf-8").split("\n") if line]
    journal.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + '{"key": "cut', "utf-8")
    assert made(pipe, entries, tmp_path / "out") == first


@pytest.mark.skipif(not FIELD.exists(), reason="the files are not here")
@pytest.mark.parametrize("name", ["u2028.json", "u2028.jsonl"])
def test_reported_files_run(pipe, tmp_path, name):
    entries = read_entries(FIELD / name)
    files, prompts, results = made(pipe, entries, tmp_path / "out")
    assert len(files) == len(prompts) == len(results) == 2
    assert [row["prompt"] for row in results] == [e.data for e in entries] == list(prompts.values())
    assert "\u2028" in entries[0].data and made(pipe, entries, tmp_path / "out")[0] == files


def test_an_answer_that_was_cut_says_so_in_the_results(pipe, tmp_path):
    import numpy as np

    from openlance.media.write import write_image

    write_image(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))
    one = {"image_path": str(tmp_path / "a.png"), "user_prompt": "what is there?"}
    (tmp_path / "in.json").write_text(json.dumps({"1": one}))
    _, _, results = made(pipe, read_entries(tmp_path / "in.json"), tmp_path / "out", WORDS)
    assert results[0]["finish_reason"] == "length" and results[0]["question"] == "what is there?"
    _, _, again = made(pipe, read_entries(tmp_path / "in.json"), tmp_path / "out", WORDS)
    assert again == results, "also when it goes on"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_prompts_file_has_one_prompt_a_line(tmp_path, end):
    texts = [f"a ring{mark}and a star" for mark in INSIDE]
    (tmp_path / "a.txt").write_bytes(("\ufeff" + end.join(texts) + 3 * end).encode())
    assert read_prompts(tmp_path / "a.txt") == texts
    (tmp_path / "a.txt").write_bytes(end.join(texts).encode("utf-16"))
    with pytest.raises(UserError, match="not UTF-8 text .*one prompt per line"):
        read_prompts(tmp_path / "a.txt")
