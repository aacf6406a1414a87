"""What programs write otherwise than expected: read as it is meant, or named; never shortened, never guessed."""

import base64
import io
import json
import os
import tarfile
import unicodedata

import numpy as np
import pytest
from in_words import BLUE, GREEN, RED, draw, held, left, told

from openlance.data.open import open_source
from openlance.data.source import BrokenRow
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.write import write_video

LISTS = {
    "excel.csv": ("sep=;\nfile_name;text\na.png;red; round\n".replace("red; round", '"red; round"'), "red; round"),
    "blanks.csv": ('file_name, text\na.png, "red, round"\n', "red, round"),
    "ends.csv": ("file_name,text,,\na.png,red,,\n,,,\n", "red"),
    "plain.csv": ('a.png,"red,\nround"\n', "red,\nround"),
    "quotes.txt": ('"a.png" "red, round"\n', "red, round"),
    "flickr.txt": ('image,caption\na.png,"red, round"\n', "red, round"),
    "pipes.csv": ("image_name| comment_number| comment\na.png| 0| red\n", "red"),
    "lines.json": ('{"image": "a.png", "text": "red"}\n', "red"),
    "two.json": ('{"image": "a.png", "text": "red"}\n{"image": "a.png", "text": "red"}\n', "red"),
    "whole.jsonl": ('[{"image": "a.png",\n "text": "red"}]', "red"),
    "inside.json": ('{"info": {"n": 1}, "train": [{"image": "a.png", "text": "red"}], "test": []}', "red"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_as_programs_write_them(name, tmp_path):
    draw(tmp_path / "a.png")
    written, wanted = LISTS[name]
    (tmp_path / name).write_text(written)
    assert {line[0] for line in told(open_source(tmp_path, "t2i"))} == {wanted}


@pytest.mark.parametrize(
    "written, said",
    [
        ("file_name,text\na.png,red, round\n", "row 0, has 3 fields and the head 2: put texts that hold ','"),
        ('file_name,text\na.png,"red\nb.png,blue\n', "is not CSV .*unexpected end"),
        ("file_name,text,text\na.png,red,blue\n", "two columns 'text'"),
    ],
)
def test_a_table_that_would_lose_words_is_refused(written, said, tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(written)
    with pytest.raises(UserError, match=said):
        open_source(tmp_path, "t2i")
    (tmp_path / "metadata.csv").rename(tmp_path / "train.csv")  # a list that need not be one
    draw(tmp_path / "b.png").with_suffix(".txt").write_text("b")
    [note] = [note for note in open_source(tmp_path, "t2i").census.notes if "of no use" in note]
    assert note.startswith("lists of no use: 1 (") and "train.csv" in note


def test_a_path_is_no_other_file_of_its_name(tmp_path):
    draw(tmp_path / "x" / "a.png"), draw(tmp_path / "y" / "a.png", BLUE), draw(tmp_path / "train" / "b.png")
    names = {"x\\a.png": "red", "y\\a.png": "blue", "train/b.png": "b", "test/b.png": "another b"}
    rows = [json.dumps({"file_name": name, "text": text}) for name, text in names.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    source = open_source(tmp_path, "t2i")
    assert told(source) == [["red", "->", "red"], ["blue", "->", "blue"], ["b", "->", "red"]]
    assert left(source) == {"the file is missing": 1}
    text = base64.b64encode(os.urandom(400)).decode()  # neither a name nor short enough to be one
    rows = [{"image": text, "text": "?"}, {"image": f"data:image/png;base64,{text}", "text": "broken"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "x" / "a.txt").write_text("long " * 80)
    source = open_source(tmp_path, "t2i")
    assert left(source) == {"the file is missing": 1, "no caption": 2}
    assert source.mark and source.stamp(source.parts(0, None)[0])


def test_names_with_accents_of_a_mac(tmp_path):
    for name in ("\u00e9", "\u00fc"):
        draw(tmp_path / f"{unicodedata.normalize('NFD', name)}.png")
    (tmp_path / "\u00e9.txt").write_text("beside")
    (tmp_path / "metadata.csv").write_text("file_name,text\n\u00fc.png,listed\n")
    assert sorted(line[0] for line in told(open_source(tmp_path, "t2i"))) == ["beside", "listed"]


def test_files_that_cannot_be_opened_and_rows_without_a_half_are_counted(tmp_path):
    draw(tmp_path / "a.png"), draw(tmp_path / "b.png", BLUE)
    (tmp_path / "0.png").write_bytes(b""), (tmp_path / "1.png").write_text("<html>")
    os.symlink("nowhere", tmp_path / "2.png")
    os.mkfifo(tmp_path / "3.png"), os.mkfifo(tmp_path / "3.txt")
    for name in ("0", "1", "2", "a", "nothing"):
        (tmp_path / f"{name}.txt").write_text(name)
    source = open_source(tmp_path, "t2i")
    assert told(source) == [["a", "->", "red"]]
    assert left(source) == {"an empty file": 1, "it cannot be opened as an image": 1, "a link that leads nowhere": 1,
                            "no plain file": 2, "no caption": 1}  # fmt: skip
    assert f"texts of no use: 4 ({', '.join(str(tmp_path / f'{name}.txt') for name in ('0', '1', '2'))}, ...)" in (
        source.census.notes
    )
    rows = [{"source": "a.png", "target": "b.png", "prompt": "ok"}, {"source": "a.png", "prompt": "x"},
            {"source": "a.png", "target": "", "prompt": "x"}, {"source": "a.png", "target": "b.png", "prompt": 7},
            {"source": "a.png", "target": "b.png", "prompt": float("nan")}]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(tmp_path / "metadata.jsonl", "image_edit")
    assert told(source) == [["red", "ok", "->", "blue"]]
    assert left(source) == {"no output_image_bytes": 2, "prompt is no text": 1, "no caption": 1}


def test_pairs_that_say_it_in_other_places(tmp_path):
    shapes = {
        "each": ("1/before.png", "1/after.jpg", "1/prompt.txt"), "names": ("1_before.png", "1_after.png", "1.txt"),
        "texts": ("control/1.png", "target/1.png", "captions/1.txt"),
        "alone": ("control/1.png", "img/1.png", "img/1.txt"),
    }  # fmt: skip
    for place, (source, made, text) in shapes.items():
        draw(tmp_path / place / source, RED), draw(tmp_path / place / made, BLUE)
        (tmp_path / place / text).parent.mkdir(exist_ok=True)
        (tmp_path / place / text).write_text("make it blue")
        found = open_source(tmp_path / place, "image_edit")
        assert told(found) == [["red", "make it blue", "->", "blue"]] and not left(found)
    draw(tmp_path / "alone" / "control" / "1.jpg", GREEN)
    with pytest.raises(UserError, match="3 left out: several files could be a half of its pair"):
        open_source(tmp_path / "alone", "image_edit")


def test_places_in_questions_are_places_of_media(tmp_path):
    draw(tmp_path / "a.png")
    write_video(tmp_path / "v.mp4", Clip(np.full((9, 32, 32, 3), 90, np.uint8)))
    asks = [{"from": "human", "value": "<video>\n<image>\nwhat?"}, {"from": "gpt", "value": "x"}]
    shown = [
        {"role": "user", "content": [{"type": "image", "image": "gone.png"}]},
        {"role": "assistant", "content": "x"},
    ]
    rows = [{"image": "a.png", "video": "v.mp4", "conversations": asks}, {"messages": shown},
            {"query": "<image>what?", "response": "red", "images": ["a.png"], "history": [["hue?", "warm"]]},
            {"image": "", "conversations": [["1+1?", "2"]]}]  # fmt: skip
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(tmp_path, "x2t_image")
    assert left(source) == {"the file is missing": 1}
    assert told(source) == [[9, "red", "what?", "->", "x"], ["hue?", "->", "warm", "red", "what?", "->", "red"],
                            ["1+1?", "->", "2"]]  # fmt: skip


def test_tables_whose_files_differ_and_hints_that_fit_nothing(tmp_path):
    pytest.importorskip("datasets")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, text in (("train", "text"), ("test", "caption")):
        pq.write_table(pa.table({"image": [held()], text: [name]}), tmp_path / f"{name}.parquet")
    draw(tmp_path / "loose.png")
    source = open_source(tmp_path, "t2i")
    assert sorted(line[0] for line in told(source)) == ["test", "train"]
    assert source.census.notes == [
        f"splits: train, test are all used; one alone: {{path: {tmp_path}, split: train}}",
        "1 images and videos lie beside the tables: used where a row names them",
        "captions: 2 from the column caption or text",
    ]
    (tmp_path / "train.parquet").unlink()
    assert told(open_source({"path": tmp_path, "split": "test"}, "t2i")) == [["test", "->", "red"]]
    with pytest.raises(UserError, match="columns names titel, and .* has image, caption"):
        open_source({"path": tmp_path, "columns": {"caption": "titel"}}, "t2i")
    with pytest.raises(UserError, match="what columns names is 'captoin'"):
        open_source({"path": tmp_path, "columns": {"captoin": "text"}}, "t2i")
    pq.write_table(pa.table({"images": [[held(), held()]], "text": ["two"]}), tmp_path / "test.parquet")
    source = open_source(tmp_path, "t2i")
    with pytest.raises(BrokenRow, match="image_bytes holds 2 images: expected the one"):
        told(source)
    (tmp_path / "far").mkdir()
    (tmp_path / "loose.png").rename(tmp_path / "far" / "a.png")
    pq.write_table(pa.table({"image": ["a.png"], "text": ["far"]}), tmp_path / "test.parquet")
    assert told(open_source({"path": tmp_path, "media": tmp_path / "far"}, "t2i")) == [["far", "->", "red"]]


def test_a_tar_has_one_file_of_each_kind_for_a_sample(tmp_path):
    files = [("a.jpg", held()), ("a.png", held()), ("a.txt", b"two"), ("b.txt", b"words"), ("b.jpg", held(BLUE)),
             ("b.json", b'{"caption": "json"}'), ("b.jpg", held()), ("c.json", b'{"caption": "none"}')]  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = open_source(tmp_path, "t2i")
    assert told(source) == [["words", "->", "red"]]
    assert left(source) == {"several files are its image": 1, "no image_bytes": 1,
                            "a later file of the tar has its name": 1}  # fmt: skip
