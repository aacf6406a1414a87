"""Data in the forms in which people have them, written by the libraries that write them: each becomes the samples that
are meant, and what is left out is counted with its reason."""

import base64
import csv
import io
import json
import os
import tarfile

import numpy as np
import pytest
from in_words import BLUE, FIT, GREEN, RED, draw, held, left, shown, told
from PIL import Image, features

from openlance.checkpoint.formats import find_model
from openlance.config.train import stage
from openlance.data.columns import Layout
from openlance.data.front import Fit
from openlance.data.names import recognised
from openlance.data.open import open_source
from openlance.data.source import BrokenRow, Reader, Reading, Row
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.write import write_video
from openlance.sequence.segment import Kind, Role

# Folders.


def test_texts_beside_pictures_in_any_letter_case_and_of_windows(tmp_path):
    draw(tmp_path / "DOG.PNG").with_name("dog.TXT").write_bytes(b"\xef\xbb\xbfa dog\r\n")
    draw(tmp_path / "cat.jpeg").with_name("cat.caption").write_text("a cat")
    draw(tmp_path / "sub" / "x.jfif", format="JPEG").with_name("x.jfif.txt").write_text("an x")
    source = open_source(tmp_path, "t2i")
    assert sorted(line[0] for line in told(source)) == ["a cat", "a dog", "an x"] and not left(source)


def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    for n in range(4):
        draw(tmp_path / f"{n}.png")
    (tmp_path / "0.txt").write_text("a dog")
    (tmp_path / "1.txt").write_text(" \n")
    draw(tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png").with_suffix(".txt").write_text("old")
    (tmp_path / "__MACOSX").mkdir()
    for name in ("__MACOSX/._0.png", "__MACOSX/._0.txt", "._0.png", "._0.txt"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07\xb0\xff\xfe")
    (tmp_path / "layers.psd").write_bytes(b"8BPS")
    (tmp_path / "notes.md").write_text("no media")
    draw(tmp_path / "dot.png", side=8).with_suffix(".txt").write_text("a dot")
    source = open_source(tmp_path, "t2i")
    assert [line[0] for line in told(source)] == ["a dog"]
    assert left(source) == {"no caption": 2, "its caption is blank": 1, "hidden": 3, "unreadable kind (.psd)": 1,
                            "too small (a side below 16 pixels)": 1}  # fmt: skip
    assert (source.census.seen, source.census.used) == (9, 1)
    (tmp_path / "0.txt").unlink()
    with pytest.raises(UserError, match="holds no captioned images .*3 left out: no caption"):
        open_source(tmp_path, "t2i")
    assert len(told(open_source({"path": tmp_path, "caption": "a thing", "min_side": 4}, "t2i"))) == 5


def test_linked_folders_are_read_and_a_link_that_leads_back_ends(tmp_path):
    draw(tmp_path / "far" / "a.png").with_suffix(".txt").write_text("a")
    (tmp_path / "here").mkdir()
    os.symlink("../far", tmp_path / "here" / "more")
    os.symlink("..", tmp_path / "far" / "back")
    assert [line[0] for line in told(open_source(tmp_path / "here", "t2i"))] == ["a"]


@pytest.mark.parametrize("suffix", ["avif", "jp2", "tga", "heic"])
def test_kinds_of_pictures_whose_reader_is_there(suffix, tmp_path):
    if suffix == "heic":
        pytest.importorskip("pillow_heif").from_pillow(Image.new("RGB", (32, 32), RED)).save(tmp_path / "a.heic")
    elif (needed := {"avif": "avif", "jp2": "jpg_2000"}.get(suffix)) and not features.check(needed):
        pytest.skip("Pillow was built without it")
    else:
        draw(tmp_path / f"a.{suffix}")
    (tmp_path / "a.txt").write_text("red")
    assert told(open_source(tmp_path, "t2i")) == [["red", "->", "red"]]


def test_folders_of_kohya_repeat_and_name_the_class(tmp_path):
    draw(tmp_path / "3_sks dog" / "1.png")
    draw(tmp_path / "3_sks dog" / "2.png").with_suffix(".txt").write_text("a sks dog, asleep")
    draw(tmp_path / "1_dog" / "1.png")
    draw(tmp_path / "2024_summer" / "1.png")  # a year repeats nothing, and has no caption
    source = open_source(tmp_path, "t2i")
    texts = sorted(line[0] for line in told(source))
    assert texts == ["a sks dog, asleep"] * 3 + ["dog"] + ["sks dog"] * 3 and left(source) == {"no caption": 1}


def test_kohyas_table_of_captions_and_tags(tmp_path):
    draw(tmp_path / "a.png"), draw(tmp_path / "b.png"), draw(tmp_path / "c.png")
    about = {
        str(tmp_path / "a"): {"caption": "a dog", "tags": "dog, grass"},
        "b.png": {"tags": "cat"},
        "d": {"tags": "x"},
    }
    (tmp_path / "meta_cap.json").write_text(json.dumps(about))
    source = open_source(tmp_path, "t2i")
    assert [line[0] for line in told(source)] == ["a dog, dog, grass", "cat"]
    assert left(source) == {"the file is missing": 1, "no caption": 1}


def test_lists_of_any_kind_at_any_level(tmp_path):
    for n, name in enumerate(
        ("a/metadata.jsonl", "b/metadata.csv", "c/list.txt", "d/train.json", "e/pairs.tsv", "f/coco.json")
    ):
        folder = (tmp_path / name).parent
        draw(folder / "x.png", (RED, BLUE, GREEN)[n % 3])
        row = {"file_name": "x.png", "text": f'words, "of" {folder.name}\u2028end'}
        out = tmp_path / name
        if name.endswith(".jsonl"):
            out.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
        elif name.endswith(("csv", "tsv")):
            with out.open("w", newline="", encoding="utf-8-sig") as file:
                writer = csv.DictWriter(file, list(row), delimiter="\t" if name.endswith("tsv") else ",")
                writer.writeheader(), writer.writerow(row)
        elif name.endswith(".txt"):
            out.write_text(f"x.png|{row['text']}\n", encoding="utf-8")
        elif "coco" in name:
            out.write_text(json.dumps({"images": [{"id": 7, "file_name": "x.png"}],
                                       "annotations": [{"image_id": 7, "caption": row["text"]}]}))  # fmt: skip
        else:
            out.write_text(json.dumps([row]))
    got = sorted(line[0] for line in told(open_source(tmp_path, "t2i")))
    assert got == [f'words, "of" {letter}\u2028end' for letter in "abcdef"]
    assert told(open_source(tmp_path / "b" / "metadata.csv", "t2i"))[0][2] == "blue"


def test_clips_and_prompts_in_two_lists(tmp_path):
    (tmp_path / "videos").mkdir()
    for n in range(2):
        write_video(tmp_path / "videos" / f"{n}.mp4", Clip(np.full((9, 32, 32, 3), 90 * n, np.uint8)))
    (tmp_path / "videos.txt").write_text("videos/0.mp4\nvideos/1.mp4\n")
    (tmp_path / "prompts.txt").write_text("nothing\ngrey\n\n")
    assert told(open_source(tmp_path, "t2v")) == [["nothing", "->", 9], ["grey", "->", 9]]
    (tmp_path / "prompts.txt").write_text("nothing\n")
    with pytest.raises(UserError, match=r"videos.txt has 2 lines and .*prompts.txt 1"):
        open_source(tmp_path, "t2v")


def test_several_captions_are_drawn_from(tmp_path):
    draw(tmp_path / "x.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "x.png", "captions": ["one", "two", " "]}))
    source = open_source(tmp_path, "t2i")
    assert {told(source, seed)[0][0] for seed in range(12)} == {"one", "two"}


def test_one_question_for_all_that_have_an_answer(tmp_path):
    draw(tmp_path / "a.png").with_suffix(".txt").write_text("a dot")
    draw(tmp_path / "b.png")
    source = open_source({"path": tmp_path, "caption": "what?"}, "x2t_image")
    assert told(source) == [["red", "what?", "->", "a dot"]] and left(source) == {"no caption": 1}


def test_lists_without_a_head_and_paths_of_elsewhere(tmp_path):
    draw(tmp_path / "in" / "a.png")
    for line in ("a.png|red, round", "a.png\tred, round", 'a.png,"red, round"', "a.png red, round"):
        (tmp_path / "in" / "list.txt").write_text(f"\ufeff{line}\n\n", encoding="utf-8")
        assert told(open_source(tmp_path / "in", "t2i")) == [["red, round", "->", "red"]], line
    (tmp_path / "in" / "list.txt").unlink()
    draw(tmp_path / "in" / "b.png", BLUE)
    for line, said in (
        ("a.png,a dog, running, in snow", "a dog, running, in snow"), ('a.png,a cat, "Tom" sits', 'a cat, "Tom" sits'),
        ('a.png, "a dog, running"', "a dog, running"), ('a.png,"a ""big"" dog"', 'a "big" dog'),
    ):  # fmt: skip
        (tmp_path / "in" / "list.csv").write_text(f'{line}\nb.png,"blue, too"\n')
        assert told(open_source(tmp_path / "in", "t2i"))[0] == [said, "->", "red"], line
    (tmp_path / "in" / "list.csv").unlink(), (tmp_path / "in" / "b.png").unlink()
    row = {"image": "coco/a.png", "text": "red"}
    for name in ("C:\\\\data\\\\a.png", "/elsewhere/a.png"):
        (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(row | {"image": name}))
        assert told(open_source(tmp_path / "in", "t2i")) == [["red", "->", "red"]]
    draw(tmp_path / "far" / "coco" / "a.png", BLUE)
    (tmp_path / "list.json").write_text(json.dumps([row, {"image": "http://x/y.png", "text": "x"}]))
    with pytest.raises(UserError, match="the file is missing .*1 left out: on the network.*media: FOLDER"):
        open_source(tmp_path / "list.json", "t2i")
    source = open_source({"path": tmp_path / "list.json", "media": tmp_path / "far"}, "t2i")
    assert told(source) == [["red", "->", "blue"]]
    (tmp_path / "in" / "metadata.jsonl").unlink()
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    draw(tmp_path / "in" / "b.png")
    pq.write_table(pa.table({"file_name": ["a.png"], "text": ["red"]}), tmp_path / "in" / "metadata.parquet")
    source = open_source(tmp_path / "in", "t2i")
    assert told(source) == [["red", "->", "red"]] and left(source) == {"no caption": 1}


# Pairs.


@pytest.mark.parametrize("names", [("control", "target"), ("source_images", "Edited"), ("before", "after")])
def test_two_folders_of_pairs(names, tmp_path):
    before, after = (tmp_path / name for name in names)
    draw(before / "1.png", RED), draw(after / "1.jpg", BLUE), draw(before / "2.png", RED)
    (after / "1.txt").write_text("make it blue")
    source = open_source(tmp_path, "image_edit")
    assert told(source) == [["red", "make it blue", "->", "blue"]] and left(source) == {"its other half is missing": 1}
    (after / "1.txt").unlink()
    with pytest.raises(UserError, match="name pairs by folders control and target"):
        open_source(tmp_path, "image_edit")
    assert told(open_source({"path": tmp_path, "caption": "blue"}, "image_edit"))[0][1] == "blue"


@pytest.mark.parametrize(
    "columns",
    [
        ("original_image", "edit_prompt", "edited_image"), ("source_img", "instruction", "target_img"),
        ("input_image", "edit", "output_image"), ("src_img", "edited_prompt_list", "edited_img"),
        ("conditioning_image", "text", "image"), ("before", "prompt", "after"),
        ("Original Image", "Edit Prompt", "Edited Image"), ("image", "instruction", "edited_image"),
    ],
)  # fmt: skip
def test_pairs_by_the_names_that_their_columns_have(columns, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source, text, target = columns
    words = ["make it blue"] if text.endswith("list") else "make it blue"
    red, blue, green = ({"bytes": held(color), "path": None} for color in (RED, BLUE, GREEN))
    row = {source: red, text: words, target: blue, "original_prompt": "red", "edited_prompt": "blue", "mask_img": green}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert told(open_source(tmp_path, "image_edit")) == [["red", "make it blue", "->", "blue"]]


def test_a_column_has_one_role(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    same = {"input_image_bytes": "picture_b", "output_image_bytes": "picture_b"}
    with pytest.raises(UserError, match="columns names picture_b twice"):
        open_source({"path": tmp_path, "columns": same}, "image_edit")
    pq.write_table(pa.Table.from_pylist([{"imput_imag": "x", "order": "y"}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="needs .*input_image_bytes, output_image_bytes: ") as error:
        open_source(tmp_path, "image_edit")
    assert str(error.value).count("imput_imag") == 2  # once as a column of the file, once in the hint
    pq.write_table(pa.Table.from_pylist([{"image_0": "x", "image_1": "y", "text": "z"}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"name them with columns: \{ours: theirs\}"):  # which is which would be a guess
        open_source(tmp_path, "image_edit")
    wanted = ("caption", "input_image_bytes", "output_image_bytes")
    for names in (
        ["image", "edited_image"],
        ["image_a", "image_b", "text"],
        ["output_image", "image", "prompt", "text"],
    ):
        theirs = list(recognised(names, wanted).values())
        assert len(theirs) == len(set(theirs))


def test_chains_of_edits_of_bagel(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"image_list": [held(RED), held(BLUE), held(GREEN)], "instruction_list": [["blue!", "to blue"], ["green!"]]}
    pq.write_table(pa.Table.from_pylist([row, row | {"image_list": [held()]}]), tmp_path / "a.parquet")
    source = open_source(tmp_path, "image_edit")
    rows = list(Reader(source, Reading(shuffle=False, repeat=False)))
    drawn = [source.sample(rows[0], FIT, np.random.default_rng(seed)).segments for seed in range(20)]
    steps = {(shown(s[-3].value), s[-2].value, shown(s[-1].value)) for s in drawn}
    assert steps == {("red", "blue!", "blue"), ("red", "to blue", "blue"), ("blue", "green!", "green")}
    with pytest.raises(BrokenRow, match="a chain of 1 images has 2 instructions"):
        source.sample(rows[1], FIT, np.random.default_rng(0))


# Dialogues.

TALKS = {
    "llava": {"image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dot"},
        {"from": "human", "value": "which color?"}, {"from": "gpt", "value": "red"}]},
    "sharegpt": {"images": ["a.png"], "conversations": [
        {"from": "user", "value": "what?"}, {"from": "assistant", "value": "a dot"},
        {"from": "user", "value": "which color?"}, {"from": "assistant", "value": "red"}]},
    "messages": {"messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,PNG"}},
                                     {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a dot"}, {"role": "user", "content": "which color?"},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]}]},
    "cauldron": {"images": ["a.png"], "texts": [
        {"user": "what?", "assistant": "a dot"}, {"user": "which color?", "assistant": "red"}]},
}  # fmt: skip


@pytest.mark.parametrize("form", TALKS)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_dialogues_of_several_turns(form, suffix, tmp_path):
    draw(tmp_path / "a.png")
    said = json.dumps(TALKS[form]).replace("PNG", base64.b64encode(held()).decode())
    (tmp_path / f"talk.{suffix}").write_text(said if suffix == "jsonl" else f"[{said}]")
    source = open_source(tmp_path / f"talk.{suffix}", "x2t_image")
    assert told(source) == [["red", "what?", "->", "a dot", "which color?", "->", "red"]]
    if form != "messages":
        assert told(open_source(tmp_path, "x2t_image")) == told(source)  # the folder has one list, and no other picture


def test_words_alone_and_faults_of_dialogues(tmp_path):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "1+1?"},
        {"from": "gpt", "value": "2"},
    ]
    rows = [{"conversations": turns}, {"conversations": turns[:2]}, {"image": "a.png", "conversations": [
        {"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "x"}]}]  # fmt: skip
    draw(tmp_path / "a.png")
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    source = open_source(tmp_path / "talk.json", "x2t_image")
    [one] = Reader(source, Reading(shuffle=False, repeat=False))
    made = source.sample(one, FIT, np.random.default_rng(0)).segments
    assert [(s.role.name, s.value) for s in made] == [("SYSTEM", "Be brief."), ("PROMPT", "1+1?"), ("TARGET", "2")]
    places = "the dialogue has 2 places for images or videos and 1 of them beside it"
    assert left(source) == {"the dialogue does not end with an answer": 1, places: 1}
    for row in rows[1:]:  # in a table, whose rows nobody reads before
        with pytest.raises(BrokenRow, match="does not end with an answer|has 2 places for images or videos and 1"):
            source.sample(Row("", row, tmp_path), FIT, np.random.default_rng(0))


# Containers.


def test_what_datasets_saves_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": held(c), "path": None} for c in (RED, BLUE)], "text": ["red", "blue"]}
    data = datasets.Dataset.from_dict(rows, features=kinds)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "split")
    assert told(open_source(tmp_path / "one", "t2i")) == [["red", "->", "red"], ["blue", "->", "blue"]]
    assert len(told(open_source(tmp_path / "split", "t2i"))) == 2
    assert told(open_source({"path": tmp_path / "split", "split": "test"}, "t2i")) == [["blue", "->", "blue"]]
    assert len(told(open_source(f"hf:{tmp_path / 'split'}:test", "t2i"))) == 1
    with pytest.raises(UserError, match="has the splits train, test: choose one"):
        open_source({"path": tmp_path / "split", "split": "dev"}, "t2i")


def test_a_data_set_with_configurations(tmp_path):
    pytest.importorskip("datasets")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, color in (("a", RED), ("b", BLUE)):
        (tmp_path / name).mkdir()
        pq.write_table(
            pa.table({"image": [{"bytes": held(color), "path": None}], "text": [name]}), tmp_path / name / "x.parquet"
        )
    heads = "".join(f'- config_name: {name}\n  data_files: "{name}/*.parquet"\n' for name in "ab")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{heads}---\n")
    [note] = [note for note in open_source(tmp_path, "t2i").census.notes if "config" in note]
    assert note == f"configs: a, b are all used; one alone: {{path: {tmp_path}, config: a}}"
    with pytest.raises(UserError, match=r"configurations a, b: choose one, such as \{path: 'hf:.*', config: a\}"):
        told(open_source(f"hf:{tmp_path}", "t2i"))
    assert told(open_source(f"{{path: 'hf:{tmp_path}', config: b}}", "t2i")) == [["b", "->", "blue"]]


def test_tars_of_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as out:
        for n, color in enumerate((RED, BLUE)):
            out.write(
                {"__key__": f"x/{n}", "png": Image.new("RGB", (32, 32), color), "json": {"caption": f"picture {n}"}}
            )
    with webdataset.ShardWriter(str(tmp_path / "pairs-%d.tar"), maxcount=1, verbose=0) as out:
        for n in range(2):
            sides = {
                "original_image.png": Image.new("RGB", (32, 32), RED),
                "edited_image.png": Image.new("RGB", (32, 32), BLUE),
            }
            out.write({"__key__": str(n), "edit_prompt.txt": "blue", **sides})
    assert told(open_source(tmp_path / "a.tar", "t2i")) == [["picture 0", "->", "red"], ["picture 1", "->", "blue"]]
    assert told(open_source(tmp_path / "pairs-*.tar", "image_edit")) == [["red", "blue", "->", "blue"]] * 2
    with pytest.raises(UserError, match="these are the columns of image2image"):
        told(open_source(tmp_path / "pairs-*.tar", "t2i"))


@pytest.mark.parametrize("form", ["w", "w:gz"])
def test_tars_in_any_order_and_of_a_mac(form, tmp_path):
    mac = b"\0\5\x16\7"
    files = {"./2.png": held(BLUE), "./1.png": held(RED), "./._1.png": mac, "./__MACOSX/._2.txt": mac,
             "./1.txt": b"\xef\xbb\xbfred", "./3.png": held(), "./2.TXT": b"blue"}  # fmt: skip
    with tarfile.open(tmp_path / ("a.tar" if form == "w" else "a.tar.gz"), form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = open_source(tmp_path, "t2i")
    assert told(source) == [["blue", "->", "blue"], ["red", "->", "red"]]
    assert left(source) == {"hidden": 1, "no caption": 1} and source.census.used == 2


# Clips.


def moving(path, seconds, fps):
    import av

    with av.open(str(path), "w") as out:
        track = out.add_stream("mpeg4", rate=fps)
        track.width = track.height = 32
        for n in range(round(seconds * fps)):
            frame = np.full((32, 32, 3), round(255 * n / (seconds * fps)), np.uint8)
            for packet in track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                out.mux(packet)
        out.mux(track.encode())
    path.with_suffix(".txt").write_text("it brightens")


def numbered(count):
    """A video whose grey tells the number of a frame."""
    return Clip(np.stack([np.full((64, 64, 3), 20 + 4 * n, np.uint8) for n in range(count)]))


def numbers(segment):
    return [round((float(frame.mean()) - 20) / 4) for frame in segment.value.pixels]


def pair(folder, source, target, seed=1, **how):
    """Numbers of the frames of the source and of the target of an edit."""
    values = {"input_video_bytes": source, "output_video_bytes": target, "caption": "x"}
    fit = Fit.at(stage("sft", "nano"), 0, find_model("nano").config)
    found = Layout.of("video_edit", **how).sample(Row("r", values, folder), fit, np.random.default_rng(seed)).segments
    [before] = [s for s in found if s.role is Role.SOURCE and s.kind is Kind.LATENTS]
    return numbers(before), numbers(found[-1])


@pytest.mark.parametrize("clips", ["whole", "window", "start"])
def test_source_and_target_of_an_edit_show_the_same_moments(clips, tmp_path):
    for count in (6, 20, 50):
        numbered(count).save(tmp_path / f"{count}.mp4")
        before, after = pair(tmp_path, f"{count}.mp4", f"{count}.mp4", clips=clips)
        assert before == after and len(after) % 4 == 1
    frames = [Image.fromarray(frame) for frame in numbered(40).pixels]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=83, loop=0)
    before, after = pair(tmp_path, "a.gif", "a.gif", clips=clips)
    assert before == after and len(after) > 9
    for seed in range(3):  # the longer one is no other film
        before, after = pair(tmp_path, "50.mp4", "20.mp4", seed, clips=clips)
        assert clips == "whole" or before == after
    write_video(tmp_path / "one.mp4", numbered(1))
    with pytest.raises(BrokenRow, match="a source is one image"):
        pair(tmp_path, "one.mp4", "20.mp4", clips=clips)


@pytest.mark.parametrize("fps", [8, 25, 60])
def test_a_window_of_a_clip_runs_at_the_speed_of_life(fps, tmp_path):
    """12 frames a second of a clip of 10 seconds whose brightness tells the time: 9 frames are 0.67 s."""
    moving(tmp_path / "a.mp4", 10, fps)

    def times(**said):
        source = open_source({"path": tmp_path, **said}, "t2v")
        [row] = source.found
        starts, spans = [], []
        for seed in range(3):
            clip = source.sample(row, FIT, np.random.default_rng(seed)).segments[-1].value
            light = clip.pixels.mean((1, 2, 3)) / 25.5
            assert clip.frames == 9
            starts.append(light[0]), spans.append(light[-1] - light[0])
        return starts, np.mean(spans)

    starts, span = times()
    assert span == pytest.approx(8 / 12, abs=0.2) and len(set(np.round(starts, 1))) == 3
    starts, span = times(stride=3)
    assert span == pytest.approx(3 * 8 / 12, abs=0.2)
    starts, span = times(clips="start")
    assert max(starts) < 0.2 and span == pytest.approx(8 / 12, abs=0.2)
    starts, span = times(clips="whole")
    assert span > 9
    with pytest.raises(UserError, match="clips is 'middle': .*window, whole, start"):
        open_source({"path": tmp_path, "clips": "middle"}, "t2v")
