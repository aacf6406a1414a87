"""Text files as editors and programs write them: one reader, three line ends, one encoding."""

import json
import os

import pytest

from openlance.config.sampling import GenerationConfig
from openlance.config.values import append_line, decoded, lines_of, read_json, read_text
from openlance.errors import UserError

# What `str.splitlines` takes for line ends and texts hold: separators, next line, vertical tabs, pages, tables.
INSIDE = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
def test_lines_end_in_three_ways(tmp_path, end, mark):
    (tmp_path / "a.txt").write_bytes((mark + end.join(["a ring", "", "é star", ""])).encode())
    text = read_text(tmp_path / "a.txt")
    assert text == "a ring\n\né star\n" and lines_of(text) == ["a ring", "", "é star", ""]


@pytest.mark.parametrize("mark", INSIDE, ids=lambda mark: f"{ord(mark):04x}")
def test_nothing_else_ends_a_line(tmp_path, mark):
    (tmp_path / "a.txt").write_bytes(f"a{mark}b\nc".encode())
    assert lines_of(read_text(tmp_path / "a.txt")) == [f"a{mark}b", "c"]


def test_files_put_together_have_a_mark_inside():
    assert lines_of("\ufeffa\n\ufeffb \ufeff c") == ["a", "b \ufeff c"]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"])
def test_another_encoding_is_refused_by_name(tmp_path, coding):
    (tmp_path / "a.txt").write_bytes("a café".encode(coding))
    with pytest.raises(UserError, match=r"a.txt is not UTF-8 text \(.*\): save it as UTF-8, please"):
        read_text(tmp_path / "a.txt", ", please")
    with pytest.raises(UserError, match="a column is not UTF-8"):
        decoded("a café".encode(coding), "a column")


def test_what_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path}"):
            read_text(path)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_checkpoints_json_may_have_a_mark(tmp_path, mark):
    said = {"height": 16, "width": 16, "num_frames": 5}
    path = tmp_path / "generation_config.json"
    path.write_bytes((mark + json.dumps(said, indent=1).replace("\n", "\r\n")).encode())
    assert read_json(path) == said and GenerationConfig.read(tmp_path, few=False).height == 16
    path.write_bytes(json.dumps(said).encode("utf-16"))
    with pytest.raises(UserError, match="UTF-8"):
        GenerationConfig.read(tmp_path, few=False)


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append_line(path, "one")
    append_line(path, "two é")
    assert path.read_text(encoding="utf-8") == "one\ntwo é\n"
    if os.path.exists("/dev/full"):
        with pytest.raises(UserError, match="cannot write /dev/full: No space left"):
            append_line("/dev/full", "three")
    with pytest.raises(UserError, match="cannot write .*nowhere"):
        append_line(tmp_path / "nowhere" / "log.jsonl", "three")
