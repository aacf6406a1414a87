"""`openlance explain` says of every task what its rows say, from a folder without a single weight."""

import re

import numpy as np
import pytest

from openlance.checkpoint.formats import write_config
from openlance.cli.explain import WIDTH
from openlance.cli.main import main
from openlance.errors import UserError
from openlance.media import write_image
from openlance.planning.workload import placeholder
from openlance.sequence import tasks
from openlance.sequence.explain import explain, mask_picture
from openlance.sequence.segment import Kind, Role, dense_mask

TEXT, PATCHES, LATENTS = Kind


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Configuration and tokenizer, no weights."""
    made = tmp_path_factory.mktemp("numbers")
    write_config(made, tiny.model.config)
    tiny.codec.tokenizer.backend.save(str(made / "tokenizer.json"))
    (made / "generation_config.json").write_text('{"height": 32, "width": 16}')
    return made


@pytest.fixture
def said(folder, capsys):
    """The lines that the command prints."""

    def run(*line: str, model: str = str(folder)) -> list[str]:
        assert main(["explain", *line, "--model", model, "--tokenizer", str(folder)]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def request(task: str, count: int = 1, fill=None) -> list:
    reads, makes = tasks.TASKS[task].reads, tasks.TASKS[task].makes
    clip = placeholder(5 if reads == "video" else 1, 16, 16)
    media = [tasks.Views(clip, clip)] * count if reads else []
    return tasks.request(task, "a red circle", media, (5 if makes == "video" else 1, 16, 16), fill)


def read(tiny, segments, **changes):
    from dataclasses import replace

    position = replace(tiny.model.config.position, **changes)
    return explain(segments, tiny.codec, position, tiny.codec.tokenizer.text)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_fits_a_hundred_columns(said, task):
    for model in ((), ("--size", "96x64", "--frames", "5")):
        lines = said(task, "a red circle on a ☃ 雪 background", *model)
        assert max(map(len, lines)) <= WIDTH
        heads = [line.split(" ")[0].rstrip(":") for line in lines if line and line[0].isupper()]
        assert heads == ["Segments", "Splits", "Positions", "Mask"]
        assert lines[0].startswith(task)


@pytest.mark.parametrize(
    "task, sizes", [("t2v", "768x768"), ("image_idip", "672x672|768x768"), ("x2t_video", "588x588")]
)
def test_the_released_model_is_explained_without_its_files_and_at_its_buckets(said, task, sizes):
    lines = said(task, model="3b")
    found = set(re.findall(r"frames? of (\d+x\d+)", "\n".join(lines)))
    assert max(map(len, lines)) <= WIDTH and found == set(sizes.split("|"))


def test_the_table_of_tasks_says_what_the_templates_do():
    for task, spec in tasks.TASKS.items():
        made = request(task)
        assert made[-1].is_empty and (made[-1].kind is TEXT) == (spec.makes == "text")
        assert any(s.kind is PATCHES or s.given is not None for s in made) == bool(spec.reads)
        assert tasks.the_task(spec.template, spec.kind) is spec
    with pytest.raises(UserError, match="leave them out"):
        tasks.request("t2i", "a ring", [tasks.Views(None, None)], (1, 16, 16))
    with pytest.raises(UserError, match="at least one image"):
        tasks.request("i2v", "a ring", [], (5, 16, 16))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_token_is_counted_once(tiny, task):
    found = read(tiny, request(task))
    assert sum(part.tokens or 0 for part in found.parts) + found.template == found.tokens == len(found.rows)
    assert [split.first for split in found.splits[1:]] == [split.last + 1 for split in found.splits[:-1]]


WORDS = {  # (kind, is the target): stream, attends, seen later, flow time, loss; the table of docs/concepts/sequence.md
    (TEXT, False): ("und", "causally", True, "-", "-"),
    (PATCHES, False): ("und", "both ways", True, "-", "-"),
    (LATENTS, False): ("gen", "both ways", True, "0", "-"),
    (LATENTS, True): ("gen", "both ways", False, "t", "velocity (16)"),
}


@pytest.mark.parametrize("task", ["t2i", "image_edit", "image_idip", "x2t_image"])
def test_what_a_token_does_follows_from_its_segment(tiny, task):
    """Text shares a split with the template around it; visuals have one of their own."""
    segments = request(task)
    found = read(tiny, segments)
    for segment in segments:
        target = segment.role is Role.TARGET
        if segment.is_empty and segment.kind is TEXT:
            continue
        name = {TEXT: segment.value, PATCHES: "1x2x2 patches", LATENTS: "1x4x4 latents"}[segment.kind]
        split = next(s for s in found.splits if s.later != target and name in s.content)
        row = (split.stream, split.attends, split.later, split.time, split.loss)
        assert row == WORDS[segment.kind, target], segment


def test_known_frames_have_no_time_and_an_answer_has_a_loss(tiny):
    target = next(s for s in read(tiny, request("i2v")).splits if not s.later)
    assert (target.time, target.loss) == ("0, then t", "velocity (32)")  # 2 of 3 latent frames of 16 cells
    answer = read(tiny, request("x2t_image", fill="three of them.")).splits[-1]
    count = len(tiny.codec.ids("three of them.")) + 1
    assert answer.loss == f"next token ({count})" and "three of them." in answer.content
    assert read(tiny, request("x2t_image")).splits[-1].loss == "-"


def test_the_shift_is_shown_and_can_be_left_out(tiny):
    found = read(tiny, request("image_edit"))
    visual = [s for s in found.splits if s.attends == "both ways"]
    patches, source, target = visual
    assert patches.shifted[0][0] == 1001  # the opening marker stands at 1000
    assert source.shifted == source.index == target.shifted != target.index
    assert [s.shifted for s in read(tiny, request("image_edit"), shift=False).splits] == [s.index for s in found.splits]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_picture_is_the_mask(tiny, task):
    """Between two splits the mask is one value, and so is the picture; inside, it is a triangle or a square."""
    found = read(tiny, request(task, count=2 if tasks.TASKS[task].reads == "image" and task != "i2v" else 1))
    mask, picture = dense_mask(found.rows).numpy(), mask_picture(found)
    widths = [len(block) for block in picture]
    edges = np.cumsum([0, *widths])
    for q, (query, block) in enumerate(zip(found.splits, picture)):
        for k, key in enumerate(found.splits):
            drawn = np.array(block)[:, edges[k] : edges[k + 1]]
            true = mask[query.first : query.last + 1, key.first : key.last + 1]
            if q != k:
                assert (drawn == true[0, 0]).all() and (true == true[0, 0]).all()
            else:
                whole = true.all()
                assert (drawn == (whole | np.tri(len(drawn), dtype=bool))).all()
                assert (true == (whole | np.tri(len(true), dtype=bool))).all()


def test_files_count_by_their_size(said, tmp_path):
    path = tmp_path / "photo.PNG"
    write_image(path, np.zeros((25, 31, 3), np.uint8))
    assert any("1 frame of 32x24, to be drawn" in line for line in said("image_edit", str(path), "make it red"))
    assert any("1 frame of 8x16, to be drawn" in line for line in said("image_edit", str(path), "--size", "8x16"))
    two = "\n".join(said("image_idip", str(path), str(path), "--size", "16x16"))
    assert len(re.findall("PATCHES +REFERENCE", two)) == 2
    assert len(re.findall("PATCHES +REFERENCE", "\n".join(said("image_idip", "--media", "3")))) == 3
    assert said("edit", str(path), "make it red") == said("image_edit", str(path), "make it red")


@pytest.mark.parametrize("line, words", [
    (["paint"], "'paint' is unknown: use one of t2i"),
    (["t2i", "a red", "circle"], "quote the prompt"),
    (["t2i", "a ring", "photo.png"], "reads no images"),
    (["image_edit", "nowhere.png"], "no file nowhere.png"),
    (["t2i", "a ring", "--answer", "two"], "--answer"),
    (["t2i", "--size", "18x16"], "multiple of 4"),
    (["t2v", "--frames", "4"], "use 3 or 5 frames"),
    (["t2v", "--frames", "0"], "--frames"),
    (["x2t_image", "--media", "0"], "--media"),
    (["t2i", "--model", "no-such-model"], "no-such-model"),
])  # fmt: skip
def test_bad_input_is_one_sentence(folder, line, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in line else ["--model", str(folder)]
    assert main(["explain", *line, *model]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"error: .+\n", err) and words in err


def test_a_drawing_is_one_file_and_an_unfit_name_is_said(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["explain", "image_edit", "make it <blue>", "--model", str(folder)]
    assert main([*line, "-o", "new/sequence.svg"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("new/sequence.svg\n", "")
    assert "<svg" in (tmp_path / "new" / "sequence.svg").read_text("utf-8")
    assert main([*line, "-o", "sequence.png"]) == 2
    assert capsys.readouterr().err == "error: sequence.png is no SVG file: give for example -o sequence.svg\n"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
