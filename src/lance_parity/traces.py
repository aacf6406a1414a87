"""What passes through the decoder and the tower: rotary tables, first queries and keys, hidden rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lance_parity.layout import where
from openlance.inference.visual import conditions
from openlance.model.lance import Cache, Lance, Layer
from openlance.sequence.pack import Pack
from openlance.sequence.segment import Rows

Named = dict[str, Tensor]


@contextmanager
def passing(*modules: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """Collect what modules take and what they give, call by call."""
    calls = list[tuple[Any, Any]]()
    hooks = [module.register_forward_hook(lambda _module, *call: calls.append(call)) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def trace(model: Lance, packed: Pack, prefix: int, state: Tensor) -> tuple[Named, Named]:
    """Run a prefix, and the split of its image or video target on top of it.

    Args:
        model: The decoder.
        packed: One request.
        prefix: How many of its rows come first.
        state: (N, C) of the target's latent rows at the first step; there is none for an answer.

    Returns:
        By the names of the golden format what the attention of the first layer is given, of the prefix in sequence
        order and then of the target's split; and the rows of the prefix after the first and after the last layer.
    """
    rows, cache = packed.rows, Cache()
    patches, clean = conditions(packed)
    before = rows.at(torch.arange(prefix))
    attention, hidden = _run(model, before, cache, patches, clean)
    if bool(rows.noisy.any()):
        target = _run(model, rows.at(where(rows.noisy)), cache, None, state)[0]
        attention = {name: torch.cat([y, target[name]]) for name, y in attention.items()}
    return attention, hidden


def _run(model: Lance, rows: Rows, cache: Cache, patches: Tensor | None, latents: Tensor) -> tuple[Named, Named]:
    """In row order: queries and keys with their tables, and hidden rows; the cache grows by what is no target."""
    laid, times = model.layout(rows, cache if cache.rows is not None else None), rows.denoise[rows.is_latent].float()
    layer, half, known = model.layers[0], model.config.head_dim // 2, not bool(rows.noisy.any())
    assert isinstance(layer, Layer)
    with passing(layer, model.layers[-1]) as calls:
        model(laid, patches=patches, latents=latents, times=times, cache=cache, keep=known)
    ((x, rotary, *_), (first, _)), (_, (last, _)) = calls
    q, k, _ = layer.project(x, rotary)
    (und_cos, und_sin, _), (gen_cos, gen_sin, _) = rotary
    cos, sin = (torch.cat(pair)[:, :half] for pair in ((und_cos, gen_cos), (und_sin, gen_sin)))
    made = {"layer0.q": q, "layer0.k": k, "rope.cos": cos, "rope.sin": sin}
    attention = {name: torch.empty_like(y).index_copy(0, laid.order, y) for name, y in made.items()}
    hidden = {"prefix.hidden_layer0": model.restore(laid, first), "prefix.hidden_last": model.restore(laid, last)}
    return attention, hidden
