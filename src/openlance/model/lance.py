"""Lance: two experts over one interleaved sequence, with a next-token head and a velocity head.

There is one `forward`. Packed training gives it all rows; prefill gives it a prefix and keeps its keys and values;
denoising and decoding give it the new rows and that cache. Rows are sorted by stream once per pack (understanding rows
first), so that a stream is a slice and never a gather.

Axes: L rows, N latent rows, D width, C latent channels, A heads, E head width, F MLP width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.tensors import unfilled
from openlance.config.model import ModelConfig
from openlance.model.attention import Plan, Wide, attend, marker_rows, plan_attention, rotary_table, turned
from openlance.model.precision import HALVES
from openlance.sequence.segment import Rows


class RMSNorm(nn.Module):
    """Computed in float32, scaled in the input's dtype (Qwen2)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            y = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
            return self.weight * y.to(x.dtype)
        # The same with one temporary less: twice as fast on a CPU.
        y = x.float()
        square = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_()
        y = y * square.mul_(1 / x.shape[-1]).add_(self.eps).rsqrt_()
        return self.weight * y.to(x.dtype) if x.dtype != self.weight.dtype else y.to(x.dtype).mul_(self.weight)


class Expert(nn.Module):
    """One stream's own copy of everything with weights in a layer."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.attention_norm = RMSNorm(c.width, c.rms_eps)
        self.q, self.k, self.v = nn.Linear(c.width, q), nn.Linear(c.width, kv), nn.Linear(c.width, kv)
        self.q_norm, self.k_norm = RMSNorm(c.head_dim, c.rms_eps), RMSNorm(c.head_dim, c.rms_eps)
        self.o = nn.Linear(q, c.width, bias=False)
        self.mlp_norm = RMSNorm(c.width, c.rms_eps)
        self.gate, self.up = (nn.Linear(c.width, c.mlp_width, bias=False) for _ in range(2))
        self.down = nn.Linear(c.mlp_width, c.width, bias=False)
        self.head_dim = c.head_dim

    def project(
        self, x_LD: Tensor, cos_LE: Tensor, sin_LE: Tensor, wide: Tensor | bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, as (L, A, E). wide: which rows are rotated in float32, see `turned`."""
        h = self.attention_norm(x_LD)
        q, k, v = (layer(h).unflatten(-1, (-1, self.head_dim)) for layer in (self.q, self.k, self.v))
        q, k = turned(self.q_norm, q, cos_LE, sin_LE, wide), turned(self.k_norm, k, cos_LE, sin_LE, wide)
        return q.to(v.dtype), k.to(v.dtype), v  # norms promote under autocast; attention wants one dtype

    def finish(self, x_LD: Tensor, mixed_LAE: Tensor) -> Tensor:
        x_LD = add(x_LD, self.o(mixed_LAE.flatten(-2)))
        h = self.mlp_norm(x_LD)
        return add(x_LD, self.down(swiglu(self.gate(h), self.up(h))))


def compile_experts(experts: type[Expert] | Expert, backend: str = "inductor") -> None:
    """Compile what an expert does row by row, of one or of all, for any number of rows."""
    for part in ("project", "finish"):
        setattr(experts, part, torch.compile(getattr(experts, part), backend=backend, dynamic=True))


def add(x: Tensor, new: Tensor) -> Tensor:
    """x + new, in the memory of what was just made where no gradient will ask for it."""
    return x + new if torch.is_grad_enabled() or new.dtype != x.dtype else new.add_(x)


def swiglu(gate_LF: Tensor, up_LF: Tensor) -> Tensor:
    """silu(gate) * up, in the memory of the gate where no gradient will ask for it."""
    if torch.is_grad_enabled():
        return F.silu(gate_LF) * up_LF
    return F.silu(gate_LF, inplace=True).mul_(up_LF)


# Inner activations of so many numbers stay in the cache of a CPU core; more cost page faults on top (measured: eight
# small images a fifth faster). Where the MLP is so wide that less than PIECE rows fit, long products are faster.
CACHED, PIECE = 1 << 18, 128
# More rows than this never run together without gradients: the MLP of a long clip would take more memory than the
# weights, and products of so many rows are as fast as they get.
MOST_ROWS = 1 << 14


class Layer(nn.Module):
    """Two experts over one attention; an expert that no task needs is not built."""

    def __init__(self, c: ModelConfig, streams: tuple[str, ...]) -> None:
        super().__init__()
        self.und = Expert(c) if "und" in streams else None
        self.gen = Expert(c) if "gen" in streams else None
        self.mlp_width = c.mlp_width

    def pieces(self, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Cut what is done row by row, without gradients, into equal pieces of rows: what fits the caches of the cores
        of a CPU, and never more than MOST_ROWS."""
        rows, most, cached = max(len(columns[0]), 1), MOST_ROWS, CACHED // self.mlp_width
        if not torch.is_grad_enabled():
            if cached >= PIECE and columns[0].device.type == "cpu":
                most = cached * torch.get_num_threads()
            rows = math.ceil(rows / math.ceil(rows / most))
        return zip(*(column.split(rows) for column in columns), strict=True)

    def project(self, x: Streams, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values of all rows, as (L, A, E)."""
        parts = []
        for expert, h, (cos, sin, wide) in zip((self.und, self.gen), x, rotary, strict=True):
            if expert is None or not len(h):
                continue
            # In float32 no row is special, and a compiled expert stays one program.
            half, first = h.dtype in HALVES or torch.is_autocast_enabled(h.device.type), 0
            for rows, c, s in self.pieces(h, cos, sin):
                some = wide.within(first, len(rows)) if isinstance(wide, Wide) else wide
                parts.append(expert.project(rows, c, s, half and some))
                first += len(rows)
        q, k, v = (join(part) for part in zip(*parts, strict=True))
        return q, k, v

    def forward(
        self, x: Streams, rotary: Rotary, plan: Plan, past: tuple[Tensor, Tensor] | None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> Layered:  # fmt: skip
        """One layer over both streams; `past` are cached keys and values that come before this pass's own. gather:
        brings in the keys and values of rows that other processes run."""
        q, k, v = self.project(x, rotary)
        if gather is not None:
            k, v = gather(torch.cat([k, v], dim=-1)).chunk(2, dim=-1)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k]), torch.cat([past[1], v]))
        mixed = attend(q, keys, values, plan).split([len(h) for h in x])
        und, gen = (
            join([e.finish(*piece) for piece in self.pieces(h, m)]) if e and len(h) else h
            for e, h, m in zip((self.und, self.gen), x, mixed, strict=True)
        )
        return (und, gen), (k, v)


Streams = tuple[Tensor, Tensor]  # hidden rows of the understanding and the generation stream
Turn = tuple[Tensor, Tensor, Wide | bool]  # cos, sin, and which rows need more than half precision
Rotary = tuple[Turn, Turn]  # per stream
Layered = tuple[Streams, tuple[Tensor, Tensor]]


def join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class TimeEmbedder(nn.Module):
    """Flow time in [0, 1], unscaled, to a vector (released code: cosines first, base 10000)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.features = c.time_features
        self.up, self.out = nn.Linear(c.time_features, c.width), nn.Linear(c.width, c.width)

    def frequencies(self, t_N: Tensor) -> Tensor:
        half = self.features // 2
        f = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t_N.device) / half)
        angle = t_N.float()[:, None] * f
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def forward(self, t_N: Tensor) -> Tensor:
        return self.out(F.silu(self.up(self.frequencies(t_N).to(self.up.weight.dtype))))


def latent_table(cells_N: Tensor, width: int, side: int) -> Tensor:
    """(N, width) fixed sin/cos rows of the latent position table, for cell = (frame * side + row) * side + column.

    The width is split over frame, row, column as d, d, rest with d = width // 3 made even (released code)."""
    d = width // 3 // 2 * 2
    axes = (cells_N // (side * side), cells_N // side % side, cells_N % side)
    parts = []
    for position, size in zip(axes, (d, d, width - 2 * d), strict=True):
        half = size // 2
        omega = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=cells_N.device) / half)
        angle = position.double()[:, None] * omega
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=-1).float()


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
        # An index would add up its gradients in whatever order threads come to them.
        gen = self.latent_in(latents.to(self.latent_in.weight.dtype)) + F.embedding(which, self.time(distinct))
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


def own_generation(lance: Lance) -> Lance:
    """Make a decoder that shares the understanding side of another; its generation side begins as a copy of that."""
    with unfilled():
        made = Lance(lance.config)
    made.embed, made.head, made.norm["und"] = lance.embed, lance.head, lance.norm["und"]
    for layer, theirs in zip(made.layers, lance.layers, strict=True):
        layer.und = theirs.und
    own = {n: p.detach().clone() for n, p in lance.named_parameters() if is_generation(n)}
    made.load_state_dict(own, strict=False, assign=True)
    return made.train(lance.training)


def is_generation(name: str) -> bool:
    """Whether one of our parameters belongs to the generation side."""
    return ".gen." in f".{name}" or name.startswith(("time.", "latent_in.", "latent_out."))


@lru_cache(maxsize=8)
def lance_parameters(c: ModelConfig) -> tuple[tuple[str, int], ...]:
    """List (name, number of parameters) of every tensor of a decoder; nothing is filled."""
    with unfilled():
        return tuple((name, p.numel()) for name, p in Lance(c).named_parameters())
