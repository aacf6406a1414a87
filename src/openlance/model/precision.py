"""Where bfloat16 pays: on every GPU, and on CPUs that multiply it in hardware. Elsewhere a CPU emulates its products,
some eighty times slower than those of float32 (measured with AVX2), so there large models keep their weights in half
precision and multiply in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HALVES = (torch.bfloat16, torch.float16)
# From so many rows on it pays to copy the weights: 16 take twice as long with the copy, 128 half as long (measured).
ROWS = 36

M = TypeVar("M", bound=nn.Module)


def fast_bfloat16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 faster than float32: AMX or AVX512-BF16 among x86 CPUs."""
    if torch.device(device).type != "cpu":
        return True
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def lowered(dtype: str, device: torch.device | str) -> bool:
    """Whether a stage of this dtype (bfloat16, float32 or auto) works in bfloat16 on this device."""
    return dtype == "bfloat16" or (dtype == "auto" and fast_bfloat16(device))


def autocast(dtype: str, device: torch.device | str = "cpu") -> AbstractContextManager:
    """The context in which a stage of this dtype computes on this device."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if lowered(dtype, device) else nullcontext()


class Widened(TorchFunctionMode):
    """Linear layers and convolutions of half precision multiply in float32 and round once, at their end."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        said = kwargs or {}
        if func is F.linear and args[0].numel() < ROWS * args[0].shape[-1]:
            return func(*args, **said)
        if func in (F.linear, F.conv2d, F.conv3d) and args[0].dtype in HALVES and args[0].device.type == "cpu":
            return func(*map(_wide, args), **{k: _wide(v) for k, v in said.items()}).to(args[0].dtype)
        return func(*args, **said)


def _wide(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) else x


def widen(module: M) -> M:
    """The same module, whose forward passes are Widened from now on."""
    modes: list[Widened] = []

    def enter(*_: Any) -> None:
        modes.append(Widened())
        modes[-1].__enter__()

    def leave(*_: Any) -> None:
        modes.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
    return module
