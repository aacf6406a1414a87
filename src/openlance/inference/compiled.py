"""The denoising step made ready once and run many times: compiled, and on CUDA recorded as one graph.

torch.compile gets what an expert does row by row, which is one program for all layers, sizes and prompts: the number
of rows is symbolic, and attention, whose keys are as many as the prompt is long, stays torch's own kernel. So it takes
seconds once. A graph has the shapes of one request. Prefixes and answers run as ever.
"""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import nn

from openlance.errors import UserError
from openlance.model.lance import MOST_ROWS, Lance, Streams, compile_experts

_TWINS: WeakKeyDictionary[Lance, Lance] = WeakKeyDictionary()


def compiled(model: Lance, backend: str = "inductor") -> Lance:
    """Give the same decoder with all weights shared and compiled experts; the given one stays as it is.

    UserError where torch.compile would find no compiler for a CPU.
    """
    if model not in _TWINS:
        names = (os.environ.get("CXX"), "g++", "clang++", "c++")
        missing = not any(shutil.which(name) for name in names if name)
        if backend == "inductor" and model.device.type == "cpu" and missing:
            raise UserError("torch.compile finds no C++ compiler: install g++ or clang++, or leave compile out")
        twin = _shallow(model)
        twin.layers = nn.ModuleList(_shallow(layer) for layer in model.layers)
        for layer in twin.layers:
            for stream in twin.norm:
                expert = _shallow(getattr(layer, stream))
                compile_experts(expert, backend)
                setattr(layer, stream, expert)
        _TWINS[model] = twin
    return _TWINS[model]


Pass = Callable[[Streams], Streams]  # `Lance.through` of one layout and cache
# Records what a function launches: how to launch it again, and where its result will then lie.
Record = Callable[[Callable[[], Streams]], tuple[Callable[[], None], Streams]]


def can_record(model: Lance, rows: int) -> bool:
    """Tell whether a pass may become a CUDA graph, which names places in memory: not where weights are streamed
    (`runtime.offload.Streamed`). Nor does it pay where kernels work longer than launching them takes, and it keeps the
    working memory of its pass."""
    streamed = any(layer._forward_pre_hooks for layer in model.layers)
    return model.device.type == "cuda" and rows <= MOST_ROWS and not streamed


def cuda_graph(run: Callable[[], Streams]) -> tuple[Callable[[], None], Streams]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


class Recorded:
    """A pass whose thousands of kernels are launched at once: run as it is at the first call, which compiles and warms
    up, recorded at the second, replayed from then on. Shapes and everything but the rows must stay what they were.

    record: where it fails, a warning says so and the pass goes on kernel by kernel.
    """

    def __init__(self, run: Pass, record: Record = cuda_graph) -> None:
        self.run, self.record, self.calls = run, record, 0
        self.tape: tuple[Callable[[], None], Streams, Streams] | None = None  # how, from where, to where

    def __call__(self, x: Streams) -> Streams:
        self.calls += 1
        if self.calls == 2:
            self.tape = self._recorded((x[0].clone(), x[1].clone()))
        if self.tape is None:
            return self.run(x)
        replay, rows, out = self.tape
        for place, now in zip(rows, x, strict=True):
            place.copy_(now)
        replay()
        return out[0].clone(), out[1].clone()  # the next replay writes over them

    def _recorded(self, rows: Streams) -> tuple[Callable[[], None], Streams, Streams] | None:
        try:
            replay, out = self.record(lambda: self.run(rows))
        except RuntimeError as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"no CUDA graph for this step, which goes on kernel by kernel: {why}", stacklevel=3)
            return None
        return replay, rows, out


def _shallow(module):
    """A module that shares everything with another but the table of its parts."""
    twin = copy.copy(module)
    vars(twin)["_modules"] = dict(module._modules)
    return twin
