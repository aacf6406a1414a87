"""The mask rule, as laws over whole packs of every family of tasks."""

import pytest
import torch

from openlance.sequence.pack import Pack
from openlance.sequence.segment import LATENTS, PATCHES, Place, dense_mask, visible


@pytest.fixture(scope="module", params=[1, 3], ids=["one draw", "three draws"])
def packed(request, tiny) -> Pack:
    return tiny.pack(tiny.samples(), draws=request.param)


def grid(column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return column[:, None], column[None, :]


def test_nobody_else_sees_a_target_being_denoised(packed):
    q, k = grid(packed.rows.segment)
    assert packed.rows.noisy.any()
    assert not (dense_mask(packed.rows) & (q != k) & packed.rows.noisy[None, :]).any()


def test_a_target_sees_its_conditions_and_all_of_itself(packed):
    mask, rows = dense_mask(packed.rows), packed.rows
    for segment in rows.segment[rows.noisy].unique():
        own = rows.segment == segment
        before = (rows.doc == rows.doc[own][0]) & ~rows.noisy & (rows.index < rows.index[own].min())
        assert torch.equal(mask[own].all(0), own | before) and torch.equal(mask[own].any(0), own | before)


def test_documents_never_meet(packed):
    q, k = grid(packed.rows.doc)
    assert not (dense_mask(packed.rows) & (q != k)).any()


def test_text_is_causal_and_a_clean_picture_sees_itself_both_ways(packed):
    rows = packed.rows
    mask, (q, k) = dense_mask(rows), grid(rows.index)
    text = ~rows.full
    assert torch.equal((mask & (k > q))[text].any(0), torch.zeros(len(rows), dtype=torch.bool))
    for segment in rows.segment[rows.full].unique():
        own = (rows.segment == segment).nonzero()[:, 0]
        assert mask[own[:, None], own[None, :]].all()


def test_what_is_clean_is_seen_by_everything_after_it(packed):
    rows = packed.rows
    (q_doc, k_doc), (q, k) = grid(rows.doc), grid(rows.index)
    later = (q_doc == k_doc) & (q >= k) & ~rows.noisy[None, :]
    assert (dense_mask(rows) | ~later).all()


def test_a_prefix_never_depends_on_what_follows(packed):
    """The law that makes a cache legal, at every boundary of two segments of one document."""
    rows = packed.rows
    mask, starts = dense_mask(rows), (rows.segment.diff() > 0).nonzero()[:, 0] + 1
    for p in starts.tolist():
        before = torch.arange(p)
        assert torch.equal(mask[:p, :p], dense_mask(rows.at(before)))
        assert not mask[:p, p:].any()


def test_the_rule_does_not_care_about_the_order_of_rows(packed):
    rows = packed.rows
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    mask = visible(rows.at(shuffled[:, None]), rows.at(shuffled[None, :]))
    assert torch.equal(mask, dense_mask(rows)[shuffled][:, shuffled])


def test_only_latents_run_through_the_generation_stream(packed, tiny):
    rows, codec = packed.rows, tiny.codec
    assert torch.equal(rows.is_latent, rows.cell >= 0)
    assert set(rows.kind[rows.full].unique().tolist()) > {PATCHES, LATENTS}  # and the markers of a block, as text
    markers = (rows.token == codec.vision_start) | (rows.token == codec.vision_end)
    assert markers.any() and not rows.is_latent[markers].any() and rows.full[markers].all()
    assert torch.equal(rows.token == codec.visual_pad, rows.is_latent | rows.is_patch)


def test_by_hand():
    """Two words, a clean picture of two rows, the target of two rows, one word."""
    segment = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    noisy = segment == 2
    columns = (torch.arange(7), torch.zeros(7), segment, (segment == 1) | noisy, noisy)
    mask = visible(Place(*(c[:, None] for c in columns)), Place(*(c[None, :] for c in columns)))
    seen = ["1000000", "1100000", "1111000", "1111000", "1111110", "1111110", "1111001"]
    assert ["".join(str(int(x)) for x in row) for row in mask] == seen
