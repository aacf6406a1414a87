"""Lance: two experts over one interleaved sequence, with a next-token head and a velocity head.

There is one `forward`. Packed training gives it all rows; prefill gives it a prefix and keeps its keys and values;
denoising and decoding give it the new rows and that cache. Axes: L rows, N latent rows, D width, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from openlance.checkpoint.tensors import unfilled
from openlance.config.model import ModelConfig
from openlance.model.attention import Plan, plan_attention
from openlance.model.layers import (
    Layer,
    RMSNorm,
    Rotary,
    Streams,
    TimeEmbedder,
    latent_table,
    marker_rows,
    rotary_table,
)
from openlance.sequence.segment import Rows


@dataclass
class Cache:
    """Keys and values of rows that are only read from now on, per layer (L, A, E). Noisy rows never enter."""

    rows: Rows | None = None
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def extend(self, rows: Rows, layers: list[tuple[Tensor, Tensor]]) -> None:
        assert not bool(rows.noisy.any()), "a target that is being denoised must stay out of the cache"
        if self.rows is None:
            self.rows, self.layers = rows, layers
        else:
            self.rows = Rows.concat([self.rows, rows])
            pairs = zip(self.layers, layers, strict=True)
            self.layers = [(torch.cat([k, k2]), torch.cat([v, v2])) for (k, v), (k2, v2) in pairs]


class RowSplit(Protocol):
    """How rows are dealt to processes that share a request, see `runtime.distributed.Split`."""

    @property
    def size(self) -> int: ...

    def own(self, rows: int) -> slice: ...

    def gather(self, part: Tensor, rows: int) -> Tensor: ...


@dataclass(frozen=True)
class Layout:
    """Everything about a set of rows that does not change between passes: computed once, used at every step."""

    rows: Rows  # sorted by stream, understanding rows first
    order: Tensor  # row numbers of the given rows in that order
    und: int  # how many rows the understanding stream has
    plan: Plan
    rotary: Rotary
    table: Tensor  # (N, D) latent positions of the generation rows
    patches: Tensor  # (n,) which understanding rows hold ViT tokens
    patch_table: Tensor | None  # (n, D) their latent positions, if the model has them
    gather: Callable[[Tensor], Tensor] | None = None  # keys or values of all rows from this process's own


class Lance(nn.Module):
    """The decoder with its heads. ViT and VAE stand beside it; see `openlance.load`."""

    def __init__(self, config: ModelConfig, streams: tuple[str, ...] = ("und", "gen")) -> None:
        super().__init__()
        self.config = c = config
        self.embed = nn.Embedding(c.vocab_size, c.width)
        self.layers = nn.ModuleList(Layer(c, streams) for _ in range(c.layers))
        self.norm = nn.ModuleDict({stream: RMSNorm(c.width, c.rms_eps) for stream in streams})
        self.head = nn.Linear(c.width, c.vocab_size, bias=False)
        if "gen" in streams:
            self.time = TimeEmbedder(c)
            self.latent_in = nn.Linear(c.latent_channels, c.width)
            self.latent_out = nn.Linear(c.width, c.latent_channels)

    @property
    def device(self) -> torch.device:
        return next(self.norm.parameters()).device  # the embedding may wait elsewhere

    def layout(self, rows: Rows, cache: Cache | None = None, split: RowSplit | None = None) -> Layout:
        """Prepare rows (on the CPU) for any number of passes. split: of the latent rows this process runs its
        own, among the keys of all."""
        is_gen = rows.is_latent
        order = torch.argsort(is_gen.int(), stable=True)
        rows, und = rows.at(order), len(rows) - int(is_gen.sum())
        keys = rows if cache is None or cache.rows is None else Rows.concat([cache.rows, rows])
        latents = len(rows) - und
        wide = marker_rows(rows, und, self.device)  # before rows are dealt out: a process may have few latents
        if split is not None:
            own = torch.cat([torch.arange(und), torch.arange(und, len(rows))[split.own(latents)]])
            rows, order = rows.at(own), order[own]

        def gather(own: Tensor) -> Tensor:
            assert split is not None
            return torch.cat([own[:und], split.gather(own[und:], latents)])

        cos, sin = (x.to(self.device) for x in rotary_table(rows.position, self.config))
        patches, strength = rows.is_patch.nonzero()[:, 0], self.config.position.patch_table

        def table(cells: Tensor) -> Tensor:
            return latent_table(cells, self.config.width, self.config.position.max_latent_side).to(self.device)

        return Layout(
            rows=rows,
            order=order,
            und=und,
            plan=plan_attention(rows, keys, self.device),
            rotary=((cos[:und], sin[:und], wide), (cos[und:], sin[und:], True)),
            table=table(rows.cell[und:]),
            patches=patches.to(self.device),
            patch_table=table(rows.cell[patches]) * strength if strength else None,
            gather=gather if split is not None and split.size > 1 else None,
        )

    def inputs(self, layout: Layout, patches: Tensor | None, latents: Tensor | None, times: Tensor | None) -> Streams:
        """Embed rows. patches: (n, D) ViT output in row order; latents: (N, C) and times: (N,) in row order."""
        c, und = self.config, layout.rows.at(torch.arange(layout.und))
        x = self.embed(und.token.to(self.device))
        if patches is not None:
            if layout.patch_table is not None:
                patches = patches + layout.patch_table.to(patches.dtype)
            x = x.index_copy(0, layout.patches, patches.to(x.dtype))
        if len(layout.rows) == layout.und:
            return x, x.new_zeros(0, c.width)
        assert latents is not None and times is not None
        # Few distinct times: embed each once.
        distinct, which = torch.unique(times.to(self.device), return_inverse=True)
        gen = self.latent_in(latents.to(self.latent_in.weight.dtype)) + self.time(distinct)[which]
        return x, gen + layout.table.to(gen.dtype)

    def forward(
        self,
        layout: Layout,
        *,
        patches: Tensor | None = None,
        latents: Tensor | None = None,
        times: Tensor | None = None,
        cache: Cache | None = None,
        keep: bool = False,
        through: Callable[[Streams], Streams] | None = None,
    ) -> Streams:
        """Final hidden rows of both streams, in the layout's order: (und, D) and (N, D).

        With `keep` the keys and values join the cache (prefill and decoding); without, it is only read. through: a
        `through` of this layout and cache that was made ready, in its place.
        """
        x = self.inputs(layout, patches, latents, times)
        return self.through(x, layout, cache, keep) if through is None else through(x)

    def through(self, x: Streams, layout: Layout, cache: Cache | None, keep: bool = False) -> Streams:
        """... from embedded rows on: the layers and the last norms. The same kernels at every call with a layout."""
        made = []
        for n, layer in enumerate(self.layers):
            past = cache.layers[n] if cache is not None and cache.layers else None
            x, own = layer(x, layout.rotary, layout.plan, past, layout.gather)
            if keep:  # those of a long clip would fill gigabytes
                made.append(own)
        if keep:
            assert cache is not None
            cache.extend(layout.rows, made)
        und, gen = x
        return self.norm["und"](und), self.norm["gen"](gen) if len(gen) else gen

    def velocity(self, gen_ND: Tensor) -> Tensor:
        return self.latent_out(gen_ND)

    def logits(self, und_LD: Tensor) -> Tensor:
        return self.head(und_LD)

    def restore(self, layout: Layout, streams: Streams) -> Tensor:
        """(L, D) in the order of the rows that were given to `layout`."""
        joined = torch.cat([s.float() for s in streams])
        return torch.empty_like(joined).index_copy(0, layout.order.to(joined.device), joined)


def is_generation(name: str) -> bool:
    """Whether one of our parameters belongs to the generation side."""
    return ".gen." in f".{name}" or name.startswith(("time.", "latent_in.", "latent_out."))


@lru_cache(maxsize=8)
def lance_parameters(c: ModelConfig) -> tuple[tuple[str, int], ...]:
    """List (name, number of parameters) of every tensor of a decoder; nothing is filled."""
    with unfilled():
        return tuple((name, p.numel()) for name, p in Lance(c).named_parameters())
