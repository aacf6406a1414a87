"""How many bytes tensors hold while something runs, counted at every operation: exact on any device, and the same from
run to run. Inner work space of kernels is not seen.

    with PeakMemory() as memory:
        loss(model(x)).backward()
    memory.peak                  # most bytes of tensors made inside that were alive at once
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """`now`: bytes of the storages made since it began that are still alive; `peak`: its maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), given)
        self.peak = max(self.peak, self.now)
        return out

    def _count(self, storage: Any, given: set[int]) -> None:
        if id(storage) in given or storage in self._known:
            return  # a view, or done in place
        size = storage.nbytes()
        self._known.add(storage)
        self.now += size
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size
