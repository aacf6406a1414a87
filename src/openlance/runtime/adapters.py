"""What can be done with adapters beside using them: into weights, out of two checkpoints, several to one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from openlance.checkpoint.adapters import Stored, Update
from openlance.checkpoint.formats import Files, our_name, released_name
from openlance.checkpoint.writer import Stream
from openlance.errors import UserError
from openlance.model.lance import Lance
from openlance.model.lora import Adapter, merge, product
from openlance.runtime.conversion import FEW, Checkpoint, gather

EXACT = 1024  # of a matrix's shorter side: longer ones are decomposed by a random sketch, in a fraction of the time


def about(adapter: Adapter) -> dict[str, Any]:
    """Return what an adapter is, as plain data."""
    stored = adapter.stored
    ranks, alphas = ({f(u) for u in stored.updates.values()} for f in (lambda u: u.rank, lambda u: round(u.alpha, 6)))
    ends = sorted({name.rpartition(".")[2] for name in stored.updates})
    tensors = [t for u in stored.updates.values() for t in (u.a, u.b, u.shift) if t is not None]
    size = math.sqrt(sum(float(product(u).square().sum()) for u in stored.updates.values()))
    return {
        "form": stored.form, "base": stored.base, "rank": _one(ranks), "alpha": _one(alphas),
        "layers": len(stored.updates), "of": " ".join(ends),
        "parameters": sum(t.numel() for t in [*tensors, *stored.biases.values()]),
        "dtype": str(tensors[0].dtype).removeprefix("torch."), "biases": len(stored.biases) or "",
        "norm": float(f"{size:.4g}"),
    }  # fmt: skip


def _one(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else " ".join(map(str, sorted(values)))


def check_fit(adapter: Adapter, files: Files) -> None:
    """UserError unless an adapter has a place in a model, whose weights are not read."""
    merge(_skeleton(files), [replace(adapter, stored=_empty(adapter.stored))])


def _empty(stored: Stored) -> Stored:
    """The same without numbers."""

    def blank(t: Tensor | None) -> Any:
        return None if t is None else t.to("meta")

    updates = {n: replace(u, a=blank(u.a), b=blank(u.b), shift=blank(u.shift)) for n, u in stored.updates.items()}
    return replace(stored, updates=updates, biases={n: blank(t) for n, t in stored.biases.items()})


def joined(adapters: Sequence[Adapter], form: str) -> Stored:
    """Return one adapter that does what several do together: their matrices side by side, weights in B.

    UserError for trained biases of several, or of a part of one: these are no sums.
    """
    [first, *more] = adapters
    if not more and first.weight == 1:
        return replace(first.stored, form=form)
    biased = [adapter.origin for adapter in adapters if adapter.stored.biases]
    if biased:
        raise UserError(f"{biased[0]} has biases that were trained, which do not add up: convert it alone, or merge it")
    parts = dict[str, list[Update]]()
    for adapter in adapters:
        for name, u in adapter.stored.updates.items():
            scale = adapter.weight * u.scale
            shift = None if u.shift is None else scale * u.shift
            parts.setdefault(name, []).append(Update(a=u.a, b=scale * u.b, shift=shift))
    updates = dict[str, Update]()
    for name, some in parts.items():
        shifts = [u.shift for u in some if u.shift is not None]
        if len({(u.a.shape[1], len(u.b)) for u in some}) > 1:
            raise UserError(f"the adapters are of different models: {name} differs in size")
        updates[name] = Update(
            a=torch.cat([u.a for u in some]), b=torch.cat([u.b for u in some], dim=1),
            shift=torch.stack(shifts).sum(0) if shifts else None,
        )  # fmt: skip
    bases = {adapter.stored.base for adapter in adapters}
    return Stored(form=form, updates=updates, base=bases.pop() if len(bases) == 1 else "")


def merged(checkpoint: Checkpoint, adapters: Sequence[Adapter], files: Files) -> Checkpoint:
    """Return a checkpoint with adapters in its weights; tensors are made one by one as they are written.

    Raises:
        UserError: If an adapter does not fit, or gives a bias to a layer that has none, which a file has no place for.
    """
    for adapter in adapters:
        check_fit(adapter, files)
    tensors = {part: dict(streams) for part, streams in checkpoint.tensors.items()}
    additions = dict[str, list[tuple[Adapter, str]]]()
    for adapter in adapters:
        for name, u in adapter.stored.updates.items():
            additions.setdefault(f"{name}.weight", []).append((adapter, "weight"))
            if u.shift is not None:
                additions.setdefault(f"{name}.bias", []).append((adapter, "shift"))
        for name in adapter.stored.biases:
            additions.setdefault(f"{name}.bias", []).append((adapter, "bias"))
    for name, made in additions.items():
        released = released_name(name)
        if released not in tensors["decoder"]:
            origin = made[0][0].origin
            raise UserError(
                f"{origin} gives {name} to a layer without a bias, which files have no place for: use it as it is"
            )
        for part in ("decoder", FEW):
            if (stream := tensors.get(part, {}).get(released)) is not None:
                pieces = partial(_pieces, stream, name.rpartition(".")[0], made)
                tensors[part][released] = replace(stream, pieces=pieces)
    return replace(checkpoint, tensors=tensors)


def _pieces(stream: Stream, module: str, made: Sequence[tuple[Adapter, str]]) -> Iterator[Tensor]:
    start = torch.cat([piece.float() for piece in stream.pieces()]).reshape(stream.shape)
    total = start.clone()
    for adapter, what in made:
        u, w = adapter.stored.updates.get(module), adapter.weight
        if what == "bias":
            total += w * (adapter.stored.biases[module].float() - start)
        elif u is not None:
            total += w * (product(u) if what == "weight" else u.scale * u.shift.float())  # type: ignore[union-attr]
    yield total.reshape(-1).to(stream.dtype)


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """An adapter out of two checkpoints.

    Args:
        stored: What it holds.
        kept: Share of the squared difference of its matrices.
        left_out: Released names of tensors that differ and have no place in it.
    """

    stored: Stored
    kept: float
    left_out: list[str]


def extracted(tuned: Files, base: Files, rank: int, *, allow_pickle: bool = False) -> Extracted:
    """Return the difference of two checkpoints of one size as an adapter: the nearest of its rank to each matrix
    (Eckart and Young, 1936), and the biases that differ.

    Raises:
        UserError: If they differ in size, or in no matrix.
    """
    if tuned.config != base.config:
        raise UserError(
            f"{tuned.root} and {base.root} are of different sizes: name the model that the first was made from"
        )
    parts = [gather(f, allow_pickle=allow_pickle).tensors for f in (tuned, base)]
    ours, theirs = (tensors["decoder"] for tensors in parts)
    layers = {name for name, m in _skeleton(base).named_modules() if isinstance(m, torch.nn.Linear)}
    updates, biases, left_out = dict[str, Update](), dict[str, Tensor](), list[str]()
    whole = lost = 0.0
    for released, stream in ours.items():
        after, before = (torch.cat([p.float() for p in s.pieces()]) for s in (stream, theirs[released]))
        if torch.equal(after, before):
            continue
        module, _, leaf = (our_name(released) or "").rpartition(".")
        if module not in layers:
            left_out.append(released)
        elif leaf == "bias":
            biases[module] = after
        else:
            difference = (after - before).reshape(stream.shape)
            updates[module] = nearest(difference, rank)
            whole += float(difference.square().sum())
            lost += float((difference - product(updates[module])).square().sum())
    # What guidance was distilled into has the same adapters; the towers have none.
    for part in parts[0].keys() & parts[1].keys() - {"decoder", "distilled"}:
        tuned_part, base_part = (tensors[part] for tensors in parts)
        names = tuned_part.keys() & base_part.keys()
        left_out += [f"{part}: {name}" for name in names if _differ(tuned_part[name], base_part[name])]
    left_out.sort()
    if not updates:
        raise UserError(f"{tuned.root} and {base.root} differ in no matrix: there is nothing to extract")
    return Extracted(
        stored=Stored(form="peft", updates=updates, biases=biases, base=str(base.root)), kept=1 - lost / whole,
        left_out=left_out,
    )  # fmt: skip


def _differ(one: Stream, other: Stream) -> bool:
    return not torch.equal(*(torch.cat([p.flatten() for p in stream.pieces()]) for stream in (one, other)))


def _skeleton(files: Files) -> Lance:
    with torch.device("meta"):
        return Lance(files.config)


def nearest(difference: Tensor, rank: int) -> Update:
    """Return the update of a rank that is nearest to a matrix; large ones by a sketch (Halko et al., 2011)."""
    rank = min(rank, *difference.shape)
    if min(difference.shape) <= EXACT:
        u, s, vh = torch.linalg.svd(difference, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(difference, q=min(2 * rank + 8, *difference.shape), niter=4)
        vh = v.mT
    root = s[:rank].sqrt()
    return Update(a=root[:, None] * vh[:rank], b=u[:, :rank] * root)
