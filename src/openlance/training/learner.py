"""Everything that trains together, behind one forward: a batch in, the sums of its losses out.

One root for all ranks: sharded weights are gathered when a module is entered, so no part may be called past it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.config.model import ModelConfig
from openlance.errors import UserError
from openlance.model.lance import Lance
from openlance.model.vit import ViT
from openlance.runtime.media_encoder import features
from openlance.training.batch import Batch
from openlance.training.objective import Losses, Pass, objective


class DenseHead(nn.Module):
    """The vision tower's auxiliary head: a linear layer from ViT cells to class logits of several points per cell.

    It is trained with the tower and not shipped; without it the tower learns shapes many times slower (measured).

    Args:
        width: D of the cells.
        stride: Pixels along the side of a cell.
        classes: How many there are of each channel of the labels.
        point: Pixels between two labelled points.
    """

    def __init__(self, width: int, stride: int, classes: tuple[int, ...], point: int) -> None:
        super().__init__()
        self.classes, self.side = classes, stride // point
        self.out = nn.Linear(width, self.side**2 * sum(classes))

    def forward(self, cells_MD: Tensor, labels: list[np.ndarray]) -> Tensor:
        """Compute the loss of all points together, the channels added.

        Args:
            cells_MD: Cells of all labelled images, in raster order.
            labels: Per image (channels, H / point, W / point).

        Returns:
            A scalar; without cells it is 0 and still depends on the weights.
        """
        points, channels = self.side**2, len(self.classes)
        cut = [self.cut(torch.from_numpy(label)) for label in labels]
        target = torch.cat([torch.zeros(0, points, channels, dtype=torch.int64), *cut]).to(cells_MD.device)
        logits = self.out(cells_MD).float().unflatten(-1, (points, sum(self.classes)))
        parts = enumerate(logits.split(self.classes, dim=-1))
        losses = [F.cross_entropy(part.flatten(0, 1), target[..., n].flatten(), reduction="sum") for n, part in parts]
        return torch.stack(losses).sum()

    def cut(self, label_CYX: Tensor) -> Tensor:
        """Return (M, points, channels), the labels of each cell, cells in raster order."""
        (c, y, x), s = label_CYX.shape, self.side
        return label_CYX.reshape(c, y // s, s, x // s, s).permute(1, 3, 2, 4, 0).reshape(-1, s * s, c)


class Learner(nn.Module):
    """Decoder, vision tower and, where a stage weighs it, the tower's auxiliary head."""

    def __init__(self, lance: Lance, vit: ViT, vocabulary: int, dense: DenseHead | None = None) -> None:
        super().__init__()
        self.lance, self.vit, self.dense, self.vocabulary = lance, vit, dense, vocabulary

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the losses of a batch.

        Returns:
            (3,) sums over label tokens, denoised latents (means over their channels) and labelled points; and
            (documents,) the sum of the first two in each document, detached: attention never crosses documents, so a
            number that is not finite shows whose it is.
        """
        cells = self._look(batch)
        patches = torch.cat([cells[n] for n in batch.shown]) if batch.shown else None
        layout = self.lance.layout(batch.rows, batch.cache)
        one = Pass(layout, batch.noise, patches, self.vocabulary, batch.cache)
        losses = objective(self.lance, one, batch.preserved)
        per_latent = losses.per_latent.mean(1)
        dense = per_latent.new_zeros(())
        if self.dense is not None:
            none = per_latent.new_zeros(0, self.dense.out.in_features)
            seen = torch.cat([cells[n] for n in batch.labels]) if batch.labels else none
            dense = self.dense(seen, list(batch.labels.values()))
        sums = torch.stack([losses.per_token.sum(), per_latent.sum(), dense])
        return sums, self._by_document(batch, losses)

    def _look(self, batch: Batch) -> list[Tensor]:
        """Tokens of everything that is looked at; features that were encoded ahead are taken as they are."""
        clips = {n: clip for n, clip in enumerate(batch.clips) if not isinstance(clip, Tensor)}
        if len(clips) < len(batch.clips) and any(p.requires_grad for p in self.vit.parameters()):
            said = "some data hold features of the vision tower, which is trained here"
            raise UserError(f"{said}: freeze it with frozen=[vit], or encode the data without features")
        made = dict(zip(clips, features(self.vit, list(clips.values())), strict=True)) if clips else {}
        return [made.get(n, clip).flatten(0, 2).to(self.lance.device) for n, clip in enumerate(batch.clips)]

    def _by_document(self, batch: Batch, losses: Losses) -> Tensor:
        rows = batch.rows
        text = rows.doc[(rows.label >= 0) & (rows.label < self.vocabulary)]
        found = torch.zeros(len(batch.packed.lengths))
        for where, values in ((text, losses.per_token), (rows.doc[rows.denoise], losses.per_latent.mean(1))):
            if len(values):
                found.index_add_(0, where, values.detach().float().cpu())
        return found


def fresh(config: ModelConfig, vocabulary: int, seed: int, classes: tuple[int, ...] = (), point: int = 4) -> Learner:
    """Return a learner with initial weights, a function of the seed.

    Embeddings have unit deviation: much smaller ones drown in the first attention (measured). Layers that end a
    residual branch start small, and velocities start at zero.

    Args:
        config: Its sizes.
        vocabulary: Tokens of the tokenizer.
        seed: Of the weights.
        classes: Of the auxiliary loss, see `DenseHead`; none without it.
        point: Likewise.
    """
    torch.manual_seed(seed)
    head = DenseHead(config.width, config.vit.stride, classes, point) if classes else None
    vit, lance = ViT(config.vit, rounded_frequencies=config.quirks.rounded_frequencies), Lance(config)
    torch.manual_seed(seed)
    for name, p in lance.named_parameters():
        if p.ndim == 2:
            last = name.endswith((".o.weight", ".down.weight"))
            nn.init.normal_(p, std=p.shape[1] ** -0.5 / ((2 * config.layers) ** 0.5 if last else 1.0))
        elif name.endswith(".bias"):
            nn.init.zeros_(p)
    nn.init.normal_(lance.embed.weight, std=1.0)
    nn.init.normal_(lance.head.weight, std=0.02)
    nn.init.zeros_(lance.latent_out.weight)
    return Learner(lance, vit, vocabulary, head)
