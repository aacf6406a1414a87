"""Captions and tables as every editor writes them: marks, line ends, separators and encodings."""

import io
import json
import tarfile

import pytest

from openlance.config.presets import nano
from openlance.data.front import Fit, Front
from openlance.data.open import open_source
from openlance.data.source import BrokenRow, Reader, Reading
from openlance.errors import UserError
from openlance.media.transform import MediaTransform

FIT = Fit(front=Front(transform=MediaTransform(nano(), bases=dict.fromkeys(("image", "video", "text"), (32, 32)))))
INSIDE = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"]
ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}


def captions(folder):
    return [row.values["caption"] for row in open_source(str(folder), "t2i").found]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_caption_beside_a_picture(tmp_path, picture, end):
    for n, mark in enumerate(INSIDE):
        (tmp_path / f"{n}.png").write_bytes(picture())
        (tmp_path / f"{n}.txt").write_bytes(f"\ufeffa{mark}dot{end}{end}".encode())
    assert captions(tmp_path) == [f"a{mark}dot" for mark in INSIDE]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_question_and_its_answer(tmp_path, picture, end):
    (tmp_path / "0.png").write_bytes(picture())
    (tmp_path / "0.txt").write_bytes(f"\ufeffwhat\x85is it?{end}a dot{end}".encode())
    (row,) = open_source(str(tmp_path), "x2t_image").found
    assert (row.values["caption_q"], row.values["caption_a"]) == ("what\x85is it?", "a dot")


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_table_of_captions(tmp_path, picture, end):
    (tmp_path / "0.png").write_bytes(picture())
    rows = [f'{{"file_name": "0.png", "text": "a{mark}dot"}}' for mark in INSIDE]  # as they are, not escaped
    (tmp_path / "metadata.jsonl").write_bytes(("\ufeff" + end.join([*rows, "", ""])).encode())
    found = open_source(str(tmp_path), "t2i")
    said = [
        s.segments
        for s in (found.sample(row, FIT, None) for row in Reader(found, Reading(shuffle=False, repeat=False)))
    ]
    texts = [next(s.value for s in segments if s.role.name == "PROMPT") for segments in said]
    assert texts == [f"a{mark}dot" for mark in INSIDE]


@pytest.mark.parametrize("name", ["0.txt", "metadata.jsonl"])
@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "latin-1"])
def test_another_encoding_is_refused_by_name(tmp_path, picture, name, coding):
    (tmp_path / "0.png").write_bytes(picture())
    (tmp_path / name).write_bytes('{"file_name": "0.png", "text": "a d\xf6t"}'.encode(coding))
    with pytest.raises(UserError, match=f"{name} is not UTF-8 text .*save it as UTF-8"):
        captions(tmp_path)


def test_texts_in_a_tar(tmp_path, picture):
    def shard(name, caption):
        with tarfile.open(tmp_path / name, "w") as tar:
            files = {"0.png": picture(), "0.txt": caption, "1.png": picture(),
                     "1.json": b"\xef\xbb\xbf" + json.dumps({"caption": "a star"}).encode()}  # fmt: skip
            for file, data in files.items():
                about = tarfile.TarInfo(file)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
        source = open_source(str(tmp_path / name), "t2i")
        return [source.sample(row, FIT, None) for row in Reader(source, Reading(shuffle=False, repeat=False))]

    said = [
        [s.value for s in sample.segments if s.role.name == "PROMPT"]
        for sample in shard("a.tar", "\ufeffé dot\r\n".encode())
    ]
    assert said == [["é dot"], ["a star"]]
    with pytest.raises(BrokenRow, match="txt is not UTF-8 text"):
        shard("b.tar", "é dot".encode("utf-16"))
