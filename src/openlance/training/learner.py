"""Everything that trains together, behind one forward: a batch in, the sums of its losses out.

One root for all ranks: sharded weights are gathered when a module is entered, so no part may be called past it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from openlance.config.model import ModelConfig
from openlance.errors import UserError
from openlance.model.lance import Lance
from openlance.model.vit import ViT
from openlance.runtime.media_encoder import features
from openlance.training.batch import Batch
from openlance.training.dense import DenseHead
from openlance.training.objective import Losses, objective


class Learner(nn.Module):
    """Decoder, vision tower and, where a stage weighs it, the tower's auxiliary head."""

    def __init__(self, lance: Lance, vit: ViT, vocabulary: int, dense: DenseHead | None = None) -> None:
        super().__init__()
        self.lance, self.vit, self.dense, self.vocabulary = lance, vit, dense, vocabulary

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(3,) sums over label tokens, denoised latents (means over their channels) and labelled points; and
        (documents,) the sum of the first two in each document, detached: attention never crosses documents, so a
        number that is not finite shows whose it is."""
        lance = self.lance
        cells = self._see(batch)
        patches = torch.cat([cells[n] for n in batch.shown]) if batch.shown else None
        layout = lance.layout(batch.packed.rows)
        losses = objective(lance, layout, batch.noise, patches, self.vocabulary)
        per_latent = losses.per_latent.mean(1)
        dense = self._dense(cells, batch.labels, per_latent)
        sums = torch.stack([losses.per_token.sum(), per_latent.sum(), dense])
        return sums, self._by_document(batch, losses)

    def _see(self, batch: Batch) -> list[Tensor]:
        """Tokens of everything that is looked at; features of `openlance encode` are taken as they are."""
        clips = {n: clip for n, clip in enumerate(batch.clips) if not isinstance(clip, Tensor)}
        if len(clips) < len(batch.clips) and any(p.requires_grad for p in self.vit.parameters()):
            raise UserError(
                "some data hold features of the vision tower, which is trained here: freeze it with --set "
                "'frozen=[vit]', or encode the data with --no-vit"
            )
        made = dict(zip(clips, features(self.vit, list(clips.values())), strict=True)) if clips else {}
        device = self.lance.device
        return [made.get(n, clip).flatten(0, 2).to(device) for n, clip in enumerate(batch.clips)]

    def _dense(self, cells: list[Tensor], labels: dict[int, np.ndarray], like: Tensor) -> Tensor:
        if self.dense is None:
            return like.new_zeros(())
        seen = torch.cat([cells[n] for n in labels]) if labels else like.new_zeros(0, self.dense.out.in_features)
        return self.dense(seen, list(labels.values()))

    def _by_document(self, batch: Batch, losses: Losses) -> Tensor:
        rows = batch.packed.rows
        text = rows.doc[(rows.label >= 0) & (rows.label < self.vocabulary)]
        found = torch.zeros(len(batch.packed.lengths))
        for where, values in ((text, losses.per_token), (rows.doc[rows.denoise], losses.per_latent.mean(1))):
            if len(values):
                found.index_add_(0, where, values.detach().float().cpu())
        return found


def initialise(learner: Learner, seed: int) -> None:
    """Fresh weights. Embeddings have unit deviation: much smaller ones drown in the first attention (measured); layers
    that end a residual branch start small, and velocities start at zero."""
    torch.manual_seed(seed)
    lance, layers = learner.lance, learner.lance.config.layers
    for name, p in lance.named_parameters():
        if p.ndim == 2:
            last = name.endswith((".o.weight", ".down.weight"))
            nn.init.normal_(p, std=p.shape[1] ** -0.5 / ((2 * layers) ** 0.5 if last else 1.0))
        elif name.endswith(".bias"):
            nn.init.zeros_(p)
    nn.init.normal_(lance.embed.weight, std=1.0)
    nn.init.normal_(lance.head.weight, std=0.02)
    nn.init.zeros_(lance.latent_out.weight)


def fresh(config: ModelConfig, vocabulary: int, seed: int, classes: tuple[int, ...] = (), point: int = 4) -> Learner:
    """A learner with initial weights, a function of the seed; classes, point: of the auxiliary loss, see DenseHead."""
    torch.manual_seed(seed)
    head = DenseHead(config.width, config.vit.stride, classes, point) if classes else None
    vit = ViT(config.vit, rounded_frequencies=config.faithful.rounded_frequencies)
    learner = Learner(Lance(config), vit, vocabulary, head)
    initialise(learner, seed)
    return learner


def fuse() -> None:
    """Compile the element-wise parts of a layer: 1.7 times faster steps on a CPU. Needs a C++ compiler."""
    from openlance.model.lance import Expert, compile_experts

    if not hasattr(Expert.project, "_torchdynamo_orig_callable"):
        compile_experts(Expert)
