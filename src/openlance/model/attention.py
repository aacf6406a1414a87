"""Joint attention over packed rows, without ever building a dense mask of the whole pack; and the rotation of queries
and keys by position, with the roundings of the release where they differ from the exact form.

The mask rule makes the work fall apart into units: the clean rows of a document attend among themselves, and every
noisy target attends to the clean rows before it and to itself. Units of like size run as one call of SDPA on gathered
keys, so several noise samples of one target, both guidance branches and many prompts become one batch. On CUDA a large
pack runs the very same rule through FlexAttention instead (`flex.py`).

Axes: L rows, G units of a group, A heads, E head width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from openlance.config.model import ModelConfig
from openlance.model.precision import HALVES
from openlance.model.written import Attention, Gathers
from openlance.sequence.segment import Rows, visible

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Units share a call while padding them to the largest wastes at most this share of the work.
PADDING = 0.3
# From this many scores on a unit shares a call only with its equals: padding needs a mask, and that costs more here
# than a call (SDPA on a CPU: a fifth slower with a mask).
PADDED_UP_TO = 1 << 20
# From this many rows on FlexAttention pays on CUDA: below, building its block mask costs more than it saves.
FLEX_FROM = 4096


@dataclass(frozen=True)
class Group:
    """Units padded to one size.

    Attributes:
        query: (G, Q) row numbers.
        key: (G, K) row numbers.
        mask: (G, 1, Q, K), or None where all is seen.
        query_from: The first row where they lie one after another, so that there is nothing to gather.
        key_from: Likewise.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    query_from: int | None = None
    key_from: int | None = None


@dataclass(frozen=True)
class Plan:
    """How queries find their keys. `order` brings the concatenated outputs of the groups back to row order; None where
    they are in it.

    With `blocks` FlexAttention does it all and there are no groups."""

    groups: tuple[Group, ...]
    order: Tensor | None
    blocks: BlockMask | None = None

    @cached_property
    def gathers(self) -> Gathers:
        """What training on a CPU reads of it."""
        return Gathers.of(self)

    def to(self, device: torch.device | str) -> Plan:
        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        groups = (replace(g, query=g.query.to(device), key=g.key.to(device), mask=move(g.mask)) for g in self.groups)
        return Plan(tuple(groups), move(self.order))


def plan_attention(query: Rows, key: Rows, device: torch.device) -> Plan:
    """Plan on a device for queries among keys; both are on the CPU. Keys hold every row that a query may see, in any
    order."""
    if flex_pays(len(query), len(key), device):
        from openlance.model.flex import block_mask

        return Plan((), None, block_mask(query.to(device), key.to(device)))
    return plan_units(query, key).to(device)


def flex_pays(queries: int, keys: int, device: torch.device) -> bool:
    """The one place that chooses. Never on a CPU, where FlexAttention has no backward. Not against a cache: there a
    target sees all of its keys, and SDPA without a mask is as fast as it gets."""
    return device.type == "cuda" and queries >= FLEX_FROM and keys == queries


def plan_units(query: Rows, key: Rows) -> Plan:
    """Plan for SDPA, on the CPU."""
    units = sorted(_units(query, key), key=lambda unit: (len(unit[0]), len(unit[1])))
    # Sorted by their queries, within batches and among them: what lies together in the rows needs no gathering.
    batches = [sorted(batch, key=lambda unit: int(unit[0][0])) for batch in _batches(units)]
    padded = [_pad(batch, query, key) for batch in sorted(batches, key=lambda batch: int(batch[0][0][0]))]
    places = torch.cat([torch.where(real, group.query, -1).flatten() for group, real in padded])
    taken = places >= 0
    order = torch.empty(len(query), dtype=torch.long)
    order[places[taken]] = taken.nonzero()[:, 0]
    straight = len(places) == len(order) and _first(order) == 0
    return Plan(tuple(group for group, _ in padded), None if straight else order)


def plan_runs(lengths: tuple[int, ...]) -> Plan:
    """Plan for rows that attend among themselves in runs of these lengths; runs of one length share a call."""
    runs = dict[int, list[Tensor]]()
    for run in torch.arange(sum(lengths)).split(list(lengths)):
        runs.setdefault(len(run), []).append(run)
    groups = tuple(Group(rows, rows, None, _first(rows), _first(rows)) for rows in map(torch.stack, runs.values()))
    given = torch.cat([group.query.flatten() for group in groups])
    return Plan(groups, None if _first(given) == 0 else given.argsort())


def _first(rows: Tensor) -> int | None:
    """The first of row numbers that lie one after another, None if they do not."""
    flat = rows.flatten()
    first = int(flat[0])
    return first if torch.equal(flat, torch.arange(first, first + len(flat))) else None


Unit = tuple[Tensor, Tensor]  # row numbers of its queries and of its keys


def _units(query: Rows, key: Rows) -> list[Unit]:
    """(queries, keys) per document for its clean rows and per noisy segment."""
    # One number per unit: the document for clean rows, the segment (shifted past all documents) for noisy ones.
    past = int(key.doc.max()) + 1
    name_q = torch.where(query.noisy, query.segment + past, query.doc)
    by_doc = _runs(key.doc)
    out = []
    for queries in _runs(name_q).values():
        first = queries[0]
        doc, segment, noisy = int(query.doc[first]), query.segment[first], bool(query.noisy[first])
        keys = by_doc[doc]
        seen = ~key.noisy[keys]
        if noisy:
            own = key.segment[keys] == segment
            seen = own | (seen & (key.index[keys] < query.index[queries].min()))
        else:
            seen &= key.index[keys] <= _reach(query, queries, key, keys)
        out.append((queries, keys[seen]))
    return out


def _reach(query: Rows, queries: Tensor, key: Rows, keys: Tensor) -> Tensor:
    """The last index that clean queries can see: their own, or the end of their segment."""
    last = query.index[queries].max()
    ends = key.index[keys][(key.segment[keys] == query.segment[queries[-1]])]
    return torch.maximum(last, ends.max()) if len(ends) else last


def _runs(values: Tensor) -> dict[int, Tensor]:
    """Row numbers per distinct value, in row order."""
    order = torch.argsort(values, stable=True)
    names, counts = torch.unique_consecutive(values[order], return_counts=True)
    return dict(zip(names.tolist(), order.split(counts.tolist()), strict=True))


def _batches(units: list[Unit]) -> list[list[Unit]]:
    batches, work, most = list[list[Unit]](), 0, 0
    for q, k in units:
        n = len(batches[-1]) + 1 if batches else 0
        widest = max(most, len(k))
        full = n * len(q) * widest
        wanted = (1 - PADDING) * full if len(q) * widest <= PADDED_UP_TO else full
        if n and work + len(q) * len(k) >= wanted:
            batches[-1].append((q, k))
            work, most = work + len(q) * len(k), widest
        else:
            batches.append([(q, k)])
            work, most = len(q) * len(k), len(k)
    return batches


def _pad(batch: list[Unit], query: Rows, key: Rows) -> tuple[Group, Tensor]:
    """Pad a batch of units to one size, each by its own first rows: nothing of another document comes in, where a
    number may not be finite, and padded queries see what others see."""
    pad = torch.nn.utils.rnn.pad_sequence
    q, k = (pad([unit[i] for unit in batch], batch_first=True, padding_value=-1) for i in (0, 1))
    real, known = q >= 0, k >= 0
    q, k = torch.where(real, q, q[:, :1]), torch.where(known, k, k[:, :1])
    mask = visible(query.at(q[:, :, None]), key.at(k[:, None, :])) & known[:, None, :]
    seen = None if bool(mask.all()) else mask[:, None]
    return Group(q, k, seen, _first(q), _first(k)), real


def attend(q_LAE: Tensor, k_LAE: Tensor, v_LAE: Tensor, plan: Plan) -> Tensor:
    """Attention of all queries under a plan; keys and values may have fewer heads (GQA). Returns (L, A, E)."""
    if plan.blocks is not None:
        from openlance.model.flex import attend_blocks

        return attend_blocks(q_LAE, k_LAE, v_LAE, plan.blocks)
    if torch.is_grad_enabled() and q_LAE.requires_grad and q_LAE.device.type == "cpu":
        return Attention.apply(q_LAE, k_LAE, v_LAE, plan.gathers)
    outputs = []
    for group in plan.groups:
        q = _take(q_LAE, group.query, group.query_from)
        k, v = (_take(x, group.key, group.key_from) for x in (k_LAE, v_LAE))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        outputs.append(_sdpa(q, k, v, group.mask).transpose(1, 2).flatten(0, 1))
    mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return mixed if plan.order is None else mixed.index_select(0, plan.order)


def _sdpa(q_GAQE: Tensor, k_GAKE: Tensor, v_GAKE: Tensor, mask: Tensor | None) -> Tensor:
    gqa = q_GAQE.shape[1] != k_GAKE.shape[1]
    if gqa and q_GAQE.device.type == "cuda" and (mask is not None or q_GAQE.dtype == torch.float32):
        # CUDA's flash kernel knows groups of heads but neither masks nor float32, its memory-efficient one the
        # reverse; with both, torch would write out all scores.
        times, gqa = q_GAQE.shape[1] // k_GAKE.shape[1], False
        k_GAKE, v_GAKE = (x.repeat_interleave(times, dim=1) for x in (k_GAKE, v_GAKE))
    return F.scaled_dot_product_attention(q_GAQE, k_GAKE, v_GAKE, attn_mask=mask, enable_gqa=gqa)


def _take(x_LAE: Tensor, rows: Tensor, first: int | None) -> Tensor:
    if first is None:
        return x_LAE.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    return x_LAE[first : first + rows.numel()].unflatten(0, rows.shape)


# Positions.


def frequencies(c: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Give the inverse frequencies of the rotary embedding.

    The release casts its whole model to bfloat16, which rounds this buffer too, and goes on in float32 with the rounded
    numbers (Qwen2_5_VLRotaryEmbedding under `.to(bfloat16)`); `Quirks.rounded_frequencies` asks for the same.

    Args:
        c: Sizes of the model.
        device: Where the result is wanted.

    Returns:
        (E / 2,) float32: theta ** (-i / (E / 2)).
    """
    half = c.head_dim // 2
    # In this order of operations: at positions beyond 1000 another rounding of the frequencies shows (3e-5).
    inverse = 1.0 / c.rope_theta ** (torch.arange(half, dtype=torch.float32, device=device) / half)
    return inverse.bfloat16().float() if c.quirks.rounded_frequencies else inverse


def rotary_table(position_L3: Tensor, c: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, each (L, E), of multimodal RoPE: frequency bands take their position from rows t, h, w in turn
    by `rope_sections` (Qwen2.5-VL)."""
    half = c.head_dim // 2
    sections = torch.tensor(c.rope_sections, device=position_L3.device)
    axis = torch.repeat_interleave(torch.arange(3, device=position_L3.device), sections, output_size=half)
    angle = position_L3.float()[:, axis] * frequencies(c, position_L3.device)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Turn each half of a head against the other.

    Args:
        x_LAE: Queries or keys; the result has their dtype.
        cos_LE: Cosines, rounded to that dtype before they are used.
        sin_LE: Sines, likewise.

    Returns:
        (L, A, E). In half precision both products and their sum are rounded, as released; float32 saves a pass.
    """
    half = x_LAE.shape[-1] // 2
    cos, sin = (table[:, None, :half].to(x_LAE.dtype) for table in (cos_LE, sin_LE))  # both halves turn alike
    a, b = x_LAE.chunk(2, dim=-1)
    if x_LAE.dtype in HALVES:
        return torch.cat([(a * cos).sub_(b * sin), (b * cos).add_(a * sin)], dim=-1)
    return torch.cat([(a * cos).addcmul_(b, sin, value=-1), (b * cos).addcmul_(a, sin)], dim=-1)


@dataclass(frozen=True)
class Wide:
    """Rows of a stream whose queries and keys stay in float32 from the norm to the end of the rotation.

    In half precision the release does so in splits that hold VAE tokens, their two markers included (mode "gen" of
    qwen2_navit.py). The markers run through the understanding stream, so there it is some rows.

    Attributes:
        at: (n,) row numbers in rising order, on the device.
        numbers: The same as plain numbers, so that cutting rows into pieces asks the device nothing.
    """

    at: Tensor
    numbers: tuple[int, ...]

    def within(self, first: int, count: int) -> Tensor | bool:
        """Give the numbers of those among `count` rows from `first` on, counted from there; True: all, False: none."""
        begin, end = (bisect_left(self.numbers, row) for row in (first, first + count))
        if end - begin in (0, count):
            return begin < end
        return self.at[begin:end] - first if first else self.at[begin:end]


def marker_rows(rows: Rows, und: int, device: torch.device) -> Wide:
    """Find the understanding rows that share a split with latents.

    Args:
        rows: A layout's rows on the CPU, the first `und` of them in the understanding stream.
        und: How many those are.
        device: Where their numbers are wanted.

    Returns:
        The markers around every latent block.
    """
    segment = rows.segment[und:].unique()
    at = torch.isin(rows.segment[:und], segment).nonzero()[:, 0] if len(segment) else torch.zeros(0, dtype=torch.long)
    return Wide(at.to(device), tuple(at.tolist()))


def turned(
    norm: Callable[[Tensor], Tensor], x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor, wide: Tensor | bool
) -> Tensor:
    """Norm queries or keys and rotate them.

    Args:
        norm: Their RMS norm.
        x_LAE: What the projection gave.
        cos_LE: From `rotary_table`.
        sin_LE: Likewise.
        wide: Which rows do that in float32 where x is of half precision: all, none, or those of these numbers.

    Returns:
        (L, A, E); of half precision unless wide is True or the norm's weights are finer.
    """
    if wide is False or x_LAE.dtype not in HALVES:
        return rotate(norm(x_LAE), cos_LE, sin_LE)
    if wide is True:
        return _in_float32(norm, x_LAE, cos_LE, sin_LE)
    y_LAE = rotate(norm(x_LAE), cos_LE, sin_LE)
    some = _in_float32(norm, *(x.index_select(0, wide) for x in (x_LAE, cos_LE, sin_LE)))
    return y_LAE.index_copy(0, wide, some.to(y_LAE.dtype))


def _in_float32(norm: Callable[[Tensor], Tensor], x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """With a table that is rounded as the other rows' is: to the dtype of their norm's output."""
    weight = getattr(norm, "weight", x_LAE)
    kind = torch.promote_types(x_LAE.dtype, weight.dtype)
    return rotate(norm(x_LAE.float()), cos_LE.to(kind), sin_LE.to(kind))
