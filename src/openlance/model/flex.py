"""The mask rule through FlexAttention: what a large pack runs on CUDA (`attention.plan_attention` chooses).

Whole blocks that nobody may look at are skipped, so a pack of many documents costs about what its documents cost.
The block mask is read from the rows some blocks at a time; no (L, L) mask of the pack is ever built.

Axes: L rows, A heads, E head width, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from openlance.sequence.segment import Place, visible

BLOCK = 128  # rows per side of a block: torch's default, and what its kernels are tuned for
AT_ONCE = 16  # query blocks compared with all keys in one go


def mask_mod(query: Place, key: Place) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`visible` as FlexAttention wants it: row numbers in, booleans out."""

    def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(at(query, q), at(key, k))

    return allowed


def at(rows: Place, i: Tensor) -> Place:
    """Only the columns of the rule: compiled or not, a gather of the others would be wasted."""
    return Place(rows.index[i], rows.doc[i], rows.segment[i], rows.full[i], rows.noisy[i])


def block_mask(query: Place, key: Place) -> BlockMask:
    """The rule between queries and keys, in any order (`Lance.layout` sorts by stream), on the rows' device."""
    some, every = _blocks(query, key)
    lengths = len(query.index), len(key.index)
    listed = (*_listed(some & ~every), *_listed(every))
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=BLOCK, mask_mod=mask_mod(query, key), seq_lengths=lengths)


def _blocks(query: Place, key: Place) -> tuple[Tensor, Tensor]:
    """(B, B) booleans each: does a block of queries see something of a block of keys, and does it see all of it?

    A last block that is not full sees nothing of what it lacks, so that it never counts as seen in full."""
    some, every = list[Tensor](), list[Tensor]()
    numbers, every_key = (torch.arange(len(rows.index), device=rows.index.device) for rows in (query, key))
    for rows in numbers.split(BLOCK * AT_ONCE):
        seen = visible(at(query, rows[:, None]), at(key, every_key[None]))
        seen = F.pad(seen, (0, -len(key.index) % BLOCK, 0, -len(rows) % BLOCK))
        seen = seen.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
        some.append(seen.any(3).any(1))
        every.append(seen.all(3).all(1))
    return torch.cat(some), torch.cat(every)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, and their numbers, those first: (1, 1, B) and (1, 1, B, B)."""
    first = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], first.to(torch.int32)[None, None]


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., Tensor]:
    """Compiled on CUDA: uncompiled, FlexAttention would hold all scores at once."""
    return torch.compile(flex_attention, dynamic=True)


def attend_blocks(q_LAE: Tensor, k_LAE: Tensor, v_LAE: Tensor, mask: BlockMask) -> Tensor:
    """Attention of all queries, as `attention.attend`. On the CPU it has no backward and serves as a cross-check."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_LAE, k_LAE, v_LAE))
    run: Any = _kernel() if q.device.type == "cuda" else flex_attention
    return run(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])[0].transpose(0, 1)
