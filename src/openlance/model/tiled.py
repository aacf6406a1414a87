"""Pictures and clips larger than the codec's memory: coded in tiles that overlap and fade into each other.

A tile sees nothing beyond its border, so the result is near the whole one but not equal to it; the wider the overlap,
the nearer. In time nothing is cut: the codec itself goes frame by frame (`wan.py`).

Axes: Y X latent rows and columns, H W those of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from openlance.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """tile: side of a tile; overlap: cells that neighbours share; both in latent cells."""

    tile: int = 32
    overlap: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise UserError(f"tiles of {self.tile} cells cannot share {self.overlap}: use for example 32 and 8")

    def cuts(self, length: int) -> list[tuple[int, int]]:
        """(start, stop) of the tiles along one side."""
        if length <= self.tile:
            return [(0, length)]
        step = self.tile - self.overlap
        starts = [*range(0, length - self.tile, step), length - self.tile]
        return [(start, start + self.tile) for start in starts]

    def tiles(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        for top, bottom in self.cuts(height):
            for left, right in self.cuts(width):
                yield slice(top, bottom), slice(left, right)


def decode_tiled(decode: Callable[[Tensor], Tensor], z_YX: Tensor, stride: int, tiling: Tiling) -> Tensor:
    """Pixels (..., H, W) of latents (..., Y, X) by a decoder whose cells are `stride` pixels wide."""
    return _blend(decode, z_YX, tiling, (1, 1), (stride, stride))


def encode_tiled(encode: Callable[[Tensor], Tensor], x_HW: Tensor, stride: int, tiling: Tiling) -> Tensor:
    """Latents (..., Y, X) of pixels (..., H, W)."""
    return _blend(encode, x_HW, tiling, (stride, stride), (1, 1))


def _blend(
    code: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, into: tuple[int, int], out: tuple[int, int]
) -> Tensor:
    """Run `code` on every tile and mix what they share. into, out: sides of a latent cell in what goes in and out."""
    height, width = x.shape[-2] // into[0], x.shape[-1] // into[1]
    found, weights = None, None
    for rows, columns in tiling.tiles(height, width):
        part = code(x[..., _scaled(rows, into[0]), _scaled(columns, into[1])]).float()  # seams in bfloat16 would show
        if found is None or weights is None:
            found = part.new_zeros(*part.shape[:-2], height * out[0], width * out[1])
            weights = part.new_zeros(height * out[0], width * out[1])
        fade = _ramp(rows, height, tiling.overlap, out[0])[:, None] * _ramp(columns, width, tiling.overlap, out[1])
        place = _scaled(rows, out[0]), _scaled(columns, out[1])
        found[..., place[0], place[1]] += part * fade.to(part)
        weights[place] += fade.to(part)
    assert found is not None and weights is not None
    return found / weights


def _scaled(cells: slice, side: int) -> slice:
    return slice(cells.start * side, cells.stop * side)


def _ramp(cells: slice, length: int, overlap: int, side: int) -> Tensor:
    """Weights of a tile along one side: 1 inside, falling to the borders that it shares."""
    n = (cells.stop - cells.start) * side
    ramp = torch.ones(n)
    shared = min(overlap * side, n)
    rise = (torch.arange(shared) + 1) / (shared + 1)
    if cells.start > 0:
        ramp[:shared] = rise
    if cells.stop < length:
        ramp[n - shared :] = torch.minimum(ramp[n - shared :], rise.flip(0))
    return ramp
