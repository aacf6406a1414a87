"""A packed training batch: layout of every sample, noise, forward, losses, and the gradient of every parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor

from lance_parity.checks import DEEP, GRADIENT, LOSS, UNIT, Checks, Measure, Table
from lance_parity.files import GoldenFile
from lance_parity.layout import LAYOUT, that_reads
from lance_parity.parts import Parts
from lance_parity.traces import passing
from openlance.checkpoint.formats import our_name, released_name
from openlance.compat.interleave import triple
from openlance.config.sampling import RELEASED_TRAINING
from openlance.data.front import NO_SIZE
from openlance.flow import shift_times
from openlance.inference.visual import conditions
from openlance.media.clip import Clip
from openlance.model.lance import Lance
from openlance.sequence import tasks
from openlance.sequence.pack import Pack
from openlance.sequence.segment import LATENTS, Kind, Role, Segment, Segments
from openlance.training.objective import Losses, Noised, Pass, noised, objective

# How a training row relates conditions and target (released code, "sample_task"): the template and the role.
RELATIONS: dict[str, tuple[tasks.Template, Role]] = {
    "t2v": (tasks.text_to_visual, Role.REFERENCE),
    "idip": (tasks.subject_driven, Role.REFERENCE),
    "edit": (tasks.edit, Role.SOURCE),
}
STYLE = replace(RELEASED_TRAINING, strips=False)  # questions of a row are taken as they are
TRIPLE = ("caption_i", "caption_q", "caption_a")


# From the JSON to segments.


def read_batch(checks: Checks, parts: Parts) -> Batch:
    """Build the samples of a pack.

    The order of the texts of a row among its media and a caption prompt drawn at random are not in the JSON; of the
    layouts that the release can make of the row, the one that reads like the rendered text is taken.

    Args:
        checks: Of the file.
        parts: The model.
    """
    file, samples, held = checks.file, list[Segments](), list[list[int]]()
    stored = sorted((k["n"], name) for name, k in file.matching("in.latent{n}"))
    latents = (file.take(name) for _, name in stored)
    for number, described in enumerate(file.take("samples")):
        candidates = _candidates(file, described, number, latents, held)
        wanted = described.get("rendered_text")
        samples.append(that_reads(checks, f"sample {number}: rendered_text", wanted, candidates, parts))
    shown = [s.value for sample in samples for s in sample if s.kind is Kind.PATCHES]
    seen = iter(parts.features([clip for clip in shown if isinstance(clip, Clip)]))
    samples = [[s.filled(next(seen)) if s.kind is Kind.PATCHES else s for s in sample] for sample in samples]
    return Batch(file, parts, samples, _held_still(parts.pack(samples), held))


def _candidates(
    file: GoldenFile, described: dict, number: int, latents: Iterator[Tensor], held: list[list[int]]
) -> list[Segments]:
    """The layouts of one row. held: gets the known frames of its target that are not given to the segment."""
    template, role = RELATIONS.get(described.get("sample_task", "t2v"), RELATIONS["t2v"])
    blocks, target = list[Segment](), None
    for k, step in enumerate(described["plan"]):
        kind = step["type"].removesuffix("_video")
        if kind not in ("vit", "vae"):
            continue
        pixels = Clip(file.take(f"in.sample{number}.media{k}.{step['type']}_u8").numpy())
        if kind == "vit":
            blocks.append(Segment(Kind.PATCHES, role, pixels))
        elif not step.get("loss"):
            blocks.append(Segment(Kind.LATENTS, role, next(latents), pixels.pixels.shape[:3]))
        else:
            target, known = _target(pixels, next(latents), step.get("frame_condition_idx") or [])
            held.append(known)
    row = described.get("row_text", {})
    texts = [text for key, text in row.items() if isinstance(text, str) and key not in TRIPLE and text.strip()]
    if target is not None:
        assert target.size is not None
        front = tasks.prior(tasks.the_task(template, tasks.kind_of(target.size[0])), STYLE)
        return [[*front, *user, target] for user in _arranged(texts, blocks)]
    # Without a question one of the caption prompts was drawn.
    whole = all(key in row for key in TRIPLE)
    answer: Any = [row[key] for key in TRIPLE] if whole else texts.pop()
    drawn = [("image", 0)] if whole else product(("image", "video"), range(len(STYLE.captions)))
    return [
        tasks.request(tasks.the_task(tasks.understand, kind), question, user, NO_SIZE, text, STYLE, said=said)
        for kind, caption in drawn
        for said, question, text in [triple(answer, STYLE, kind, caption)]
        for user in _arranged(texts, blocks)
    ]


def _arranged(texts: list[str], blocks: Segments) -> Iterator[Segments]:
    """Captions and media in every order; media first is what the released readers end up with."""
    roles = [Role.REFERENCE] * (len(texts) - 1) + [Role.PROMPT]
    for order in permutations(texts):
        words = [Segment(Kind.TEXT, role, text.strip()) for role, text in zip(roles, order)]
        for at in reversed(range(len(blocks) + 1)):
            yield [*blocks[:at], *words, *blocks[at:]]
            yield [*words[:1], *blocks[:at], *words[1:], *blocks[at:]]


def _target(pixels: Clip, latent: Tensor, conditions: list[int]) -> tuple[Segment, list[int]]:
    """The filled target and the known frames beyond the leading ones, which are given to the segment; the release skips
    the last of two latent frames, so that not all are known."""
    frames = latent.shape[0]
    known = sorted({i if i >= 0 else frames - 1 for i in conditions if not (i == -1 and frames == 2)})
    leading = sum(i == n for n, i in enumerate(known))
    return tasks.make(pixels.pixels.shape[:3], latent, latent[:leading] if leading else None), known[leading:]


def _held_still(packed: Pack, held: list[list[int]]) -> Pack:
    """The pack with the rows of known frames left out of the flow. held: of each image or video target, in order."""
    denoise = packed.rows.denoise.clone()
    targets = [v for v in packed.visuals if v.segment.role is Role.TARGET]
    for v, frames in zip(targets, held, strict=True):
        for frame in frames:
            denoise[slice(*v.rows)].view(v.grid[0], -1)[frame] = False
    return replace(packed, rows=replace(packed.rows, denoise=denoise))


# What our code makes of it.


@dataclass(eq=False)
class Batch:
    """A pack with what fills it, and one step on it; everything is worked out when it is first asked for, and once."""

    file: GoldenFile
    parts: Parts
    samples: list[Segments]
    packed: Pack

    @property
    def tail(self) -> list[int]:
        """How much padding follows, a sample of its own in the lists only."""
        padded = "pad" in self.file.facts.get("sample_type", ["pad"])
        return [self.file.get("max_num_tokens", len(self.packed)) - len(self.packed)] * padded

    @property
    def moves(self) -> Tensor:
        """Which latent rows are denoised."""
        return self.packed.rows.denoise[self.packed.rows.is_latent]

    @property
    def drawn_times(self) -> Tensor:
        """The shifted flow times of all latent rows, from the raw normal draws."""
        times = torch.sigmoid(self.file.take("pack.packed_timesteps"))
        return torch.where(self.moves, shift_times(times, self.file.get("timestep_shift", 4.0)), 0.0)

    @cached_property
    def noise(self) -> Noised | None:
        """The noised latents of the pack, with the stored noise."""
        visuals = [v for v in self.packed.visuals if v.kind == LATENTS]
        if not visuals:
            return None
        target = self.packed.rows.target[self.packed.rows.is_latent]
        times = torch.zeros(int(target.max()) + 1)
        times[target[self.moves]] = self.drawn_times[self.moves]
        clean = torch.cat([v.segment.tensor.flatten(0, 2) for v in visuals])
        return noised(self.packed, clean, times, self.file.take("in.noise"))

    @cached_property
    def step(self) -> tuple[Losses, Tensor, Tensor]:
        """The losses of one step, and the rows (L, D) before and after the layers."""
        lance, patches = self.parts.lance, conditions(self.packed)[0]
        laid = lance.layout(self.packed.rows)
        with passing(lance.layers[0], lance) as calls:
            losses = objective(lance, Pass(laid, self.noise, patches, len(self.parts.tokenizer)))
        ((embedded, *_), _), (_, last) = calls
        return losses, lance.restore(laid, embedded), lance.restore(laid, last)

    @property
    def total(self) -> Tensor:
        """The loss of the step."""
        given = self.file.get("loss_weights", {})
        return self.step[0].total(text=given.get("ce_weight", 0.25), flow=given.get("mse_weight", 1.0))

    def reweighted(self) -> Tensor:
        """Give the text loss with the stored weights of its tokens."""
        weights = self.file.take("pack.ce_loss_weights")
        return (self.step[0].per_token * weights).sum() / weights.sum()


def _still(raw: Tensor, still: Tensor) -> Tensor:
    """Count the rows whose raw draw is not minus infinity exactly where they are clean."""
    return ((torch.sigmoid(raw) == 0) != still.bool()).sum()


BATCH: Table = LAYOUT | {
    "pack.packed_timesteps": (lambda b: ~b.moves, Measure(0.0, _still, note="clean rows are those at minus infinity")),
    "out.timesteps_shifted": (lambda b: b.drawn_times, UNIT),
    "out.input_sequence": (lambda b: b.step[1], DEEP),
    "out.last_hidden_state": (lambda b: b.step[2], DEEP),
    "out.mse": (lambda b: b.step[0].per_latent, LOSS),
    "out.ce": (lambda b: b.step[0].per_token, LOSS),
    "mse_mean": (lambda b: b.step[0].flow, LOSS),
    "ce_mean": (lambda b: b.step[0].text, LOSS),
    "ce_mean_reweighted": (lambda b: b.reweighted(), LOSS),
    "loss": (lambda b: b.total, LOSS),
}


def check_training(checks: Checks, parts: Parts) -> None:
    """Make all comparisons of one `train_*` file."""
    with checks.part("samples"):
        batch = read_batch(checks, parts)
        checks.table(BATCH, batch)
        end = 0
        for number, (described, n) in enumerate(zip(checks.file.take("samples"), batch.packed.lengths)):
            start, end = end, end + n
            if "span" in described:
                checks.add(f"sample {number}: span", float(described["span"] != [start, end]), note=f"{start}, {end}")
        with checks.part("gradients"):
            parts.lance.zero_grad(set_to_none=True)
            batch.total.backward()
            check_gradients(checks, gradients(parts.lance))


def gradients(lance: Lance) -> dict[str, Tensor]:
    """Collect what a step left at the parameters, by released names; zero where it left nothing."""
    found = {released_name(name): p for name, p in lance.named_parameters()}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in found.items()}


def check_gradients(checks: Checks, ours: Mapping[str, Tensor]) -> None:
    """Compare every stored gradient and the norm of every parameter's; what must be zero is measured against the whole.

    Args:
        checks: Of the file.
        ours: By released names.
    """
    file, norms = checks.file, {name: float(g.double().norm()) for name, g in ours.items()}
    whole = float(torch.tensor(list(norms.values()), dtype=torch.float64).norm())
    floor = 1e-6 * whole

    def apart(want: Tensor, have: Tensor) -> Tensor:
        return (want - have).norm() / want.norm().clamp(min=floor)

    per_parameter: Table = {"grad.{name}": (lambda grads, name: grads[name], GRADIENT._replace(distance=apart))}
    checks.table(per_parameter | {"grad_norm_total": (lambda grads: whole, GRADIENT)}, ours)
    wanted = file.get("grad_norm", {})
    if wanted:
        errors = [abs(norms.get(n, torch.inf) - want) / max(want, floor) for n, want in wanted.items()]
        worst = int(torch.tensor(errors).argmax())  # which takes what is not a number for the largest
        checks.add("grad_norm", errors[worst], GRADIENT, f"worst of {len(wanted)}: {list(wanted)[worst]}")
    without = file.get("params_without_grad")
    if without is not None:
        moved = [n for n in without if our_name(n) is not None and norms[n]]
        silent = [n for n, norm in norms.items() if not norm and n not in without and wanted.get(n, 0.0) > 0]
        checks.add("params_without_grad", len(moved) + len(silent), note=", ".join([*moved, *silent][:3]))
