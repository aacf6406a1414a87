"""Three forms of one denoising step, and what each must compute at the least.

cached: targets against kept keys and values. plain: the whole sequence at every step, attention by units.
dense: the whole sequence, attention over one dense mask per document, as a textbook has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from common import timed
from torch import Tensor

from openlance.config.model import NO_QUIRKS, ModelConfig
from openlance.config.sampling import RELEASED_RUN, Sampling
from openlance.flow import euler
from openlance.inference.visual import Denoiser, branch_out, guide, renormalize
from openlance.media.clip import Clip
from openlance.model.attention import Group, Plan
from openlance.model.lance import Lance, Layout
from openlance.sequence import tasks
from openlance.sequence.segment import LATENTS, PATCHES, Segments, visible

# Four of the 36 layers of the released 3B, at its widths: 308 million parameters per stream, of which a token uses one.
CONFIG_300M = ModelConfig(layers=4, vocab_size=4096, quirks=NO_QUIRKS)
QUICK = ModelConfig(
    layers=2, vocab_size=4096, width=256, heads=8, kv_heads=2, head_dim=32, mlp_width=1024, rope_sections=(4, 6, 6),
    quirks=NO_QUIRKS,
)  # fmt: skip
GUIDED = Sampling(guidance_scale=4.0, interval=(0.0, 1.0))
PROMPT = " ".join(["a"] * 60)


@dataclass(frozen=True)
class Words:
    """A codec whose tokens are words and signs: about as many as a trained tokenizer makes of English."""

    config: ModelConfig
    im_start: int = 0
    im_end: int = 1
    vision_start: int = 2
    vision_end: int = 3
    visual_pad: int = 4

    def ids(self, text: str) -> list[int]:
        return [5 + len(word) for word in re.findall(r"\w+|[^\w\s]|\n", text)]

    def patch_grid(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        return 1, size[1] // self.config.vit.stride, size[2] // self.config.vit.stride

    def latent_grid(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        return 1, size[1] // self.config.vae.stride, size[2] // self.config.vae.stride


def edit_request(side: int) -> Segments:
    """At 768 as released: the VAE keeps 48 x 48 cells, the ViT sees 672 pixels as 24 x 24."""
    seen, kept = (Clip(np.zeros((1, n, n, 3), np.uint8)) for n in (side * 7 // 8, side))
    return tasks.request("image_edit", PROMPT, [tasks.Views(seen, kept)], (1, side, side), None, RELEASED_RUN)


def draw_request(side: int) -> Segments:
    return tasks.request("t2i", PROMPT, [], (1, side, side), None, RELEASED_RUN)


@dataclass
class Stepper:
    """One request with all its guidance branches, in one of the three forms."""

    model: Lance
    codec: Any
    request: Segments
    sampling: Sampling
    cached: bool
    dense: bool = False
    prefill: float = field(init=False)

    @torch.inference_mode()
    def __post_init__(self) -> None:
        c, generator = self.model.config, torch.Generator().manual_seed(0)
        dtype = self.model.embed.weight.dtype
        self.branches = branch_out(self.model, self.codec, [self.request], self.sampling)
        clean = [v for v in self.branches.pack.visuals if not v.segment.is_empty]
        count = {kind: sum(v.rows[1] - v.rows[0] for v in clean if v.kind == kind) for kind in (PATCHES, LATENTS)}
        patches = torch.randn(count[PATCHES], c.width, generator=generator) if count[PATCHES] else None
        latents = torch.randn(count[LATENTS], c.latent_channels, generator=generator)
        self.target = next(v.rows[1] - v.rows[0] for v in self.branches.pack.visuals if v.segment.is_empty)
        self.x = torch.randn(self.target, c.latent_channels, generator=generator)
        features = patches.to(dtype) if patches is not None else None

        def start() -> None:
            self.denoiser = Denoiser(self.model, self.branches, features, latents, self.cached)

        self.prefill = timed(start)
        self.documents = tuple(range(self.branches.count))
        chosen = self.denoiser.chosen(self.documents)
        if self.dense:
            dense = replace(chosen.layout, plan=dense_plan(chosen.layout))
            self.denoiser.layouts[self.documents] = replace(chosen, layout=dense)

    @torch.inference_mode()
    def step(self) -> Tensor:
        """One step of the sampler from the same state; returns the next one."""
        t, t_next = torch.tensor(0.7), torch.tensor(0.66)
        v = self.denoiser.velocities(self.x, t.expand(self.target), self.branches.count)
        mixed = v[0]
        if len(v) > 1:
            every = torch.ones(self.target, dtype=torch.bool)
            mixed = renormalize(guide(v[0], v[1], None, self.sampling), v[0], every, self.sampling)
        return euler(self.x, mixed, t, t_next)

    @property
    def layout(self) -> Layout:
        return self.denoiser.chosen(self.documents).layout

    def work(self) -> dict[str, float]:
        """Operations of one step, in its linear layers and in the pairs of rows that attention computes."""
        c, layout = self.model.config, self.layout
        pairs = sum(g.query.numel() * g.key.shape[1] for g in layout.plan.groups)
        return {
            "rows": len(layout.rows),
            "linear": 2.0 * parameters(c) * len(layout.rows),
            "attention": 4.0 * c.layers * c.heads * c.head_dim * pairs,
        }


def parameters(c: ModelConfig) -> int:
    """Weights of one stream's linear layers: what a token is multiplied with."""
    attention = c.width * 2 * (c.heads + c.kv_heads) * c.head_dim
    return c.layers * (attention + 3 * c.width * c.mlp_width)


def operations(c: ModelConfig, rows: float, pairs: float) -> float:
    """Of one pass in the linear layers of `rows` rows of a stream and in the attention of `pairs` pairs of rows."""
    return 2.0 * parameters(c) * rows + 4.0 * c.layers * c.heads * c.head_dim * pairs


def dense_plan(layout: Layout) -> Plan:
    """All rows of a document against all, under its (L, L) mask."""
    found, flat = list[Group](), list[Tensor]()
    for doc in layout.rows.doc.unique():
        own = (layout.rows.doc == doc).nonzero()[:, 0]
        mask = visible(layout.rows.at(own[:, None]), layout.rows.at(own[None, :]))
        found.append(Group(own[None], own[None], mask[None, None]))
        flat.append(own)
    return Plan(tuple(found), torch.argsort(torch.cat(flat)))
