"""The vision tower's auxiliary loss: say what stands at each point of a cell. It is trained with the tower and not
shipped; without it the tower learns shapes many times slower (measured)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseHead(nn.Module):
    """A linear layer from ViT cells (M, D) to class logits of `points` places per cell.

    Args:
        width: D.
        stride: Pixels along the side of a cell.
        classes: How many there are of each channel of the labels.
        point: Pixels between two labelled points.
    """

    def __init__(self, width: int, stride: int, classes: tuple[int, ...], point: int) -> None:
        super().__init__()
        self.classes, self.side = classes, stride // point
        self.points = self.side**2
        self.out = nn.Linear(width, self.points * sum(classes))

    def forward(self, cells_MD: Tensor, labels: list[np.ndarray]) -> Tensor:
        """labels: per picture (channels, H / point, W / point), in the order of the cells. Returns the loss of all
        points together, the channels added; without cells it is 0 and still depends on the weights."""
        cut = [self.cut(torch.from_numpy(label)) for label in labels]
        target = torch.cat(cut or [torch.zeros(0, self.points, len(self.classes), dtype=torch.int64)]).to(
            cells_MD.device
        )
        logits = self.out(cells_MD).float().unflatten(-1, (self.points, sum(self.classes)))
        losses = [
            F.cross_entropy(part.flatten(0, 1), target[..., n].flatten(), reduction="sum")
            for n, part in enumerate(logits.split(self.classes, dim=-1))
        ]
        return torch.stack(losses).sum()

    def cut(self, label_CYX: Tensor) -> Tensor:
        """(M, points, channels): the labels of each cell, cells in raster order."""
        (c, y, x), s = label_CYX.shape, self.side
        cut = label_CYX.reshape(c, y // s, s, x // s, s).permute(1, 3, 2, 4, 0)
        return cut.reshape(-1, s * s, c)
