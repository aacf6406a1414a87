"""Videos that are larger than what the VAE has memory for: coded in tiles that overlap and fade into each other.

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
    """How a video is cut into tiles.

    Args:
        tile: Side of a tile in latent cells, more than overlap.
        overlap: Latent cells that neighbors share, 0 or more.

    Raises:
        UserError: Tiles share more than they have.
    """

    tile: int = 32
    overlap: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise UserError(f"tiles of {self.tile} cells cannot share {self.overlap}: use for example 32 and 8")

    def cuts(self, length: int) -> list[tuple[int, int]]:
        """Return (start, stop) of the tiles along one side, in latent cells."""
        if length <= self.tile:
            return [(0, length)]
        step = self.tile - self.overlap
        starts = [*range(0, length - self.tile, step), length - self.tile]
        return [(start, start + self.tile) for start in starts]

    def tiles(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of each tile, in latent cells."""
        for top, bottom in self.cuts(height):
            for left, right in self.cuts(width):
                yield slice(top, bottom), slice(left, right)


def decode_tiled(
    steps: Callable[[Tensor], Iterator[Tensor]], z_YX: Tensor, stride: int, tiling: Tiling
) -> Iterator[Tensor]:
    """Decode latents tile by tile. All tiles go on together, so that memory does not grow with the frames.

    Args:
        steps: Decodes the latents of a tile piece by piece, such as `LazyVAE.decode_steps`.
        z_YX: Latents (..., Y, X).
        stride: Pixels per side of a cell.
        tiling: The tiles.

    Yields:
        Pixels (..., H, W) piece by piece, float32.
    """
    height, width = z_YX.shape[-2:]
    running = [steps(z_YX[..., rows, columns]) for rows, columns in tiling.tiles(height, width)]
    for parts in zip(*running, strict=True):
        yield _mixed(parts, tiling, height, width, stride)


def encode_tiled(encode: Callable[[Tensor], Tensor], x_HW: Tensor, stride: int, tiling: Tiling) -> Tensor:
    """Encode pixels (..., H, W) tile by tile.

    Args:
        encode: Encodes the pixels of a tile.
        x_HW: Pixels (..., H, W), sides multiples of the stride.
        stride: Pixels per side of a cell.
        tiling: The tiles.

    Returns:
        Latents (..., Y, X), float32.
    """
    height, width = (side // stride for side in x_HW.shape[-2:])
    tiles = tiling.tiles(height, width)
    parts = (encode(x_HW[..., _scaled(rows, stride), _scaled(columns, stride)]) for rows, columns in tiles)
    return _mixed(parts, tiling, height, width, 1)


def _mixed(parts: Iterable[Tensor], tiling: Tiling, height: int, width: int, side: int) -> Tensor:
    """Tiles joined, what they share faded from one into the other. height, width: in cells, which the parts hold `side`
    wide."""
    parts = list(parts)
    lead, whole = parts[0].shape[:-2], (height * side, width * side)
    found = parts[0].new_zeros(*lead, *whole, dtype=torch.float32)  # seams in bfloat16 would show
    weights = found.new_zeros(whole)
    for (rows, columns), part in zip(tiling.tiles(height, width), parts, strict=True):
        fade = _ramp(rows, height, tiling.overlap, side)[:, None] * _ramp(columns, width, tiling.overlap, side)
        place = _scaled(rows, side), _scaled(columns, side)
        found[..., place[0], place[1]] += part * fade.to(found)
        weights[place] += fade.to(found)
    return found / weights


def _scaled(cells: slice, side: int) -> slice:
    return slice(cells.start * side, cells.stop * side)


def _ramp(cells: slice, length: int, overlap: int, side: int) -> Tensor:
    """Weights of a tile along one side: 1 inside, falling to the borders that it shares."""
    rise = ((torch.arange((cells.stop - cells.start) * side) + 1) / (overlap * side + 1)).clamp(max=1)
    ramp = rise if cells.start > 0 else torch.ones_like(rise)
    return torch.minimum(ramp, rise.flip(0)) if cells.stop < length else ramp
