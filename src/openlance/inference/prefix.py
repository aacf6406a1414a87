"""Conditions that run once: documents with equal prefixes share one pass, and a store keeps prefixes between calls.

That is legal because a prefix never depends on what follows it (`sequence.segment.visible`). Two rows are the same if
their token, position, place in the sequence and, where they are visual, their whole image or video are; so seeds of
one prompt, the branches without a prompt of a batch, and the turns of a dialogue find what is there already. Outputs
are the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from openlance.model.lance import Cache, Lance, Layout, Streams
from openlance.sequence.pack import Pack
from openlance.sequence.segment import LATENTS, PATCHES, Rows


@dataclass
class Prefix:
    """Keys and values (L, A, E) per layer of the rows of one document; names: (L, k), see `names_of`."""

    names: np.ndarray
    layers: list[tuple[Tensor, Tensor]]


@dataclass
class PrefixStore:
    """Prefixes of earlier calls, the newest last.

    limit: rows that are kept; 0 keeps nothing. They belong to a decoder as it was when they ran: other weights,
    also changed ones, empty the store.
    """

    limit: int = 0
    prefixes: list[Prefix] = field(default_factory=list)
    weights: tuple = ()
    reused: int = 0  # rows that did not have to run

    def clear(self) -> None:
        self.prefixes.clear()

    def belongs_to(self, model: Lance) -> None:
        parameters = list(model.parameters())
        changes = sum(0 if p.is_inference() else p._version for p in parameters)
        weights = (id(model), len(parameters), changes, parameters[0].dtype)
        if weights != self.weights:
            self.prefixes.clear()
            self.weights = weights

    def find(self, names: np.ndarray, most: int) -> tuple[Prefix | None, int]:
        """The stored prefix that shares the most leading rows, at most `most`, and how many."""
        found: tuple[Prefix | None, int] = None, 0
        for prefix in self.prefixes:
            n = _shared(names, prefix.names, most)
            if n > found[1]:
                found = prefix, n
        return found

    def add(self, prefix: Prefix) -> None:
        # One that begins another is of no more use than that other.
        self.prefixes = [p for p in self.prefixes if _equal_rows(p.names, prefix.names) < len(p.names)]
        self.prefixes.append(prefix)
        while self.prefixes and sum(len(p.names) for p in self.prefixes) > max(self.limit, len(prefix.names)):
            self.prefixes.pop(0)


def names_of(packed: Pack, at: Tensor, features: Tensor | None, context: Tensor) -> np.ndarray:
    """Give (len(at), k): what makes each of the rows `at` what it is, but for the document it stands in."""
    rows, content = packed.rows, torch.zeros(len(packed.rows), dtype=torch.long)
    wanted, taken, source = set(at.tolist()), {PATCHES: 0, LATENTS: 0}, {PATCHES: features, LATENTS: context}
    for v in packed.visuals:
        first, last = v.rows
        if first not in wanted or (v.kind == LATENTS and bool(rows.noisy[first])):
            continue
        values = source[v.kind]
        assert values is not None
        own = values[taken[v.kind] : taken[v.kind] + last - first].detach().float().cpu().numpy()
        digest = hashlib.blake2b(own.tobytes() + str(own.shape).encode(), digest_size=7).digest()
        content[first:last] = int.from_bytes(digest, "little")
        taken[v.kind] += last - first
    doc = rows.doc[at]
    start = torch.cat([torch.tensor([True]), doc[1:] != doc[:-1]])
    first_segment = rows.segment[at][start][start.cumsum(0) - 1]
    columns = [rows.token[at], *rows.position[at].T, rows.kind[at], rows.full[at].long(), rows.cell[at]]
    columns += [rows.segment[at] - first_segment, content[at]]
    return torch.stack(columns, dim=1).numpy()


SEGMENT, FULL = -2, 5  # columns of the names


def _equal_rows(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero((a[:n] != b[:n]).any(axis=1))
    return int(different[0]) if len(different) else n


def _shared(names: np.ndarray, other: np.ndarray, most: int) -> int:
    """Leading rows that are equal, without cutting a block whose rows see each other."""
    n = min(_equal_rows(names, other), most)
    while 0 < n < len(names) and names[n, FULL] and names[n, SEGMENT] == names[n - 1, SEGMENT]:
        n -= 1
    return n


@dataclass
class Prefill:
    """What a prefix left: the cache of all documents, and the final rows of those that ran, with their layout."""

    cache: Cache
    layout: Layout | None = None
    hidden: Streams | None = None
    ran: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # row numbers of the pack


def prefill(
    model: Lance, packed: Pack, at: Tensor, media: tuple[Tensor | None, Tensor], store: PrefixStore | None = None,
    ends: bool = False,
) -> Prefill:  # fmt: skip
    """Run the rows `at` (whole prefixes, in rising order) and cache them.

    Args:
        model: The decoder.
        packed: All documents.
        at: Row numbers.
        media: Features (n, D) of their ViT rows and clean latents (N, C), in row order.
        store: Of prefixes that ran earlier.
        ends: Whether each document's last row runs in any case, because its hidden state is wanted.
    """
    rows, store = packed.rows, store if store is not None and store.limit else None
    names = names_of(packed, at, *media)
    counts = torch.unique_consecutive(rows.doc[at], return_counts=True)[1]
    parts = torch.arange(len(at)).split(counts.tolist())
    # Documents that are equal to an earlier one, by the number of that one.
    seen: dict[bytes, int] = {}
    same = [n if ends else seen.setdefault(names[p].tobytes(), n) for n, p in enumerate(parts)]
    if store is not None:
        store.belongs_to(model)
    cache, run = Cache(), list[Tensor]()
    for n, part in enumerate(parts):
        if same[n] != n:
            continue
        found, count = (None, 0) if store is None else store.find(names[part], len(part) - ends)
        if found is not None and store is not None:
            cache.extend(rows.at(at[part[:count]]), [(k[:count], v[:count]) for k, v in found.layers])
            store.reused += count
        run.append(part[count:])
    chosen = torch.cat(run) if run else torch.zeros(0, dtype=torch.long)
    done = _run(model, rows, at, chosen, media, cache) if len(chosen) else Prefill(cache)
    if store is not None:
        for n, part in enumerate(parts):
            if same[n] == n:
                where = _find(cache.rows, rows.at(at[part]))
                store.add(Prefix(names[part], [(k[where], v[where]) for k, v in cache.layers]))
    if any(first != n for n, first in enumerate(same)):
        # Every document gets its own rows, with the keys and values of the one that it equals.
        where = torch.cat([_find(cache.rows, rows.at(at[parts[first]])) for first in same])
        cache.rows = rows.at(at)
        cache.layers = [(k[where.to(k.device)], v[where.to(v.device)]) for k, v in cache.layers]
    return done


def _run(
    model: Lance, rows: Rows, at: Tensor, chosen: Tensor, media: tuple[Tensor | None, Tensor], cache: Cache
) -> Prefill:
    """One pass over the chosen ones of the rows `at`."""
    features, context = media
    some = rows.at(at[chosen])
    latent, patch = (_rank(column[at])[chosen] for column in (rows.is_latent, rows.is_patch))
    latents = context[latent[latent >= 0]] if bool(some.is_latent.any()) else None
    times = torch.zeros(len(latents)) if latents is not None else None
    patches = features[patch[patch >= 0]] if features is not None and bool(some.is_patch.any()) else None
    layout = model.layout(some, cache if cache.rows is not None else None)
    hidden = model(layout, patches=patches, latents=latents, times=times, cache=cache, keep=True)
    return Prefill(cache, layout, hidden, at[chosen])


def _rank(marked: Tensor) -> Tensor:
    """The number of each marked row among the marked ones, -1 elsewhere."""
    return torch.where(marked, marked.long().cumsum(0) - 1, -1)


def _find(held: Rows | None, wanted: Rows) -> Tensor:
    """Where the rows of one document stand in a cache."""
    assert held is not None
    mine = (held.doc == wanted.doc[0]).nonzero()[:, 0]
    return mine[held.index[mine].argsort()]
