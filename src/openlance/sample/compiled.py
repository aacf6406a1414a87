"""The denoising step through torch.compile: layer by layer, since all layers are one program with other weights.

Shapes are static: one compilation for each number of rows and each number of guidance branches, seconds to a minute on
a CPU. Prefixes and answers, whose lengths change all the time, run as ever.
"""

from __future__ import annotations

import copy
import os
import shutil
from weakref import WeakKeyDictionary

from torch import nn

from openlance.errors import UserError
from openlance.model.lance import Lance

_TWINS: WeakKeyDictionary[Lance, Lance] = WeakKeyDictionary()


def compiled(model: Lance, backend: str = "inductor") -> Lance:
    """The same decoder with all weights shared and compiled layers; the given one stays as it is.

    UserError where torch.compile would find no compiler for a CPU.
    """
    if model not in _TWINS:
        if backend == "inductor" and model.device.type == "cpu" and not _has_compiler():
            raise UserError("torch.compile finds no C++ compiler: install g++ or clang++, or leave compile out")
        twin = _shallow(model)
        twin.layers = nn.ModuleList(_shallow(layer) for layer in model.layers)
        for layer in twin.layers:
            layer.compile(backend=backend, dynamic=False)
        _TWINS[model] = twin
    return _TWINS[model]


def _shallow(module):
    """A module that shares everything with another but the table of its parts."""
    twin = copy.copy(module)
    vars(twin)["_modules"] = dict(module._modules)
    return twin


def _has_compiler() -> bool:
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return any(shutil.which(name) for name in names if name)
