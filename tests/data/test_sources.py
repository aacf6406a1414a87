"""Every form of data becomes the same samples, and every fault is one sentence with file and row."""

import io
import json
import re
import tarfile

import numpy as np
import pytest

from openlance.config.model import nano
from openlance.data.front import Fit, Front
from openlance.data.open import open_source
from openlance.data.source import BrokenRow, Reader, Reading
from openlance.errors import UserError
from openlance.media.transform import MediaTransform
from openlance.sequence.segment import Kind, Role
from toyworld.batches import WorldMixture
from toyworld.clip_batches import ClipMixture
from toyworld.vocabulary import SHAPES

BASES = dict.fromkeys(("image", "video", "text"), (32, 32))
FIT = Fit(front=Front(transform=MediaTransform(nano(), bases=BASES, max_frames=9)))
RNG = np.random.default_rng(0)


def samples(source):
    return [source.sample(row, FIT, RNG) for row in Reader(source, Reading(shuffle=False, repeat=False))]


def broken(source):
    """The one row of a source that cannot be used."""
    with pytest.raises(BrokenRow) as found:
        samples(source)
    return str(found.value)


def shape(sample):
    """Kinds, roles, and texts or sizes."""
    return [
        (s.kind.name, s.role.name, s.value if s.kind is Kind.TEXT else s.size)
        for s in sample.segments
        if s.role is not Role.SYSTEM
    ]


def write_table(path, rows, group=2):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


DRAWN = [("TEXT", "PROMPT", "a dot"), ("LATENTS", "TARGET", (1, 32, 32))]
CLIP = [("TEXT", "PROMPT", "a dot"), ("LATENTS", "TARGET", (9, 32, 32))]
EDIT = [
    ("PATCHES", "SOURCE", (1, 32, 32)), ("LATENTS", "SOURCE", (1, 32, 32)), ("TEXT", "PROMPT", "a dot"),
    ("LATENTS", "TARGET", (1, 32, 32)),
]  # fmt: skip
ASKED = [("PATCHES", "REFERENCE", (1, 32, 32)), ("TEXT", "PROMPT", "what?"), ("TEXT", "TARGET", "a dot")]


@pytest.fixture
def rows(picture, video):
    """One row of each released type, and the task that reads it."""
    asked = {"caption_i": "Look.", "caption_q": "what?", "caption_a": "a dot"}
    return {
        "t2i": ({"caption": "a dot", "image_bytes": picture(9)}, DRAWN),
        "t2v": ({"caption": "a dot", "video_bytes": video}, CLIP),
        "i2v": ({"caption": "a dot", "video_bytes": video}, CLIP),
        "image_edit": (
            {"caption": "a dot", "input_image_bytes": picture(1), "output_image_bytes": picture(2, 40, 24)}, EDIT
        ),
        "image_idip": (
            {"caption": "a dot", "input_image_bytes": picture(1), "output_image_bytes": picture(2)},
            [(k, "REFERENCE" if r == "SOURCE" else r, v) for k, r, v in EDIT],
        ),
        "video_edit": (
            {"caption": "a dot", "input_video_bytes": video, "output_video_bytes": video},
            [(k, r, v if k == "TEXT" else (9, 32, 32)) for k, r, v in EDIT],
        ),
        "x2t_image": (
            asked | {"image_bytes": picture(), "video_bytes": None},
            ASKED,
        ),
        "x2t_video": (
            asked | {"image_bytes": None, "video_bytes": video},
            [("PATCHES", "REFERENCE", (9, 32, 32)), *ASKED[1:]],
        ),
    }  # fmt: skip


TASKS = ("t2i", "t2v", "i2v", "image_edit", "image_idip", "video_edit", "x2t_image", "x2t_video")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", ["bytes", "paths"])
def test_the_released_types_become_samples(task, form, rows, tmp_path):
    row, expected = rows[task]
    if form == "paths":
        suffix = {True: ".mp4", False: ".png"}
        for name, value in [(k, v) for k, v in row.items() if isinstance(v, bytes)]:
            (tmp_path / (name + suffix["video" in name])).write_bytes(value)
            row = row | {name: name + suffix["video" in name]}
    table = write_table(tmp_path / "data.parquet", [row, row, row])
    found = samples(open_source(table, task))
    assert [shape(s) for s in found] == [expected] * 3
    assert [s.id for s in found] == [f"{table}, row {n}" for n in range(3)]
    systems = [s.value for s in found[0].segments if s.role is Role.SYSTEM]
    assert systems == ["Look."] if "caption_i" in row else len(systems) == 1
    given = [s.given for s in found[0].segments if s.given is not None]
    assert len(given) == (task == TASKS[2]) and all(g.frames == 1 for g in given)


def test_shards_of_tar_folders_and_hugging_face_hold_the_same(rows, tmp_path, picture):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "b.png").write_bytes(picture(9))
    (tmp_path / "plain" / "b.txt").write_text("a dot\n")
    (tmp_path / "plain" / "alone.png").write_bytes(picture(1))
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "b.png").write_bytes(picture(9))
    lines = [{"file_name": "b.png", "text": "a dot"}]
    (tmp_path / "listed" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    tar = write_tar(tmp_path / "a.tar", {"n/0.1.txt": b"x"} | {"7.png": picture(9), "7.txt": b"a dot"}, skip=1)
    for spec in (tmp_path / "plain", tmp_path / "listed", tar, {"path": str(tmp_path / "*.tar")}):
        assert [shape(s) for s in samples(open_source(spec, "t2i"))] == [DRAWN]


def write_tar(path, files, skip=0):
    with tarfile.open(path, "w") as tar:
        for name, data in list(files.items())[skip:]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_tar_members_with_fields_are_the_columns_of_an_edit(picture, tmp_path):
    files = {"0.input_image.png": picture(1), "0.output_image.png": picture(2), "0.json": b'{"instruction": "a dot"}'}
    assert [shape(s) for s in samples(open_source(write_tar(tmp_path / "a.tar", files), "image_edit"))] == [EDIT]


def test_hugging_face_datasets_are_streamed(rows, tmp_path):
    pytest.importorskip("datasets")
    values = {"text": "a dot", "image": {"bytes": rows["t2i"][0]["image_bytes"], "path": None}}
    write_table(tmp_path / "train.parquet", [values] * 3)
    source = open_source(f"hf:{tmp_path}", "t2i")
    assert [shape(s) for s in samples(source)] == [DRAWN] * 3
    with pytest.raises(UserError, match="dataset type image2image .* also needs"):
        samples(open_source(f"hf:{tmp_path}", "image_edit"))


def test_columns_can_be_named(picture, tmp_path):
    table = write_table(tmp_path / "a.parquet", [{"title": "a dot", "img": picture()}])
    spec = {"path": table, "columns": {"caption": "title", "image_bytes": "img"}}
    for form in (spec, f"{{path: {table}, columns: {{caption: title, image_bytes: img}}}}"):
        assert [shape(s) for s in samples(open_source(form, "t2i"))] == [DRAWN]


@pytest.mark.parametrize(
    "columns, task, said",
    [
        (
            ("capton", "imag_byte"),
            "t2i",
            r"text2image_general .* needs caption, image_bytes: .*caption: capton, image_by",
        ),
        (("caption", "input_image_bytes", "output_image_bytes"), "t2i", "these are the columns of image2image"),
        (("caption", "image_bytes"), "image_edit", r"image2image .* columns of text2image_general"),
        (("x", "y"), "x2t_image", r"x2t_general .* needs caption_q, image_bytes or video_bytes, caption_a"),
    ],
)
def test_wrong_columns_say_which_type_was_expected(columns, task, said, tmp_path):
    table = write_table(tmp_path / "a.parquet", [dict.fromkeys(columns, "x")])
    with pytest.raises(UserError, match=said) as error:
        open_source(table, task)
    assert str(table) in str(error.value)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"caption": 7}, "caption is int: expected a text"),
        ({"caption": None}, "caption is empty: expected a text"),
        ({"caption": "  "}, "caption is blank"),
        ({"image_bytes": b""}, "image_bytes holds 0 bytes"),
        ({"image_bytes": b"not a picture"}, "image_bytes is not an image"),
        ({"image_bytes": None}, "image_bytes is empty"),
        ({"image_bytes": "nowhere.png"}, "there is no file .*nowhere.png"),
    ],
)
def test_a_broken_row_is_named(change, said, rows, tmp_path):
    table = write_table(tmp_path / "a.parquet", [rows["t2i"][0] | change])
    message = broken(open_source(table, "t2i"))
    assert re.search(said, message) and message.startswith(f"{table}, row 0: ")


def test_a_clip_without_frames_is_named(rows, video, tmp_path):
    for data in (video[:200], b"", rows["t2i"][0]["image_bytes"][:20]):
        table = write_table(tmp_path / "a.parquet", [{"caption": "x", "video_bytes": data}])
        assert broken(open_source(table, "t2v")).startswith(f"{table}, row 0: ")


def test_a_truncated_or_vanished_file_is_one_sentence(rows, tmp_path):
    table = write_table(tmp_path / "a.parquet", [rows["t2i"][0]] * 4)
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="a.parquet is not a whole Parquet file"):
        open_source(table, "t2i")
    table.write_bytes(whole)
    source = open_source(table, "t2i")
    table.write_bytes(whole[:20] + bytes(60) + whole[80:])
    with pytest.raises(UserError, match=r"a.parquet is damaged in row group 0, at row 0"):
        samples(source)
    table.unlink()
    with pytest.raises(UserError, match="a.parquet is not there any more"):
        samples(source)


def test_a_damaged_tar_is_one_sentence(picture, tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"0.png": picture(), "0.txt": b"a", "1.png": picture(), "1.txt": b"b"})
    source = open_source(tar, "t2i")
    tar.write_bytes(tar.read_bytes()[:1700])
    with pytest.raises(UserError, match=r"a.tar is damaged after \d files"):
        samples(source)
    tar.unlink()
    with pytest.raises(UserError, match="a.tar is not there any more"):
        samples(source)


def test_nothing_there_and_unknown_names_are_one_sentence(tmp_path):
    for spec, task, said in [
        (tmp_path / "none", "t2i", "there is no data at"),
        (tmp_path, "t2i", "holds no captioned images"),
        ("world", "t2x", "task 't2x' is unknown"),
        ({"path": "world", "kind": 1}, "t2i", "has the keys path, kinds; .* has ..kind"),
        ("{path: [", "t2i", "is not YAML"),
        ("{path: 2024-13-45}", "t2i", "is not YAML"),
        ({"path": "pictures", "type": "video2video"}, "t2i", "use text2image_general"),
        ({"path": "pictures", "kinds": {"text": 1}}, "t2i", "has the keys path, type, columns, .*; .* has ..kinds"),
        ({"path": "world", "kinds": {"words": 1}}, "t2i", "expected weights of 0 or more of single"),
        ({"path": "world", "kinds": {"text": -1}}, "t2i", "expected weights of 0 or more"),
        ({"path": "world", "kinds": {"text": 1}}, "t2v", "expected weights of 0 or more of color"),
        ({"path": "world", "kinds": {"text": 1}}, "image_idip", "kinds are weighed for t2i, t2v, i2v, image_edit"),
        (tmp_path, "extend", "about regions, of which tables and folders say nothing"),
    ]:
        with pytest.raises(UserError, match=said):
            open_source(spec, task)


@pytest.mark.parametrize("task", [*TASKS, "video_idip", "flf2v"])
def test_the_world_is_a_function_of_its_index(task):
    source = open_source("world", task)
    one, again = ([source.sample(row, FIT, RNG) for _, row in zip(range(2), Reader(source, seed=5))] for _ in range(2))
    assert [shape(s) for s in one] == [shape(s) for s in again]
    assert one[0].id != one[1].id and all(s.segments for s in one)


def drawn_prompts(task, kinds, usual):
    source = open_source({"path": "world", "kinds": dict.fromkeys(usual, 0) | kinds}, task)
    drawn = [source.sample(row, FIT, RNG) for _, row in zip(range(8), Reader(source, seed=5))]
    return [s.value for sample in drawn for s in sample.segments if s.role is Role.PROMPT]


def test_pictures_and_edits_of_the_world_can_be_weighed():
    prompts = drawn_prompts("t2i", {"text": 1}, WorldMixture().scenes)
    assert len(prompts) == 8 and all('"' in prompt for prompt in prompts), prompts
    prompts = drawn_prompts("image_edit", {"background": 1}, WorldMixture().edits)
    assert len(prompts) == 8 and all("background" in prompt for prompt in prompts), prompts


def test_clips_and_edits_of_clips_can_be_weighed():
    """A clip with one thing names one shape, one with two names two."""
    for task in ("t2v", "i2v"):
        for kind, things in (("color", 1), ("attribute", 2)):
            prompts = drawn_prompts(task, {kind: 1}, ClipMixture().scenes)
            named = [len(re.findall("|".join(SHAPES), prompt)) for prompt in prompts]
            assert named == [things] * 8, (task, kind, prompts)
    prompts = drawn_prompts("video_edit", {"background": 1}, ClipMixture().edits)
    assert len(prompts) == 8 and all("background" in prompt for prompt in prompts), prompts
