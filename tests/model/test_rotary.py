"""Rotary frequencies as the release rounds them, and which rows are rotated in float32."""

from dataclasses import replace

import pytest
import torch

from openlance.config.model import NO_QUIRKS, ModelConfig, Quirks
from openlance.inference.visual import Denoiser, Sampling, branch_out
from openlance.model import lance
from openlance.model.attention import Wide, marker_rows, rotary_table, rotate
from openlance.model.lance import Expert, compile_experts
from openlance.sequence.segment import LATENTS, TEXT
from openlance.training.objective import Pass, objective

ROUNDED = replace(NO_QUIRKS, rounded_frequencies=True)
POSITIONS = torch.tensor([[0, 0, 0], [3, 3, 3], [80, 80, 80], [1004, 1003, 1009], [2000, 2012, 2001]])
# Rows that need no more than half precision may differ by so much between two orders of the same sums: a few units of
# the last place of bfloat16, over the depth of a tiny model.
KERNELS = 1.2e-2


def released_table(position_L3, c: ModelConfig, dtype):
    """Qwen2_5_VLRotaryEmbedding after `.to(dtype)`, and the mixing of its sections, as the release writes them."""
    inverse = 1.0 / (c.rope_theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim))
    inverse = inverse.to(dtype)  # the buffer, which the cast rounds
    angle = position_L3.T.float()[:, :, None] * inverse.float()
    angle = torch.cat([angle, angle], dim=-1)
    sections = [*c.rope_sections] * 2
    return tuple(
        torch.cat([part[n % 3] for n, part in enumerate(table.split(sections, dim=-1))], dim=-1)
        for table in (angle.cos(), angle.sin())
    )


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def released_norm(x, norm):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * y.to(x.dtype)


def released_turn(x_LAE, norm, cos_LE, sin_LE, wide):
    """Queries or keys of a split in bfloat16, as qwen2_navit.py writes it; wide: of one that holds VAE tokens."""
    cos, sin = (table[:, None].bfloat16() for table in (cos_LE, sin_LE))
    y = released_norm(x_LAE.float() if wide else x_LAE, norm)
    return (y * cos + rotate_half(y) * sin).bfloat16()


@pytest.mark.parametrize("faithful, dtype", [(NO_QUIRKS, torch.float32), (ROUNDED, torch.bfloat16)])
@pytest.mark.parametrize("c", [ModelConfig(), ModelConfig(head_dim=32, rope_sections=(4, 6, 6))], ids=["3b", "small"])
def test_the_table_is_the_released_one_before_and_after_the_cast(c, faithful, dtype):
    found, wanted = rotary_table(POSITIONS, replace(c, quirks=faithful)), released_table(POSITIONS, c, dtype)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


def test_at_the_positions_of_references_the_tables_lie_far_apart():
    exact, rounded = (rotary_table(POSITIONS, ModelConfig(quirks=f))[0] for f in (NO_QUIRKS, ROUNDED))
    assert Quirks().rounded_frequencies  # as released unless a folder says otherwise
    assert float((exact - rounded).abs().max()) > 0.2


def expert(dtype, seed=0) -> Expert:
    torch.manual_seed(seed)
    made = Expert(ModelConfig(width=64, heads=4, kv_heads=2, head_dim=32, mlp_width=96, rope_sections=(4, 6, 6)))
    for p in made.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.2)
    return made.to(dtype)


def rows(dtype, count=64, seed=1):
    c = ModelConfig(head_dim=32, rope_sections=(4, 6, 6))
    x = torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x, *rotary_table(torch.arange(count)[:, None].expand(-1, 3), c)


@pytest.mark.parametrize("wide", [False, True])
def test_queries_and_keys_are_rounded_where_the_release_rounds_them(wide):
    e, (x, cos, sin) = expert(torch.bfloat16), rows(torch.bfloat16)
    with torch.no_grad():
        found, other = e.project(x, cos, sin, wide), e.project(x, cos, sin, not wide)
        h = e.attention_norm(x)
        for n, (layer, norm) in enumerate(((e.q, e.q_norm), (e.k, e.k_norm))):
            wanted = released_turn(layer(h).unflatten(-1, (-1, 32)), norm, cos, sin, wide)
            equal = [float((y[n] == wanted).float().mean()) for y in (found, other)]
            # The mean of squares may be summed in another order, which the last rounding seldom shows.
            assert equal[0] > 0.995 and equal[1] < 0.9, equal


def test_in_float32_no_row_is_special_and_the_sum_is_fused():
    e, (x, cos, sin) = expert(torch.float32), rows(torch.float32)
    with torch.no_grad():
        plain = e.project(x, cos, sin)
        for wide in (True, torch.tensor([3, 4])):
            assert all(torch.equal(a, b) for a, b in zip(plain, e.project(x, cos, sin, wide)))
        q = e.q_norm(e.q(e.attention_norm(x)).unflatten(-1, (-1, 32)))
        a, b = q.chunk(2, dim=-1)
        c, s = cos[:, None, :16], sin[:, None, :16]
        wanted = torch.cat([(a * c).addcmul_(b, s, value=-1), (b * c).addcmul_(a, s)], dim=-1)
        assert torch.equal(plain[0], wanted) and torch.equal(rotate(q, cos, sin), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_some_rows_are_as_if_all_were_and_the_others_as_if_none_were(dtype):
    e, (x, cos, sin), some = expert(dtype), rows(dtype), torch.tensor([0, 5, 63])
    with torch.no_grad():
        mixed, none, all_ = (e.project(x, cos, sin, wide) for wide in (some, False, True))
    is_wide = torch.zeros(64, dtype=torch.bool).index_fill(0, some, True)
    for m, n, a in zip(mixed, none, all_):
        assert torch.equal(m[is_wide], a[is_wide]) and torch.equal(m[~is_wide], n[~is_wide]) and m.dtype == dtype
    assert not torch.equal(none[0], all_[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fused_expert_takes_every_kind_of_rows():
    plain, fused = expert(torch.bfloat16), expert(torch.bfloat16)
    compile_experts(fused, backend="eager")
    for count in (8, 24):
        x, cos, sin = rows(torch.bfloat16, count)
        for wide in (False, True, torch.tensor([1, 6])):
            with torch.no_grad():
                pairs = zip(plain.project(x, cos, sin, wide), fused.project(x, cos, sin, wide))
                assert all(torch.equal(a, b) for a, b in pairs)


def test_pieces_of_rows_have_their_own_numbers():
    wide = Wide(torch.tensor([2, 3, 9]), (2, 3, 9))
    assert wide.within(0, 2) is False and wide.within(2, 2) is True
    assert wide.within(0, 4).tolist() == [2, 3] and wide.within(3, 7).tolist() == [0, 6]
    assert Wide(torch.zeros(0, dtype=torch.long), ()).within(0, 0) is False


# The model.


def half(tiny, **changes):
    made = tiny.build(**changes)
    made.model.bfloat16()
    return made


def test_the_two_markers_of_every_latent_block_are_wide_and_no_other_row(tiny):
    packed = tiny.pack(tiny.samples())
    layout = tiny.model.layout(packed.rows)
    und = layout.rows.at(torch.arange(layout.und))
    wide, everything = layout.rotary[0][2], layout.rotary[1][2]
    blocks = [v for v in packed.visuals if v.kind == LATENTS]
    ends = {(int(packed.rows.doc[v.rows[0]]), int(packed.rows.index[v.rows[0]]) + k) for v in blocks
            for k in (-1, v.rows[1] - v.rows[0])}  # fmt: skip
    assert everything is True and bool((und.kind[list(wide.numbers)] == TEXT).all())
    assert {(int(und.doc[n]), int(und.index[n])) for n in wide.numbers} == ends and len(wide.numbers) == 2 * len(blocks)
    answer = tiny.pack([tiny.answer()]).rows
    assert marker_rows(answer, len(answer), torch.device("cpu")).numbers == ()


@pytest.mark.parametrize("threads", [1, 4])
def test_marker_rows_of_a_layer_are_as_in_float32_also_in_pieces(tiny, monkeypatch, threads):
    made = half(tiny)
    packed, layer = made.pack(made.samples()), made.model.layers[0]
    layout, patches = made.model.layout(packed.rows), made.media(packed)[0]
    clean = made.media(packed)[1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(lance, "PIECE", 1)
    monkeypatch.setattr(lance, "CACHED", 16 * layer.mlp_width)  # pieces of 16 rows for each thread
    with torch.no_grad():
        x = made.model.inputs(layout, patches, clean, torch.zeros(len(clean)))
        found = layer.project(x, layout.rotary)
        (cos, sin, wide), _ = layout.rotary
        none, all_ = (
            [torch.cat(part) for part in zip(*(layer.und.project(*piece, w) for piece in layer.pieces(x[0], cos, sin)))]
            for w in (False, True)
        )
    is_wide = torch.zeros(layout.und, dtype=torch.bool).index_fill(0, wide.at, True)
    for f, n, a in zip(found, none, all_):
        f = f[: layout.und]
        assert torch.equal(f[is_wide], a[is_wide]) and torch.equal(f[~is_wide], n[~is_wide])


def test_in_bfloat16_the_cache_changes_velocities_by_no_more_than_another_kernel_would(tiny):
    made = half(tiny, quirks=ROUNDED)
    for request in (made.draw(), made.edit(), made.place(), made.animate()):
        found = []
        for cached in (True, False):
            branches = branch_out(made.model, made.codec, [request], Sampling(guidance_scale=4.0, cached=cached))
            rows, (features, latents) = branches.pack.rows, made.media(branches.pack)
            noisy = rows.noisy[rows.is_latent]
            x = torch.randn(int(noisy.sum()) // 2, made.channels, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                denoiser = Denoiser(made.model, branches, features, latents[~noisy], cached)
                found.append(torch.cat(denoiser.velocities(x, torch.ones(len(x)), 2)))
        assert float((found[0] - found[1]).norm() / found[1].norm()) < KERNELS


def test_a_pack_learns_under_autocast_with_wide_rows(tiny):
    made = tiny.build(quirks=ROUNDED)
    packed = made.pack(made.samples())
    noise = made.noised(packed)
    exact = made.losses(packed, noise)
    with torch.autocast("cpu", torch.bfloat16):
        layout, patches = made.model.layout(packed.rows), made.media(packed)[0]
        low = objective(made.model, Pass(layout, noise, patches, made.vocabulary))
        (low.text + low.flow).backward()
    torch.testing.assert_close(low.text, exact.text, rtol=0.02, atol=0)
    torch.testing.assert_close(low.flow, exact.flow, rtol=0.02, atol=0)
    for layer in made.model.layers:
        for stream in (layer.und, layer.gen):
            for norm in (stream.q_norm, stream.k_norm):
                assert bool(norm.weight.grad.isfinite().all()) and float(norm.weight.grad.abs().sum()) > 0


def test_unrounded_results_of_a_request_differ_from_rounded_ones(tiny):
    """The habit reaches what is made, and only through the frequencies."""
    packed = tiny.pack([tiny.edit()])
    with torch.no_grad():
        made = [tiny.build(quirks=f).hidden(packed, tiny.noised(packed)) for f in (NO_QUIRKS, ROUNDED, NO_QUIRKS)]
    exact, rounded, again = made
    assert torch.equal(exact, again) and float((exact - rounded).abs().max()) > 1e-4
