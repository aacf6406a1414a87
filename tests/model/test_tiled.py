"""Long clips frame by frame and large pictures tile by tile."""

import pytest
import torch
import torch.nn.functional as F

from openlance.config.model import VAEConfig
from openlance.errors import UserError
from openlance.vae.autoencoder import VAE
from openlance.vae.tiling import Tiling, decode_tiled, encode_tiled

CONFIG = VAEConfig(
    z_dim=4, dim=8, dec_dim=8, dim_mult=(1, 1), num_res_blocks=1, temporal_downsample=(True,), mean=(0.1,) * 4,
    std=(0.8,) * 4,
)  # fmt: skip


def enlarge(z):
    return F.interpolate(z, scale_factor=4, mode="nearest")


@pytest.mark.parametrize("size", [(5, 5), (8, 13), (16, 9)])
def test_what_looks_no_further_than_a_cell_is_the_same_in_tiles(size):
    z = torch.randn(2, 3, *size)
    (tiled,) = decode_tiled(lambda z: iter([enlarge(z)]), z, 4, Tiling(tile=5, overlap=2))
    torch.testing.assert_close(tiled, enlarge(z), rtol=0, atol=1e-6)
    back = encode_tiled(lambda x: F.avg_pool2d(x, 4), tiled, 4, Tiling(tile=5, overlap=2))
    torch.testing.assert_close(back, z, rtol=0, atol=1e-6)


def test_no_tile_is_larger_than_asked():
    seen = []
    tiling = Tiling(tile=6, overlap=1)
    list(decode_tiled(lambda z: seen.append(z.shape[-2:]) or iter([enlarge(z)]), torch.randn(1, 3, 20, 11), 4, tiling))
    assert len(seen) == 8 and set(seen) == {(6, 6)}


def test_tiles_that_share_more_than_they_have_are_refused():
    with pytest.raises(UserError, match="6"):
        Tiling(tile=6, overlap=6)


@torch.no_grad()
def test_piece_by_piece_equals_whole():
    """And no piece is longer than the frames of one latent."""
    torch.manual_seed(0)
    vae, z = VAE(CONFIG, ("decoder",)).eval(), torch.randn(2, 4, 4, 3, 3)
    pieces = list(vae.decode_steps(z))
    assert [p.shape[2] for p in pieces] == [1, 2, 2, 2]
    torch.testing.assert_close(torch.cat(pieces, dim=2), vae.decode(z), rtol=0, atol=1e-6)


@torch.no_grad()
def test_tiles_of_a_clip_go_on_together():
    """Piece by piece is what each tile gives as a whole, and no piece is longer than the frames of one latent."""
    torch.manual_seed(0)
    vae, z = VAE(CONFIG, ("decoder",)).eval(), torch.randn(2, 4, 4, 5, 3)
    tiling = Tiling(tile=3, overlap=1)
    stride = CONFIG.stride
    pieces = list(decode_tiled(vae.decode_steps, z, stride, tiling))
    assert [p.shape[2] for p in pieces] == [1, 2, 2, 2]
    (whole,) = decode_tiled(lambda part: iter([vae.decode(part)]), z, stride, tiling)
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=0, atol=1e-6)
