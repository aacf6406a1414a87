"""The suites of clips rank as they should: true clips score one, clips that stand still show no motion, blank ones
nothing."""

from dataclasses import replace

import numpy as np
import pytest

from openlance.media.clip import Clip
from toyworld.motion import clip_is_heldout, render_clip
from toyworld.suites.bench import SUITES, Bench, run
from toyworld.suites.clips import clip_askings, clip_edits, filmings

TASKS = ("t2v", "i2v", "video_edit", "video_vqa")
SMALL = Bench(tasks=TASKS, samples=2, seed=3, batch=1, frames=5)
SIZE = SMALL.height, SMALL.width


def requests(make, suite, *more):
    return [r for category in SUITES[suite].categories for r in make(category, SMALL, *more)]


class Oracle:
    """Gives the true clip of every request of the benchmark, and knows the answers."""

    def __init__(self):
        self.drawn = {r.prompt: render_clip(r.clip, *SIZE) for r in requests(filmings, "t2v")}
        self.animated = {self.key(render_clip(r.clip, *SIZE)[0], r.prompt): render_clip(r.clip, *SIZE)
                         for r in requests(filmings, "i2v", 11)}  # fmt: skip
        self.edited = {self.key(e.clips(*SIZE)[0], e.instruction): e.clips(*SIZE)[1]
                       for e in requests(clip_edits, "video_edit")}  # fmt: skip
        self.answers = {self.key(render_clip(q.clip, *SIZE), q.question): q.answer
                        for q in requests(clip_askings, "video_vqa")}  # fmt: skip

    @staticmethod
    def key(pixels, text):
        return pixels.tobytes(), text

    def made(self, pixels):
        return Clip(pixels)

    def generate_video(self, prompts, *, num_frames, height, width, seed):
        return [self.made(self.drawn[p]) for p in prompts]

    def animate(self, images, prompts, *, num_frames, seed):
        return [self.made(self.animated[self.key(i.pixels[0], p)]) for i, p in zip(images, prompts, strict=True)]

    def edit(self, clips, said, *, seed):
        return [self.made(self.edited[self.key(c.pixels, t)]) for c, t in zip(clips, said, strict=True)]

    def ask(self, clips, questions):
        return [self.answers[self.key(c.pixels, q)] for c, q in zip(clips, questions, strict=True)]


class Frozen(Oracle):
    """Repeats the first frame of what would be right."""

    def made(self, pixels):
        return Clip(np.repeat(pixels[:1], len(pixels), 0))


class Blank(Oracle):
    """Shows nothing and says nothing."""

    def made(self, pixels):
        return Clip(np.zeros_like(pixels))

    def ask(self, clips, questions):
        return ["" for _ in questions]


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    return request.param


def scores(model, task):
    return run(model, replace(SMALL, tasks=(task,)))[task]


def test_an_oracle_scores_one(task):
    rows = scores(Oracle(), task)
    assert all(row["mean"] == 1 for row in rows.values()), rows
    assert all(set(row) == {"mean", "n", "ci95"} for row in rows.values())


def test_what_stands_still_does_not_move():
    drawn, animated = scores(Frozen(), "t2v"), scores(Frozen(), "i2v")
    assert drawn["object"]["mean"] == animated["first_frame"]["mean"] == 1
    assert drawn["motion"]["mean"] == animated["motion"]["mean"] == drawn["mean"]["mean"] == 0
    assert scores(Frozen(), "video_edit")["mean"]["mean"] < 0.5


def test_blank_clips_and_silence_score_nothing(task):
    assert scores(Blank(), task)["mean"]["mean"] == 0


def test_the_tables_have_the_promised_rows():
    rows = {task: list(scores(Oracle(), task)) for task in ("t2v", "i2v")}
    assert rows == {
        "t2v": ["one", "two", "object", "motion", "mean", "heldout"],
        "i2v": ["one", "two", "first_frame", "motion", "object", "mean"],
    }
    assert SUITES["video_vqa"].categories == ("caption", "direction", "order", "count", "growth", "heldout")
    assert {"recolour", "add", "remove", "motion"} <= set(SUITES["video_edit"].categories)


def test_requests_depend_on_the_seed_and_not_on_how_many_there_are():
    few, many = (list(filmings("two", replace(SMALL, samples=n))) for n in (2, 4))
    other = list(filmings("two", replace(SMALL, samples=2, seed=4)))
    assert few == many[:2] and few != other


def test_held_out_combinations_are_asked_for_only_in_their_own_row():
    for category in SUITES["t2v"].categories:
        assert {clip_is_heldout(r.clip) for r in filmings(category, SMALL)} == {category == "heldout"}


def test_a_first_frame_that_is_a_little_off_is_not_kept():
    class Dim(Oracle):
        def made(self, pixels):
            return Clip((pixels * 0.9).astype(np.uint8))

    rows = scores(Dim(), "i2v")
    assert rows["first_frame"]["mean"] < 1 and rows["motion"]["mean"] == 1


def test_a_wrong_number_of_frames_is_one_sentence():
    with pytest.raises(ValueError, match="5, 9, 13 or 17 frames, not 6"):
        Bench(frames=6)
