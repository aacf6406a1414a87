"""Multimodal positions, by hand and as laws of the modality shift."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from openlance.config.model import PositionConfig
from openlance.sequence.pack import modality_shift, pack
from openlance.sequence.segment import LAST, LATENTS, PATCH, PATCHES, REFERENCE, SOURCE, TARGET


def test_by_hand():
    """Two template tokens, a 2 x 3 x 1 clip between its markers, one token after it."""
    from openlance.sequence.pack import block_advance, grid_positions, latent_cells

    grid = (2, 3, 1)
    assert grid_positions(grid, 2).tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0], [2, 0, 0], [2, 1, 0], [2, 2, 0]]
    assert block_advance(grid, 2) == 3  # the last frame stands at 2, the last row too
    assert latent_cells(grid, PositionConfig()).tolist() == [0, 64, 128, 4096, 4160, 4224]
    position = np.array([[i] * 3 for i in range(6)])
    code = np.array([-1, PATCH, SOURCE, REFERENCE, 0, TARGET])
    shifted = modality_shift(position, code, PositionConfig())
    assert shifted.tolist() == [[0, 0, 0], [1000, 1, 1], [2, 2, 2], [2000, 3, 3], [4, 4, 4], [2, 2, 2]]


def test_an_edit_by_hand(tiny):
    """The ViT sees 2 x 2 cells, the VAE keeps 4 x 4; all offsets follow from what stands before."""
    rows = tiny.pack([tiny.edit()]).rows
    start = int((rows.token == tiny.codec.vision_start).nonzero()[0])  # all before it is text and counts on
    assert torch.equal(rows.position[:start], torch.arange(start)[:, None].expand(-1, 3))
    seen, kept = ((rows.kind == kind).nonzero()[:, 0] for kind in (PATCHES, LATENTS))
    p = start + 1
    # The marker itself is the first shifted token, so the cells stand one later.
    assert rows.position[seen].tolist() == [[1001, p + y, p + x] for y in range(2) for x in range(2)]
    p = p + 2 + 2  # past the block's larger side, its closing marker, and the next opening one
    assert rows.position[kept[:16]].tolist() == [[p, p + y, p + x] for y in range(4) for x in range(4)]
    assert torch.equal(rows.position[kept[16:]], rows.position[kept[:16]])  # the target stands on its source


def test_without_the_shift_base_positions_are_left(tiny):
    config = replace(tiny.codec.config.position, shift=False)
    for sample in tiny.samples():
        shifted = pack([sample], tiny.codec, tiny.codec.config.position).rows
        base = pack([sample], tiny.codec, config).rows
        # In the base index the first number of each segment is one more than the largest before it.
        starts = (base.segment.diff() > 0).nonzero()[:, 0] + 1
        for s in starts.tolist():
            assert base.position[s].tolist() == [int(base.position[:s].max()) + 1] * 3
        moved = (shifted.position != base.position).any(1)
        assert not moved[~torch.isin(shifted.code, torch.tensor([TARGET, REFERENCE, PATCH, LAST]))].any()
        assert torch.equal(shifted.token, base.token)


def test_offsets_can_be_set(tiny):
    config = replace(tiny.codec.config.position, patches_start=300, reference_start=700)
    rows = pack([tiny.place()], tiny.codec, config).rows
    for code, start in ((PATCH, 300), (REFERENCE, 700)):
        t = rows.position[rows.code == code, 0]
        assert int(t[0]) == start and (t >= start).all()
    base = pack([tiny.place()], tiny.codec, replace(config, shift=False)).rows
    assert torch.equal(rows.position[:, 1:], base.position[:, 1:])


def test_all_references_share_one_offset(tiny):
    shifted, base = (
        pack([tiny.place()], tiny.codec, replace(tiny.codec.config.position, shift=shift)).rows
        for shift in (True, False)
    )
    for code in (PATCH, REFERENCE):
        moved = (shifted.position - base.position)[shifted.code == code, 0]
        assert len(moved.unique()) == 1 and int(moved[0]) > 0


def test_a_target_of_another_size_keeps_its_own_place(tiny):
    request = tiny.edit(seed=None)
    larger = [*request[:-1], replace(request[-1], size=(1, 16, 32))]
    shifted, base = (
        pack([larger], tiny.codec, replace(tiny.codec.config.position, shift=shift)).rows for shift in (True, False)
    )
    assert torch.equal(shifted.position[shifted.noisy], base.position[base.noisy])


@pytest.mark.parametrize("frames", [1, 5])
def test_later_frames_are_seconds_apart_in_position(tiny, frames):
    from openlance.sequence import tasks

    rows = tiny.pack([tasks.text_to_visual("x", [], (frames, 16, 16))]).rows
    t = rows.position[rows.is_latent, 0].reshape(-1, 16)
    assert (t == t[:, :1]).all() and (t[:, 0].diff() == 2).all()


@pytest.mark.parametrize("draws", [1, 3])
def test_a_last_picture_stands_on_the_last_frame_of_its_target(tiny, draws):
    """In both tables of positions, however often the target is drawn; it moves nothing else."""
    size, end = (9, 16, 16), tiny.clip(10)
    request = tiny.put("flf2v", "x", [tiny.clip(4), end], size, None)
    rows = pack([request], tiny.codec, tiny.codec.config.position, draws).rows
    last, target = (rows.at((rows.is_latent & (rows.code == code)).nonzero()[:, 0]) for code in (LAST, TARGET))
    assert len(last) == 16 and len(target) == draws * 5 * 16
    for name in ("position", "cell"):
        assert torch.equal(getattr(last, name), getattr(target, name)[4 * 16 : 5 * 16])
    assert not last.denoise.any() and not last.noisy.any()
    base = pack([request], tiny.codec, replace(tiny.codec.config.position, shift=False), draws).rows
    others = ~(rows.is_latent & (rows.code == LAST))
    assert torch.equal(rows.position[others], base.position[others])


def test_a_last_picture_of_another_size_is_refused(tiny):
    with pytest.raises(ValueError, match="does not fit"):
        tiny.pack([tiny.put("flf2v", "x", [tiny.clip(4), tiny.clip(10, height=8)], (5, 16, 16), None)])
