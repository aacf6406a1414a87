"""What a request leaves inside the decoder: rotary tables, first queries and keys, hidden rows of the prefix.

Axes: L rows, A heads, E head width, D width, N latent rows, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from openlance.compat.verify.case import Case
from openlance.compat.verify.layout import where
from openlance.inference.visual import conditions
from openlance.model.lance import Cache, Lance, Layer, Layout, Streams
from openlance.sequence.rows import Rows


@dataclass(frozen=True)
class Trace:
    """Rows of the first four: the prefix in sequence order, then the target's split at the first step.

    Attributes:
        cos: (L, E / 2) table of the first half of a head, as it is multiplied.
        sin: Likewise.
        q: (L, A, E) queries of the first layer after norm and rotation.
        k: (L, A, E) keys, likewise.
        first: (prefix, D) rows after the first layer.
        last: (prefix, D) rows after the last layer, before the final norm.
        rows: The rows that it is of.
    """

    cos: Tensor
    sin: Tensor
    q: Tensor
    k: Tensor
    first: Tensor
    last: Tensor
    rows: Rows


@torch.no_grad()
def trace(case: Case, prefix: int, x_NC: Tensor | None) -> Trace:
    """Run a prefix, and the split of its visual target on top of it.

    Args:
        case: The request with its media.
        prefix: How many rows come first.
        x_NC: The target's state at the first step; None for an answer, which has no such split.

    Returns:
        What the two passes left.
    """
    rows, cache = case.rows, Cache()
    patches, clean, _ = conditions(case.packed)
    latents = (clean, torch.zeros(len(clean))) if len(clean) else None
    some = rows.at(torch.arange(prefix))
    passes = [_run(case.parts.lance, some, cache, patches, latents)]
    if x_NC is not None:
        target = rows.at(where(rows.noisy))
        times = torch.where(target.denoise[target.is_latent], 1.0, 0.0)
        passes.append(_run(case.parts.lance, target, cache, None, (x_NC, times)))
        some = Rows.concat([some, target])
    q, k, cos, sin = (torch.cat([made[n] for made, _ in passes]) for n in range(4))
    first, last = passes[0][1]
    return Trace(cos, sin, q, k, first, last, some)


def _run(
    model: Lance, rows: Rows, cache: Cache, patches: Tensor | None, latents: tuple[Tensor, Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """([queries, keys, cos, sin], [rows after the first and after the last layer]), in row order; the cache grows by
    what is no target."""
    target = bool(rows.noisy.any())
    laid = model.layout(rows, cache if cache.rows is not None else None)
    x = model.inputs(laid, patches, *(latents or (None, None)))
    layer, half = model.layers[0], model.config.head_dim // 2
    assert isinstance(layer, Layer)
    q, k, _ = layer.project(x, laid.rotary)
    (und_cos, und_sin, _), (gen_cos, gen_sin, _) = laid.rotary
    cos, sin = (torch.cat(pair)[:, :half] for pair in ((und_cos, gen_cos), (und_sin, gen_sin)))
    with _kept(model) as hidden:
        model.through(x, laid, cache, keep=not target)
    return [_in_order(laid, y) for y in (q, k, cos, sin)], [model.restore(laid, streams) for streams in hidden]


@contextmanager
def _kept(model: Lance) -> Iterator[list[Streams]]:
    """The streams after the first layer and after the last, in that order."""
    kept = list[Streams]()
    hooks = [
        layer.register_forward_hook(lambda _module, _args, out: kept.append(out[0]))
        for layer in (model.layers[0], model.layers[-1])
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _in_order(laid: Layout, y: Tensor) -> Tensor:
    return torch.empty_like(y).index_copy(0, laid.order, y)


@torch.no_grad()
def embedded(case: Case, x_NC: Tensor) -> Tensor:
    """Embed the latent rows of a whole request at the first step.

    Args:
        case: The request with its media.
        x_NC: States of all latent rows, clean where they are conditions.

    Returns:
        (N, D) in the dtype of the weights.
    """
    rows, model = case.rows, case.parts.lance
    times = torch.where(rows.denoise[rows.is_latent], 1.0, 0.0)
    return model.inputs(model.layout(rows), conditions(case.packed)[0], x_NC, times)[1]
