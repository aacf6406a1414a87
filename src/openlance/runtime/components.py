"""Decoder, vision tower and codec of a checkpoint: read when first needed, put away where memory is short."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from openlance.checkpoint.formats import CLIPS, IMAGES, INSIDE, Files, check_hashes
from openlance.checkpoint.names import COMPUTED, our_name
from openlance.checkpoint.tensors import Placing, TensorSource, load_into, open_tensors, unfilled
from openlance.config.model import ModelConfig
from openlance.errors import UserError
from openlance.model.lance import Lance, is_generation
from openlance.model.precision import HALVES, M, fast_bfloat16, widen
from openlance.runtime.offload import Plan, Work, free_memory, group, plans, settle, sizes
from openlance.runtime.quantization import bytes_per_number, quantise, receive
from openlance.vae.lazy import LazyVAE

if TYPE_CHECKING:
    from openlance.model.vit import ViT
    from openlance.runtime.lora import Adapter

LARGE = 1e9  # numbers in a decoder from which on it runs in half precision: the release's own, and half the memory
SMALL = 1e8  # ... up to which it and all that goes with it stay where they are, unless there is a budget
GUESTS = ("vit", "vae")


def numbers(c: ModelConfig) -> int:
    """About how many a decoder has: those of its feed-forward layers."""
    return 6 * c.layers * c.width * c.mlp_width


def usual_dtype(files: Files) -> torch.dtype:
    """float32 for small models; bfloat16 for large ones, as released."""
    return torch.bfloat16 if numbers(files.config) > LARGE else torch.float32


def load_lance(
    folder: str | Path | TensorSource,
    config: ModelConfig,
    *,
    streams: tuple[str, ...] = ("und", "gen"),
    dtype: torch.dtype = torch.float32,
    device: Placing = "cpu",
    allow_pickle: bool = False,
) -> Lance:
    """Fill the decoder from released names, strictly. Without "gen" the generation expert is neither built nor read."""
    with unfilled():
        lance = Lance(config, streams)
    source = open_tensors(folder, allow_pickle=allow_pickle)
    # The fixed position table is computed, and a vision tower inside the file is read by whoever needs one.
    source = source.only(lambda name: name not in COMPUTED and not name.startswith("vit_model."))
    if source.has_scales:
        receive(lance, source)
    wanted = {name for name, _ in lance.named_parameters()}

    def place(name: str) -> str | None:
        ours = our_name(name)
        skipped = ours is not None and ours not in wanted and "gen" not in streams and is_generation(ours)
        return None if skipped else ours or name

    load_into(lance, source, place, dtype=dtype, device=device)
    return lance.eval()


class Components:
    """What a checkpoint has, on a device in a dtype; `memory` is a budget in bytes, None for whatever is free. With
    `say`, what becomes of it is told on the error stream.

    A request begins with `prepare`, which says what it will need and decides where everything goes; then `vit`, `vae`
    and `lance` are there when they are asked for, and `done` tells that a guest has finished for now. Every decoder
    that is read gets the `adapters`, and is then stored in `few_bits` (a recipe of `runtime.quantization`), before use.
    """

    def __init__(
        self,
        files: Files,
        *,
        device: torch.device,
        dtype: torch.dtype,
        allow_pickle: bool = False,
        memory: int | None = None,
        say: bool = False,
    ) -> None:
        self.files, self.device, self.dtype, self.memory, self.say = files, device, dtype, memory, say
        self.allow_pickle = allow_pickle
        self.adapters: list[Adapter] = []
        self.few_bits: str | None = None
        self.plan = Plan()
        self.take_turns = False  # only what works is on the device, whatever would fit
        self._plans: dict[tuple, Plan] = {}
        self._said = Plan()
        self._held: dict[str, tuple[Any, Any]] = {}  # what it was made from, and the part
        self._checked: dict[Path, set[str]] = {}  # names known to be good, by file
        self._towers: dict[bool, tuple[Path, str]] = {}
        self._counts: dict[tuple[str, bool], int] = {}

    # Where everything goes.

    def prepare(
        self, *streams: str, guests: Iterable[str] = GUESTS, clips: bool = False, work: Work | None = None
    ) -> None:
        """Decide for a request: which experts and which guests it needs, whether it is about clips, what else it takes.
        UserError if a given budget does not hold it."""
        self.plan = Plan()
        if self.memory is not None or numbers(self.files.config) > SMALL:
            needed = (work or Work()).bytes(self.files.config, self.dtype.itemsize)
            self.plan = self._planned(streams, tuple(guests), clips, needed)
        if self.take_turns:
            self.plan = replace(self.plan, guests_leave=True, turns=True)
        for name in GUESTS:
            self.done(name)

    def _planned(self, *key: Any) -> Plan:
        if key not in self._plans:
            self._plans[key] = self._decide(*key)
            if self.say and self._plans[key] != self._said:
                print(f"memory: {self._plans[key]}", file=sys.stderr)
        self._said = self._plans[key]
        return self._said

    def _decide(self, streams: tuple[str, ...], guests: tuple[str, ...], clips: bool, work: int) -> Plan:
        c, itemsize = self.files.config, self.dtype.itemsize
        for name in guests:
            if not self._counts.get((name, clips)):
                self._counts[name, clips] = self._numbers(name, clips)
        # A codec that is held in float32 counts as twice its numbers in half precision (`LazyVAE`).
        counts = [self._counts[name, clips] * (1 + (name == "vae" and self._slow)) for name in guests]
        decoder = sizes(c, streams)
        for stream, size in self.bits_of(clips).items():
            decoder = decoder | {stream: int(decoder[stream] * size / itemsize)}
        options = plans(decoder, counts, layers=c.layers, work=work, itemsize=itemsize)
        if self.memory is None:
            if self.device.type == "cpu":
                # Weights are views of the file. That a large guest leaves costs next to nothing, and to copy an expert
                # in turns would gain nothing.
                options = [p for p in options if not p.away and (p.guests_leave or sum(counts) < LARGE / 10)]
            # What does not fit anywhere is tried all the same.
            return next((p for p in options if p.bytes <= free_memory(self.device)), options[-1])
        fitting = next((p for p in options if p.bytes <= self.memory), None)
        if fitting is None:
            least = math.ceil(min(p.bytes for p in options) / 1e8) / 10
            raise UserError(
                f"--memory {self.memory / 1e9:.3g}GB is too little for this request: pass --memory {least:g}GB or "
                f"more, or ask for something smaller"
            )
        return fitting

    def bits_of(self, clips: bool = False) -> dict[str, float]:
        """Bytes of a number of the experts whose file holds them quantized."""
        path = self.files.decoder(clips)
        if self.files.missing(path) or (path.suffix == ".pth" and not self.allow_pickle):
            return {}
        tensors = open_tensors(path, allow_pickle=self.allow_pickle)
        return bytes_per_number(tensors) if tensors.has_scales else {}

    def _numbers(self, name: str, clips: bool) -> int:
        """Numbers in a guest, 0 if its file is not there (yet) or may not be read."""
        path, prefix = self._tower(clips) if name == "vit" else (self.files.vae, "")
        if self.files.missing(path) or (path.suffix == ".pth" and not self.allow_pickle):
            return 0
        shapes = open_tensors(path, allow_pickle=self.allow_pickle).shapes
        return sum(math.prod(shape) for n, shape in shapes.items() if n.startswith(prefix))

    # The parts.

    def lance(self, *streams: str, clips: bool = False) -> Lance:
        """The decoder with at least these streams: the checkpoint for pictures, or the one for clips."""
        if self.plan.turns:
            for name in GUESTS:
                self.leave(name)
        source, held = (self.files.decoder(clips), self.plan.away), self._held.get("lance")
        if held is None or held[0] != source or not set(streams) <= set(held[1].norm):
            held = None
            self.leave("lance")  # before the new one comes: there is no room for two
            held = self._held["lance"] = source, self._read_lance(streams, clips)
        return held[1]

    def _read_lance(self, streams: tuple[str, ...], clips: bool) -> Lance:
        away = self.plan.away
        if clips and self.files.form == "released" and [d.name for d in self.files.decoders] == [IMAGES]:
            print(f"note: {self.files.root} has no {CLIPS}, so {IMAGES} makes the clip", file=sys.stderr)

        def place(name: str) -> torch.device:
            return torch.device("cpu") if group(name) in away else self.device

        tensors = self._open(lambda: self.files.decoder(clips))
        where = place if away else self.device
        lance = load_lance(tensors, self.files.config, streams=streams, dtype=self.dtype, device=where)
        for adapter in self.adapters:
            adapter.merge(lance)
        if self.few_bits is not None:
            quantise(lance, self.few_bits)
        return settle(self._widened(lance), away, self.device) if away else self._widened(lance)

    def _widened(self, part: M) -> M:
        """Its products in float32 where the device is slow at those of its numbers."""
        return widen(part) if self._slow else part

    @property
    def _slow(self) -> bool:
        """Whether weights have half precision on a device that is slow at it."""
        return self.dtype in HALVES and not fast_bfloat16(self.device)

    def vit(self, clips: bool = False) -> ViT:
        """The vision tower: the one inside the decoder's file if it has one, as released."""
        from openlance.model.vit import ViT

        if self.plan.turns:
            self.leave("lance")
        path, prefix = self._tower(clips)

        def read() -> ViT:
            tensors = self._open(lambda: self.files.decoder(clips) if prefix == INSIDE else self.files.vit)
            config = self.files.config
            vit = ViT.load(
                tensors, config.vit, prefix=prefix, dtype=self.dtype, device=self.device,
                rounded_frequencies=config.quirks.rounded_frequencies,
            )  # fmt: skip
            return self._widened(vit.eval())

        return self._guest("vit", path, read)

    def _tower(self, clips: bool) -> tuple[Path, str]:
        """Where the vision tower is; to know, the decoder's file has to be there."""
        if clips not in self._towers:
            if self.files.repo is not None:
                self._open(lambda: self.files.decoder(clips))
            self._towers[clips] = self.files.vit_of(clips)
        return self._towers[clips]

    def vae(self) -> LazyVAE:
        """The codec; each half is read at its first use."""
        if self.plan.turns:
            self.leave("lance")

        def read() -> LazyVAE:
            tensors = self._open(lambda: self.files.vae)
            return LazyVAE(tensors, self.files.config.vae, dtype=self.dtype, device=self.device)

        return self._guest("vae", self.files.vae, read)

    def _guest(self, name: str, path: Path, read: Callable[[], Any]) -> Any:
        if name not in self._held or self._held[name][0] != path:
            self.leave(name)
            part = read()
            self._held[name] = path, part
        return self._held[name][1]

    def done(self, name: str) -> None:
        """A guest has finished for now."""
        if self.plan.guests_leave:
            self.leave(name)

    def move(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """From now on elsewhere or in another dtype: what was read is read again."""
        self.device, self.dtype = device or self.device, dtype or self.dtype
        self._plans.clear()
        for name in list(self._held):
            self.leave(name)

    def leave(self, name: str) -> None:
        """Forget a part; it is read again when it is needed again."""
        self._held.pop(name, None)

    def fetched(self) -> Files:
        """The files, all of them on this machine."""
        parts: tuple[Callable[[], Path], ...] = (
            lambda: self.files.decoder(),
            lambda: self.files.vit_of()[0],
            lambda: self.files.vae,
        )
        for part in parts:
            self._open(part)
        return self.files

    def _open(self, part: Callable[[], Path]) -> TensorSource:
        """The tensors of a part, fetched from the hub if it comes from there. UserError if something is missing, is
        not what the hub has, or is a pickle."""
        path = part()
        if path not in self._checked:
            if self.files.repo is not None and self.files.missing(path):
                self.files = self.files.completed(path)
                path = part()
            self.files.require(path)
            check_hashes(path)
        known = self._checked.setdefault(path, set())
        return replace(open_tensors(path, allow_pickle=self.allow_pickle), checked=known)
