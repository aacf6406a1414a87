"""Attention of training on a CPU: scores are written out, and the backward pass is written by hand.

torch's own fused attention has a backward on a CPU that takes several times as long, and autograd over the written
sum makes copies, masks and sums of whole packs for each group of units (measured: a fifth of a training step). Here
queries, keys and values are gathered once for all groups, and so are their gradients; a mask is added to the scores in
place; the queries of one key head are stacked, which needs no copy of the keys.

Axes: L rows, G units of a group, A heads, H key heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from openlance.model.attention import Group, Plan

# Keys are padded to whole vectors of bfloat16: softmax takes up to twice as long over other lengths (measured).
VECTOR = 32


@dataclass(frozen=True)
class Gathers:
    """What is read of a plan, the same for all layers.

    Attributes:
        query: Row numbers of the queries of all groups; None where they are all rows in order.
        key: Likewise of the keys, padded.
        sizes: (G, Q, K) of each group.
        bias: What is added to its scores, (G, 1, Q or 1, K): 0 where a query sees a key; or None.
        order: Brings what the groups give back to row order.
    """

    query: Tensor | None
    key: Tensor
    sizes: tuple[tuple[int, int, int], ...]
    bias: tuple[Tensor | None, ...]
    order: Tensor | None

    def split(self, x_LAE: Tensor, side: int) -> list[Tensor]:
        """(G, Q, A, E) of each group; side: 1 of its queries, 2 of its keys."""
        counts = [size[0] * size[side] for size in self.sizes]
        return [x.unflatten(0, (g[0], g[side])) for x, g in zip(x_LAE.split(counts), self.sizes, strict=True)]

    @classmethod
    def of(cls, plan: Plan) -> Gathers:
        keys, bias = zip(*(_padded(group) for group in plan.groups), strict=True)
        sizes = tuple((*group.query.shape, key.shape[1]) for group, key in zip(plan.groups, keys, strict=True))
        query = None if plan.order is None else torch.cat([group.query.flatten() for group in plan.groups])
        return cls(query, torch.cat([key.flatten() for key in keys]), sizes, bias, plan.order)


def _padded(group: Group) -> tuple[Tensor, Tensor | None]:
    """Keys up to whole vectors, the rest the first of each unit, and what hides those."""
    more = -group.key.shape[1] % VECTOR
    if not more and group.mask is None:
        return group.key, None
    shape = (len(group.key), 1, 1, group.key.shape[1])
    seen = torch.ones(shape, dtype=torch.bool) if group.mask is None else group.mask
    seen = seen[:, :, :1] if bool((seen == seen[:, :, :1]).all()) else seen
    bias = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, -torch.inf)
    return torch.cat([group.key, group.key[:, :1].expand(-1, more)], dim=1), F.pad(bias, (0, more), value=-torch.inf)


class Attention(torch.autograd.Function):
    """(L, A, E) of queries (L, A, E) among keys and values (K, H, E) under the gathers of a plan."""

    @staticmethod
    def forward(ctx: Any, q_LAE: Tensor, k_LHE: Tensor, v_LHE: Tensor, plan: Gathers) -> Tensor:
        heads, outputs, kept = k_LHE.shape[1], list[Tensor](), list[Tensor]()
        queries = plan.split(_take(q_LAE * q_LAE.shape[-1] ** -0.5, plan.query), 1)
        keys, values = (plan.split(_take(x, plan.key), 2) for x in (k_LHE, v_LHE))
        with torch.autocast("cpu", enabled=False):  # softmax of bfloat16 works in float32 inside
            for q, k, v, bias in zip(queries, keys, values, plan.bias, strict=True):
                q_XQE, k_XKE, v_XKE = (_by_head(x, heads) for x in (q, k, v))
                scores = torch.bmm(q_XQE, k_XKE.mT)
                if bias is not None:
                    scores.view(*q.shape[:3:2], q.shape[1], -1).add_(bias)
                weights = scores.softmax(-1)
                outputs.append(_by_row(torch.bmm(weights, v_XKE), q.shape))
                kept += [weights, q_XQE, k_XKE, v_XKE]
        ctx.save_for_backward(*kept)
        ctx.plan, ctx.shapes = plan, [(q.shape, k.shape) for q, k in zip(queries, keys, strict=True)]
        ctx.keys = k_LHE.shape
        return _take(torch.cat(outputs), plan.order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LAE: Tensor) -> tuple[Tensor | None, ...]:
        plan, kept = ctx.plan, iter(ctx.saved_tensors)
        if plan.order is not None:  # nothing comes back to padded queries
            grad_LAE = grad_LAE.new_zeros(sum(g * n for g, n, _ in plan.sizes), *grad_LAE.shape[1:]).index_copy_(
                0, plan.order, grad_LAE
            )
        dq, dk, dv = list[Tensor](), list[Tensor](), list[Tensor]()
        for grad, (query, key), weights, q_XQE, k_XKE, v_XKE in zip(
            plan.split(grad_LAE, 1), ctx.shapes, kept, kept, kept, kept, strict=True
        ):
            grad_XQE = _by_head(grad, key[2])
            d_weights = torch.bmm(grad_XQE, v_XKE.mT)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            dq.append(_by_row(torch.bmm(d_scores, k_XKE), query))
            dk.append(_by_row(torch.bmm(d_scores.mT, q_XQE), key))
            dv.append(_by_row(torch.bmm(weights.mT, grad_XQE), key))
        scale = grad_LAE.shape[-1] ** -0.5
        return _take(torch.cat(dq), plan.order) * scale, *(_summed(x, plan.key, ctx.keys) for x in (dk, dv)), None


def _take(x_LAE: Tensor, rows: Tensor | None) -> Tensor:
    return x_LAE if rows is None else x_LAE.index_select(0, rows)


def _by_head(x_GQAE: Tensor, heads: int) -> Tensor:
    """(G H, Q A / H, E): the queries of one key head below each other."""
    return x_GQAE.transpose(1, 2).reshape(len(x_GQAE) * heads, -1, x_GQAE.shape[-1])


def _by_row(x_XQE: Tensor, shape: Sequence[int]) -> Tensor:
    """(G Q, A, E) again."""
    g, n, heads, e = shape
    return x_XQE.view(g, heads, n, e).transpose(1, 2).reshape(g * n, heads, e)


def _summed(parts: list[Tensor], rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient of rows that several groups read, added in float32."""
    found = torch.cat(parts)
    whole = torch.promote_types(found.dtype, torch.float32)
    return torch.zeros(shape, dtype=whole).index_add_(0, rows, found.to(whole)).to(found.dtype)
