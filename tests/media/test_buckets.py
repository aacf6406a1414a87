"""Buckets: the released sizes and, pixel by pixel, the released crop and resize."""

import json
from pathlib import Path

import numpy as np
import pytest

from openlance.config.model import check_size, nearest_good_size
from openlance.errors import UserError
from openlance.media.transform import (
    RESOLUTIONS,
    VAE_STRIDE,
    VIT_STRIDE,
    bucket_table,
    choose_bucket,
    fitting_size,
    ratio_crop,
    resolution,
    to_bucket,
)

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden vectors are not here")


@golden
def test_the_bucket_tables_are_the_released_ones():
    tables = json.loads((GOLDEN / "preproc.json").read_text())["bucket_table"]
    assert tables.keys() == RESOLUTIONS.keys()
    for name, table in tables.items():
        vae, vit = resolution(name)
        assert (vae, vit) == (table["vae_resolution"], table["vit_resolution"])
        for ours, vit_bucket in zip(bucket_table(vae), bucket_table(vit), strict=True):
            theirs = table["buckets"][ours.name]
            assert [ours.height, ours.width] == theirs["vae_hw"]
            assert [vit_bucket.height, vit_bucket.width] == theirs["vit_bucket_hw"]
            cropped = [side // VIT_STRIDE * VIT_STRIDE for side in (vit_bucket.height, vit_bucket.width)]
            assert cropped == theirs["vit_hw_after_crop28"]


@golden
def test_pictures_come_out_as_from_the_released_transforms():
    from safetensors.numpy import load_file

    tensors = load_file(GOLDEN / "preproc.safetensors")
    expected = {name: value for name, value in tensors.items() if name.endswith("_u8")}
    assert expected
    for name, value in expected.items():
        case, branch = name.split(".")
        stride = VAE_STRIDE if branch.startswith("vae") else VIT_STRIDE
        made = to_bucket(tensors[f"{case}.rgb"][None], int(branch[3:-3]), stride)[0]
        assert np.array_equal(made, value), name


@golden
@pytest.mark.parametrize("path", sorted((GOLDEN / "cases").glob("case_*.json")), ids=lambda p: p.stem)
def test_the_media_of_every_case_come_out_as_released(path):
    from safetensors.numpy import load_file

    settings, tensors = json.loads(path.read_text())["dataset_args"], load_file(path.with_suffix(".safetensors"))
    for name in (n for n in tensors if n.startswith("in.") and n.endswith("_u8")):
        medium, branch = name.rsplit(".", 1)
        if branch == "vae_u8":
            made = to_bucket(tensors[f"{medium}.rgb"], settings.get("r_vae", 96), VAE_STRIDE)
        else:
            made = to_bucket(tensors[f"{medium}.rgb"], settings.get("r_vit", 112), VIT_STRIDE)
            made = np.concatenate([made, made[-1:]]) if len(made) % 2 else made
        assert np.array_equal(made, tensors[name]), name


@pytest.mark.parametrize("size", [(100, 100), (77, 300), (500, 31), (97, 131)])
def test_a_crop_lies_inside_has_the_ratio_and_keeps_a_whole_side(size):
    for bucket in bucket_table(96):
        top, left, height, width = ratio_crop(*size, bucket.ratio)
        assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width
        assert height >= size[0] - 2 or width >= size[1] - 2
        assert abs(width - height * bucket.ratio) <= 1 + bucket.ratio


def test_a_picture_of_a_bucket_size_passes_unchanged():
    for bucket in bucket_table(128):
        frames = np.random.default_rng(0).integers(0, 256, (2, bucket.height, bucket.width, 3), dtype=np.uint8)
        assert choose_bucket(bucket.height, bucket.width, 128) == bucket
        assert np.array_equal(to_bucket(frames, 128, 16), frames)


def test_wrong_sizes_name_the_nearest_good_ones():
    assert nearest_good_size(100, 64, 16) == ((96, 64), (112, 64))
    assert nearest_good_size(3, 5, 16) == ((16, 16), (16, 16))
    check_size(96, 64, 16)
    for size, hint in (((100, 64), "64x96 or 64x112"), ((0, 64), "64x16"), ((-5, 7), "16x16")):
        with pytest.raises(UserError, match=hint):
            check_size(*size, 16)


def test_unknown_resolutions_and_tiny_bases_are_refused():
    with pytest.raises(UserError, match="image_768res"):
        resolution("image_1024")
    with pytest.raises(UserError, match="too small"):
        bucket_table(10)
    with pytest.raises(UserError, match="smaller than one cell"):
        to_bucket(np.zeros((1, 16, 16, 3), np.uint8), 32, 64)


@pytest.mark.parametrize("sides", [(1, 1_000_000), (1_000_000, 1), (64, 64), (4096, 4096), (8, 3000), (200, 100)])
def test_a_size_that_fits_has_a_bounded_area_whatever_its_ratio(sides):
    high, wide = fitting_size(*sides, 8, (64, 64))
    assert high % 8 == wide % 8 == 0 and 64 <= high * wide <= 1.15 * 4 * 64 * 64
    assert max(sides) > 128 or (high, wide) == sides
