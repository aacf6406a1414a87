"""Entries as requests: what becomes of answers, sizes and priors; prompts that a server rewrites."""

from dataclasses import replace

import pytest

from openlance.compat.inputs import Entry
from openlance.compat.requests import Job, build, find_file, size_for
from openlance.config.sampling import NO_PRIOR
from openlance.errors import UserError
from openlance.inference.enhance import Enhancer
from openlance.media import write_image
from openlance.sequence.segment import Kind, Role


def entry(data):
    return Entry("1", "000001", data)


def arrays(values, kinds, targets):
    return {"interleave_array": values, "element_dtype_array": kinds, "istarget_in_interleave": targets}


@pytest.fixture
def picture(tmp_path, tiny):
    write_image(tmp_path / "one.png", tiny.clip(0, height=24, width=16))
    return tmp_path / "one.png"


def test_a_known_answer_is_a_hole_to_fill(pipe, picture):
    data = arrays([str(picture), ["Look.", "what?", "a ring"]], ["image", "text"], [0, 1])
    segments, prompt = build(pipe, entry(data), Job(task="x2t_image", size=(1, 16, 16)))
    assert prompt == "what?" and segments[-1].is_empty
    assert [s.value for s in segments if s.kind is Kind.TEXT] == ["Look.", "what?", None]


def test_a_model_without_priors_gets_none_and_is_asked_in_words(checkpoint, picture):
    pipe = checkpoint.load()
    pipe.defaults = replace(pipe.defaults, style=NO_PRIOR)
    data = arrays([str(picture), "a ring"], ["image", "text"], [0, 1])
    segments, _ = build(pipe, entry(data), Job(task="x2t_image", size=(1, 16, 16)))
    assert not any(s.role is Role.SYSTEM for s in segments)
    assert [s.value for s in segments if s.kind is Kind.TEXT] == ["describe the picture", None]


def test_an_edit_has_the_size_of_its_source(pipe, picture):
    data = arrays(["make it red", str(picture)], ["text", "image"], [0, 0])
    segments, prompt = build(pipe, entry(data), Job(task="image_edit", size=(1, 16, 16)))
    assert prompt == "make it red" and segments[-1].size == segments[1].size[:1] + segments[2].size[1:]
    assert segments[-1].size[1] > segments[-1].size[2]


def test_only_a_size_beyond_four_times_the_usual_area_is_shrunk(pipe):
    d, stride = pipe.defaults, pipe.config.vae.stride

    def made(frames, height, width):
        return size_for(pipe, replace(d, num_frames=frames, height=height, width=width))

    within = (10 * d.num_frames + 1, 2 * d.height, 2 * d.width)
    assert made(*within) == within and made(1, d.height, 4 * d.width) == (1, d.height, 4 * d.width)
    assert made(d.num_frames, 3 * d.height, 3 * d.width) == (d.num_frames, d.height, d.width)
    assert made(1, 3 * d.height, 3 * d.width)[0] == 1
    _, height, width = made(d.num_frames, 4 * d.height, 8 * d.width)
    assert height < width and height % stride == width % stride == 0


def test_paths_are_looked_up_from_the_file_upwards(tmp_path, tiny, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    write_image(tmp_path / "top.png", tiny.clip(0))
    assert find_file("top.png", tmp_path / "a" / "b").samefile(tmp_path / "top.png")
    with pytest.raises(UserError, match="no file nothing.png"):
        find_file("nothing.png", tmp_path / "a" / "b")


def test_prompts_are_rewritten_and_pictures_shown(pipe, picture, chat_server):
    enhancer = Enhancer(url=chat_server.url)
    job = Job(task="t2i", size=(1, 16, 16), enhance=enhancer)
    segments, prompt = build(pipe, entry("a red circle"), job)
    assert prompt == "a red circle in soft light" and prompt in [s.value for s in segments]
    data = arrays(["it moves", str(picture)], ["text", "image"], [0, 0])
    for task, size in (("i2v", (5, 16, 16)), ("image_edit", (1, 16, 16))):
        segments, prompt = build(pipe, entry(data), Job(task=task, size=size, enhance=enhancer))
        assert prompt == "it moves in soft light" and segments[-1].is_empty
    assert [len(urls) for urls in chat_server.shown] == [0, 1, 1]
    with pytest.raises(UserError, match="x2t_image draws nothing"):
        Job(task="x2t_image", size=(1, 16, 16), enhance=True)
