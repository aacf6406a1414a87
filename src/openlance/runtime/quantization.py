"""Weights in eight or four bits, for models that are larger than their device.

    pipe.quantise("int8")                                                     # in memory, from now on
    openlance convert downloads/Lance_3B lance-int4 --quantize int4           # on disk, loads as any other folder

Rows of a matrix, or runs of GROUP numbers of a row, are stored as levels with a scale, their largest absolute value
over the largest level; the product runs in the dtype of the activations. Only the matrices of the experts are stored
so: what reads or writes latents, times and tokens has few numbers, and every error there is seen at once. Never on by
itself; `benchmarks/quality.py` has a row for each recipe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.names import our_name
from openlance.checkpoint.tensors import TensorSource
from openlance.checkpoint.writer import Stream
from openlance.config.values import brief
from openlance.errors import UserError
from openlance.model.lance import Lance
from openlance.runtime.lora import TARGETS

MATRIX = re.compile(TARGETS)
GROUP = 64  # numbers of a row that share a scale in four bits; a row that is no multiple is one group


@dataclass(frozen=True)
class Kind:
    """How levels are stored; `dtype` tells kinds apart in a file."""

    dtype: torch.dtype
    largest: int

    @property
    def packed(self) -> bool:
        """Whether a byte holds two levels."""
        return self.dtype == torch.uint8

    def groups(self, columns: int) -> int:
        return columns // GROUP if self.packed and columns % GROUP == 0 else 1


KINDS = {
    "int8": Kind(torch.int8, 127),
    "fp8": Kind(torch.float8_e4m3fn, 448),
    "int4": Kind(torch.uint8, 7),
}
KIND_OF = {kind.dtype: kind for kind in KINDS.values()}
# Kinds of the two experts: four bits are for reading and answering; velocities are summed over many steps.
RECIPES = {
    "int8": {"und": "int8", "gen": "int8"},
    "fp8": {"und": "fp8", "gen": "fp8"},
    "int4": {"und": "int4", "gen": "int8"},
}


def recipe(name: str) -> dict[str, Kind]:
    """Kinds by stream. UserError for an unknown name."""
    if not isinstance(name, str) or name not in RECIPES:
        raise UserError(f"weights cannot be stored as {brief(name)}: use one of {', '.join(RECIPES)}")
    return {stream: KINDS[kind] for stream, kind in RECIPES[name].items()}


def to_levels(weight_OI: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """(stored levels (O, I), or (O, I / 2) in pairs; scales (O, groups) in the dtype of the weight)."""
    grouped = weight_OI.detach().float().unflatten(1, (kind.groups(weight_OI.shape[1]), -1))
    scale = (grouped.abs().amax(-1) / kind.largest).to(weight_OI.dtype).clamp(min=torch.finfo(weight_OI.dtype).tiny)
    levels = (grouped / scale.float()[:, :, None]).flatten(1)
    if kind.dtype.is_floating_point:
        return levels.clamp(-kind.largest, kind.largest).to(kind.dtype), scale
    levels = levels.round().clamp(-kind.largest, kind.largest)
    if not kind.packed:
        return levels.to(kind.dtype), scale
    low, high = (levels + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
    return low | high << 4, scale


def from_levels(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, I) levels as numbers, without their scales."""
    if not KIND_OF[stored.dtype].packed:
        return stored.to(dtype)
    return torch.stack([stored & 15, stored >> 4], dim=-1).flatten(1).to(dtype) - 8


class QuantLinear(nn.Module):
    """A linear layer of levels and scales. Parameters, so that they travel with the layer to wherever it is put."""

    def __init__(self, stored: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        levels, scale = from_levels(self.weight, x.dtype), self.scale.to(x.dtype)
        if scale.shape[1] > 1 or x.dtype == torch.float16:  # which sums of unscaled levels overflow
            y = F.linear(x, (levels.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]).flatten(1))
        else:
            y = F.linear(x, levels) * scale[:, 0]
        return y if self.bias is None else y + self.bias

    @property
    def in_features(self) -> int:
        return self.weight.shape[1] * (2 if KIND_OF[self.weight.dtype].packed else 1)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


def _matrices(lance: Lance) -> Iterator[tuple[str, str, nn.Linear]]:
    """(name, stream, layer) of all that is stored in few bits."""
    for name, module in list(lance.named_modules()):
        match = MATRIX.fullmatch(name)
        if match and type(module) is nn.Linear:
            yield name, match[1], module


def _put(lance: Lance, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(lance.get_submodule(parent), own, module)


def quantise(lance: Lance, name: str = "int8") -> int:
    """Store the matrices of a decoder's experts by a recipe; returns the bytes that this saved. UserError if they are
    stored by another one already."""
    kinds, saved = recipe(name), 0
    for path, module in lance.named_modules():
        match = MATRIX.fullmatch(path)
        if match and isinstance(module, QuantLinear) and module.weight.dtype != kinds[match[1]].dtype:
            raise UserError(
                f"the model holds {path} quantized already, which is final: to have {name}, load the folder that "
                f"it came from"
            )
    for path, stream, linear in _matrices(lance):
        made = QuantLinear(*to_levels(linear.weight, kinds[stream]), linear.bias)
        saved += _bytes(linear) - _bytes(made)
        _put(lance, path, made)
    return saved


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


# On disk: `NAME.weight` holds levels, `NAME.scale` beside it the scales.


def _place(released: str) -> tuple[str, str]:
    """Our name of the layer that a tensor belongs to, and what it is in there."""
    layer, _, leaf = (our_name(released) or "").rpartition(".")
    return layer, leaf


def kinds_of(source: TensorSource) -> dict[str, Kind]:
    """Kind by our layer name of all matrices that a file holds in few bits. UserError for an unknown kind."""
    found = {}
    for name in source.shapes:
        ours, leaf = _place(name)
        if leaf == "scale" and MATRIX.fullmatch(ours):
            weight = f"{name.removesuffix('scale')}weight"
            if weight not in source.shapes:
                raise UserError(f"{source.origin} holds {name} without {weight}: it is damaged, convert it again")
            dtype = source.read(weight).dtype
            if dtype not in KIND_OF:
                raise UserError(f"{source.origin} holds scales of {dtype} weights: use files of `openlance convert`")
            found[ours] = KIND_OF[dtype]
    return found


def shapes_of(kind: Kind, weight: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of levels and scales for a matrix (O, I)."""
    rows, columns = weight
    return (rows, columns // 2 if kind.packed else columns), (rows, kind.groups(columns))


def stored_shapes(source: TensorSource, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What a decoder's file should hold, by released name, where `wanted` is what it would hold in full: levels and
    scales where the file has them."""
    kinds, found = kinds_of(source), dict(wanted)
    for name, shape in wanted.items():
        ours, leaf = _place(name)
        if leaf == "weight" and ours in kinds:
            found[name], found[f"{name.removesuffix('weight')}scale"] = shapes_of(kinds[ours], shape)
    return found


def receive(lance: Lance, source: TensorSource) -> None:
    """Give an empty decoder the layers that a file in few bits fills; without effect for any other file."""
    kinds = kinds_of(source)
    for path, _, linear in _matrices(lance):
        if path in kinds:
            levels, scales = shapes_of(kinds[path], tuple(linear.weight.shape))
            stored = torch.empty(levels, dtype=kinds[path].dtype, device="meta")
            _put(lance, path, QuantLinear(stored, torch.empty(scales, device="meta"), linear.bias))


def bytes_per_number(source: TensorSource) -> dict[str, float]:
    """How many bytes a number of each expert takes, of those experts that a file holds in few bits."""
    return {path.split(".")[2]: 0.5 if kind.packed else 1.0 for path, kind in kinds_of(source).items()}


def in_few_bits(tensors: Mapping[str, Stream], name: str) -> dict[str, Stream]:
    """The tensors of a decoder, by released name, with their matrices stored by a recipe."""
    kinds, found = recipe(name), dict[str, Stream]()
    for released, tensor in tensors.items():
        ours, leaf = _place(released)
        match = MATRIX.fullmatch(ours)
        if leaf != "weight" or not match:
            found[released] = tensor
            continue
        kind = kinds[match[1]]
        levels, scales = shapes_of(kind, tensor.shape)
        found[released] = Stream(levels, kind.dtype, _part(tensor, kind, 0))
        found[f"{released.removesuffix('weight')}scale"] = Stream(scales, tensor.dtype, _part(tensor, kind, 1))
    return found


def _part(tensor: Stream, kind: Kind, which: int) -> Callable[[], Iterator[Tensor]]:
    """Levels or scales of a matrix, which is read as a whole."""

    def pieces() -> Iterator[Tensor]:
        weight = torch.cat([piece.flatten() for piece in tensor.pieces()]).view(tensor.shape)
        yield to_levels(weight, kind)[which].flatten()

    return pieces
