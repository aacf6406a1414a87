"""Rotation of queries and keys by position, with the roundings of the release where they differ from the exact form.

Axes: L rows, A heads, E head width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from openlance.config.model import ModelConfig
from openlance.model.precision import HALVES
from openlance.sequence.rows import Rows


def frequencies(c: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Give the inverse frequencies of the rotary embedding.

    The release casts its whole model to bfloat16, which rounds this buffer too, and goes on in float32 with the rounded
    numbers (Qwen2_5_VLRotaryEmbedding under `.to(bfloat16)`); `Faithful.rounded_frequencies` asks for the same.

    Args:
        c: Numbers of the model.
        device: Where the result is wanted.

    Returns:
        (E / 2,) float32: theta ** (-i / (E / 2)).
    """
    half = c.head_dim // 2
    # In this order of operations: at positions beyond 1000 another rounding of the frequencies shows (3e-5).
    inverse = 1.0 / c.rope_theta ** (torch.arange(half, dtype=torch.float32, device=device) / half)
    return inverse.bfloat16().float() if c.faithful.rounded_frequencies else inverse


def rotary_table(position_L3: Tensor, c: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, each (L, E), of multimodal RoPE: frequency bands take their position from rows t, h, w in turn
    by `rope_sections` (Qwen2.5-VL)."""
    half = c.head_dim // 2
    sections = torch.tensor(c.rope_sections, device=position_L3.device)
    axis = torch.repeat_interleave(torch.arange(3, device=position_L3.device), sections, output_size=half)
    angle = position_L3.float()[:, axis] * frequencies(c, position_L3.device)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Turn each half of a head against the other.

    Args:
        x_LAE: Queries or keys; the result has their dtype.
        cos_LE: Cosines, rounded to that dtype before they are used.
        sin_LE: Sines, likewise.

    Returns:
        (L, A, E). In half precision both products and their sum are rounded, as released; float32 saves a pass.
    """
    half = x_LAE.shape[-1] // 2
    cos, sin = (table[:, None, :half].to(x_LAE.dtype) for table in (cos_LE, sin_LE))  # both halves turn alike
    a, b = x_LAE.chunk(2, dim=-1)
    if x_LAE.dtype in HALVES:
        return torch.cat([(a * cos).sub_(b * sin), (b * cos).add_(a * sin)], dim=-1)
    return torch.cat([(a * cos).addcmul_(b, sin, value=-1), (b * cos).addcmul_(a, sin)], dim=-1)


@dataclass(frozen=True)
class Wide:
    """Rows of a stream whose queries and keys stay in float32 from the norm to the end of the rotation.

    In half precision the release does so in splits that hold VAE tokens, their two markers included (mode "gen" of
    qwen2_navit.py). The markers run through the understanding stream, so there it is some rows.

    Attributes:
        at: (n,) row numbers in rising order, on the device.
        numbers: The same as plain numbers, so that cutting rows into pieces asks the device nothing.
    """

    at: Tensor
    numbers: tuple[int, ...]

    def within(self, first: int, count: int) -> Tensor | bool:
        """Give the numbers of those among `count` rows from `first` on, counted from there; True: all, False: none."""
        begin, end = (bisect_left(self.numbers, row) for row in (first, first + count))
        if end - begin in (0, count):
            return begin < end
        return self.at[begin:end] - first if first else self.at[begin:end]


def marker_rows(rows: Rows, und: int, device: torch.device) -> Wide:
    """Find the understanding rows that share a split with latents.

    Args:
        rows: A layout's rows on the CPU, the first `und` of them in the understanding stream.
        und: How many those are.
        device: Where their numbers are wanted.

    Returns:
        The markers around every latent block.
    """
    segment = rows.segment[und:].unique()
    at = torch.isin(rows.segment[:und], segment).nonzero()[:, 0] if len(segment) else torch.zeros(0, dtype=torch.long)
    return Wide(at.to(device), tuple(at.tolist()))


def turned(
    norm: Callable[[Tensor], Tensor], x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor, wide: Tensor | bool
) -> Tensor:
    """Norm queries or keys and rotate them.

    Args:
        norm: Their RMS norm.
        x_LAE: What the projection gave.
        cos_LE: From `rotary_table`.
        sin_LE: Likewise.
        wide: Which rows do that in float32 where x is of half precision: all, none, or those of these numbers.

    Returns:
        (L, A, E); of half precision unless wide is True or the norm's weights are finer.
    """
    if wide is False or x_LAE.dtype not in HALVES:
        return rotate(norm(x_LAE), cos_LE, sin_LE)
    if wide is True:
        return _in_float32(norm, x_LAE, cos_LE, sin_LE)
    y_LAE = rotate(norm(x_LAE), cos_LE, sin_LE)
    some = _in_float32(norm, *(x.index_select(0, wide) for x in (x_LAE, cos_LE, sin_LE)))
    return y_LAE.index_copy(0, wide, some.to(y_LAE.dtype))


def _in_float32(norm: Callable[[Tensor], Tensor], x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """With a table that is rounded as the other rows' is: to the dtype of their norm's output."""
    weight = getattr(norm, "weight", x_LAE)
    kind = torch.promote_types(x_LAE.dtype, weight.dtype)
    return rotate(norm(x_LAE.float()), cos_LE.to(kind), sin_LE.to(kind))
