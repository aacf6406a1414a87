"""A packed training batch: layout of every sample, noise, forward, losses, and the gradient of every parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor

from openlance.checkpoint.names import our_name, released_name
from openlance.compat.interleave import triple
from openlance.compat.verify import layout
from openlance.compat.verify.checks import DEEP, EXACT, GRADIENT, LOSS, UNIT, Checks
from openlance.compat.verify.files import GoldenFile
from openlance.compat.verify.parts import Parts
from openlance.config.sampling import RELEASED_TRAINING
from openlance.data.front import NO_SIZE
from openlance.flow import shift_times
from openlance.inference.visual import conditions
from openlance.media.clip import Clip
from openlance.sequence.pack import Pack
from openlance.sequence.segment import LATENTS, Kind, Role, Segment, Segments
from openlance.sequence.tasks import (
    Template,
    edit,
    kind_of,
    make,
    prior,
    request,
    subject_driven,
    text_to_visual,
    the_task,
    understand,
)
from openlance.training.objective import Losses, Noised, Weights, noised, objective

# How a training row relates conditions and target (released code, "sample_task"): the template and the role.
RELATIONS: dict[str, tuple[Template, Role]] = {
    "t2v": (text_to_visual, Role.REFERENCE), "idip": (subject_driven, Role.REFERENCE), "edit": (edit, Role.SOURCE),
}  # fmt: skip
VERBATIM = replace(RELEASED_TRAINING, strips=False)  # questions of a row are taken as they are
TRIPLE = ("caption_i", "caption_q", "caption_a")


@dataclass
class Batch:
    """A pack with what fills it."""

    checks: Checks
    parts: Parts
    samples: list[Segments]
    packed: Pack


def check_training(checks: Checks, parts: Parts) -> None:
    """All comparisons of one `train_*` file."""
    batch: Batch | None = None
    with checks.part("samples"):
        batch = _batch(checks, parts)
    if batch is None:
        return
    for what, check in (("layout", check_layout), ("losses and gradients", check_step)):
        with checks.part(what):
            check(batch)


# From the JSON to segments.


def _batch(checks: Checks, parts: Parts) -> Batch:
    file, samples, held = checks.file, list[Segments](), list[list[int]]()
    latents = iter([file.take(n) for n in sorted(file.names(), key=_number) if re.fullmatch(r"in\.latent\d+", n)])
    for number, described in enumerate(file.fact("samples")):
        chosen = _sample(file, parts, described, number, latents, held)
        samples.append(chosen)
        text = layout.rendered(parts.pack([chosen]).rows.token.tolist(), parts.tokenizer)
        if "rendered_text" in described:
            wrong = not layout.same_text(text, described["rendered_text"])
            checks.add(f"sample {number}: rendered_text", float(wrong), EXACT)
    clips = [s.value for sample in samples for s in sample if s.kind is Kind.PATCHES]
    seen = iter(parts.features(clips) if clips else [])
    samples = [[s.filled(next(seen)) if s.kind is Kind.PATCHES else s for s in sample] for sample in samples]
    return Batch(checks, parts, samples, _hold(parts.pack(samples), held))


def _number(name: str) -> int:
    return int((re.findall(r"\d+", name) or ["0"])[0])


def _sample(
    file: GoldenFile, parts: Parts, described: dict, number: int, latents: Iterator[Tensor], held: list[list[int]]
) -> Segments:
    """One row. The order of its texts among its media and a caption prompt drawn at random are not in the JSON; of the
    layouts that the release can make of the row, the one that reads like the rendered text is taken."""
    relation = described.get("sample_task", "t2v")
    role = RELATIONS.get(relation, (understand, Role.REFERENCE))[1]
    blocks, target, text_only = list[Segment](), None, True
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
            text_only = False
    row = described.get("row_text", {})
    candidates = list(_answers(row, blocks) if text_only else _drawings(row, blocks, target, relation))
    wanted = described.get("rendered_text")
    for segments in candidates:
        text = layout.rendered(parts.pack([segments]).rows.token.tolist(), parts.tokenizer)
        if wanted is not None and layout.same_text(text, wanted):
            return segments
    return candidates[0]


def _target(pixels: Clip, latent: Tensor, conditions: list[int]) -> tuple[Segment, list[int]]:
    """The filled target and the known frames beyond the leading ones, which are given to the segment; the release skips
    the last of two latent frames, so that not all are known."""
    frames = latent.shape[0]
    known = sorted({i if i >= 0 else frames - 1 for i in conditions if not (i == -1 and frames == 2)})
    leading = next((n for n in range(len(known) + 1) if n == len(known) or known[n] != n), 0)
    return make(pixels.pixels.shape[:3], latent, latent[:leading] if leading else None), known[leading:]


def _texts(row: dict[str, Any]) -> list[str]:
    """Captions of a row, apart from question and answer, in the order of the JSON."""
    return [text for key, text in row.items() if isinstance(text, str) and key not in TRIPLE and text.strip()]


def _drawings(row: dict, blocks: Segments, target: Segment | None, relation: str) -> Iterator[Segments]:
    """A visual target after every order of captions and media; media first is what the released readers end up with."""
    assert target is not None and target.size is not None
    texts, spec = _texts(row), the_task(RELATIONS[relation][0], kind_of(target.size[0]))
    front = prior(spec, RELEASED_TRAINING)
    for order in permutations(range(len(texts))):
        words = [_caption(texts[i], prompt=n == len(texts) - 1) for n, i in enumerate(order)]
        for at in reversed(range(len(blocks) + 1)):
            yield [*front, *blocks[:at], *words, *blocks[at:], target]
            yield [*front, *words[:1], *blocks[:at], *words[1:], *blocks[at:], target]


def _caption(text: str, prompt: bool = True) -> Segment:
    return Segment(Kind.TEXT, Role.PROMPT if prompt else Role.REFERENCE, text.strip())


def _answers(row: dict, blocks: Segments) -> Iterator[Segments]:
    """An answer after captions and media in any order; without a question one of the caption prompts was drawn."""
    texts = _texts(row)
    whole = all(key in row for key in TRIPLE)
    answer: Any = [row[key] for key in TRIPLE] if whole else texts.pop()
    drawn = [("image", 0)] if whole else product(("image", "video"), range(len(RELEASED_TRAINING.captions)))
    for kind, caption in drawn:
        said, question, text = triple(answer, RELEASED_TRAINING, kind, caption)
        for at in range(len(blocks) + 1):
            user = [*blocks[:at], *map(_caption, texts), *blocks[at:]]
            yield request(the_task(understand, kind), question, user, NO_SIZE, text, VERBATIM, said=said)


def _hold(packed: Pack, held: list[list[int]]) -> Pack:
    """The pack with the rows of known frames left out of the flow. held: of each visual target, in order."""
    denoise = packed.rows.denoise.clone()
    targets = [v for v in packed.visuals if v.segment.role is Role.TARGET]
    for v, frames in zip(targets, held, strict=True):
        cells = v.grid[1] * v.grid[2]
        for frame in frames:
            denoise[v.rows[0] + frame * cells : v.rows[0] + (frame + 1) * cells] = False
    return replace(packed, rows=replace(packed.rows, denoise=denoise))


# Comparisons.


def check_layout(batch: Batch) -> None:
    """Rows, splits, positions and mask of the whole pack; the padding tail is a sample of its own in the lists only."""
    checks, file, packed, rows = batch.checks, batch.checks.file, batch.packed, batch.packed.rows
    lengths, modes = layout.recorded_splits(packed)
    tail = file.fact("max_num_tokens", len(rows)) - len(rows)
    padded = "pad" in file.facts.get("sample_type", ["pad"])
    kinds = ["gen" if bool(rows.noisy[rows.doc == doc].any()) else "und" for doc in range(len(packed.lengths))]
    checks.fact("split_lens", lengths + [tail] * padded)
    checks.fact("attn_modes", modes + ["causal"] * padded)
    checks.fact("sample_lens", packed.lengths + [tail] * padded)
    checks.fact("sample_type", kinds + ["pad"] * padded)
    checks.fact("sample_N_target", [1] * len(kinds) + [0] * padded)
    checks.fact("sequence_length", len(rows))
    checks.fact("total_mse_tokens", int(rows.denoise.sum()))
    checks.fact("vae_latent_shapes", [list(v.grid) for v in packed.visuals if v.kind == LATENTS])
    ends = torch.tensor(packed.lengths).cumsum(0).tolist()
    for number, described in enumerate(file.fact("samples")):
        span = [ends[number] - packed.lengths[number], ends[number]]
        if "span" in described:
            checks.add(f"sample {number}: span", float(described["span"] != span), EXACT, note=f"{span}")
    layout.check_rows(checks, packed)
    checks.same("out.position_ids", rows.position.T)
    checks.same("pos.mape", rows.position.T)
    checks.same("pos.rope_index", batch.parts.pack(batch.samples, shift=False).rows.position.T)
    layout.check_mask(checks, "mask.packbits", rows)
    counts = torch.bincount(rows.doc[rows.label >= 0], minlength=len(kinds))
    checks.near("pack.ce_loss_weights", 1 / counts[rows.doc[rows.label >= 0]].sqrt(), UNIT)


def check_step(batch: Batch) -> None:
    """Forward, losses and gradients of one step."""
    checks, file, lance = batch.checks, batch.checks.file, batch.parts.lance
    laid, patches = lance.layout(batch.packed.rows), conditions(batch.packed)[0]
    noise = _noise(batch)
    x, times = (noise.x, noise.times) if noise is not None else (None, None)
    if "out.input_sequence" in file or "out.last_hidden_state" in file:
        with torch.no_grad():
            embedded = lance.restore(laid, lance.inputs(laid, patches, x, times))
            checks.near("out.input_sequence", embedded, DEEP)
            hidden = lance.restore(laid, lance(laid, patches=patches, latents=x, times=times))
            checks.near("out.last_hidden_state", hidden, DEEP)
    lance.zero_grad(set_to_none=True)
    losses = objective(lance, laid, noise, patches, len(batch.parts.tokenizer))
    _check_losses(checks, batch, losses)
    given = file.fact("loss_weights") or {}
    total = losses.total(Weights(text=given.get("ce_weight", 0.25), flow=given.get("mse_weight", 1.0)))
    checks.number("loss", total.item(), LOSS)
    total.backward()
    with checks.part("gradients"):
        _check_gradients(checks, batch)
    lance.zero_grad(set_to_none=True)


def _noise(batch: Batch) -> Noised | None:
    """The noised latents of the pack, from the stored noise and the raw normal draws of the flow times."""
    file, rows = batch.checks.file, batch.packed.rows
    visuals = [v for v in batch.packed.visuals if v.kind == LATENTS]
    if not visuals:
        return None
    clean = torch.cat([v.segment.value.flatten(0, 2) for v in visuals])
    latent = rows.at(layout.where(rows.is_latent))
    raw = file.get("pack.packed_timesteps")
    if raw is not None:
        still = int(((torch.sigmoid(raw) == 0) != ~latent.denoise).sum())
        batch.checks.add("pack.packed_timesteps", still, EXACT, note="clean rows are those at minus infinity")
        shifted = shift_times(torch.sigmoid(raw), file.fact("timestep_shift", 4.0))
        batch.checks.near("out.timesteps_shifted", torch.where(latent.denoise, shifted, 0.0), UNIT)
    else:
        shifted = file.take("out.timesteps_shifted")
    times = torch.zeros(int(latent.target.max()) + 1)
    times[latent.target[latent.denoise]] = shifted[latent.denoise]
    return noised(batch.packed, clean, times, file.take("in.noise"))


def _check_losses(checks: Checks, batch: Batch, losses: Losses) -> None:
    checks.near_relative("out.mse", losses.per_latent, LOSS)
    checks.near_relative("out.ce", losses.per_token, LOSS)
    checks.number("mse_mean", losses.flow.item(), LOSS)
    checks.number("ce_mean", losses.text.item(), LOSS)
    weights = checks.file.get("pack.ce_loss_weights")
    if weights is not None and len(weights) == len(losses.per_token):
        checks.number("ce_mean_reweighted", float((losses.per_token.detach() * weights).sum() / weights.sum()), LOSS)


def _check_gradients(checks: Checks, batch: Batch) -> None:
    """Every stored gradient, and the norm of every parameter's; what must be zero is measured against the whole."""
    file = checks.file
    found = {released_name(n): p.grad for n, p in batch.parts.lance.named_parameters()}
    ours = {n: torch.zeros(()) if g is None else g for n, g in found.items()}
    whole = torch.stack([g.double().norm() for g in ours.values()]).norm().item()
    floor = 1e-6 * whole
    for name in file.names():
        if name.startswith("grad."):
            parameter = name.removeprefix("grad.")
            grad = ours.get(parameter, torch.tensor(float("nan")))
            checks.near_norm(name, grad.expand(file.source.shapes[name]) if not grad.dim() else grad, GRADIENT, floor)
    norms = file.fact("grad_norm") or {}
    if norms:
        errors = {n: abs(_norm(ours, n) - want) / max(want, floor) for n, want in norms.items()}
        worst = max(errors, key=lambda n: errors[n] if errors[n] == errors[n] else float("inf"))
        note = f"worst of {len(norms)}: {worst}"
        checks.add("grad_norm", errors[worst], GRADIENT, True, note)
    checks.number("grad_norm_total", whole, GRADIENT)
    without = file.fact("params_without_grad")
    if without is not None:
        moved = [n for n in without if our_name(n) is not None and bool(ours[n].any())]
        silent = [n for n, g in ours.items() if not bool(g.any()) and n not in without and norms.get(n, 0.0) > 0]
        checks.add("params_without_grad", len(moved) + len(silent), EXACT, note=", ".join([*moved, *silent][:3]))


def _norm(grads: dict[str, Tensor], name: str) -> float:
    return float(grads[name].double().norm()) if name in grads else float("nan")
