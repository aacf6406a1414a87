"""Weights in eight bits: half the memory of bfloat16, for models that are larger than their device.

Each row of a matrix is stored as int8 with one scale, its largest absolute value / 127; the product runs in the dtype
of the activations. Only the matrices of the experts are stored so. What reads or writes latents, times and tokens stays
as it is: few numbers, and every error there is seen at once. It is never on by itself; `benchmarks/quality.py` has its
row.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.model.lance import Lance

QUANTISED = r"layers\.\d+\.(und|gen)\.(q|k|v|o|gate|up|down)"
LEVELS = 127


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8 with a scale per output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.float().abs().amax(dim=1).clamp(min=1e-12) / LEVELS
        levels = (weight.float() / scale[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8)
        # Parameters, so that they travel with the layer to wherever it is put.
        self.weight = nn.Parameter(levels, requires_grad=False)
        self.scale = nn.Parameter(scale.to(weight.dtype), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


def quantise(lance: Lance, pattern: str = QUANTISED) -> int:
    """Store the linear layers whose whole names match a pattern in int8; returns the bytes that this saved."""
    saved = 0
    for name, module in list(lance.named_modules()):
        if type(module) is nn.Linear and re.fullmatch(pattern, name):
            parent, _, own = name.rpartition(".")
            made = Int8Linear(module)
            saved += _bytes(module) - _bytes(made)
            setattr(lance.get_submodule(parent), own, made)
    return saved


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
