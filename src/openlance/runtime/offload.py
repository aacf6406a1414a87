"""Models larger than the memory of their device: what stays there, what is offloaded, what is streamed.

    Plan()                                                everything stays
    Plan(offload_auxiliary=True)                          vision tower and VAE are loaded when they are needed
    Plan(offload_auxiliary=True, offload_decoder=True)    and the decoder is offloaded while they are there
    Plan(..., streamed=("und", "ends"))                   the understanding expert is streamed layer by layer

All give the same results, bit for bit: only the place of the weights changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openlance.config.model import ModelConfig
from openlance.config.values import brief, plain
from openlance.errors import UserError
from openlance.model.lance import MOST_ROWS, Lance, is_generation, lance_parameters

UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
EXPERT = re.compile(r"layers\.(\d+)\.(und|gen)\.")
# Values that the VAE's decoder holds at its fullest, per pixel of a frame and channel of its last level, for an image
# and for a video (counted at 768x768 and 480x848 by `benchmarks/measured.py`).
DECODER = (13, 85)
SLOTS = 2  # layers of a streamed expert on the device: the one at work and the next


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where weights are during one request.

    Attributes:
        offload_auxiliary: Vision tower and VAE are on the device only while they work.
        offload_decoder: ... and the decoder is not, while they do.
        streamed: Groups of the decoder in host memory: "und" and "gen" (experts), "ends" (token embedding and
            next-token head).
        bytes: What is on the device at its fullest, with working memory.
    """

    offload_auxiliary: bool = False
    offload_decoder: bool = False
    streamed: tuple[str, ...] = ()
    bytes: int = 0

    def __str__(self) -> str:
        names = [{"und": "understanding", "gen": "generation"}[a] for a in self.streamed if a in ("und", "gen")]
        said = [f"{' and '.join(names)} weights are streamed layer by layer"] if names else []
        if self.offload_decoder:
            said.append("vision tower and VAE are loaded in turn with the decoder")
        elif self.offload_auxiliary:
            said.append("vision tower and VAE are loaded only while they work")
        return f"{'; '.join(said) or 'everything stays'} ({self.bytes / 1e9:.1f} GB at most)"


PLANS = (
    Plan(),
    Plan(offload_auxiliary=True),
    Plan(offload_auxiliary=True, offload_decoder=True),
    Plan(offload_auxiliary=True, streamed=("und", "ends")),
    Plan(offload_auxiliary=True, offload_decoder=True, streamed=("und", "ends")),
    Plan(offload_auxiliary=True, offload_decoder=True, streamed=("und", "gen", "ends")),
)


def parse_memory(text: str | int | None) -> int | None:
    """Give the bytes of a budget such as "12GB"; None for "auto" or nothing given. UserError for what is no size."""
    if text is None or (isinstance(text, str) and text == "auto"):
        return None
    said = text if isinstance(text, str) else brief(text if isinstance(text, bool) else plain(text))
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", said)
    if match is None or match[2].upper() not in UNITS or not float(match[1]):
        raise UserError(f"memory={brief(text)} is not a size: use auto, or for example 12GB, 16GB or 24GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def free_memory(device: torch.device) -> int:
    """Give the bytes that may be used on a device: what is free on an accelerator; half of it on the CPU, since files
    are cached in the same memory and other programs live there."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)  # ours is free to us
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            found = dict(line.split(":", 1) for line in lines)
        return int(found["MemAvailable"].split()[0]) * 1024 // 2
    except (OSError, KeyError, ValueError):
        return 1 << 62  # a system that does not say: nothing is offloaded


@lru_cache(maxsize=8)
def sizes(c: ModelConfig, streams: tuple[str, ...]) -> dict[str, int]:
    """Count the parameters in each group of the decoder: "und" and "gen" experts, "ends", and the "rest"."""
    found = dict.fromkeys(("und", "gen", "ends", "rest"), 0)
    for name, count in lance_parameters(c):
        if "gen" in streams or not is_generation(name):
            found[group(name)] += count
    return found


def group(name: str) -> str:
    """Name the group of one of our parameters."""
    match = EXPERT.match(name)
    return match[2] if match else "ends" if name.startswith(("embed.", "head.")) else "rest"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is in memory beside the weights.

    Attributes:
        rows: That run together.
        context: Rows whose keys and values are kept, in all guidance branches.
        pixels: Of a frame that is decoded.
        moving: Whether it is one of a video.
    """

    rows: int = 0
    context: int = 0
    pixels: int = 0
    moving: bool = False

    def cache(self, c: ModelConfig) -> int:
        """Count the keys and values, without unit."""
        return self.context * 2 * c.kv_heads * c.head_dim * c.layers

    def activations(self, c: ModelConfig) -> int:
        """Count the activations at the fullest: the MLP of one layer with what stands beside it, or the VAE at full
        resolution. An estimate, on the large side."""
        layer = min(self.rows, MOST_ROWS) * 3 * c.mlp_width + self.rows * 8 * c.width
        return max(layer, DECODER[self.moving] * self.pixels * c.vae.dec_dim // c.vae.patch_size**2)

    def bytes(self, c: ModelConfig, itemsize: int) -> int:
        return (self.cache(c) + self.activations(c)) * itemsize


def plans(
    decoder: dict[str, int], auxiliary: list[int], *, layers: int, work: int = 0, itemsize: int = 2
) -> list[Plan]:
    """Give all plans with the bytes that each needs, the roomiest first.

    Args:
        decoder: See `sizes`.
        auxiliary: Parameters of the vision tower and of the VAE, as far as they are needed.
        layers: Of the decoder.
        work: Bytes of all that is no weight.
        itemsize: Bytes of a parameter.
    """
    found = []
    for plan in PLANS:
        there = sum(n for name, n in decoder.items() if name not in plan.streamed)
        there += sum(SLOTS * decoder[name] // layers for name in plan.streamed if name != "ends")
        beside = max(auxiliary, default=0) if plan.offload_auxiliary else sum(auxiliary)
        needed = max(there, beside) if plan.offload_decoder else there + beside
        found.append(replace(plan, bytes=itemsize * needed + work))
    return found


class Streamed:
    """Experts that stay in host memory (or the mapped file) and are streamed to the device layer by layer.

    Their parameters become views of two slots on the device; before a layer runs, its weights are copied into its slot,
    and while it runs, those of the next layer into the other one.
    """

    def __init__(self, lance: Lance, streams: tuple[str, ...], device: torch.device) -> None:
        self.layers, self.streams = list(lance.layers), streams
        self.copier = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ready: list[Any] = [None] * SLOTS
        self.holds: list[int | None] = [None] * SLOTS
        own = [[p for s in streams for p in getattr(layer, s).parameters()] for layer in self.layers]
        pinned = device.type == "cuda"  # page-locked: which makes copies to the device fast
        self.homes = [[(p, p.data.pin_memory() if pinned else p.data) for p in layer] for layer in own]
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


def settle(lance: Lance, streamed: tuple[str, ...], device: torch.device) -> Lance:
    """Give a decoder whose `streamed` groups were loaded into host memory what brings them to the device."""
    if "ends" in streamed:
        embedding, head = lance.embed.weight.data, lance.head.weight.data
        # Of the embedding only the rows of the tokens travel; the head is copied for one product.
        lance.embed.forward = lambda ids: F.embedding(ids.to(embedding.device), embedding).to(device)  # type: ignore
        lance.head.forward = lambda x: F.linear(x, head.to(device))  # type: ignore
    if streams := tuple(s for s in streamed if s in lance.norm):
        Streamed(lance, streams, device)  # held by the hooks
    return lance
