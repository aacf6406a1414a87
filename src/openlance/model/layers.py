"""The parts of one decoder layer, and the rotation of queries and keys by position, with the roundings of the release
where they differ from the exact form.

Axes: L rows, D width, A heads, E head width, F MLP width. Rows are sorted by stream once per pack (understanding rows
first), so that a stream is a slice and never a gather.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.config.model import ModelConfig
from openlance.model.attention import Plan, attend
from openlance.model.precision import HALVES
from openlance.sequence.segment import Rows


def frequencies(c: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Give the inverse frequencies of the rotary embedding.

    The release casts its whole model to bfloat16, which rounds this buffer too, and goes on in float32 with the rounded
    numbers (Qwen2_5_VLRotaryEmbedding under `.to(bfloat16)`); `Quirks.rounded_frequencies` asks for the same.

    Args:
        c: Numbers of the model.
        device: Where the result is wanted.

    Returns:
        (E / 2,) float32: theta ** (-i / (E / 2)).
    """
    half = c.head_dim // 2
    # In this order of operations: at positions beyond 1000 another rounding of the frequencies shows (3e-5).
    inverse = 1.0 / c.rope_theta ** (torch.arange(half, dtype=torch.float32, device=device) / half)
    return inverse.bfloat16().float() if c.quirks.rounded_frequencies else inverse


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


def fuse(experts: type[Expert] | Expert, backend: str = "inductor") -> None:
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
# small pictures a fifth faster). Where the MLP is so wide that less than PIECE rows fit, long products are faster.
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
