"""Every form of the release's input files gives the same entries."""

import json

import pytest

from openlance.compat.inputs import output_name, read_entries
from openlance.errors import UserError

ARRAYS = {
    "interleave_array": ["make it red", "a.png"],
    "element_dtype_array": ["text", "image"],
    "istarget_in_interleave": [0, 0],
}


def entries(tmp_path, content):
    file = tmp_path / "in.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return read_entries(file)


def lines(*records):
    return "\n".join(json.dumps(record) for record in records)


@pytest.mark.parametrize("content", [
    {"000003.png": "a ring", "000004.png": "a star"},
    json.dumps({"000003.png": "a ring", "000004.png": "a star"}),  # on one line, which the release misreads
    lines({"index": 3, "prompt_en": ["a ring"]}, {"index": 4, "prompt_en": ["a star", "unused"]}),
    lines({"index": 3, "data": "a ring"}, {"index": 4, "data": "a star"}) + "\n\n",
    [{"index": "3", "prompt": "a ring"}, {"id": "4.mp4", "caption": "a star", "tag": "x"}],
    {"3": {"prompt_en": ["a ring"]}, "4": {"prompt": "a star"}},
])  # fmt: skip
def test_forms_of_prompts(content, tmp_path):
    found = entries(tmp_path, content)
    assert [(e.name, e.data, e.error) for e in found] == [("000003", "a ring", ""), ("000004", "a star", "")]


@pytest.mark.parametrize("content", [
    {"0001": ARRAYS}, lines({"index": 1, "data": ARRAYS}, {"index": 2, "data": ARRAYS}), [{"key": 1, **ARRAYS}],
])  # fmt: skip
def test_forms_of_arrays(content, tmp_path):
    first = entries(tmp_path, content)[0]
    assert first.name == "000001" and not first.error
    assert first.data["interleave_array"] == ARRAYS["interleave_array"]


def test_what_has_no_index_counts(tmp_path):
    assert [e.name for e in entries(tmp_path, ["a ring", "a star"])] == ["000000", "000001"]
    assert [e.name for e in entries(tmp_path, lines({"prompt": "a"}, {"prompt": "b"}))] == ["000000", "000001"]


def test_a_benchmark_of_questions(tmp_path):
    line = {"index": 5, "image_path": "a.png", "system_prompt": "Look.", "user_prompt": "what?", "gt": "a ring"}
    (one,) = entries(tmp_path, lines(line))
    assert one.data["interleave_array"] == ["a.png", ["Look.", "what?", "a ring"]]
    assert one.data["element_dtype_array"] == ["image", "text"] and one.data["istarget_in_interleave"] == [0, 1]


@pytest.mark.parametrize("broken, said", [
    (ARRAYS | {"element_dtype_array": ["text"]}, "pair them up"),
    (ARRAYS | {"element_dtype_array": ["text", "sound"]}, "'sound'"),
    (ARRAYS | {"interleave_array": "make it red"}, "no list"),
    (" ", "empty"),
    (7, "a request is a prompt"),
    (ARRAYS | {"interleave_array": [5, *ARRAYS["interleave_array"][1:]]}, "a text is a string, not 5"),
    ({"prompt_en": [5]}, "no text"),
    ({"prompt_en": {"a": "b"}}, "no text"),
    ({"image_path": "a.png", "user_prompt": 7}, "[system prompt, question, answer]"),
    ("\ud800", "half a character"),
])  # fmt: skip
def test_a_broken_entry_leaves_the_others_alone(broken, said, tmp_path):
    bad, good = entries(tmp_path, {"1": broken, "2": ARRAYS})
    assert said in bad.error and not good.error


def test_a_broken_line_leaves_the_others_alone(tmp_path):
    found = entries(tmp_path, '{"prompt": "a"}\n{"prompt": \n{"prompt": "c"}\n')
    assert [bool(e.error) for e in found] == [False, True, False] and "line 2" in found[1].error


@pytest.mark.parametrize("key", ["../up", "a/b", "a\\b", "", ".hidden"])
def test_a_key_never_leaves_the_folder(key, tmp_path):
    assert "cannot name a file" in entries(tmp_path, {key: "a ring"})[0].error


@pytest.mark.parametrize("key", ["7" * 5000, "a" * 300, "é" * 101])
def test_a_key_fits_into_a_file_name(key, tmp_path):
    assert "too long" in entries(tmp_path, {key: "a ring", "2": "b"})[0].error


def test_a_key_that_stands_twice_is_named(tmp_path):
    found = entries(tmp_path, '{"1": "a", "2": "b", "1": "c"}')
    assert [(e.key, e.data, bool(e.error)) for e in found] == [("1", "a", False), ("2", "b", False), ("1", None, True)]


def test_two_keys_never_write_one_file(tmp_path):
    first, second = entries(tmp_path, {"1": "a", "0001.png": "b"})
    assert not first.error and "same 000001" in second.error


@pytest.mark.parametrize("key, name", [("000007.png", "000007"), ("7", "000007"), ("cat.mp4", "cat"), ("a-1", "a-1")])
def test_outputs_are_named_as_in_the_release(key, name):
    assert output_name(key) == name


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "not valid JSON"),
        ("", "no requests"),
        ("[]", "no requests"),
        ("[" * 100_000, "not|cannot be read"),
        (f"[{'7' * 5000}]", "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(content, said, tmp_path):
    with pytest.raises(UserError, match=said):
        entries(tmp_path, content)
