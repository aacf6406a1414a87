"""The vision tower: the released numbers, the order of patches, and gradients."""

import json
from pathlib import Path

import pytest
import torch

from openlance.checkpoint.tensors import TensorSource
from openlance.config.model import ViTConfig
from openlance.errors import UserError
from openlance.model.vit import ViT, normalize, to_patches

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden vectors are not here")
TINY = ViTConfig(
    depth=2,
    hidden_size=16,
    intermediate_size=24,
    num_heads=2,
    patch_size=8,
    window_size=32,
    fullatt_block_indexes=(1,),
    out_hidden_size=12,
)


@pytest.fixture(scope="module")
def tiny() -> ViT:
    torch.manual_seed(0)
    return ViT(TINY)


@pytest.fixture(scope="module")
def released() -> tuple[ViT, dict]:
    from safetensors.torch import load_file

    config = ViTConfig.of(json.loads((GOLDEN / "weights" / "vit_config.json").read_text()))
    return ViT.load(GOLDEN / "weights" / "vit.safetensors", config), load_file(GOLDEN / "modules.safetensors")


@golden
@pytest.mark.parametrize("name", ["image", "image_large", "two", "video"])
def test_the_tower_equals_the_released_one(released, name):
    vit, vectors = released
    clips = [vectors[key] for key in sorted(vectors) if key.startswith(f"vit.{name}.pixels")]
    assert [list(to_patches(clip, vit.config)[1]) for clip in clips] == vectors[f"vit.{name}.grid_thw"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(vit(clips), vectors[f"vit.{name}.out"], rtol=0, atol=1e-5)


@golden
def test_patches_come_in_the_released_order(released):
    vit, vectors = released
    patches_NP, _ = to_patches(vectors["vit.image.pixels0"], vit.config)
    assert torch.equal(patches_NP, vectors["vit.image.patches"])


@golden
@pytest.mark.parametrize("path", sorted((GOLDEN / "cases").glob("case_*.safetensors")), ids=lambda p: p.stem)
def test_pixels_of_the_cases_give_the_released_embeddings(released, path):
    from safetensors.torch import load_file

    tensors = load_file(path)
    media = [tensors[name] for name in sorted(tensors) if name.startswith("in.") and name.endswith("vit_u8")]
    if not media:
        pytest.skip("this task shows nothing to the vision tower")
    with torch.no_grad():
        out = released[0]([normalize(pixels) for pixels in media])
    torch.testing.assert_close(out, tensors["vit.embed"], rtol=0, atol=1e-5)


def test_a_merged_cell_is_contiguous_and_cells_are_in_raster_order():
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    patches_NP, grid = to_patches(torch.stack([rows, columns, rows])[:, None], TINY)
    assert grid == (1, 4, 6)
    corners = patches_NP.reshape(24, 3, 2, 8, 8)[:, :2, 0, 0, 0] / 8  # (row, column) of every patch
    assert corners[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    cells = corners.reshape(6, 4, 2)[:, 0] / 2
    assert cells.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_a_picture_is_doubled_and_an_odd_clip_repeats_its_last_frame(tiny):
    clip = torch.randn(3, 3, 32, 48)
    longer = torch.cat([clip, clip[:, -1:]], 1)
    with torch.no_grad():
        assert torch.equal(tiny([clip]), tiny([longer]))
        assert torch.equal(tiny([clip[:, :1]]), tiny([clip[:, [0, 0]]]))


def test_clips_together_equal_clips_alone(tiny):
    clips = [torch.randn(3, 1, 32, 48), torch.randn(3, 4, 64, 32), torch.randn(3, 1, 16, 16)]
    with torch.no_grad():
        together, alone = tiny(clips), torch.cat([tiny([clip]) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    cells = [TINY.cell_grid(tuple(clip.shape[1:])) for clip in clips]
    assert together.shape == (sum(t * y * x for t, y, x in cells), TINY.out_hidden_size)


def test_what_learns_together_has_the_values_and_gradients_of_each_alone():
    torch.manual_seed(3)
    vit, found = ViT(TINY), []
    clips = [normalize(torch.randint(0, 256, (1, h, w, 3))) for h, w in ((32, 48), (32, 32), (64, 32), (32, 32))]
    for batches in ([clips], [[clip] for clip in clips]):
        vit.zero_grad()
        out = torch.cat([vit(batch) for batch in batches])
        out.square().sum().backward()
        found.append((out, *(p.grad for p in vit.parameters())))
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_tower_that_has_answered_learns(tiny):
    clip = [torch.randn(3, 1, 48, 80)]  # a size of this test alone
    with torch.inference_mode():
        tiny(clip)
    tiny(clip).square().sum().backward()
    tiny.zero_grad()


def test_every_weight_learns_and_bfloat16_runs(tiny):
    tiny([torch.randn(3, 1, 32, 32)]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny.parameters())
    tiny.zero_grad()
    half = ViT(TINY).to(torch.bfloat16)
    assert half([torch.randn(3, 1, 32, 32)]).dtype == torch.bfloat16


def released_rotation(grids, config, dtype):
    """cos and sin per patch as the release's tower makes them after `.to(dtype)` (rot_pos_emb and forward)."""
    head, m = config.hidden_size // config.num_heads, config.spatial_merge_size
    inverse = (1.0 / (10000.0 ** (torch.arange(0, head // 2, 2).float() / (head // 2)))).to(dtype)
    found = []
    for t, h, w in grids:
        rows, columns = torch.arange(h)[:, None].expand(-1, w), torch.arange(w)[None].expand(h, -1)
        cut = [p.reshape(h // m, m, w // m, m).permute(0, 2, 1, 3).flatten() for p in (rows, columns)]
        table = torch.outer(torch.arange(max(h, w), dtype=dtype), inverse)
        found.append(table[torch.stack(cut, dim=-1).repeat(t, 1)].flatten(1))
    angle = torch.cat(found)  # of one half of a head; the other one is equal
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_rotation_is_the_released_one_in_every_dtype_of_the_weights(tiny, weights, rounded):
    vit = ViT.load(TensorSource.of(tiny.tower.state_dict()), TINY, dtype=weights, rounded_frequencies=rounded)
    seen, clips = [], [torch.randn(3, 4, 160, 48), torch.randn(3, 1, 32, 320)]
    vit.tower.rotary_pos_emb.register_forward_hook(lambda _module, _args, out: seen.extend(out))
    with torch.no_grad():
        vit(clips)
    grids = [TINY.patch_grid(tuple(clip.shape[1:])) for clip in clips]
    wanted = released_rotation(grids, TINY, torch.bfloat16 if rounded else torch.float32)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(seen, wanted, strict=True))


def test_the_habit_changes_what_the_tower_sees_and_its_weights_stay_the_same(tiny):
    exact, rounded = (
        ViT.load(TensorSource.of(tiny.tower.state_dict()), TINY, rounded_frequencies=r) for r in (False, True)
    )
    clip = [torch.randn(3, 1, 160, 160)]
    with torch.no_grad():
        assert torch.equal(tiny(clip), exact(clip)) and not torch.equal(exact(clip), rounded(clip))
    assert exact.state_dict().keys() == rounded.state_dict().keys() == tiny.state_dict().keys()


def test_sizes_that_cannot_be_cut_name_the_nearest_ones():
    assert TINY.patch_grid((5, 32, 48)) == (3, 4, 6)
    with pytest.raises(UserError, match="48x32 or 48x48"):
        TINY.patch_grid((1, 40, 48))
    with pytest.raises(ValueError, match="at least one"):
        ViT.forward(torch.nn.Module(), [])
