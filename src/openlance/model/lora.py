"""Low-rank adapters of the decoder; `checkpoint.adapters` has their files.

    inject(lance, Lora(rank=16))                 # training: every chosen linear layer gets A and B, the rest is frozen
    write_adapter(folder, trained(lance), base)
    read_adapter(folder).merge(lance)            # generation: W + scale * B A, at no cost in speed
    merge(lance, [read_adapter("a", 0.8), read_adapter("b")])

PEFT reads these folders too: `PeftModel.from_pretrained(lance, folder)`; and `merge` reads what PEFT writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.adapters import Stored, Update, read_stored, write_stored
from openlance.config.lora import TARGETS, Lora
from openlance.config.values import number, path_of
from openlance.errors import UserError
from openlance.model.lance import Lance


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank update beside its own weight, which keeps its name."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float
    dropout: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.scale:
            return super().forward(x)
        # The mask comes from torch's own generator, which a run seeds for each pack.
        kept = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return super().forward(x) + self.scale * F.linear(F.linear(kept, self.lora_A), self.lora_B)


def inject(
    lance: Lance, lora: Lora, seed: int = 0, start: Mapping[str, Update] | None = None,
    learns: Callable[[str], bool] = lambda name: True,
) -> None:  # fmt: skip
    """Freeze a decoder and give its chosen layers an update.

    Args:
        lance: The decoder, which is changed.
        lora: What is chosen.
        seed: Of A; B begins at zero.
        start: The updates to go on from instead, by module.
        learns: Whether a layer of this name learns; those that never do get no update, but for those that `start` has.

    Raises:
        UserError: If the pattern fits no layer, or chooses others than those of the start.
    """
    generator = torch.Generator().manual_seed(seed)
    lance.requires_grad_(False)
    named = {n: m for n, m in lance.named_modules() if isinstance(m, nn.Linear)}
    chosen = {n: m for n, m in named.items() if re.fullmatch(lora.pattern, n) and (start is not None or learns(n))}
    if not chosen:
        raise UserError(
            f"no layer is called {lora.targets!r}: use for example targets='q,v', or a pattern like {TARGETS!r}"
        )
    if start is not None and start.keys() != chosen.keys():
        other = sorted(start.keys() ^ chosen.keys())
        raise UserError(
            f"the adapter to go on from has other layers than targets={lora.targets!r} chooses ({other[0]})"
        )
    for name, module in chosen.items():
        a = torch.empty(lora.rank, module.in_features, dtype=torch.float32)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)  # as PEFT
        b = torch.zeros(module.out_features, lora.rank)
        if start is not None:
            if (start[name].a.shape, start[name].b.shape) != (a.shape, b.shape):
                raise UserError(
                    f"the adapter to go on from does not fit at {name}: use it with the model it was made for"
                )
            a, b = start[name].a.float(), start[name].b.float()
        module.__class__ = LoraLinear
        module.lora_A, module.lora_B = (nn.Parameter(t.to(module.weight.device)) for t in (a, b))
        module.scale, module.dropout = lora.scale, lora.dropout  # type: ignore[assignment]


def below_adapters(name: str) -> torch.dtype:
    """Return what a weight of a decoder is kept in below adapters that learn under autocast: matrices of the layers and
    of the head in bfloat16. They are rounded to that before each product anyway, so results stay the same."""
    return torch.bfloat16 if re.fullmatch(rf"({TARGETS}|head)\.weight", name) else torch.float32


@contextmanager
def without_updates(lance: Lance) -> Iterator[None]:
    """Let a decoder be what it is without the updates of `inject`, for a while."""
    layers = [module for module in lance.modules() if isinstance(module, LoraLinear)]
    scales = [layer.scale for layer in layers]
    try:
        for layer in layers:
            layer.scale = 0.0
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale


def trained(values: Mapping[str, Tensor], lora: Lora) -> dict[str, Update]:
    """Return the updates among the parameters of a decoder, by module."""
    names = [name.removesuffix(".lora_A") for name in values if name.endswith(".lora_A")]
    return {n: Update(a=values[f"{n}.lora_A"], b=values[f"{n}.lora_B"], scale=lora.scale) for n in names}


@dataclass(frozen=True)
class Adapter:
    """An adapter in use: what it holds, where it comes from, and how much of it is taken."""

    origin: str
    stored: Stored
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Of its folder, with its strength."""
        return f"{Path(self.origin).absolute().name}:{self.weight:g}"

    def merge(self, lance: Lance) -> None:
        """Add it to a decoder, see `merge`."""
        merge(lance, [self])

    def lora(self) -> Lora:
        """Return what it was trained as. UserError if its layers differ, or it is more than matrices."""
        kinds = {(u.rank, u.alpha) for u in self.stored.updates.values()}
        if len(kinds) > 1 or self.stored.biases or any(u.shift is not None for u in self.stored.updates.values()):
            said = "has biases, or layers of different rank or alpha"
            raise UserError(
                f"{self.origin} {said}, which cannot be gone on from: merge it into the model and train anew"
            )
        [(rank, alpha)] = kinds
        names = "|".join(sorted(map(re.escape, self.stored.updates)))
        return Lora(rank=rank, alpha=alpha, targets=self.stored.targets or names)


@torch.no_grad()
def merge(
    lance: Lance, adapters: Sequence[Adapter], chosen: Callable[[str], bool] = lambda name: True
) -> None:  # fmt: skip
    """Add adapters to a decoder; those of a stream that it was built without are left out.

    Updates add up, each by its weight. A bias that was trained goes its weight's share of the way to where training
    brought it; an update with a bias gives one to a layer that has none.

    Args:
        lance: The decoder, which is changed.
        adapters: In any order.
        chosen: Whether a layer of this name is changed; all are.

    Raises:
        UserError: If it has no such layer.
    """
    modules: dict[str, Any] = dict(lance.named_modules())
    begun = dict[str, Tensor]()
    for adapter in adapters:
        for name in (*adapter.stored.updates, *adapter.stored.biases):
            if (".gen." in name and "gen" not in lance.norm) or not chosen(name):
                continue
            module: Any = modules.get(name)
            if hasattr(module, "scale"):
                raise UserError(f"{name} is quantized, so {adapter.origin} cannot be added: add it before quantizing")
            update, bias = adapter.stored.updates.get(name), adapter.stored.biases.get(name)
            fits = isinstance(module, nn.Linear)
            fits = fits and (update is None or module.weight.shape == (len(update.b), update.a.shape[1]))
            fits = fits and (bias is None or (module.bias is not None and module.bias.shape == bias.shape))
            if not fits:
                raise UserError(f"{adapter.origin} does not fit at {name}: use it with the model it was made for")
            begun.setdefault(name, torch.zeros(()) if module.bias is None else module.bias.float().clone())
        for name, update in adapter.stored.updates.items():
            if name in begun:
                layer = modules[name]
                _add(layer.weight, adapter.weight * product(update))
                if update.shift is not None:
                    if layer.bias is None:
                        layer.bias = nn.Parameter(layer.weight.new_zeros(len(update.b)), requires_grad=False)
                    _add(layer.bias, adapter.weight * update.scale * update.shift.float())
        for name, bias in adapter.stored.biases.items():
            if name in begun:
                _add(modules[name].bias, adapter.weight * (bias.float().to(begun[name].device) - begun[name]))


def product(update: Update) -> Tensor:
    """Return (out, in) float32, what an update adds to its matrix."""
    return update.scale * (update.b.float() @ update.a.float())


def _add(place: Tensor, what: Tensor) -> None:
    place.copy_((place.float() + what.to(place.device)).to(place.dtype))


def write_adapter(folder: str | Path, updates: Mapping[str, Update], lora: Lora, base: str = "") -> None:
    """Write an adapter in PEFT's form; base: the model that it belongs to."""
    stored = Stored(form="peft", updates=updates, base=base, targets=lora.pattern)
    write_stored(folder, stored, dropout=lora.dropout)


def read_adapter(path: str | Path, weight: float = 1.0) -> Adapter:
    """Read an adapter of ours, of PEFT, kohya, ComfyUI or diffusers.

    Args:
        path: A folder or a file.
        weight: How much of it.

    Raises:
        UserError: If it is none, or of a kind that is more than an addition of low rank.
    """
    path, weight = path_of("the adapter", path), number("weight", weight)
    return Adapter(str(path), read_stored(path), weight)
