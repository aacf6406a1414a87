"""One front: whoever asks, a request is the training sample with its targets empty, token by token.

Entry points are read from the code. One that is new and has no line here fails, and so does a new task.
"""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

import openlance
from openlance.cli import chat, generate
from openlance.cli.main import COMMANDS, main
from openlance.compat.inputs import Entry
from openlance.compat.requests import Job, build
from openlance.config.sampling import NO_PRIOR, STYLES
from openlance.data.columns import TYPES, Layout
from openlance.data.front import Fit, Front
from openlance.data.source import Row
from openlance.inference.dialogue import Dialogue
from openlance.inference.interfaces import Processor
from openlance.inference.lance_pipeline import LancePipeline
from openlance.inference.methods import Methods
from openlance.media import write_image
from openlance.media.clip import Clip
from openlance.media.region import widened
from openlance.media.write import write_media, write_video
from openlance.sequence.pack import pack
from openlance.sequence.segment import Kind, Region, Role
from openlance.sequence.tasks import TASKS, Views, request, within

WORDS, ANSWER, SIZE, FRAMES = "the ring turns blue", "three of them.", 16, 5


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


FILM = np.stack([picture(n) for n in range(FRAMES)])
MADE = {"image": picture(90), "video": FILM, "text": ANSWER}
READ = {"image": picture(0), "video": FILM}  # the picture is the film's first frame


class Caught(Exception):
    """What a call would have run."""


@pytest.fixture(params=[*STYLES, "none"])
def pipe(request, checkpoint, monkeypatch):
    """A pipeline of every wording, which shows its requests instead of running them."""
    made = checkpoint.load()
    style = NO_PRIOR if request.param == "none" else STYLES[request.param]
    made.defaults = replace(made.defaults, style=style, height=SIZE, width=SIZE, num_frames=FRAMES)

    def catch(requests, *_, **__):
        raise Caught(list(requests))

    monkeypatch.setattr(made, "fill_latents", catch)
    monkeypatch.setattr(made, "fill_ids", catch)
    monkeypatch.setattr(openlance, "load", lambda *_, **__: made)
    return made


def caught(call, *given, **more) -> list:
    """The one request of a call."""
    with pytest.raises(Caught) as seen:
        call(*given, **more)
    [only] = seen.value.args[0]
    return only


# What training reads of a task, in columns.


def trained(pipe, spec) -> list:
    """The sample of a table's row."""
    columns, values = TYPES[spec.columns], {}
    values[columns.text] = f" {WORDS} " if pipe.defaults.style.strips else WORDS  # which is not what is told apart
    for name in columns.inputs:
        values[name] = READ["video" if "video" in name else "image"]
    if columns.any_input:
        values = {k: v for k, v in values.items() if k == columns.text or spec.reads in k}
    values[columns.output] = MADE[spec.makes]
    fit = Fit(front=pipe.front)
    return Layout.of(spec.name).sample(Row("row", values), fit).segments


# Every entry point: what it offers, and how it is called for a task. A file is what the command line has.


def python(pipe, spec):
    p, given = pipe, READ.get(spec.reads)
    calls = {
        "text_to_visual": lambda: p.generate(WORDS) if spec.makes == "image" else p.generate_video(WORDS),
        "image_to_video": lambda: p.animate(given, WORDS),
        "first_and_last": lambda: p.animate(given, WORDS, last=FILM[-1]),
        "edit": lambda: p.edit(given, WORDS),
        "subject_driven": lambda: p.subject(given, WORDS, num_frames=FRAMES if spec.makes == "video" else 1),
        "understand": lambda: p.ask(given, WORDS),
    }
    return caught(calls[spec.template.__name__])


PYTHON = {"generate", "generate_video", "animate", "edit", "outpaint", "extend", "subject", "ask", "caption"}


def diffusers(pipe, spec):
    lance, given = pipe, READ.get(spec.reads)
    if spec.makes == "text":
        inputs = lance.processor(text=WORDS, **{f"{spec.reads}s": given})
        return caught(lance.generate, **inputs)
    if spec.template.__name__ == "subject_driven":
        media = {"subject": given}
    else:
        media = {spec.reads: given} if spec.reads else {}
    if spec.template.__name__ == "first_and_last":
        media["last_image"] = FILM[-1]
    return caught(lance, WORDS, num_frames=FRAMES if spec.makes == "video" else None, **media)


def files(tmp_path, spec) -> list[str]:
    """Its media as files. A film is stored without loss, since its pixels are compared."""
    if not spec.reads:
        return []
    write_image(tmp_path / "one.png", READ["image"])
    write_image(tmp_path / "last.png", FILM[-1])
    if spec.reads == "video":
        return [str(lossless(tmp_path))]
    pair = spec.template.__name__ == "first_and_last"
    return [str(tmp_path / "one.png"), *([str(tmp_path / "last.png")] if pair else [])]


def lossless(folder):
    """The film in a file that keeps every pixel: five frames, each shown for a twelfth of a second."""
    from PIL import Image

    first, *others = map(Image.fromarray, FILM)
    first.save(folder / "film.png", save_all=True, append_images=others, duration=1000 / 12)
    return folder / "film.png"


def command_line(pipe, spec, tmp_path):
    media, out = files(tmp_path, spec), str(tmp_path / ("out.png" if spec.makes == "image" else "out.mp4"))
    lines = {
        "text_to_visual": ["generate", "t2i" if spec.makes == "image" else "t2v", WORDS],
        "image_to_video": ["generate", "i2v", *media, WORDS],
        "first_and_last": ["generate", "flf2v", *media, WORDS],
        "subject_driven": ["generate", "subject", *media, "--prompt", WORDS],
        "edit": ["edit", *media, WORDS],
        "understand": ["ask", *media, WORDS],
    }
    line = lines[spec.template.__name__]
    if spec.template.__name__ == "subject_driven" and spec.makes == "video":
        line += ["--num-frames", str(FRAMES)]
    return caught(main, line if spec.makes == "text" else [*line, "-o", out])


SUBCOMMANDS = {"t2i", "t2v", "i2v", "flf2v", "outpaint", "extend", "subject"}
# Commands that put requests together; the others read what these made, or make none.
ASKING = {"generate", "edit", "ask", "caption", "chat", "run", "explain"}
SILENT = {"bench", "init", "lora", "inspect", "convert", "download", "train", "plan", "encode", "data"}
SERVED = {"serve", "studio"}  # tests/serve hold its results against the pipeline's


def official(pipe, spec, tmp_path):
    """A file of the release: media, then words."""
    media = files(tmp_path, spec)
    if not spec.reads:
        data = WORDS
    else:
        said = ["", WORDS, ""] if spec.makes == "text" else WORDS
        kinds, marks = [spec.reads] * len(media) + ["text"], [0] * len(media) + [int(spec.makes == "text")]
        names = ("interleave_array", "element_dtype_array", "istarget_in_interleave")
        data = dict(zip(names, ([*media, said], kinds, marks), strict=True))
    if spec.makes == "text" and pipe.front.style.question:  # the file brings its own system prompt
        data["interleave_array"][-1][0] = pipe.front.style.question.format(m=spec.reads)
    job = Job(task=spec.name, size=(FRAMES, SIZE, SIZE))
    return build(pipe, Entry("1", "000001", data), job)[0]


def dialogue(pipe, spec):
    talk = Dialogue(pipe, seed=0)
    if spec.reads:
        talk.show(READ[spec.reads], *([FILM[-1]] if spec.template.__name__ == "first_and_last" else []))
    calls = {
        "text_to_visual": talk.draw if spec.makes == "image" else talk.film, "edit": talk.edit,
        "image_to_video": talk.animate, "first_and_last": talk.animate, "understand": talk.ask,
    }  # fmt: skip
    return caught(calls[spec.template.__name__], WORDS)


TALKED = {"text_to_visual", "edit", "image_to_video", "first_and_last", "understand"}  # what a dialogue can do


def same(asked: list, sample: list, pipe) -> None:
    """Token by token, and medium by medium; the hole of the request is filled as the sample's target is."""
    target = sample[-1]
    assert asked[-1].is_empty and asked[-1].role is target.role and asked[-1].size == target.size
    filled = [*asked[:-1], replace(asked[-1], value=target.value)]
    one, other = (pack([s], pipe.codec, pipe.config.position).rows for s in (filled, sample))
    for f in fields(one):
        assert getattr(one, f.name).tolist() == getattr(other, f.name).tolist(), f.name

    def media(segments):
        held = [v for s in segments[:-1] if s.kind is not Kind.TEXT for v in (s.value, s.given)] + [segments[-1].given]
        return [v.key for v in held if v is not None]

    assert media(asked) == media(sample)


@pytest.mark.parametrize("task", [name for name, spec in TASKS.items() if not spec.in_part])
def test_a_request_is_the_training_sample_with_its_target_empty(pipe, task, tmp_path):
    spec = TASKS[task]
    sample = trained(pipe, spec)
    assert sample[-1].role is Role.TARGET and sample[-1].value is not None
    same(python(pipe, spec), sample, pipe)
    same(diffusers(pipe, spec), sample, pipe)
    same(command_line(pipe, spec, tmp_path), sample, pipe)
    same(official(pipe, spec, tmp_path), sample, pipe)
    if spec.template.__name__ in TALKED:
        same(dialogue(pipe, spec), sample, pipe)


@pytest.mark.parametrize("task, room", [("outpaint", {"left": 4, "bottom": 8}), ("extend", {"before": 1, "after": 3})])
def test_what_lies_beyond_is_asked_for_as_it_is_trained(pipe, task, room, tmp_path):
    """Of tables, which say nothing of regions, and of dialogues there are no such requests."""
    spec, words = TASKS[task], f" {WORDS} " if pipe.front.style.strips else WORDS
    pipe.defaults = replace(pipe.defaults, tasks=(task,))
    given = Clip(FILM if spec.reads == "video" else READ["image"][None])
    known, inside = widened(given, **room)
    fill = Clip(np.random.default_rng(5).integers(0, 256, known.pixels.shape, np.uint8))
    size = (fill.frames, fill.height, fill.width)
    sample = within(request(spec, words, [Views(known, known)], size, fill, pipe.front.style), Region(inside))
    own = getattr(pipe, task)
    same(caught(own, READ[spec.reads], words, **room), sample, pipe)
    media, out = files(tmp_path, spec), str(tmp_path / ("out.png" if spec.makes == "image" else "out.mp4"))
    said = [text for name, value in room.items() for text in (f"--{name}", str(value))]
    same(caught(main, ["generate", task, *media, words, *said, "-o", out]), sample, pipe)


@pytest.mark.parametrize("reads", ["image", "video"])
def test_a_description_is_asked_for_as_it_is_trained(pipe, reads, tmp_path):
    spec = next(s for s in TASKS.values() if s.makes == "text" and s.reads == reads)
    sample = pipe.front.sample(spec, "", [Clip(FILM if reads == "video" else FILM[:1])], ANSWER)
    same(caught(pipe.caption, READ[reads]), sample, pipe)
    same(caught(main, ["caption", *files(tmp_path, spec)]), sample, pipe)
    same(caught(pipe.generate, **pipe.processor(text="", **{f"{reads}s": READ[reads]})), sample, pipe)


def test_every_entry_point_is_among_these(checkpoint):
    """Public calls of the pipelines, commands, methods of a dialogue: nothing makes requests that is not compared."""
    own = {name for name, value in vars(Methods).items() if callable(value) and not name.startswith("_")}
    assert own == PYTHON
    settings = {"save_pretrained", "to", "enable_model_cpu_offload", "set_progress_bar_config"}
    told = {"story"}  # lines of a dialogue
    calls = {name for name, value in vars(LancePipeline).items() if callable(value) or isinstance(value, classmethod)}
    assert not {name for name in calls if not name.startswith("_")} - settings - told  # the rest is inherited
    assert {n for n in vars(Processor) if not n.startswith("_")} == {"ids", "padded", "decode", "batch_decode"}
    talks = {name for name in vars(Dialogue) if not name.startswith("_")}
    acts = {"draw", "film", "animate", "edit", "ask"}
    assert talks - {"table", "picture", "say", "show", "undo", "branch", "forget"} == acts
    assert set(COMMANDS) == ASKING | SILENT | SERVED | told
    assert {c.callback.__name__ for c in generate.app.registered_commands} == SUBCOMMANDS
    assert len(chat.app.registered_commands) == 1
    assert {spec.template.__name__ for spec in TASKS.values()} >= TALKED
    front = {name for name in vars(Front) if not name.startswith("_")}
    # A sample is what is shown and what is worded, between which training may keep what it made.
    assert front - {"transform", "style", "num_frames", "fitted", "shown", "worded"} == {"request", "sample"}


def test_a_chat_says_what_the_dialogue_says(pipe, monkeypatch, tmp_path):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/draw {WORDS}\n"))
    same(caught(main, ["chat", "-o", str(tmp_path)]), trained(pipe, TASKS["t2i"]), pipe)


@pytest.mark.parametrize("task", TASKS)
def test_explain_shows_the_request_that_would_run(checkpoint, task, capsys, tmp_path):
    """Its tokens are those of the request, for a folder on disk."""
    spec, pipe = TASKS[task], checkpoint.load()
    given = Clip(READ["image"][None] if spec.reads == "image" else FILM)
    media = [given] * (2 if spec.template.__name__ == "first_and_last" else 1) if spec.reads else []
    count = str(max(len(media), 1))
    line = [
        "explain", task, WORDS, "--model", str(checkpoint.folder), "--size", f"{SIZE}x{SIZE}", "--frames", str(FRAMES),
        "--media", count,
    ]  # fmt: skip
    assert main(line) == 0
    said = " ".join(capsys.readouterr().out.split())  # whatever the width
    made = pipe.front.request(spec, WORDS, media, asked=(FRAMES, SIZE, SIZE))
    assert f" {len(pack([made], pipe.codec, pipe.config.position).rows)} tokens " in said


def test_encoded_shards_hold_the_samples_of_their_source(checkpoint, tmp_path):
    """`openlance encode` keeps every segment; only what fills them has another form."""
    from openlance.data.encoded import MARK, EncodedSource
    from openlance.data.open import open_source

    folder = tmp_path / "data"
    folder.mkdir()
    write_media(folder / "a.png", Clip(READ["image"][None]))
    (folder / "a.txt").write_text(WORDS)
    write_video(folder / "b.mp4", Clip(FILM))
    (folder / "metadata.jsonl").write_text(
        json.dumps({"input_image": "a.png", "output_image": "a.png", "instruction": WORDS}) + "\n"
    )
    line = ["encode", str(folder), "-o", str(tmp_path / "out"), "--model", str(checkpoint.folder)]
    assert main([*line, "--task", "image_edit"]) == 0
    shards = EncodedSource(tuple(sorted((tmp_path / "out").glob(f"*{MARK}"))), "image_edit")
    source = open_source(folder, "image_edit")
    from openlance.cli.encode import _fit, chosen_stage

    fit, rng = _fit(*chosen_stage(str(checkpoint.folder), None)), np.random.default_rng(0)
    row = next(iter(source.rows(source.parts(0, None)[0])))
    shard = next(iter(shards.rows(shards.files[0])))
    sample, held = source.sample(row, fit, rng).segments, shards.sample(shard, fit, rng).segments
    pipe = checkpoint.load()
    one, other = (pack([s], pipe.codec, pipe.config.position).rows for s in (sample, held))
    assert all(getattr(one, f.name).tolist() == getattr(other, f.name).tolist() for f in fields(one))
