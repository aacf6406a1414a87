"""What one request takes: weights by part, keys and values, activations, codec; and where everything would go.

    found = plan(ModelConfig(), Wanted(task="t2v", height=480, width=848, frames=121), memory=16e9)
    found.verdict

Placements and their sizes are those between which `--memory` chooses (`runtime/offload.py`). Numbers are for
bfloat16 and a pair of guidance branches.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlance.config.model import ModelConfig
from openlance.config.sampling import RELEASED_BUCKETS, Sampling
from openlance.errors import UserError
from openlance.media.transform import MediaTransform
from openlance.planning.lengths import placeholder, ruler, text
from openlance.planning.size import decoder_half, encoder_half, vit_size
from openlance.runtime.offload import Plan as Placement
from openlance.runtime.offload import Work, plans, sizes
from openlance.sequence.pack import document
from openlance.sequence.rows import PATCHES
from openlance.sequence.segment import Kind, Role, Segments
from openlance.sequence.tasks import Views, request, spec_of

ITEM = 2  # bytes of a number in bfloat16
USUAL = (768, 768)  # released defaults: height, width; frames of a clip
FRAMES = 49
PROMPT = 120  # tokens


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A request. height, width in pixels and frames of what is made, or of what is asked about; 0: the usual ones."""

    task: str
    height: int = 0
    width: int = 0
    frames: int = 0


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """Bytes, but for `tokens`. placements: text and bytes at the fullest, cache included, the roomiest first."""

    wanted: Wanted
    tokens: dict[str, float]
    weights: dict[str, float]
    cache: float
    activations: float
    placements: tuple[tuple[str, float], ...]
    memory: float | None

    @property
    def chosen(self) -> tuple[str, float] | None:
        """The roomiest placement that fits the memory."""
        return next((p for p in self.placements if self.memory is None or p[1] <= self.memory), None)

    @property
    def fits(self) -> bool:
        return self.chosen is not None

    @property
    def verdict(self) -> str:
        least = min(needed for _, needed in self.placements)
        if self.memory is None:
            roomy = self.placements[0][1]
            return f"with {_gb(roomy)} everything stays, with {_gb(least)} it still runs; --memory says what you have"
        if self.chosen is None:
            return (
                f"does NOT fit into {_gb(self.memory)}: it takes {_gb(least)}; ask for fewer frames or a smaller size"
            )
        words, needed = self.chosen
        return f"fits into {_gb(self.memory)}: {words}, {_gb(needed)} at the fullest"


def plan(c: ModelConfig, wanted: Wanted, memory: float | None = None) -> SamplingPlan:
    """The plan of a request for a model; memory in bytes, None for no limit. UserError if sizes do not fit."""
    wanted = _complete(c, wanted)
    segments = _request(c, wanted)
    columns, _ = document(segments, ruler(c), c.position)
    noisy, total = int(columns["noisy"].sum()), len(columns["noisy"])
    makes = any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in segments)
    reads = [s for s in segments if s.kind is Kind.LATENTS and (s.role is not Role.TARGET or s.given is not None)]
    streams = ("und", "gen") if makes else ("und",)
    decoder = sizes(c, streams)
    tower = vit_size(c.vit) if any(s.kind is Kind.PATCHES for s in segments) else 0
    halves = {
        "codec decoder": decoder_half(c.vae).size * makes,
        "codec encoder": encoder_half(c.vae).size * bool(reads),
    }
    branches, context = Sampling().branches if makes else 1, total - noisy
    work = Work(
        rows=branches * max(noisy, context), context=branches * context,
        pixels=wanted.height * wanted.width if makes else 0, moving=wanted.frames > 1,
    )  # fmt: skip
    options = plans(decoder, [tower, sum(halves.values())], layers=c.layers, work=work.bytes(c, ITEM), itemsize=ITEM)
    weights = {
        "understanding expert": decoder["und"], "generation expert": decoder["gen"],
        "embedding and head": decoder["ends"], "connectors": decoder["rest"], "vision tower": tower, **halves,
    }  # fmt: skip
    return SamplingPlan(
        wanted=wanted,
        tokens={
            "context": context, "denoised": float(noisy),
            "vision tower": float((columns["kind"] == PATCHES).sum()),
        },
        weights={name: float(ITEM * n) for name, n in weights.items() if n},
        cache=float(ITEM * work.cache(c)),
        activations=float(ITEM * work.activations(c)),
        placements=tuple((_words(option), float(option.bytes)) for option in _distinct(options)),
        memory=memory,
    )  # fmt: skip


def _distinct(options: list[Placement]) -> list[Placement]:
    """Without those that take as much as a roomier one."""
    kept: list[Placement] = []
    for option in options:
        if all(option.bytes < other.bytes for other in kept):
            kept.append(option)
    return kept


def _gb(value: float) -> str:
    return f"{value / 1e9:.3g} GB"


def _words(option: Placement) -> str:
    return str(option).rpartition(" (")[0]


def _complete(c: ModelConfig, wanted: Wanted) -> Wanted:
    """Usual numbers where none were given. UserError for an unknown task or sizes that do not fit the strides."""
    spec = spec_of(wanted.task)
    moving = "video" in (spec.reads, spec.makes)
    if wanted.frames > 1 and not moving:
        raise UserError(f"the task {wanted.task} is about single pictures: leave --frames {wanted.frames} out")
    usual = usual_size(c)
    found = Wanted(
        task=wanted.task, height=wanted.height or usual[0], width=wanted.width or usual[1],
        frames=(wanted.frames or (FRAMES if usual == USUAL else 9)) if moving else 1,
    )  # fmt: skip
    c.vae.check((found.frames, found.height, found.width))
    return found


def usual_size(c: ModelConfig) -> tuple[int, int]:
    """(height, width) where none is given: the release's, or nano's for codecs of its stride."""
    return USUAL if c.vae.stride >= 16 else (64, 64)


def _request(c: ModelConfig, wanted: Wanted) -> Segments:
    """The request with media that have only a size; what is looked at has the one that presets make of it."""
    spec, usual = spec_of(wanted.task), usual_size(c)
    read = wanted.frames if spec.reads == "video" else 1
    transform = MediaTransform(c, usual=usual, bases=RELEASED_BUCKETS if usual == USUAL else {})
    seen = transform.seen_size(wanted.height, wanted.width, spec.makes)
    media = [Views(placeholder(read, *seen), placeholder(read, wanted.height, wanted.width))] if spec.reads else []
    size = (wanted.frames if spec.makes == "video" else 1, wanted.height, wanted.width)
    return request(spec, text(PROMPT), media, size)
