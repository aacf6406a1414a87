"""Regions of the world's samples hold all that is to be drawn, leave something given, and what is given does not tell
what is inside."""

import numpy as np
import pytest

from openlance.config.train import read_recipe
from openlance.data.front import Fit
from openlance.data.open import open_source
from openlance.media.region import covered
from openlance.sequence.segment import Role
from openlance.sequence.tasks import spec_of
from toyworld.recipe import SECOND
from toyworld.regions import CELL, around, beyond, ends, in_part
from toyworld.source import open_world

TASKS = ("image_inpaint", "outpaint", "video_inpaint", "extend")
SIDES = ("left of", "right of", "above", "over", "below", "under")
FIT = Fit(sides=(32, 96))


def drawn(task, count=10, seed=3):
    source = open_world(task).drawn(count, seed)
    return [source.sample(row, FIT, np.random.default_rng(0)) for row in source.rows((seed, 0, count))]


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_is_given_but_for_whole_cells(task):
    for sample in drawn(task):
        target = sample.segments[-1]
        inside, whole, given = target.region.inside, target.value.pixels, target.given.pixels
        assert target.role is Role.TARGET and target.region.is_part and inside.shape == whole.shape[:3]
        frames, height, width = inside.shape
        cells = inside.reshape(frames, height // CELL, CELL, width // CELL, CELL)
        assert (cells.all((2, 4)) == cells.any((2, 4))).all()
        assert (whole[~inside] == given[~inside]).all(), "outside nothing changes"
        assert sample.truth is not None


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_is_a_function_of_its_index(task):
    one, again = (drawn(task, 3) for _ in range(2))
    for a, b in zip(one, again, strict=True):
        assert (a.segments[-1].region.inside == b.segments[-1].region.inside).all()
        assert (a.segments[-1].value.pixels == b.segments[-1].value.pixels).all()


@pytest.mark.parametrize("task", ["outpaint", "extend"])
def test_what_is_given_tells_nothing_of_what_is_not(task):
    for sample in drawn(task):
        target = sample.segments[-1]
        other = np.where(target.region.inside[..., None], np.uint8(7), target.value.pixels)
        assert (covered(other, target.region.inside) == target.given.pixels).all()


def test_unknown_frames_are_the_nearest_known_one():
    pixels = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1).repeat(3, 3)
    inside = np.ones((9, 1, 1), bool)
    inside[[2, 6]] = False
    assert covered(pixels, inside)[:, 0, 0, 0].tolist() == [2, 2, 2, 2, 2, 6, 6, 6, 6]


def test_an_outline_does_not_tell_the_result():
    """Of the same change there are many regions, and each holds all of it."""
    cells = np.zeros((3, 8, 8), bool)
    cells[0, 2, 3] = cells[1, 3, 3] = cells[2, 4, 4] = True
    found = {around(np.random.default_rng(n), cells).tobytes() for n in range(40)}
    assert len(found) > 8
    need = cells.repeat(CELL, 1).repeat(CELL, 2)
    assert all((np.frombuffer(one, bool).reshape(need.shape) | ~need).all() for one in found)


def test_ends_and_borders_leave_something_on_every_draw():
    rng = np.random.default_rng(0)
    for _ in range(60):
        for inside in (ends(rng, (9, 32, 32)), beyond(rng, (1, 32, 64)), ends(rng, (5, 32, 32))):
            assert inside.any() and not inside.all()
    assert in_part(rng, lambda: np.ones((1, 8, 8), bool)) is None
    last = beyond(rng, (5, 64, 64), ("right",))
    assert last[:, :, -CELL:].all() and not last[:, :, :CELL].any()


def test_the_second_edition_trains_regions_and_questions_of_two_steps_and_draws_last():
    *stages, last = read_recipe(SECOND.file)
    assert all(last.mixture[task] > 0 for task in TASKS)
    assert all(spec_of(task).makes != "text" for task in last.mixture)
    assert last.freezes("lance.layers.0.und.q.weight") and not last.freezes("lance.layers.0.gen.q.weight")
    for stage in stages:
        assert all(stage.mixture[task] > 0 for task in TASKS) and stage.mixture["video_idip"] > 0
        source = open_source(stage.sources["x2t_image"], "x2t_image").drawn(40, 0)
        asked = [source.sample(row, FIT, None).segments[-2].value for row in source.rows((0, 0, 40))]
        one = [open_world("x2t_image").sample(row, FIT, None).segments[-2].value for row in source.rows((0, 0, 40))]
        two = [a for a, b in zip(asked, one, strict=True) if a != b]
        assert 5 < len(two) < 25 and all(any(f" {side} " in a.lower() for side in SIDES) for a in two)
