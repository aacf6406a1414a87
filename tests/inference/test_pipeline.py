"""What people call: item k of a list is what it would be alone, whatever is drawn, and inputs come in any form."""

from dataclasses import replace

import numpy as np
import pytest

from openlance.config.sampling import RELEASED_BUCKETS
from openlance.errors import UserError
from openlance.inference.inputs import as_clip, grouped, paired
from openlance.media.clip import Clip
from openlance.media.transform import MediaTransform
from openlance.media.write import write_image, write_video
from openlance.sequence.segment import Kind, Role
from openlance.sequence.tasks import TASKS


def picture(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def film(seed: int, frames: int = 5, height: int = 16, width: int = 16) -> Clip:
    return Clip(np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


def pixels(made: list) -> list[np.ndarray]:
    return [np.asarray(m.pixels if isinstance(m, Clip) else m).astype(int) for m in made]


def same(a: list, b: list, steps: int = 1) -> bool:
    """Equal pictures or clips, but for a rounding of the last digit."""
    pairs = list(zip(pixels(a), pixels(b), strict=True))
    return all(x.shape == y.shape and np.abs(x - y).max() <= steps for x, y in pairs)


A, B = "the circle moves left", "a star, then a larger ring"
CALLS = {
    "generate_video": (lambda pipe, k, **how: pipe.generate_video([A, B][k], **how)),
    "animate": lambda pipe, k, **how: pipe.animate([picture(1), picture(2, 8, 24)][k], [A, B][k], **how),
    "between": lambda pipe, k, **how: pipe.animate([picture(1), picture(2)][k], A, last=picture(3), **how),
    "edit": lambda pipe, k, **how: pipe.edit([picture(4), film(5)][k], [A, B][k], **how),
    "subject": lambda pipe, k, **how: pipe.subject([[picture(6)], [picture(7), picture(8)]][k], [A, B][k], **how),
}
LISTS = {
    "generate_video": lambda pipe, **how: pipe.generate_video([A, B], **how),
    "animate": lambda pipe, **how: pipe.animate([picture(1), picture(2, 8, 24)], [A, B], **how),
    "between": lambda pipe, **how: pipe.animate([picture(1), picture(2)], A, last=picture(3), **how),
    "edit": lambda pipe, **how: pipe.edit([picture(4), film(5)], [A, B], **how),
    "subject": lambda pipe, **how: pipe.subject([[picture(6)], [picture(7), picture(8)]], [A, B], **how),
}


@pytest.mark.parametrize("call", LISTS)
def test_item_k_of_a_list_is_the_item_alone_with_its_seed(pipe, call):
    together = LISTS[call](pipe, seed=7)
    alone = [CALLS[call](pipe, k, seed=7 + k)[0] for k in range(2)]
    assert same(together, alone)
    assert not same(together[:1], CALLS[call](pipe, 0, seed=8), steps=3)


def test_progress_is_told_of_finished_steps_and_may_end_the_call(pipe):
    told, steps = [], {"num_inference_steps": 3, "seed": 1}
    made = pipe.generate([A, B], progress=lambda *counts: told.append(counts), **steps)
    assert told == [(2, 6), (4, 6), (6, 6)] and same(made, pipe.generate([A, B], **steps), steps=0)

    def stop(finished, total):
        told.append(finished)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.generate(A, progress=stop, **steps)
    assert told[3:] == [1] and same(pipe.generate(A, **steps), made[:1])


def test_clips_have_the_frames_and_sizes_asked_for(pipe):
    assert pipe.generate_video(A, num_frames=3, height=8, width=12)[0].pixels.shape == (3, 8, 12, 3)
    assert pipe.generate_video(A)[0].pixels.shape == (5, 16, 16, 3)
    assert pipe.animate(picture(0, 8, 24), A)[0].pixels.shape == (5, 8, 24, 3)
    assert pipe.animate(picture(0, 9, 23), A, num_frames=3, height=16, width=16)[0].pixels.shape == (3, 16, 16, 3)
    assert pipe.subject(picture(0), A, num_frames=3, height=8)[0].pixels.shape == (3, 8, 16, 3)
    assert pipe.subject(picture(0), A, width=8)[0].size == (8, 16)


def test_an_edit_has_the_form_of_its_source(pipe, tmp_path):
    """Picture or clip by content, its size rounded to the strides, its frames down to what the codec can keep."""
    write_image(tmp_path / "a.png", picture(0, 9, 22))
    write_video(tmp_path / "a.mp4", Clip(film(1, 12, 16, 20).pixels, fps=12))
    still, moving, long = pipe.edit([tmp_path / "a.png", tmp_path / "a.mp4", Clip(film(2, 4).pixels, fps=8)], A, seed=0)
    assert still.size == (24, 8)
    assert moving.pixels.shape == (9, 16, 20, 3) and moving.fps == 12
    assert long.pixels.shape == (5, 16, 16, 3) and long.fps == 12, "half a second, as the model sees it"


@pytest.fixture
def requests(pipe, monkeypatch) -> list:
    """What the pipeline would draw, instead of drawing it."""
    seen: list = []

    def note(some, *_, **more):
        seen.extend(some)
        return [Clip(np.zeros((*s[-1].size, 3), np.uint8)) for s in some]

    monkeypatch.setattr(pipe, "fill_visual", note)
    return seen


def test_a_given_picture_is_the_first_frame_and_another_the_last(pipe, requests):
    first, last = picture(1), picture(2, 32, 32)
    pipe.animate(first, [A, B], last=[first, last])
    for request, ending in zip(requests, (first, None)):
        assert np.array_equal(request[-1].given.pixels[0], first)
        end = next(s for s in request if s.role is Role.LAST)
        assert end.kind is Kind.LATENTS and end.size == (1, 16, 16)
        assert ending is None or np.array_equal(end.value.pixels[0], ending)


def test_both_views_of_a_source_show_the_same_frames(pipe, requests):
    pipe.edit(film(3, 6), A)
    seen, kept = (s.value.pixels for s in requests[0] if s.role is Role.SOURCE)
    assert len(seen) == len(kept) == 5


def test_a_released_checkpoint_gets_the_buckets_of_the_release(pipe):
    """The table of the release's sizes, through the pipeline's own view of an input."""
    config = replace(
        pipe.config, vit=replace(pipe.config.vit, patch_size=14), vae=replace(pipe.config.vae, dim_mult=(1, 1, 1, 1))
    )
    assert (config.vit.stride, config.vae.stride) == (28, 16)
    fit, clip = MediaTransform(config, bases=RELEASED_BUCKETS), as_clip(picture(0, 90, 160))
    views = {makes: fit.views(clip, makes) for makes in RELEASED_BUCKETS}
    shapes = {makes: [v.pixels.shape[1:3] for v in (view.seen, view.kept)] for makes, view in views.items()}
    assert shapes["image"] == [(504, 896), (576, 1024)]
    assert shapes["video"] == shapes["text"] == [(448, 812), (480, 848)]
    for sides in ((90, 160), (400, 100), (33, 34)):  # what `plan` reckons with is what comes
        for one in (fit, replace(fit, bases={}, usual=(64, 64))):
            for makes in RELEASED_BUCKETS:
                clip = as_clip(picture(0, *sides))
                assert one.seen_size(*sides, makes) == one.views(clip, makes).seen.pixels.shape[1:3]


def test_a_clip_may_come_in_any_form_and_several_media_in_one_question(pipe, tmp_path):
    clip, path = film(0), tmp_path / "no-suffix"
    write_video(tmp_path / "a.mp4", clip)
    (tmp_path / "a.mp4").rename(path)
    read = as_clip(path)
    assert read.frames == 5
    asked = [pipe.ask(form, "what moves?", max_new_tokens=6) for form in (path, str(path), read, read.pixels)]
    assert len(set(asked)) == 1
    both = pipe.ask([picture(0), clip], "which?", max_new_tokens=6)
    assert isinstance(both, str)
    assert pipe.ask([[picture(0), clip], picture(1)], ["which?", "what?"], max_new_tokens=6)[0] == both


def test_one_goes_with_many_and_numbers_must_agree():
    assert paired("a", ["x", "y"]) == [("a", "x"), ("a", "y")] and paired(["a", "b"], "x") == [("a", "x"), ("b", "x")]
    assert paired(("a", "b"), "x") == [(("a", "b"), "x")]
    assert [len(clips) for clips, _ in grouped([[picture(0)] * 2, picture(1)], ["x", "y"])] == [2, 1]
    for call in (paired, grouped):
        with pytest.raises(UserError, match="3 images and 2 texts"):
            call([picture(0)] * 3, ["x", "y"])


@pytest.mark.parametrize("call, said", [
    (lambda p: p.generate_video(A, num_frames=4), "4 frames .*3 or 5"),
    (lambda p: p.generate_video(A, num_frames=0), "num_frames must be at least 1"),
    (lambda p: p.generate_video(" "), "prompt is empty"),
    (lambda p: p.animate(picture(0), A, num_frames=1), "num_frames is 1, which holds the given image"),
    (lambda p: p.animate(picture(0), ""), "prompt is empty"),
    (lambda p: p.animate("nowhere.png", A), "no file nowhere.png"),
    (lambda p: p.edit(picture(0), ""), "instruction is empty"),
    (lambda p: p.edit(picture(0), A, colour=1), "'colour'"),
    (lambda p: p.subject([], A), "no image"),
    (lambda p: p.subject(picture(0), A, height=18), "multiple of 4"),
    (lambda p: p.ask(picture(0), "what?", beams=2), "'beams'"),
])  # fmt: skip
def test_bad_input_is_one_sentence(pipe, call, said):
    with pytest.raises(UserError, match=said) as error:
        call(pipe)
    assert "\n" not in str(error.value)


def test_a_checkpoint_says_what_it_was_trained_for(pipe):
    assert set(pipe.defaults.tasks) <= set(TASKS)
