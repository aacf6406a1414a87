import time

import numpy as np
import pytest

from toyworld.render import pixel_box, render
from toyworld.scene import Object, Scene, Text, sample_scene
from toyworld.vocabulary import BACKGROUNDS, COLORS, FILLS, LETTERS, SHAPES, SIZES


def one(shape: str, fill: str = "solid", size: str = "medium", **place) -> Scene:
    return Scene(objects=(Object(shape=shape, color="white", fill=fill, size=size, r=SIZES[size], **place),))


def extent_of(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Box x1 y1 x2 y2 of all that is at least half white."""
    ys, xs = np.nonzero(pixels[..., 0] > 127)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_the_same_scene_gives_the_same_picture():
    scene = sample_scene(np.random.default_rng(3))
    picture = render(scene, 64, 96)
    assert picture.dtype == np.uint8 and picture.shape == (64, 96, 3)
    assert np.array_equal(picture, render(scene, 64, 96))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box(shape, size):
    scene = one(shape, size=size, x=0.45, y=0.55)
    drawn, named = extent_of(render(scene, 64, 96)), pixel_box(scene.objects[0], 64, 96)
    # The tips of a star and of a triangle are thinner than a pixel.
    assert np.abs(np.subtract(drawn, named)).max() <= (2 if shape in ("star", "triangle") else 1)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_colours_are_exact_inside_and_outside(background):
    scene = Scene(objects=(Object(shape="circle", color="green"),), background=background)
    pixels = render(scene, 64, 64)
    assert tuple(pixels[32, 32]) == COLORS["green"] and tuple(pixels[2, 2]) == BACKGROUNDS[background]


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "ring"])
def test_fills_differ_in_how_much_they_cover(shape):
    solid, striped, outlined = (
        (render(one(shape, fill, "large"), 64, 64)[..., 0] / 255).sum() for fill in FILLS
    )  # fmt: skip
    assert 0.45 * solid < striped < 0.9 * solid
    assert 0.2 * solid < outlined < 0.85 * solid


def test_shapes_are_told_apart_by_their_area_and_middle():
    areas = {s: (render(one(s, size="large"), 64, 64)[..., 0] / 255).sum() for s in SHAPES}
    assert len({round(area / 25) for area in areas.values()}) >= 5
    assert [s for s in SHAPES if render(one(s), 64, 64)[32, 32, 0] == 0] == ["ring"]


def test_edges_are_smooth():
    levels = np.unique(render(one("circle", x=0.47, y=0.51), 64, 64)[..., 0])
    assert len(levels) > 15


@pytest.mark.parametrize("seed", range(6))
def test_a_larger_picture_has_the_same_layout(seed):
    scene = sample_scene(np.random.default_rng(seed), category="mixed")
    small, large = render(scene, 64, 64).astype(float), render(scene, 192, 192).astype(float)
    shrunk = large.reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 2.0


def test_every_letter_has_its_own_look():
    looks = [render(Scene(text=Text(string=c, color="white")), 64, 64)[..., 0] / 255.0 for c in LETTERS]
    for i, a in enumerate(looks):
        x1, y1, x2, y2 = extent_of(255 * a[..., None])
        assert 17 <= y2 - y1 <= 21 and x2 - x1 <= 17
        assert all(np.abs(a - b).sum() > 8 for b in looks[:i])  # at least eight whole pixels


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64)])
def test_letters_stay_inside_and_apart(shape):
    height, width = shape
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = sample_scene(rng, category="text", aspect=width / height)
        x1, y1, x2, y2 = pixel_box(scene.text, height, width)
        assert x1 >= 1 and y1 >= 1 and x2 < width and y2 < height
        pixels = render(scene, height, width)
        changed = (pixels != pixels[0, 0]).any(-1)
        assert changed.any()
        outside = changed.copy()
        outside[max(y1 - 1, 0) : y2 + 2, max(x1 - 1, 0) : x2 + 2] = False
        assert not outside.any()
        assert (x2 - x1) / len(scene.text.string) > 10


def test_a_picture_of_no_pixels_is_refused():
    with pytest.raises(ValueError, match="at least 8x8"):
        render(one("circle"), 4, 64)


def test_drawing_is_fast():
    rng = np.random.default_rng(0)
    pictures = [sample_scene(rng) for _ in range(100)]
    render(pictures[0], 64, 64)
    start = time.perf_counter()
    for scene in pictures:
        render(scene, 64, 64)
    assert (time.perf_counter() - start) / len(pictures) < 0.005  # about 0.1 ms on a quiet core
