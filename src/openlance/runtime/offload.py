"""Models larger than the memory of their device: what stays there, what takes turns, what only visits.

    Plan()                                 everything stays
    Plan(guests_leave=True)                vision tower and codec come when they are needed and leave again
    Plan(guests_leave=True, turns=True)    and the decoder leaves while they are there
    Plan(..., away=("und", "ends"))        the understanding expert visits layer by layer, while the other one stays

All give the same numbers, bit for bit: only the place of the weights changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.config.model import ModelConfig, lance_parameters
from openlance.config.values import brief, plain
from openlance.errors import UserError
from openlance.model.lance import MOST_ROWS, Lance, is_generation

UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
EXPERT = re.compile(r"layers\.(\d+)\.(und|gen)\.")
# Numbers that the codec's decoder holds at its fullest, per pixel of a frame and channel of its last level, for a
# picture and for a clip (counted at 768x768 and 480x848 by `training.measured.PeakMemory`).
CODEC = (13, 85)
SLOTS = 2  # layers of a visiting expert on the device: the one at work and the next


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where weights are during one request. away: groups of the decoder that wait at home: "und" and "gen" (experts),
    "ends" (token embedding and next-token head). bytes: what is on the device at its fullest, with working memory."""

    guests_leave: bool = False
    turns: bool = False
    away: tuple[str, ...] = ()
    bytes: int = 0

    def __str__(self) -> str:
        streamed = [{"und": "understanding", "gen": "generation"}[a] for a in self.away if a in ("und", "gen")]
        said = []
        if streamed:
            verb = "expert visits" if len(streamed) == 1 else "experts visit"
            said.append(f"the {' and '.join(streamed)} {verb} layer by layer")
        if self.turns:
            said.append("vision tower and codec take turns with the decoder")
        elif self.guests_leave:
            said.append("vision tower and codec are there only while they work")
        return f"{'; '.join(said) or 'everything stays'} ({self.bytes / 1e9:.1f} GB at most)"


PLANS = (
    Plan(),
    Plan(guests_leave=True),
    Plan(guests_leave=True, turns=True),
    Plan(guests_leave=True, away=("und", "ends")),
    Plan(guests_leave=True, turns=True, away=("und", "ends")),
    Plan(guests_leave=True, turns=True, away=("und", "gen", "ends")),
)


def parse_memory(text: str | int | None) -> int | None:
    """Bytes of a budget such as "12GB"; None for "auto" or nothing given."""
    if text is None or (isinstance(text, str) and text == "auto"):
        return None
    said = text if isinstance(text, str) else brief(text if isinstance(text, bool) else plain(text))
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", said)
    if match is None or match[2].upper() not in UNITS or not float(match[1]):
        raise UserError(f"--memory {brief(text)} is not a size: use auto, or for example 12GB, 16GB or 24GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def free_memory(device: torch.device) -> int:
    """Bytes that may be used on a device: what is free on an accelerator; half of it on the CPU, since files are
    cached in the same memory and other programs live there."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)  # ours is free to us
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            found = dict(line.split(":", 1) for line in lines)
        return int(found["MemAvailable"].split()[0]) * 1024 // 2
    except (OSError, KeyError, ValueError):
        return 1 << 62  # a system that does not say: nothing is put away


@lru_cache(maxsize=8)
def sizes(c: ModelConfig, streams: tuple[str, ...]) -> dict[str, int]:
    """Numbers in each group of the decoder: "und" and "gen" experts, "ends", and the "rest"."""
    found = dict.fromkeys(("und", "gen", "ends", "rest"), 0)
    for name, numbers in lance_parameters(c):
        if "gen" in streams or not is_generation(name):
            found[group(name)] += numbers
    return found


def group(name: str) -> str:
    """The group of one of our parameters."""
    match = EXPERT.match(name)
    return match[2] if match else "ends" if name.startswith(("embed.", "head.")) else "rest"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is in memory beside the weights. rows: that run together; context: whose keys and values are kept, in all
    guidance branches; pixels: of a frame that is decoded, of a clip (`moving`) or a picture."""

    rows: int = 0
    context: int = 0
    pixels: int = 0
    moving: bool = False

    def cache(self, c: ModelConfig) -> int:
        """Numbers in the keys and values."""
        return self.context * 2 * c.kv_heads * c.head_dim * c.layers

    def activations(self, c: ModelConfig) -> int:
        """Numbers at the fullest: the MLP of one layer with what stands beside it, or the codec at full resolution. An
        estimate, on the large side."""
        layer = min(self.rows, MOST_ROWS) * 3 * c.mlp_width + self.rows * 8 * c.width
        codec = CODEC[self.moving] * self.pixels * c.vae.dec_dim // c.vae.patch_size**2
        return max(layer, codec)

    def bytes(self, c: ModelConfig, itemsize: int) -> int:
        return (self.cache(c) + self.activations(c)) * itemsize


def plans(decoder: dict[str, int], guests: list[int], *, layers: int, work: int = 0, itemsize: int = 2) -> list[Plan]:
    """All plans with the bytes that each needs, the roomiest first. decoder: see `sizes`; guests: numbers in each of
    the vision tower and the codec that is needed; work: bytes of all that is no weight."""
    found = []
    for plan in PLANS:
        there = sum(n for name, n in decoder.items() if name not in plan.away)
        there += sum(SLOTS * decoder[name] // layers for name in plan.away if name != "ends")
        visitors = max(guests, default=0) if plan.guests_leave else sum(guests)
        needed = max(there, visitors) if plan.turns else there + visitors
        found.append(replace(plan, bytes=itemsize * needed + work))
    return found


class Visitors:
    """Experts that wait at home (host memory or the mapped file) and visit the device for their layer's turn.

    Their parameters become views of two slots on the device; before a layer runs, its weights are copied into its slot,
    and while it runs, those of the next layer into the other one.
    """

    def __init__(self, lance: Lance, streams: tuple[str, ...], device: torch.device) -> None:
        self.layers, self.streams = list(lance.layers), streams
        self.copier = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ready: list[Any] = [None] * SLOTS
        self.holds: list[int | None] = [None] * SLOTS
        self.homes = [
            [(p, _home(p.data, device)) for s in streams for p in getattr(layer, s).parameters()]
            for layer in self.layers
        ]
        slots = [[torch.empty_like(home, device=device) for _, home in self.homes[0]] for _ in range(SLOTS)]
        for n, (layer, homes) in enumerate(zip(self.layers, self.homes, strict=True)):
            for (parameter, _), place in zip(homes, slots[n % SLOTS], strict=True):
                parameter.data = place
                parameter.requires_grad_(False)
            layer.register_forward_pre_hook(lambda _, args, n=n: self.arrive(n, args[0]))

    def arrive(self, n: int, rows: tuple[Tensor, Tensor]) -> None:
        """Called before layer n runs on rows of both streams."""
        if not any(len(x) for x, s in zip(rows, ("und", "gen"), strict=True) if s in self.streams):
            return
        if self.holds[n % SLOTS] != n:
            self.fetch(n)
        if self.copier is None:
            return
        torch.cuda.current_stream(self.copier.device).wait_event(self.ready[n % SLOTS])
        after = (n + 1) % len(self.layers)
        if after % SLOTS != n % SLOTS and self.holds[after % SLOTS] != after:
            self.fetch(after)

    def fetch(self, n: int) -> None:
        """Copy a layer's weights into its slot, once what reads the slot has been done."""
        self.holds[n % SLOTS] = n
        if self.copier is None:
            for parameter, home in self.homes[n]:
                parameter.data.copy_(home)
            return
        self.copier.wait_stream(torch.cuda.current_stream(self.copier.device))
        with torch.cuda.stream(self.copier):
            for parameter, home in self.homes[n]:
                parameter.data.copy_(home, non_blocking=True)
            self.ready[n % SLOTS] = self.copier.record_event()


def _home(weights: Tensor, device: torch.device) -> Tensor:
    """Page-locked where that makes copies to the device fast."""
    return weights.pin_memory() if device.type == "cuda" else weights


class HomeEmbedding(nn.Module):
    """A token embedding that stays at home; only the rows of the tokens travel."""

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        super().__init__()
        self.weight, self.device = nn.Parameter(weight, requires_grad=False), device

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids.to(self.weight.device), self.weight).to(self.device)


class HomeLinear(nn.Module):
    """A projection that stays at home and visits the device for one product."""

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        super().__init__()
        self.weight, self.device = nn.Parameter(weight, requires_grad=False), device

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(self.device))


def settle(lance: Lance, away: tuple[str, ...], device: torch.device) -> Lance:
    """Give a decoder whose `away` groups were loaded at home what brings them to the device."""
    streams = tuple(s for s in away if s in lance.norm)
    if "ends" in away:
        lance.embed = HomeEmbedding(lance.embed.weight.data, device)  # type: ignore[assignment]
        lance.head = HomeLinear(lance.head.weight.data, device)  # type: ignore[assignment]
    if streams:
        Visitors(lance, streams, device)  # held by the hooks
    return lance
