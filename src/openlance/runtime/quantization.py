"""Quantized weights, for models that are larger than their device.

    pipe.quantize("int8")                                  # in memory, from now on
    write(out, gather(find(folder), quantize="int4"))      # on disk (`runtime.conversion`), loads as any other folder

Rows of a matrix, or runs of GROUP parameters of a row, are stored as codes with a scale, their largest absolute value
over the largest code; the product runs in the dtype of the activations. Only the matrices of the experts are stored so:
what reads or writes latents, times and tokens has few parameters, and every error there is seen at once. Never on by
itself; `benchmarks/quality.py` has a row for each recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.formats import our_name
from openlance.checkpoint.tensors import TensorSource
from openlance.checkpoint.writer import Stream
from openlance.config.lora import TARGETS
from openlance.config.values import brief
from openlance.errors import UserError
from openlance.model.lance import Lance

MATRIX = re.compile(TARGETS)
GROUP = 64  # parameters of a row that share a scale in four bits; a row that is no multiple is one group


@dataclass(frozen=True)
class Kind:
    """How codes are stored; `dtype` tells kinds apart in a file."""

    dtype: torch.dtype
    largest: int

    @property
    def packed(self) -> bool:
        """Whether a byte holds two codes."""
        return self.dtype == torch.uint8

    def groups(self, columns: int) -> int:
        return columns // GROUP if self.packed and columns % GROUP == 0 else 1


KINDS = {"int8": Kind(torch.int8, 127), "fp8": Kind(torch.float8_e4m3fn, 448), "int4": Kind(torch.uint8, 7)}
KIND_OF = {kind.dtype: kind for kind in KINDS.values()}
# Kinds of the two experts: four bits are for reading and answering; velocities are summed over many steps.
RECIPES = {"int8": ("int8", "int8"), "fp8": ("fp8", "fp8"), "int4": ("int4", "int8")}


def recipe(name: str) -> dict[str, Kind]:
    """Give the kind by stream. UserError for an unknown name."""
    if not isinstance(name, str) or name not in RECIPES:
        raise UserError(f"weights cannot be stored as {brief(name)}: use one of {', '.join(RECIPES)}")
    return {stream: KINDS[kind] for stream, kind in zip(("und", "gen"), RECIPES[name], strict=True)}


def to_codes(weight_OI: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Quantize a matrix.

    Returns:
        Codes (O, I), or (O, I / 2) in pairs; scales (O, groups) in the dtype of the weight.
    """
    grouped = weight_OI.detach().float().unflatten(1, (kind.groups(weight_OI.shape[1]), -1))
    scale = (grouped.abs().amax(-1) / kind.largest).to(weight_OI.dtype).clamp(min=torch.finfo(weight_OI.dtype).tiny)
    codes = (grouped / scale.float()[:, :, None]).flatten(1)
    if kind.dtype.is_floating_point:
        return codes.clamp(-kind.largest, kind.largest).to(kind.dtype), scale
    codes = codes.round().clamp(-kind.largest, kind.largest)
    if not kind.packed:
        return codes.to(kind.dtype), scale
    low, high = (codes + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
    return low | high << 4, scale


def from_codes(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Give codes (O, I) in a dtype to compute in, without their scales."""
    if not KIND_OF[stored.dtype].packed:
        return stored.to(dtype)
    return torch.stack([stored & 15, stored >> 4], dim=-1).flatten(1).to(dtype) - 8


class QuantLinear(nn.Module):
    """A linear layer of codes and scales. Parameters, so that they travel with the layer to wherever it is put."""

    def __init__(self, stored: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = from_codes(self.weight, x.dtype), self.scale.to(x.dtype)
        if scale.shape[1] > 1 or x.dtype == torch.float16:  # which sums of unscaled codes overflow
            y = F.linear(x, (codes.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]).flatten(1))
        else:
            y = F.linear(x, codes) * scale[:, 0]
        return y if self.bias is None else y + self.bias


def _matrices(lance: Lance) -> Iterator[tuple[str, str, nn.Module]]:
    """(name, stream, layer) of all that may be quantized."""
    for name, module in list(lance.named_modules()):
        if match := MATRIX.fullmatch(name):
            yield name, match[1], module


def quantize(lance: Lance, name: str = "int8") -> int:
    """Quantize the matrices of a decoder's experts.

    Args:
        lance: The decoder, which is changed.
        name: One of `RECIPES`.

    Returns:
        The bytes that this saved.

    Raises:
        UserError: If the recipe is unknown, or the matrices are quantized by another one already.
    """
    kinds, saved = recipe(name), 0
    for path, stream, module in _matrices(lance):
        if isinstance(module, QuantLinear) and module.weight.dtype != kinds[stream].dtype:
            raise UserError(f"{path} is quantized already, which is final: to have {name}, load the unquantized folder")
    for path, stream, module in _matrices(lance):
        if type(module) is nn.Linear:
            made = QuantLinear(*to_codes(module.weight, kinds[stream]), module.bias)
            saved += _bytes(module) - _bytes(made)
            lance.set_submodule(path, made)
    return saved


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


# On disk: `NAME.weight` holds codes, `NAME.scale` beside it the scales.


def _place(released: str) -> tuple[str, str]:
    """Our name of the layer that a tensor belongs to, and what it is in there."""
    layer, _, leaf = (our_name(released) or "").rpartition(".")
    return layer, leaf


def kinds_of(source: TensorSource) -> dict[str, Kind]:
    """Give the kind by our layer name of all matrices that a file holds quantized. UserError for an unknown kind."""
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
    """Give the shapes of codes and scales for a matrix (O, I)."""
    rows, columns = weight
    return (rows, columns // 2 if kind.packed else columns), (rows, kind.groups(columns))


def stored_shapes(source: TensorSource, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Give what a decoder's file should hold, by released name, where `wanted` is what it would hold unquantized: codes
    and scales where the file has them."""
    kinds, found = kinds_of(source), dict(wanted)
    for name, shape in wanted.items():
        ours, leaf = _place(name)
        if leaf == "weight" and ours in kinds:
            found[name], found[f"{name.removesuffix('weight')}scale"] = shapes_of(kinds[ours], shape)
    return found


def receive(lance: Lance, source: TensorSource) -> None:
    """Give an empty decoder the layers that a quantized file fills; without effect for any other file."""
    kinds = kinds_of(source)
    for path, _, linear in _matrices(lance):
        if path in kinds and isinstance(linear, nn.Linear):
            codes, scales = shapes_of(kinds[path], tuple(linear.weight.shape))
            stored = torch.empty(codes, dtype=kinds[path].dtype, device="meta")
            lance.set_submodule(path, QuantLinear(stored, torch.empty(scales, device="meta"), linear.bias))


def bytes_per_parameter(source: TensorSource) -> dict[str, float]:
    """Give the bytes of a parameter of each expert that a file holds quantized."""
    return {path.split(".")[2]: 0.5 if kind.packed else 1.0 for path, kind in kinds_of(source).items()}


def quantized(tensors: Mapping[str, Stream], name: str) -> dict[str, Stream]:
    """Quantize the matrices among the tensors of a decoder, by released name, as they are written.

    Args:
        tensors: By released name.
        name: One of `RECIPES`.
    """
    kinds, found = recipe(name), dict[str, Stream]()
    for released, tensor in tensors.items():
        ours, leaf = _place(released)
        match = MATRIX.fullmatch(ours)
        if leaf != "weight" or not match:
            found[released] = tensor
            continue
        kind = kinds[match[1]]
        codes, scales = shapes_of(kind, tensor.shape)
        found[released] = Stream(codes, kind.dtype, partial(_pieces, tensor, kind, 0))
        beside = f"{released.removesuffix('weight')}scale"
        found[beside] = Stream(scales, tensor.dtype, partial(_pieces, tensor, kind, 1))
    return found


def _pieces(tensor: Stream, kind: Kind, which: int) -> Iterator[Tensor]:
    """Codes or scales of a matrix, which is read as a whole."""
    weight = torch.cat([piece.flatten() for piece in tensor.pieces()]).view(tensor.shape)
    yield to_codes(weight, kind)[which].flatten()
