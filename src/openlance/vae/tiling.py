"""Clips that are larger than what the VAE has memory for: coded in tiles that overlap and fade into each other.

A tile sees nothing beyond its border, so the result is near the whole one but not equal to it; the wider the overlap,
the nearer. In time nothing is cut: the VAE itself goes frame by frame.

Axes: Y X latent rows and columns, H W those of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


def decode_tiled(
    steps: Callable[[Tensor], Iterator[Tensor]], z_YX: Tensor, stride: int, tiling: Tiling
) -> Iterator[Tensor]:
    """Pixels (..., H, W) of latents (..., Y, X), piece by piece as `steps` gives those of a tile; a cell is `stride`
    pixels wide. All tiles go on together, so that memory does not grow with the frames."""
    height, width = z_YX.shape[-2:]
    running = [steps(z_YX[..., rows, columns]) for rows, columns in tiling.tiles(height, width)]
    for parts in zip(*running, strict=True):
        yield _mixed(parts, tiling, height, width, stride)


def encode_tiled(encode: Callable[[Tensor], Tensor], x_HW: Tensor, stride: int, tiling: Tiling) -> Tensor:
    """Latents (..., Y, X) of pixels (..., H, W)."""
    height, width = (side // stride for side in x_HW.shape[-2:])
    parts = (
        encode(x_HW[..., _scaled(rows, stride), _scaled(columns, stride)])
        for rows, columns in tiling.tiles(height, width)
    )
    return _mixed(parts, tiling, height, width, 1)


def _mixed(parts: Iterable[Tensor], tiling: Tiling, height: int, width: int, side: int) -> Tensor:
    """Tiles joined, what they share faded from one into the other. height, width: in cells, which the parts hold `side`
    wide."""
    found, weights = None, None
    for (rows, columns), part in zip(tiling.tiles(height, width), parts, strict=True):
        if found is None or weights is None:  # float32, since seams in bfloat16 would show
            found = part.new_zeros(*part.shape[:-2], height * side, width * side, dtype=torch.float32)
            weights = found.new_zeros(height * side, width * side)
        fade = _ramp(rows, height, tiling.overlap, side)[:, None] * _ramp(columns, width, tiling.overlap, side)
        place = _scaled(rows, side), _scaled(columns, side)
        found[..., place[0], place[1]] += part * fade.to(found)
        weights[place] += fade.to(found)
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
