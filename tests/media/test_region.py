"""Masks by the callers of three libraries, boxes, and the joining of pictures along an edge."""

import io

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from openlance.errors import UserError
from openlance.media.region import blended, box_mask, boxes_in, depth, read_box, read_mask, read_transparency, typed

SIZE = (1, 24, 16)
LEVELS = np.random.default_rng(0).integers(0, 256, SIZE[1:], dtype=np.uint8)
LEVELS[0, :3] = 127, 128, 255
COLORS = np.random.default_rng(1).integers(0, 256, (*SIZE[1:], 3), dtype=np.uint8)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def as_diffusers(mask) -> np.ndarray:
    """What diffusers' inpainting pipelines make of a mask: 1 is changed."""
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True, do_resize=False)
    return processor.preprocess(mask, *SIZE[1:])[:, 0].numpy() == 1


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(LEVELS), Image.fromarray(COLORS), Image.fromarray(LEVELS).convert("1"),
        (LEVELS / 255).astype(np.float32), torch.from_numpy(LEVELS / 255)[None, None].float(),
        torch.from_numpy(LEVELS / 255)[None].float(),
    ],
    ids=["L", "RGB", "1", "array", "(B, 1, H, W)", "(B, H, W)"],
)  # fmt: skip
def test_masks_of_diffusers(mask):
    assert np.array_equal(read_mask(mask, SIZE), as_diffusers(mask))


def test_a_mask_of_another_size_is_resized_where_diffusers_would():
    large = Image.fromarray(LEVELS).resize((48, 80))
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True, vae_scale_factor=1)
    theirs = processor.preprocess(large, *SIZE[1:])[:, 0].numpy() == 1
    assert np.array_equal(read_mask(large, SIZE, resized=True), theirs)
    with pytest.raises(UserError, match="48x80 pixels and what it is about 16x24"):
        read_mask(large, SIZE)


def test_masks_of_openai_and_comfyui():
    """One picture whose alpha is erased: OpenAI reads the file, ComfyUI's LoadImage gives 1 - alpha as (1, H, W)."""
    alpha = np.full(SIZE[1:], 255, np.uint8)
    alpha[4:9, 2:7] = 0
    file = png(Image.fromarray(np.dstack([COLORS, alpha])))
    erased = alpha[None] == 0
    assert np.array_equal(read_transparency(file, SIZE), erased)
    loaded = Image.open(io.BytesIO(file))
    comfy = 1.0 - torch.from_numpy(np.array(loaded.getchannel("A")).astype(np.float32) / 255.0)[None]
    assert np.array_equal(read_mask(comfy, SIZE), erased)
    palette = Image.fromarray(np.dstack([np.full_like(COLORS, 9), alpha])).quantize(2)
    assert np.array_equal(read_transparency(png(palette), SIZE), erased)


def test_other_forms_mean_the_same(tmp_path):
    inside = LEVELS[None] >= 128
    white = Image.fromarray(np.where(inside[0], 255, 0).astype(np.uint8))
    white.save(tmp_path / "mask.png")
    forms = [white, white.convert("P"), white.convert("RGBA"), tmp_path / "mask.png", png(white), inside[0], inside,
             torch.from_numpy(inside[0]), [white], {"bytes": png(white)}]  # fmt: skip
    for form in forms:
        assert np.array_equal(read_mask(form, SIZE), inside)


def test_a_mask_for_a_clip_has_one_frame_or_as_many():
    size, frames = (5, *SIZE[1:]), np.random.default_rng(2).random((5, *SIZE[1:])) > 0.5
    for form in (frames, torch.from_numpy(frames), [Image.fromarray(f) for f in frames], frames[..., None] * 1.0):
        assert np.array_equal(read_mask(form, size), frames)
    assert np.array_equal(read_mask(frames[0], size), np.repeat(frames[:1], 5, axis=0))
    with pytest.raises(UserError, match="the mask has 3 frames and what it is about 5: give one frame for all"):
        read_mask([Image.fromarray(f) for f in frames[:3]], size)


GREY = Image.new("L", SIZE[:0:-1], 200)


@pytest.mark.parametrize(
    "mask, said",
    [
        (Image.new("L", (16, 24)), "nothing white"),
        (Image.new("CMYK", (16, 24)), "mode CMYK: give one of mode L"),
        (Image.new("F", (16, 24)), "mode F"),
        (Image.new("RGBA", (16, 24), (255, 255, 255, 9)), "transparent in places, which has two meanings"),
        (np.ones((24, 16, 4)), "four channels"),
        (np.full((24, 16), 7.0), "floating-point pixels go from 0 to 1"),
        (np.ones((2, 5, 24, 16), bool), "of float64 (2, 5, 24, 16) is not an image or video"),
        ([], "empty list"),
        ([GREY, GREY.resize((9, 9))], "differ in size"),
        ("nowhere.png", "there is no file nowhere.png"),
        (None, "the mask is None"),
    ],
    ids=lambda one: str(one).partition(" at 0x")[0],
)  # fmt: skip
def test_a_mask_that_cannot_be_gets_one_sentence(mask, said):
    with pytest.raises(UserError) as told:
        read_mask(mask, SIZE)
    assert said in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "mask, said",
    [
        (GREY, "has no transparency"),
        (Image.new("RGBA", (16, 24), (0, 0, 0, 255)), "nothing transparent in it"),
        (Image.new("RGBA", (8, 8)), "8x8 pixels and what it is about 16x24"),
    ],
)  # fmt: skip
def test_a_mask_of_openai_that_cannot_be(mask, said):
    with pytest.raises(UserError, match=said):
        read_transparency(png(mask), SIZE)


def test_boxes():
    assert read_box((0, 2.5, 16, 24), SIZE) == (0, 2.5, 16, 24)
    for box in ((0, 0, 17, 4), (4, 4, 4, 8), (-1, 0, 4, 4), (0, 0, float("nan"), 4)):
        with pytest.raises(UserError, match="is no box in a picture of 16x24 pixels"):
            read_box(box, SIZE)
    exact = box_mask([(2, 3, 5, 9)], SIZE)
    assert exact[0, 3:9, 2:5].all() and exact.sum() == 18
    around = box_mask([(5, 9, 7.5, 12)], SIZE, grid=(6, 4))  # cells of 4 pixels: rows 2, columns 1, and neighbors
    assert around[0, 4:16, 0:12].all() and around.sum() == 144
    moving = box_mask([(0, 0, 2, 2), None, (2, 2, 4, 4)], (3, 24, 16))
    assert [int(frame.sum()) for frame in moving] == [4, 0, 4]


def test_boxes_of_an_answer():
    said = '[{"bbox_2d": [1, 2, 3.5, 4], "label": "a ring"}, {"bbox_2d": [4, 4, 4, 9]}, {"bbox_2d": [5, 5, 6, 6]}]'
    assert boxes_in(said) == [((1, 2, 3.5, 4), "a ring"), ((5, 5, 6, 6), "")]
    assert boxes_in("below") == boxes_in('{"bbox_2d": [1, 2]}') == boxes_in('"bbox_2d": [1, "x", 3, 4]') == []


def test_a_typed_region_is_a_box_where_it_is_four_numbers():
    assert typed("1, 2.5,.5 ,4.") == (1, 2.5, 0.5, 4)
    for words in ("the red circle, left", "the 2nd, 3", "7", "a, b"):
        assert typed(words) == words
    for slip in ("1.2.3,4,5,6", "1,2,3", "..,1,2,3", "nan,0,10,10", "1,2,3,4,5", "1,2,3,inf"):
        with pytest.raises(UserError, match="give four numbers"):
            typed(slip)


def test_the_edge_is_inside():
    """Outside every pixel is the source's, deep inside every one is what was made, and between it goes over evenly; the
    border of the picture is no edge."""
    rng = np.random.default_rng(3)
    source, made = rng.integers(0, 256, (2, 2, 20, 20, 3), dtype=np.uint8)
    inside = np.zeros((2, 20, 20), bool)
    inside[0, :12, :12] = inside[1, 5:9, 5:9] = True
    joined = blended(source, made, inside, 4)
    assert np.array_equal(joined[~inside], source[~inside])
    assert np.array_equal(joined[0, :9, :9], made[0, :9, :9])
    far = depth(inside, 4)
    for t, y, x in ((0, 11, 3), (0, 9, 9), (0, 0, 0), (1, 6, 7), (1, 0, 0)):
        spots = np.argwhere(~inside[t])
        nearest = np.abs(spots - [y, x]).max(axis=1).min()
        assert far[t, y, x] == min(nearest, 4)
    flat = blended(np.zeros_like(source), np.full_like(source, 200), inside, 4)
    assert [flat[0, y, 3, 0] for y in (12, 11, 10, 9, 8)] == [0, 50, 100, 150, 200]
    assert np.array_equal(blended(source, made, np.ones_like(inside), 4), made)
