"""What a stage takes on given devices: memory of each, speed, days, money; and what to change where it does not fit.

    found = plan(ModelConfig(), stage("pt"), Machine(count=128, device=a100))
    found.fits, found.memory["peak"], found.tokens_per_second, found.days

Memory is counted (`planning/memory.py`), speed is not: it is the device's peak times a utilization that you give.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from openlance.config.lora import Lora
from openlance.config.model import ModelConfig
from openlance.config.sampling import GenerationConfig
from openlance.config.train import Resolution, Stage
from openlance.errors import UserError
from openlance.model.lance import is_generation, lance_parameters
from openlance.model.lora import below_adapters
from openlance.planning.hardware import PER_NODE, Device
from openlance.planning.lessons import HELD, critic_loads, lesson_loads, lesson_operations
from openlance.planning.memory import activations
from openlance.planning.rounds import Round, round_of
from openlance.planning.size import decoder_half, encoder_half, expert_size, linear_sizes, tower_operations, vit_size
from openlance.planning.workload import Load, packed, typical

GIB = float(1 << 30)
USABLE = 0.92  # of a device's memory: the rest goes to fragments between the allocator's blocks
CONTEXT = {True: 1.0, False: 0.4}  # GiB that are gone before the first tensor: CUDA and NCCL; Python and torch


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a stage runs.

    Args:
        count: Devices.
        device: Their kind.
        utilization: Share of the device's peak that goes into the model's own operations (MFU; recomputation does not
            count), above 0 and at most 1.
        shard: The weights over all devices ("full"), over those of one machine ("hybrid"), over so many ("4"), or not
            at all ("none").

    Raises:
        UserError: If a value cannot be.
    """

    count: int
    device: Device
    utilization: float = 0.4
    shard: str = "hybrid"

    def __post_init__(self) -> None:
        if not 0 < self.utilization <= 1:
            raise UserError(f"utilization is {self.utilization}: it must be above 0 and at most 1, such as 0.4")
        if not self.group or self.count % self.group:
            good = f"full, hybrid, none, or a number that divides the {self.count} devices"
            raise UserError(f"shard is {self.shard!r}: use {good}")

    @property
    def gpu(self) -> bool:
        return self.device.name != "CPU"

    @property
    def group(self) -> int:
        """How many devices share one copy of the weights."""
        named = {"full": self.count, "hybrid": min(self.count, PER_NODE), "none": 1}
        return named.get(self.shard) or (int(self.shard) if self.shard.isdigit() else 0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `openlance plan` prints. memory: GiB per device by use, `peak` the most at once. counted: the
    stage's steps at one pack per device and accumulation. paper: tokens that the paper printed, empty where it did not.
    changes: what to change, each as words and `keyword=value` settings: "words: a=1 b=2"."""

    stage: str
    model: dict[str, float]  # parameters
    flops_per_token: dict[str, float]
    pack: dict[str, float]
    memory: dict[str, float]
    without_checkpointing: float  # GiB at the peak
    with_checkpointing: float
    usable: float  # GiB
    tokens_per_second: float  # all devices together
    tokens_per_step: float
    steps: int
    tokens: float
    days: float
    cost: float
    paper: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory["peak"] <= self.usable


def trainable(c: ModelConfig, stage: Stage) -> dict[str, float]:
    """Count the parameters of all parts, and of those that learn."""
    decoder = {f"lance.{name}": n for name, n in lance_parameters(c)}
    learning = {name: n for name, n in decoder.items() if not stage.freezes(name)}
    tower, tower_learns = vit_size(c.vit), stage.lora is None and not stage.freezes("vit.tower")
    generation = {name: n for name, n in decoder.items() if is_generation(name.removeprefix("lance."))}
    if stage.distill is not None:  # into a generation side of its own
        learning, tower_learns = {name: n for name, n in learning.items() if name in generation}, False
    if stage.lora is not None:
        sizes = dict(zip(("q", "k", "v", "o", "gate", "up", "down"), linear_sizes(c), strict=True))
        layers = [name.removeprefix("lance.").removesuffix(".weight") for name in learning]
        chosen = [name for name in layers if re.fullmatch(stage.lora.pattern, name)]
        live = inner = sum(stage.lora.rank * sum(sizes[name.rpartition(".")[2]]) for name in chosen)
    else:
        live = sum(learning.values())
        inner = sum(n for name, n in learning.items() if ".layers." in name and n > c.width)
    expert = expert_size(c) * c.layers
    found = {
        "decoder": sum(decoder.values()),
        "generation side": sum(generation.values()),
        "vision tower": tower,
        "VAE encoder": encoder_half(c.vae).size,
        "active, understanding": expert,
        "active, generation": expert,
        "trained": live + tower * tower_learns,
        "trained matrices": inner,
        "matrices": sum(n for name, n in lance_parameters(c) if below_adapters(name).itemsize == 2),
        "tower learns": tower_learns,
    }
    return {name: float(value) for name, value in found.items()}


def flops(c: ModelConfig, load: Load, learns: dict[str, float], lora: bool = False) -> dict[str, float]:
    """Count the operations of one training step of a pack, by part; the backward pass counts twice the forward one
    (once where weights are frozen below adapters). Windows of the tower's attention are left out."""
    expert, seen = 2.0 * expert_size(c) * c.layers, tower_operations(c.vit, load.patches)
    return {
        "experts": (2 if lora else 3) * expert * load.rows,
        "attention": 3 * 4.0 * c.heads * c.head_dim * c.layers * load.pairs,
        "heads": 3 * 2.0 * c.width * (c.vocab_size * load.labels + 2 * c.latent_channels * load.gen),
        "vision tower": seen * (3 if learns["tower learns"] else 1),
        "VAE": load.vae,
    }


def memory(c: ModelConfig, stage: Stage, machine: Machine, checkpointing: bool) -> dict[str, float]:
    """Count GiB per device by use, for the longest pack, at the resolution that needs most."""
    found = (_memory(c, stage, machine, at, checkpointing) for at in stage.resolutions)
    return max(found, key=lambda one: one["peak"])


def _memory(c: ModelConfig, stage: Stage, machine: Machine, at: Resolution, checkpointing: bool) -> dict[str, float]:
    load, learns = packed(stage, c, at, stage.pack_tokens[1]), trainable(c, stage)
    drawn = None if stage.rl is None else _round(stage, c, at, stage.pack_tokens[1], machine)
    lesson = stage.rl.supervised_share if stage.rl is not None and stage.rl.supervised else 0.0
    whole, group, low = learns["decoder"] + learns["vision tower"], machine.group, stage.dtype != "float32"
    draws = stage.rl is not None or stage.distill is not None
    sharded, live = group > 1, learns["trained"] / group
    precision = "float32" if not low else "bfloat16" if sharded else "autocast"
    layer, outside = 2.0 * expert_size(c), learns["decoder"] - 2.0 * expert_size(c) * c.layers
    size = 2 if low else 4
    if sharded:  # the outermost group and two layers are whole at once; one group's gradients while they travel
        gathered = size * (outside + 2 * layer) + (size + 4) * max(outside, layer)
    else:  # autocast keeps a copy of every weight until it is used backwards, of one layer where it recomputes
        gathered = 2.0 * ((layer + outside) if checkpointing else whole) if low else 0.0
    halved = learns["matrices"] if stage.halves_frozen(sharded) else 0.0  # which autocast takes as they are
    gathered -= 2.0 * (halved - (c.layers - 1) * layer * checkpointing) if halved else 0.0
    moments = 8 * live - (4 * learns["trained matrices"] / group if stage.optimizer == "muon" else 0.0)
    if stage.distill is not None:
        parts = lesson_loads(stage, c, at, stage.pack_tokens[1])
    else:
        alone = [load] if drawn is None else [drawn.update, *([load.times(lesson)] if lesson else [])]
        parts = [(one, 1) for one in alone]
    kept, *other = (
        activations(c, one, precision, gpu=machine.gpu, tower=bool(learns["tower learns"]), passes=passes)
        for one, passes in parts
    )
    apart = learns["vision tower"] if draws else 0.0  # what looks at media between steps stays whole
    lasting = {
        "weights": 4 * ((whole - apart) / group + apart + learns["VAE encoder"]) - 2 * halved,
        "whole layers": gathered,
        "optimizer": moments,
        "average": 4 * live if stage.ema else 0.0,
    }
    if drawn is not None:
        lasting["weights"] += 4 * decoder_half(c.vae).size
        lasting |= {"other weights": 4 * live * drawn.beside, "results": drawn.held * stage.accumulate}
        if sharded:
            lasting["whole weights"] = size * learns["decoder"]
    if stage.distill is not None:  # the start: whole, or what it does not share with what learns
        lasting["whole weights"] = 4 * (learns["decoder"] if sharded else learns["generation side"])
        others = 4 * learns["generation side"] * stage.distill.repeats
        lasting["other weights"] = others + stage.distill.matches * (4 * live + moments)  # and the critic, which learns
    passing = {
        "gradients": 4 * live,
        "activations": kept.kept(checkpointing),
        "backward": kept.peak(checkpointing, 0.0) - kept.kept(checkpointing),
    }
    # with accumulation the gradients of the pack before are still there, as those of the piece before of a round
    again = stage.accumulate > 1 or drawn is not None or len(parts) > 1
    before, along = (4 * live, 0.0) if again else (0.0, 4 * live)
    most = before + max(one.peak(checkpointing, along) for one in (kept, *other))
    if stage.distill is not None and stage.distill.matches:  # the gradients that go on stay beside the critic's
        for seen in critic_loads(stage, c, at, stage.pack_tokens[1]):
            critic = activations(c, seen, precision, gpu=machine.gpu, tower=False)
            most = max(most, 4 * live + critic.peak(checkpointing, 4 * live))
    if drawn is not None:
        passing |= {"conditions": drawn.cached(size), "rollouts": drawn.rolling(size)}
        most = max(most, before + kept.kept(checkpointing) + passing["conditions"], passing["rollouts"])
    peak = sum(lasting.values()) + most
    found = {name: value / GIB for name, value in (lasting | passing).items()}
    return found | {"peak": peak / GIB + CONTEXT[machine.gpu]}


def _round(stage: Stage, c: ModelConfig, at: Resolution, rows: float, machine: Machine) -> Round:
    """The round of a device. Sharded weights travel with the gradient, which conditions then carry in any case."""
    found = round_of(stage, c, at, rows)
    return replace(found, conditions_learn=found.conditions_learn or machine.group > 1)


def plan(
    c: ModelConfig, stage: Stage, machine: Machine, *, usual: GenerationConfig | None = None, changes: bool = True
) -> Plan:
    """Plan one stage.

    Args:
        c: The model.
        stage: The stage.
        machine: Where it runs.
        usual: How the model samples, which counts where guidance is distilled; left out, as released.
        changes: Find what would make it fit if it does not.

    Raises:
        UserError: If a task of its mixture is unknown, has no sample that fits or no guidance that is to be distilled,
            or weights are sharded that have to be whole.
    """
    if machine.group > 1 and stage.distill is not None and stage.distill.matches:
        raise UserError("distill.matched needs whole weights on every device", fix={"shard": "none"})
    learns = trainable(c, stage)
    rows = sum(stage.pack_tokens) / 2
    starts = (0.0, *(at.until for at in stage.resolutions))
    shares = [(at, at.until - start) for start, at in zip(starts, stage.resolutions)]
    mean = sum((packed(stage, c, at, rows).times(share) for at, share in shares), Load())
    work = flops(c, mean, learns, stage.lora is not None)
    drawn = [] if stage.rl is None else [(_round(stage, c, at, rows, machine), share) for at, share in shares]
    if stage.rl is not None:
        again = stage.rl.supervised_share * stage.rl.updates if stage.rl.supervised else 0.0
        work = {"supervised": again * sum(work.values()), "vision tower": work["vision tower"]}
        for one, share in drawn:
            for name, value in one.operations(1.0 if stage.lora is not None else 2.0).items():
                work[name] = work.get(name, 0.0) + share * value
    if stage.distill is not None:
        tower, work = work["vision tower"], defaultdict[str, float](float)
        for at, share in shares:
            for name, value in lesson_operations(stage, c, at, rows, usual or GenerationConfig()).items():
                work[name] += share * value
        work["vision tower"] = tower
    sizes = {checkpointing: memory(c, stage, machine, checkpointing) for checkpointing in (False, True)}
    speed = machine.count * machine.device.tflops * 1e12 * machine.utilization * rows / sum(work.values())
    per_step = rows * machine.count * stage.accumulate
    tokens = stage.paper_tokens or per_step * stage.steps
    days = tokens / speed / 86400
    found = Plan(
        stage=f"{stage.scale}/{stage.name}",
        model=learns,
        flops_per_token={name: value / rows for name, value in work.items()},
        pack={
            "tokens": rows, "understanding": mean.und, "generation": mean.gen, "labels": mean.labels,
            "longest": float(stage.pack_tokens[1]),
        },
        memory=sizes[stage.checkpointing],
        without_checkpointing=sizes[False]["peak"],
        with_checkpointing=sizes[True]["peak"],
        usable=machine.device.memory * USABLE,
        tokens_per_second=speed,
        tokens_per_step=per_step,
        steps=stage.steps,
        tokens=tokens,
        days=days,
        cost=days * 24 * machine.count * machine.device.price,
        paper=_paper(stage, per_step),
        notes=(*_notes(c, stage), *(_of_round(one) for one, _ in drawn), *_of_results(work)),
    )  # fmt: skip
    return replace(found, changes=tuple(_changes(c, stage, machine))) if changes and not found.fits else found


def _paper(stage: Stage, here: float) -> dict[str, float]:
    """What the paper's printed token count says about its packs and ranks; empty where it printed none. here: tokens
    of a step on these devices."""
    if not stage.paper_tokens:
        return {}
    per_step, (low, high) = stage.paper_tokens / stage.steps, stage.pack_tokens
    return {
        "tokens": stage.paper_tokens,
        "tokens_per_step": per_step,
        "packs_per_step_low": per_step / high,
        "packs_per_step_high": per_step / low,
        "steps_here": stage.paper_tokens / here,
        "tokens_of_all_steps_here": here * stage.steps,
    }


def _notes(c: ModelConfig, stage: Stage) -> Iterator[str]:
    """Samples that the limits of the stage do not let through whole."""
    for task, weight in stage.mixture.items():
        for at in stage.resolutions if weight else ():
            found = typical(task, stage, c, at)
            if found.frames < found.wanted:
                fit = f"fit into max_sample_tokens={stage.max_sample_tokens}; videos of {found.wanted} are left out"
                yield f"{task}: {found.frames} frames of base size {at.video[0]} {fit}"


def _of_round(r: Round) -> str:
    """Say what a round is on one device."""
    learned = f"{r.requests * r.learned:,.0f} learned from at {r.asks} states each, beside {r.beside} other weights"
    said = f"a round of a device: {r.requests:,.1f} requests, {r.results:,.0f} results in {r.steps} steps, {learned}"
    return f"{said}; rewards take their own time"


def _of_results(work: Mapping[str, float]) -> Iterator[str]:
    """Say which part need not be: what `training.results` draws ahead."""
    if work.get(HELD):
        rest = 1 - work[HELD] / sum(work.values())
        yield f"results to hold to are drawn in every step; drawn ahead they leave {rest:.0%} of the operations"


def _changes(c: ModelConfig, stage: Stage, machine: Machine) -> Iterator[str]:
    """Changes that make the stage fit: of each kind the smallest one."""
    again = {} if stage.checkpointing else {"checkpointing": True}
    if again and _fits(c, stage, machine, again):
        yield f"compute layers again: {_settings(machine, again)}"
    adapters = {} if stage.lora is not None or stage.distill is not None else {"lora": 64}
    whole = stage.distill is not None and stage.distill.matches  # weights on every device
    larger = [{"count": 2**k, "shard": "full"} for k in range(1, 9) if 2**k > machine.count and not whole]
    cuts = [shortened(stage, part) for part in (2, 4, 8, 16)]
    kinds: dict[str, list[dict[str, Any]]] = {
        "shard over all devices": [] if whole or machine.count == 1 else [{"shard": "full"}],
        "more devices": larger,
        "shorter packs, as many tokens": cuts,
        "adapters": [adapters] if adapters else [],
        "adapters and shorter packs": [adapters | cut for cut in cuts] if adapters else [],
        "more devices and shorter packs": [wider | cuts[1] for wider in larger],
    }
    enough = set[str]()  # what fits by itself is not combined
    for words, options in kinds.items():
        if words.partition(" and ")[0] not in enough:
            for option in options:
                if _fits(c, stage, machine, option | again):
                    enough.add(words)
                    yield f"{words}: {_settings(machine, option | again)}"
                    break


def shortened(stage: Stage, part: int) -> dict[str, Any]:
    """Cut packs to a part of the length, with as many more per update: the fields of the stage that change."""
    packs = tuple(n // part for n in stage.pack_tokens)
    longest = min(stage.max_sample_tokens, packs[1])
    return {"pack_tokens": packs, "max_sample_tokens": longest, "accumulate": stage.accumulate * part}


def _settings(machine: Machine, changes: dict[str, Any]) -> str:
    """The changes as `openlance plan` takes them: "gpus=16xA100-80GB shard=full"."""
    said = {name: json.dumps(value, separators=(",", ":")).strip('"') for name, value in changes.items()}
    if "count" in said:
        said = {"gpus": f"{said.pop('count')}x{machine.device.name}"} | said
    return " ".join(f"{name}={value}" for name, value in said.items())


def _fits(c: ModelConfig, stage: Stage, machine: Machine, changes: dict[str, Any]) -> bool:
    """Whether the longest pack of a changed stage fits. Packs too short for the longest samples leave these out."""
    devices = {name: value for name, value in changes.items() if name in ("count", "shard")}
    fields = {name: value for name, value in changes.items() if name not in devices}
    stage = replace(stage, **fields | ({"lora": Lora(rank=fields["lora"])} if "lora" in fields else {}))
    try:
        needed = memory(c, stage, replace(machine, **devices), stage.checkpointing)["peak"]
    except UserError:  # not even the shortest sample of some task fits into such a pack
        return False
    return needed <= machine.device.memory * USABLE
