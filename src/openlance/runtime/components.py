"""Decoder, vision tower and VAE of a checkpoint: read when first needed, offloaded where memory is short."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openlance.checkpoint.formats import CLIPS, COMPUTED, IMAGES, INSIDE, Files, check_hashes, our_name, released_name
from openlance.checkpoint.tensors import Placing, TensorSource, fingerprint, load_into, open_tensors, unfilled
from openlance.config.model import ModelConfig, VAEConfig
from openlance.errors import UserError
from openlance.model.lance import Lance, is_generation, own_generation
from openlance.model.lora import merge
from openlance.model.precision import HALVES, M, fast_bfloat16, widen
from openlance.runtime.offload import Plan, Work, free_memory, group, plans, settle, sizes
from openlance.runtime.quantization import bytes_per_parameter, quantize, receive
from openlance.vae.frames import FrameVAE, NormalizedVAE

if TYPE_CHECKING:
    from openlance.model.lora import Adapter
    from openlance.model.vit import ViT

LARGE = 1e9  # parameters of a decoder from which on it runs in half precision: the release's own, and half the memory
SMALL = 1e8  # ... up to which it and all that goes with it stay where they are, unless there is a budget
AUXILIARY = ("vit", "vae")


def parameters_of(c: ModelConfig) -> int:
    """Estimate the parameters of a decoder by those of its feed-forward layers."""
    return 6 * c.layers * c.width * c.mlp_width


def usual_dtype(files: Files) -> torch.dtype:
    """Choose float32 for small models, and bfloat16 for large ones, as released."""
    return torch.bfloat16 if parameters_of(files.config) > LARGE else torch.float32


def load_lance(
    folder: str | Path | TensorSource,
    config: ModelConfig,
    *,
    streams: tuple[str, ...] = ("und", "gen"),
    dtype: torch.dtype | Callable[[str], torch.dtype] = torch.float32,
    device: Placing = "cpu",
    allow_pickle: bool = False,
) -> Lance:
    """Fill the decoder from released names, strictly.

    Args:
        folder: A file of weights, a folder with one model, or an open source.
        config: Of the model.
        streams: Without "gen" the generation expert is neither built nor read.
        dtype: Of floating-point weights, or a function of our name of each.
        device: Likewise.
        allow_pickle: Whether the file may be a pickle.

    Raises:
        UserError: If a tensor is missing, unexpected, of a wrong shape or not finite.
    """
    with unfilled():
        lance = Lance(config, streams)
    source = open_tensors(folder, allow_pickle=allow_pickle)
    # The fixed position table is computed, and a vision tower inside the file is read by whoever needs one.
    source = source.only(lambda name: name not in COMPUTED and not name.startswith(INSIDE))
    if source.has_scales:
        receive(lance, source)
    wanted = {name for name, _ in lance.named_parameters()}

    def place(name: str) -> str | None:
        ours = our_name(name)
        skipped = ours is not None and ours not in wanted and "gen" not in streams and is_generation(ours)
        return None if skipped else ours or name

    load_into(lance, source, place, dtype=dtype, device=device)
    return lance.eval()


@torch.no_grad()
def with_generation(lance: Lance, source: TensorSource) -> Lance:
    """Make a decoder that shares the understanding side of another; its generation side comes from released names."""
    made = own_generation(lance)
    for name, p in made.named_parameters():
        if is_generation(name):
            p.copy_(source.read(released_name(name)))
    return made


class LazyVAE:
    """The halves of the VAE that are used, over a weight file or its tensors. A file is opened at the first call, so
    errors come then.

    Images and videos have each a network of their own, so that what an image becomes never depends on what was asked
    before.

    Args:
        weights: A file, or tensors under released names.
        config: Sizes of the network.
        allow_pickle: Whether the file may be a pickle.
        dtype: Of the weights. On a CPU that only emulates it they are rounded to it and then held in float32:
            convolutions read few numbers many times, so that widening them at every use would cost more than the
            memory is worth.
        device: Where the halves are loaded.
    """

    def __init__(
        self,
        weights: str | Path | TensorSource,
        config: VAEConfig,
        *,
        allow_pickle: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.weights, self.config = weights, config
        self.dtype, self.device = dtype, torch.device(device)
        self._allow_pickle = allow_pickle
        self._halves: dict[tuple[str, bool], NormalizedVAE] = {}

    def to(self, device: torch.device | str) -> LazyVAE:
        """Make the same VAE on a device."""
        return LazyVAE(self.weights, self.config, allow_pickle=self._allow_pickle, dtype=self.dtype, device=device)

    @torch.no_grad()
    def encode(self, pixels_CFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels to normalized mean and log-variance; see `NormalizedVAE.encode`."""
        return self._half("encoder", pixels_CFHW).encode(pixels_CFHW)

    @torch.no_grad()
    def decode(self, z_CTYX: Tensor) -> Tensor:
        """Decode normalized latents to pixels in [-1, 1]; see `NormalizedVAE.decode`."""
        return self._half("decoder", z_CTYX).decode(z_CTYX)

    @torch.no_grad()
    def decode_steps(self, z_CTYX: Tensor) -> Iterator[Tensor]:
        """Decode some frames at a time; see `NormalizedVAE.decode_steps`."""
        yield from self._half("decoder", z_CTYX).decode_steps(z_CTYX)

    def _half(self, part: str, x_CFYX: Tensor) -> NormalizedVAE:
        """The half for images or, where there is more than one frame, for videos."""
        still = x_CFYX.shape[-3] == 1
        if (part, still) not in self._halves:
            form: type[NormalizedVAE] = FrameVAE
            if not still:
                from openlance.vae.autoencoder import VAE as form
            half = form.load(
                self.weights, self.config, parts=(part,), allow_pickle=self._allow_pickle, dtype=self.dtype,
                device=self.device,
            )  # fmt: skip
            wide = self.dtype in HALVES and not fast_bfloat16(self.device)
            self._halves[part, still] = (half.float() if wide else half).eval()
        return self._halves[part, still]


@dataclass(eq=False, repr=False)
class Components:
    """What a checkpoint has, on a device in a dtype.

    A request begins with `prepare`, which decides where everything goes; then `vit`, `vae` and `lance` are there when
    they are asked for, and `done` tells that an auxiliary component has finished for now. Every decoder that is read
    gets the adapters, and is then quantized, before use.

    Attributes:
        files: Where they are.
        dtypes: Of weights of the decoder by their names, where they differ.
        memory: A budget in bytes; None for whatever is free.
        say: Whether the error stream tells what becomes of the budget.
        adapters: Added to the decoder, see `model.lora`.
        quantization: A recipe of `runtime.quantization`.
        offload: Whether only the component at work is on the device, whatever would fit.
        plan: Of the request that runs.
    """

    files: Files
    _: KW_ONLY
    device: torch.device
    dtype: torch.dtype
    dtypes: Callable[[str], torch.dtype] | None = None
    allow_pickle: bool = False
    memory: int | None = None
    say: bool = False
    adapters: list[Adapter] = field(default_factory=list)
    quantization: str | None = None
    offload: bool = False
    plan: Plan = Plan()
    _plans: dict[tuple, Plan] = field(default_factory=dict)
    _said: Plan = Plan()
    _held: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # the file it was made from, and the component
    _checked: dict[Path, set[str]] = field(default_factory=dict)  # names known to be good, by file
    _towers: dict[bool, tuple[Path, str]] = field(default_factory=dict)
    _hashes: dict[bool, str] = field(default_factory=dict)

    # Where everything goes.

    def prepare(
        self, *streams: str, auxiliary: Iterable[str] = AUXILIARY, clips: bool = False, work: Work | None = None
    ) -> None:
        """Decide for a request.

        Args:
            *streams: Experts that it needs, "und" and "gen".
            auxiliary: Of `AUXILIARY`, what it needs beside the decoder.
            clips: Whether it is about videos.
            work: What else it takes.

        Raises:
            UserError: If a given budget does not hold it.
        """
        self.plan = Plan()
        if self.memory is not None or parameters_of(self.files.config) > SMALL:
            key = streams, tuple(auxiliary), clips, (work or Work()).bytes(self.files.config, self.dtype.itemsize)
            if key not in self._plans:
                self._plans[key] = self._decide(*key)
                if self.say and self._plans[key] != self._said:
                    print(f"memory: {self._plans[key]}", file=sys.stderr)
            self.plan = self._said = self._plans[key]
        if self.offload:
            self.plan = replace(self.plan, offload_auxiliary=True, offload_decoder=True)
        for name in AUXILIARY:
            self.done(name)

    def _decide(self, streams: tuple[str, ...], auxiliary: tuple[str, ...], clips: bool, work: int) -> Plan:
        c, itemsize = self.files.config, self.dtype.itemsize
        # A VAE that is held in float32 counts as twice its parameters in half precision (`LazyVAE`).
        counts = [self._parameters(name, clips) * (1 + (name == "vae" and self._slow)) for name in auxiliary]
        decoder = sizes(c, streams)
        for stream, size in self.bytes_of(clips).items():
            decoder = decoder | {stream: int(decoder[stream] * size / itemsize)}
        options = plans(decoder, counts, layers=c.layers, work=work, itemsize=itemsize)
        budget = self.memory
        if budget is None:
            budget = free_memory(self.device)
            if self.device.type == "cpu":
                # Weights are views of the file. That a large auxiliary component leaves costs next to nothing, and to
                # copy an expert layer by layer would gain nothing.
                small = sum(counts) < LARGE / 10
                options = [p for p in options if not p.streamed and (p.offload_auxiliary or small)]
        fitting = next((p for p in options if p.bytes <= budget), None)
        if fitting is None and self.memory is None:
            return options[-1]  # what does not fit anywhere is tried all the same
        if fitting is None:
            least = math.ceil(min(p.bytes for p in options) / 1e8) / 10
            said = f"memory={budget / 1e9:.3g}GB is too little for this request"
            raise UserError(f"{said}: use memory={least:g}GB or more, or ask for something smaller")
        return fitting

    def bytes_of(self, clips: bool = False) -> dict[str, float]:
        """Give the bytes of a parameter of each expert whose file holds it quantized."""
        tensors = self._stored(self.files.decoder(clips))
        return {} if tensors is None else bytes_per_parameter(tensors)

    def _parameters(self, name: str, clips: bool) -> int:
        """Those of an auxiliary component, 0 where its file cannot be looked at."""
        path, prefix = self._tower(clips) if name == "vit" else (self.files.vae, "")
        tensors = self._stored(path)
        shapes = {} if tensors is None else tensors.shapes
        return sum(math.prod(shape) for n, shape in shapes.items() if n.startswith(prefix))

    def _stored(self, path: Path) -> TensorSource | None:
        """The tensors of a file; None where it is not there (yet) or may not be opened."""
        if self.files.missing(path) or (path.suffix == ".pth" and not self.allow_pickle):
            return None
        return open_tensors(path, allow_pickle=self.allow_pickle)

    # The components.

    def lance(self, *streams: str, clips: bool = False) -> Lance:
        """Give the decoder with at least these streams: the checkpoint for images, or the one for videos."""
        if self.plan.offload_decoder:
            for name in AUXILIARY:
                self.leave(name)
        source, held = (self.files.decoder(clips), self.plan.streamed), self._held.get("lance")
        if held is None or held[0] != source or not set(streams) <= set(held[1].norm):
            held = None
            self.leave("lance")  # before the new one comes: there is no room for two
            held = self._held["lance"] = source, self._read_lance(streams, clips)
        return held[1]

    def distilled(self, clips: bool = False) -> Lance:
        """Give the decoder of `lance` with the generation side that takes the place of guidance.

        Raises:
            UserError: If the checkpoint has none, or it would have to share memory.
        """
        if self.plan.streamed or self.quantization is not None:
            said = "distilled guidance works with a decoder that is whole on the device and not quantized"
            raise UserError(said, fix={"distilled": False})
        lance, path = self.lance("und", "gen", clips=clips), self._fetched(lambda: self.files.distilled)
        if not path.is_file():
            if self.files.defaults.distilled:  # the repository says so
                said = f"{path.name} of {self.files.repo} is not here: {self.files.remedy} if it has one, or go without"
                raise UserError(said, fix={"distilled": False})
            said = f"{self.files.root} has no distilled guidance ({path.name})"
            raise UserError(said, expected="the folder of a run that distilled it", fix={"distilled": False})
        held = self._held.get("distilled")
        if held is None or held[0] is not lance:
            made = with_generation(lance, self._open(lambda: path))
            merge(made, self.adapters, is_generation)
            held = self._held["distilled"] = lance, made
        return held[1]

    def _read_lance(self, streams: tuple[str, ...], clips: bool) -> Lance:
        streamed = self.plan.streamed
        if clips and self.files.form == "released" and [d.name for d in self.files.decoders] == [IMAGES]:
            print(f"note: {self.files.root} has no {CLIPS}, so {IMAGES} makes the clip", file=sys.stderr)

        def place(name: str) -> torch.device:
            return torch.device("cpu") if group(name) in streamed else self.device

        tensors = self._open(lambda: self.files.decoder(clips))
        where = place if streamed else self.device
        lance = load_lance(tensors, self.files.config, streams=streams, dtype=self.dtypes or self.dtype, device=where)
        merge(lance, self.adapters)
        if self.quantization is not None:
            quantize(lance, self.quantization)
        lance = self._widened(lance)
        return settle(lance, streamed, self.device) if streamed else lance

    def _widened(self, component: M) -> M:
        """Its products in float32 where the device is slow at those of its dtype."""
        return widen(component) if self._slow else component

    @property
    def _slow(self) -> bool:
        """Whether weights have half precision on a device that is slow at it."""
        return self.dtype in HALVES and not fast_bfloat16(self.device)

    def vit(self, clips: bool = False) -> ViT:
        """Give the vision tower: the one inside the decoder's file if it has one, as released."""
        from openlance.model.vit import ViT

        path, prefix = self._tower(clips)

        def read() -> ViT:
            tensors = self._open(lambda: self.files.decoder(clips) if prefix == INSIDE else self.files.vit)
            config = self.files.config
            vit = ViT.load(
                tensors, config.vit, prefix=prefix, dtype=self.dtype, device=self.device,
                rounded_frequencies=config.quirks.rounded_frequencies,
            )  # fmt: skip
            return self._widened(vit.eval())

        return self._auxiliary("vit", path, read)

    def _tower(self, clips: bool) -> tuple[Path, str]:
        """Where the vision tower is; to know, the decoder's file has to be there."""
        if clips not in self._towers:
            if self.files.repo is not None:
                self._open(lambda: self.files.decoder(clips))
            self._towers[clips] = self.files.vit_of(clips)
        return self._towers[clips]

    def vae(self) -> LazyVAE:
        """Give the VAE, of which each half is read at its first use."""

        def read() -> LazyVAE:
            tensors = self._open(lambda: self.files.vae)
            return LazyVAE(tensors, self.files.config.vae, dtype=self.dtype, device=self.device)

        return self._auxiliary("vae", self.files.vae, read)

    def _auxiliary(self, name: str, path: Path, read: Callable[[], Any]) -> Any:
        if self.plan.offload_decoder:
            self.leave("lance")
        if name not in self._held or self._held[name][0] != path:
            self.leave(name)
            self._held[name] = path, read()
        return self._held[name][1]

    def done(self, name: str) -> None:
        """Tell that an auxiliary component has finished for now."""
        if self.plan.offload_auxiliary:
            self.leave(name)

    def move(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """Go on elsewhere or in another dtype: what was read is read again."""
        self.device, self.dtype = device or self.device, dtype or self.dtype
        self._plans.clear()
        self._held.clear()

    def leave(self, name: str) -> None:
        """Forget a component; it is read again when it is needed again."""
        self._held.pop(name, None)
        if name == "lance":
            self._held.pop("distilled", None)

    def fetched(self) -> Files:
        """Give the files, all of them on this machine."""
        self._open(lambda: self.files.decoder())
        self._open(lambda: self.files.vit_of()[0])
        self._open(lambda: self.files.vae)
        if self.quantization is None and self.files.defaults.distilled:
            self._fetched(lambda: self.files.distilled)
        return self.files

    def fingerprint(self, clips: bool = False) -> str:
        """Hash the weights that draw images, or videos; "" where nobody can tell any more."""
        if clips not in self._hashes:
            try:
                self._hashes[clips] = fingerprint(self.files.decoder(clips), self.files.vae)
            except (OSError, UserError):  # gone or replaced since it was read
                self._hashes[clips] = ""
        return self._hashes[clips]

    def _fetched(self, part: Callable[[], Path]) -> Path:
        """The path of a part, fetched from the hub if it comes from there and is not here."""
        self.files = self.files.completed(part())
        return part()

    def _open(self, part: Callable[[], Path]) -> TensorSource:
        """The tensors of a part, fetched from the hub if it comes from there. UserError if something is missing, is
        not what the hub has, or is a pickle."""
        path = part()
        if path not in self._checked:
            path = self._fetched(part)
            self.files.require(path)
            check_hashes(path)
        known = self._checked.setdefault(path, set())
        return replace(open_tensors(path, allow_pickle=self.allow_pickle), checked=known)
