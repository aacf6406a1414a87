"""Where bfloat16 pays: on every GPU, and on CPUs that multiply it in hardware. Elsewhere a CPU emulates its products,
some eighty times slower than those of float32 (measured with AVX2)."""

from __future__ import annotations

import torch


def fast_bfloat16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 faster than float32: AMX or AVX512-BF16 among x86 CPUs."""
    if torch.device(device).type != "cpu":
        return True
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def lowered(dtype: str, device: torch.device | str) -> bool:
    """Whether a stage of this dtype (bfloat16, float32 or auto) works in bfloat16 on this device."""
    return dtype == "bfloat16" or (dtype == "auto" and fast_bfloat16(device))
