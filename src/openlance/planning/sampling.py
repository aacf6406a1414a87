"""What one request takes: weights by part, keys and values, activations, VAE; and where everything would go.

    found = plan(ModelConfig(), Wanted(task="t2v", height=480, width=848, frames=121), memory=16e9)
    found.verdict

Placements and their sizes are those between which a memory budget chooses (`runtime/offload.py`). Sizes are for
bfloat16 and a pair of guidance branches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openlance.config.model import ModelConfig
from openlance.config.sampling import RELEASED_BUCKETS, Sampling
from openlance.errors import UserError
from openlance.flow import schedule
from openlance.media.transform import MediaTransform
from openlance.planning.size import decoder_half, encoder_half, expert_size, tower_operations, vit_size
from openlance.planning.workload import load_of, ruler, sized
from openlance.runtime.offload import Work, plans, sizes
from openlance.sequence.pack import document
from openlance.sequence.segment import PATCHES, Kind, Role, Segments
from openlance.sequence.tasks import spec_of

ITEM = 2  # bytes of a number in bfloat16
USUAL = (768, 768)  # released defaults: height, width; frames of a video
FRAMES = 49
PROMPT = 120  # tokens


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A request.

    Args:
        task: A name of `sequence.tasks.TASKS`.
        height: Pixels of what is made, or of what is asked about; 0: the usual ones.
        width: Likewise.
        frames: Likewise.
    """

    task: str
    height: int = 0
    width: int = 0
    frames: int = 0


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """What a request takes, in bytes but for `tokens`; placements: (text, bytes at the fullest, cache included), the
    roomiest first."""

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
        least = _gb(min(needed for _, needed in self.placements))
        if self.memory is None:
            return f"with {_gb(self.placements[0][1])} everything stays, with {least} it still runs"
        if self.chosen is None:
            return f"does NOT fit into {_gb(self.memory)}: it takes {least}; ask for fewer frames or a smaller size"
        words, needed = self.chosen
        return f"fits into {_gb(self.memory)}: {words}, {_gb(needed)} at the fullest"


def plan(c: ModelConfig, wanted: Wanted, memory: float | None = None) -> SamplingPlan:
    """Plan a request for a model.

    Args:
        c: The model.
        wanted: The request.
        memory: A budget in bytes; None for no limit.

    Raises:
        UserError: For an unknown task, or sizes that do not fit the strides.
    """
    wanted, segments = _request(c, wanted)
    columns, _ = document(segments, ruler(c), c.position)
    noisy, total = int(columns["noisy"].sum()), len(columns["noisy"])
    makes = any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in segments)
    reads = any(s.kind is Kind.LATENTS and (s.role is not Role.TARGET or s.given is not None) for s in segments)
    decoder = sizes(c, ("und", "gen") if makes else ("und",))
    tower = vit_size(c.vit) if any(s.kind is Kind.PATCHES for s in segments) else 0
    halves = {"VAE decoder": decoder_half(c.vae).size * makes, "VAE encoder": encoder_half(c.vae).size * reads}
    branches, context = Sampling().branches if makes else 1, total - noisy
    work = Work(
        rows=branches * max(noisy, context), context=branches * context,
        pixels=wanted.height * wanted.width if makes else 0, moving=wanted.frames > 1,
    )  # fmt: skip
    options = plans(decoder, [tower, sum(halves.values())], layers=c.layers, work=work.bytes(c, ITEM), itemsize=ITEM)
    needs = [option.bytes for option in options]
    distinct = [option for n, option in enumerate(options) if option.bytes < min(needs[:n], default=float("inf"))]
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
        placements=tuple((str(option).rpartition(" (")[0], float(option.bytes)) for option in distinct),
        memory=memory,
    )  # fmt: skip


def operations(c: ModelConfig, wanted: Wanted, sampling: Sampling | None = None) -> dict[str, float]:
    """Count the operations of a request by part: linear layers, attention, the tower's linear layers, convolutions.

    The words of an answer are left out: reading the weights takes their time, not computing.

    Args:
        c: The model.
        wanted: The request.
        sampling: How it denoises; None: as released.

    Raises:
        UserError: As `plan`.
    """
    wanted, segments = _request(c, wanted)
    columns, visuals = document(segments, ruler(c), c.position)
    load, how = load_of(columns, visuals, c), sampling or Sampling()
    noisy = float(columns["noisy"].sum())
    context, made = load.rows - noisy, [v.grid for v in visuals if v.segment.role is Role.TARGET]
    passes = sum(how.branches if how.acts_at(t) else 1 for t in schedule(how.num_inference_steps, how.shift)[:-1])
    passes, branches = (passes, how.branches) if noisy else (0, 1)
    pairs = passes * noisy * (noisy + context) + branches * context * (context + 1) / 2
    return {
        "linear layers": 2.0 * expert_size(c) * c.layers * (passes * noisy + branches * context),
        "attention": 4.0 * c.heads * c.head_dim * c.layers * pairs,
        "vision tower": tower_operations(c.vit, load.patches),
        "VAE": sum(map(decoder_half(c.vae).flops, made)) + load.vae - sum(map(encoder_half(c.vae).flops, made)),
    }


def _gb(value: float) -> str:
    return f"{value / 1e9:.3g} GB"


def _request(c: ModelConfig, wanted: Wanted) -> tuple[Wanted, Segments]:
    """The request with the usual numbers where none were given, those of the release or of nano, and its segments;
    what is looked at has the size that presets make of it."""
    spec = spec_of(wanted.task)
    moving, released = "video" in (spec.reads, spec.makes), c.vae.stride >= 16
    if wanted.frames > 1 and not moving:
        raise UserError(f"frames={wanted.frames} of {spec.name}, which is about single images: leave the frames out")
    usual = USUAL if released else (64, 64)
    frames = (wanted.frames or (FRAMES if released else 9)) if moving else 1
    height, width = wanted.height or usual[0], wanted.width or usual[1]
    c.vae.check((frames, height, width))
    transform = MediaTransform(c, usual=usual, bases=RELEASED_BUCKETS if released else {})
    segments = sized(spec, transform.seen_size(height, width, spec.makes), (frames, height, width), PROMPT)
    return replace(wanted, height=height, width=width, frames=frames), segments
