"""FlexAttention under the mask rule equals SDPA by units. Uncompiled on the CPU, where it has a forward only."""

import pytest
import torch

from openlance.model.attention import attend, plan_units
from openlance.model.flex import BLOCK, attend_blocks, block_mask
from openlance.sequence.segment import Rows, dense_mask

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(scope="module")
def rows(tiny) -> Rows:
    """Four documents, three noise draws each, sorted by stream: more than three blocks."""
    rows = tiny.pack([tiny.draw(), tiny.edit(), tiny.place(), tiny.answer()], draws=3).rows
    rows = rows.at(torch.argsort(rows.is_latent.int(), stable=True))
    assert len(rows) > 3 * BLOCK and len(rows) % BLOCK
    return rows


def tensors(query: int, key: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    shapes = [(query, 4, width), (key, 2, width), (key, 2, width)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@torch.no_grad()
@pytest.mark.parametrize("width", [16, 32, 64])
def test_flex_equals_sdpa(rows, width):
    q, k, v = tensors(len(rows), len(rows), width)
    flex = attend_blocks(q, k, v, block_mask(rows, rows))
    torch.testing.assert_close(flex, attend(q, k, v, plan_units(rows, rows)), rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("width", [16, 32, 64])
def test_flex_equals_sdpa_against_cached_keys(rows, width):
    past, query = rows.at((~rows.noisy).nonzero()[:, 0]), rows.at(rows.noisy.nonzero()[:, 0])
    key = Rows.concat([past, query])
    q, k, v = tensors(len(query), len(key), width)
    flex = attend_blocks(q, k, v, block_mask(query, key))
    torch.testing.assert_close(flex, attend(q, k, v, plan_units(query, key)), rtol=0, atol=2e-6)


def test_the_block_mask_is_the_rule(rows):
    """Blocks left out hide nothing that may be seen, and blocks taken in full have nothing to hide."""
    dense, blocks = dense_mask(rows), block_mask(rows, rows)
    partial, full = blocks.kv_num_blocks[0, 0], blocks.full_kv_num_blocks[0, 0]
    for i in range(len(partial)):
        strip = dense[i * BLOCK : (i + 1) * BLOCK].split(BLOCK, dim=1)
        taken = set(blocks.kv_indices[0, 0, i, : partial[i]].tolist())
        whole = set(blocks.full_kv_indices[0, 0, i, : full[i]].tolist())
        assert taken | whole == {j for j, part in enumerate(strip) if part.any()}
        assert all(strip[j].all() for j in whole) and not taken & whole
    assert bool((partial + full < len(partial)).any())  # something is left out


@torch.no_grad()
def test_the_backbone_gives_the_same_states_either_way(tiny, rows):
    """The whole model, with the block mask in place of the units."""
    from dataclasses import replace

    packed = tiny.pack([tiny.draw(), tiny.edit(), tiny.place(), tiny.answer()], draws=3)
    noise, layout = tiny.noised(packed), tiny.model.layout(packed.rows)
    features = tiny.media(packed)[0]
    blocks = replace(layout, plan=replace(layout.plan, groups=(), blocks=block_mask(layout.rows, layout.rows)))
    by_units, by_blocks = (
        tiny.model.restore(given, tiny.model(given, patches=features, latents=noise.x, times=noise.times))
        for given in (layout, blocks)
    )
    torch.testing.assert_close(by_units, by_blocks, rtol=0, atol=1e-5)
