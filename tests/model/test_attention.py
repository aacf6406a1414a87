"""The backbone's laws: units equal the dense mask, a pack equals its samples, a prefix needs no future."""

import pytest
import torch
import torch.nn.functional as F

from openlance.model.attention import PADDED_UP_TO, attend, flex_pays, plan_units
from openlance.model.lance import Cache
from openlance.sequence.rows import Rows, visible
from openlance.training.objective import Noised


def dense(q, k, v, mask):
    """The plain form: every query against every key."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    repeat = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


def pair(query: Rows, key: Rows) -> torch.Tensor:
    every = (torch.arange(len(rows)) for rows in (query, key))
    return visible(*(rows.at(i[shape]) for rows, i, shape in zip((query, key), every, [(..., None), (None, ...)])))


def heads(n: int, count: int, seed: int) -> torch.Tensor:
    return torch.randn(n, count, 16, generator=torch.Generator().manual_seed(seed))


def by_stream(rows: Rows) -> Rows:
    return rows.at(torch.argsort(rows.is_latent.int(), stable=True))


@pytest.mark.parametrize("draws", [1, 3])
def test_units_equal_the_dense_mask(tiny, draws):
    samples = [*tiny.samples(), tiny.draw("blue"), tiny.draw("a very much longer prompt than all the others have")]
    rows = by_stream(tiny.pack(samples, draws).rows)
    q, k, v = heads(len(rows), 4, 0), heads(len(rows), 2, 1), heads(len(rows), 2, 2)
    plan = plan_units(rows, rows)
    torch.testing.assert_close(attend(q, k, v, plan), dense(q, k, v, pair(rows, rows)), rtol=0, atol=2e-6)
    assert len(plan.groups) < len(rows.segment[rows.noisy].unique()) + len(samples)  # like units share a call


def test_the_written_out_form_has_the_same_gradients(tiny):
    rows = by_stream(tiny.pack(tiny.samples(), 2).rows)
    ways = [lambda *x: attend(*x, plan_units(rows, rows)), lambda *x: dense(*x, pair(rows, rows))]
    found = []
    for way in ways:
        q, k, v = (heads(len(rows), n, seed).requires_grad_() for seed, n in enumerate((4, 2, 2)))
        out = way(q, k, v)
        out.backward(heads(len(rows), 4, 5))
        found.append((out, q.grad, k.grad, v.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


def test_queries_find_cached_keys(tiny):
    """Targets against the rows before them, two prompts of different length among them."""
    rows = tiny.pack([*tiny.samples()[:4], tiny.draw("a longer prompt than the other one")]).rows
    query, past = (rows.at(which.nonzero()[:, 0]) for which in (rows.noisy, ~rows.noisy & (rows.code >= -1)))
    query = by_stream(query)
    key = Rows.concat([past, query])
    q, k, v = heads(len(query), 4, 0), heads(len(key), 2, 1), heads(len(key), 2, 2)
    mixed = attend(q, k, v, plan_units(query, key))
    torch.testing.assert_close(mixed, dense(q, k, v, pair(query, key)), rtol=0, atol=2e-6)


def test_large_units_of_unlike_size_are_not_padded():
    """Padding takes a mask, and a mask costs more there than a call."""
    from openlance.model.attention import _batches

    side = int(PADDED_UP_TO**0.5) + 2
    like, unlike = torch.arange(side), torch.arange(side + 1)
    assert [len(b) for b in _batches([(like, like), (like, like)])] == [2]
    assert [len(b) for b in _batches([(like, like), (like, unlike)])] == [1, 1]
    small = torch.arange(10)
    assert [len(b) for b in _batches([(small, small), (small, torch.arange(11))])] == [2]


def test_a_cpu_never_takes_flex_attention():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not flex_pays(1 << 20, 1 << 20, cpu)
    assert flex_pays(1 << 14, 1 << 14, cuda) and not flex_pays(64, 64, cuda) and not flex_pays(1 << 14, 1 << 15, cuda)


def pieces(noise: Noised, counts: list[int]) -> list[Noised | None]:
    parts = zip(*(getattr(noise, name).split(counts) for name in ("x", "target", "times")))
    return [Noised(*part) if len(part[0]) else None for part in parts]


def one_by_one(tiny, samples, packed):
    """(pack, noise) of each sample alone, with the noise that it has in the pack."""
    noise = tiny.noised(packed)
    counts = torch.bincount(packed.rows.doc[packed.rows.is_latent], minlength=len(samples)).tolist()
    return noise, [(tiny.pack([s]), part) for s, part in zip(samples, pieces(noise, counts))]


@torch.no_grad()
def test_a_pack_equals_its_samples_one_by_one(tiny):
    samples = tiny.samples()
    packed = tiny.pack(samples)
    noise, alone = one_by_one(tiny, samples, packed)
    together = tiny.hidden(packed, noise).split(packed.lengths)
    for ours, (single, part) in zip(together, alone):
        torch.testing.assert_close(ours, tiny.hidden(single, part), rtol=0, atol=1e-5)


def gradients(tiny, losses: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    tiny.model.zero_grad()
    torch.stack(losses).sum().backward()
    return {n: p.grad.clone() for n, p in tiny.model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=0, atol=1e-5 * max(1.0, float(grad.abs().max())), msg=name)


def sums(losses) -> torch.Tensor:
    return losses.per_token.sum() + losses.per_latent.sum()


def test_gradients_of_a_pack_are_the_sum_of_those_of_its_samples(tiny):
    samples = tiny.samples()
    packed = tiny.pack(samples)
    noise, alone = one_by_one(tiny, samples, packed)
    together = gradients(tiny, [sums(tiny.losses(packed, noise))])
    separate = gradients(tiny, [sums(tiny.losses(single, part)) for single, part in alone])
    assert_same_gradients(together, separate)
    assert {"layers.0.und.q.weight", "layers.0.gen.q.weight", "time.up.weight", "head.weight"} <= together.keys()


@pytest.mark.parametrize("task", ["draw", "animate", "edit", "place"])
def test_several_draws_equal_as_many_samples(tiny, task):
    """K noise levels against one context: the same losses and gradients as K samples, for the price of one context."""
    sample, k = getattr(tiny, task)(), 3
    packed, apart = tiny.pack([sample], k), [tiny.pack([sample])] * k
    noise = tiny.noised(packed)
    rows = packed.rows.at(packed.rows.is_latent.nonzero()[:, 0])
    parts = []
    for draw in range(k):
        mine = (~rows.noisy | (rows.target == draw)).nonzero()[:, 0]
        parts.append(Noised(noise.x[mine], noise.target[mine], noise.times[mine]))
    together = tiny.losses(packed, noise)
    separate = [tiny.losses(pack, part) for pack, part in zip(apart, parts)]
    torch.testing.assert_close(together.per_latent, torch.cat([s.per_latent for s in separate]), rtol=0, atol=1e-5)
    ours = gradients(tiny, [together.total()])
    assert_same_gradients(ours, gradients(tiny, [s.total() / k for s in separate]))


@torch.no_grad()
@pytest.mark.parametrize("task", ["draw", "animate", "edit", "place", "answer"])
def test_hidden_states_of_a_prefix_never_depend_on_what_follows(tiny, task):
    packed = tiny.pack([getattr(tiny, task)()])
    noise, rows = tiny.noised(packed), packed.rows
    whole = tiny.hidden(packed, noise)
    features = tiny.media(packed)[0]
    for p in ((rows.segment.diff() > 0).nonzero()[:, 0] + 1).tolist():
        before = rows.at(torch.arange(p))
        patches, latents = (int(before.is_patch.sum()), int(before.is_latent.sum()))
        layout = tiny.model.layout(before)
        streams = tiny.model(
            layout,
            patches=features[:patches] if patches else None,
            latents=noise.x[:latents] if latents else None,
            times=noise.times[:latents] if latents else None,
        )
        torch.testing.assert_close(tiny.model.restore(layout, streams), whole[:p], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_cached_prefix_equals_the_whole(tiny):
    """Segment by segment through the cache: the same hidden rows as in one go."""
    packed = tiny.pack([tiny.place()])
    noise, rows, (features, _) = tiny.noised(packed), packed.rows, tiny.media(packed)
    whole, cache, found, seen, kept = tiny.hidden(packed, noise), Cache(), [], 0, 0
    for segment in rows.segment.unique():
        part = rows.at((rows.segment == segment).nonzero()[:, 0])
        patches, latents = int(part.is_patch.sum()), int(part.is_latent.sum())
        layout = tiny.model.layout(part, cache)
        streams = tiny.model(
            layout,
            patches=features[seen : seen + patches] if patches else None,
            latents=noise.x[kept : kept + latents] if latents else None,
            times=noise.times[kept : kept + latents] if latents else None,
            cache=cache,
            keep=not bool(part.noisy.any()),
        )
        found.append(tiny.model.restore(layout, streams))
        seen, kept = seen + patches, kept + latents
    torch.testing.assert_close(torch.cat(found), whole, rtol=0, atol=1e-5)
    assert not bool(cache.rows.noisy.any())


@torch.no_grad()
def test_the_understanding_stream_alone_gives_the_same_states(tiny):
    half = tiny.build(streams=("und",))
    assert not any(".gen." in name for name, _ in half.model.named_parameters())
    half.model.load_state_dict({n: p for n, p in tiny.model.state_dict().items() if n in half.model.state_dict()})
    packed = tiny.pack([tiny.answer(), tiny.answer("what color?", "blue")])
    assert torch.equal(half.hidden(packed, None), tiny.hidden(packed, None))


def test_states_are_the_same_with_and_without_gradients(tiny):
    """Without, rows go through a layer in pieces and attention through the library's kernel."""
    wide = tiny.build(mlp_width=2048)
    packed = wide.pack(wide.samples(), draws=2)
    layout, noise = wide.model.layout(packed.rows), wide.noised(packed)
    with torch.no_grad():
        assert len(list(wide.model.layers[0].pieces(torch.zeros(layout.und, 1)))) > 1
        without = wide.hidden(packed, noise)
    torch.testing.assert_close(wide.hidden(packed, noise), without, rtol=0, atol=2e-5)


def test_targets_of_a_batch_need_no_gathering(tiny):
    """Prompts of different length share a call, in the order of their rows."""
    rows = tiny.pack([tiny.draw("a"), tiny.draw("a longer prompt"), tiny.draw("b")]).rows
    query, past = (rows.at(which.nonzero()[:, 0]) for which in (rows.noisy, ~rows.noisy))
    plan = plan_units(query, Rows.concat([past, query]))
    assert len(plan.groups) == 1 and plan.groups[0].query_from == 0 and plan.order is None
