"""Vectors of the release in bfloat16, and what tells rounded from unrounded rotary frequencies.

The inputs of such a file are those of the float32 case that it names. It may hold up to four runs of the released code:
as released, with unrounded frequencies, and both in float32; each is compared with our code in the same form.
Tolerances are those of the golden format's description.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from openlance.compat.verify.answers import _cached_answer
from openlance.compat.verify.checks import DEEP, EXACT, Checks
from openlance.compat.verify.files import GoldenFile
from openlance.compat.verify.generation import _run, _sampling, _velocities
from openlance.compat.verify.runs import PLAIN, RELEASED, ROUNDED, UNROUNDED, Family, Form, Halves, open_halves
from openlance.compat.verify.traces import embedded
from openlance.model.attention import frequencies
from openlance.model.vit import RoundedRotation
from openlance.sequence.rows import REFERENCE, SOURCE
from openlance.vae.lazy import channels_first, to_uint8

# Largest difference of a table of cosines, in bfloat16; of everything in float32.
TABLE, FLOAT = 4e-3, DEEP
# In bfloat16 with any kernel, the length of the difference relative to that of what is wanted.
ROTATED, FIRST, LAST, TOWER, LOGITS, MOMENTS = 1.2e-2, 1e-2, 1.5e-2, 1.3e-2, 2e-2, 1.8e-2
VELOCITY, STATE, FINAL = 1.2e-2, 1.2e-2, 3e-2
ULP, LEVELS = 1.0, 1.2  # of embeddings; of decoded pixels, on average
SHARE = 0.5  # of what rounding the frequencies changes
GAP = 0.1  # between the two likeliest tokens: where it is smaller another kernel may take the other


def check_halves(checks: Checks, inputs: GoldenFile, family: Family) -> None:
    """Make all comparisons of one file in bfloat16.

    Args:
        checks: Those of the file.
        inputs: The float32 case whose inputs it has.
        family: The model in every form.
    """
    halves: Halves | None = None
    with checks.part("inputs"):
        halves = open_halves(checks, inputs, family)
    if halves is None:
        return
    for form in (RELEASED, UNROUNDED, ROUNDED, PLAIN):
        if halves.has(form):
            with checks.part(f"{form.name}run"):
                _check_form(halves, form)
    for what, check in (("tables", _check_tables), ("codec", _check_codec), ("shares", _check_shares)):
        with checks.part(what):
            check(halves)


# One run of the released code.


def _check_form(h: Halves, form: Form) -> None:
    """Everything that may be stored of any run."""
    if h.has(form, "vit.embed"):
        _near(h, form, "vit.embed", torch.cat([x.flatten(0, 2) for x in h.features(form)]), TOWER)
    made = h.trace(form)
    if form.half:
        for name, ours in (("rope.cos", made.cos), ("rope.sin", made.sin)):
            h.checks.near(form.name + name, h.joined(ours.to(form.dtype)), TABLE)
    _near(h, form, "layer0.q", h.joined(made.q), ROTATED)
    _near(h, form, "layer0.k", h.joined(made.k), ROTATED)
    _near(h, form, "prefix.hidden_layer0", h.of_prefix(made.first), FIRST)
    _near(h, form, "prefix.hidden_last", h.of_prefix(made.last), LAST)
    if h.paints:
        _check_drawing(h, form)
    else:
        _check_answer(h, form)


def _near(h: Halves, form: Form, name: str, ours: Tensor, tolerance: float) -> None:
    """In bfloat16 by the length of the difference, in float32 by the largest."""
    if form.half:
        h.checks.near_norm(form.name + name, ours, tolerance)
    else:
        h.checks.near(form.name + name, ours, FLOAT)


def _check_drawing(h: Halves, form: Form) -> None:
    """Velocities of both branches, every state and the end."""
    names = {"v_cond_step0": VELOCITY, "v_uncond_step0": VELOCITY, "x_steps": STATE, "latent_final": FINAL}
    if not h.has(form, *(f"gen.kv.{name}" for name in names)):
        return
    case, sampling = h.case(form), _sampling(h.file.fact("gen") or {})
    final, states = _run(case, replace(sampling, cached=True), h.noise(form)[case.rows.noisy[case.rows.is_latent]])
    velocities = _velocities(case, replace(sampling, cached=True), states[0])
    for (name, tolerance), ours in zip(names.items(), (*velocities, states, final), strict=True):
        _near(h, form, f"gen.kv.{name}", ours, tolerance)


def _check_answer(h: Halves, form: Form) -> None:
    """First logits, and greedy tokens up to the first step that another kernel may decide otherwise."""
    name = f"{form.name}und.kv.token_ids"
    if not h.has(form, "und.kv.token_ids", "und.kv.logits_step0"):
        return
    stored = h.file.get(name)
    want = stored.tolist() if stored is not None else []
    tokens, logits = _cached_answer(h.case(form), max(len(want), 1))
    _near(h, form, "und.kv.logits_step0", logits, LOGITS)
    if not want:
        return
    gaps = h.file.fact(f"{form.name.replace('.', '_')}und_kv_top2_gaps") or []
    certain = next((n for n, gap in enumerate(gaps) if gap < GAP), len(want))
    ours = [*tokens, h.case(form).parts.codec.im_end]  # the release keeps the closing token
    different = sum(a != b for a, b in zip(want[:certain], ours[:certain], strict=False))
    missing = max(min(certain, len(want)) - len(ours), 0)
    h.checks.add(name, different + missing, EXACT, note=f"{certain} of {len(want)} steps are certain")


# What belongs to the file as a whole.


def _check_tables(h: Halves) -> None:
    """Frequencies, the rotation of the tower, first embeddings, noise, and the facts of the layout."""
    checks, made, parts = h.checks, h.trace(RELEASED), h.family.of(RELEASED)
    checks.fact("prefix_rows", h.prefix)
    checks.fact("target_rows", len(made.rows) - h.prefix)
    checks.fact("largest_position", int(made.rows.position[: h.prefix].max()))
    checks.same("rope.inv_freq", frequencies(parts.config))
    if any(name.startswith("vit.") for name in h.file.names()):
        rotation = parts.vit.tower.rotary_pos_emb
        assert isinstance(rotation, RoundedRotation)
        position = h.patch_positions()
        angle = rotation.angles(position)
        checks.same("vit.inv_freq", rotation.inv_freq)
        checks.same("vit.angle", angle)
        for name, table in zip(("vit.cos", "vit.sin"), rotation(angle, position), strict=True):
            checks.near(name, table[:, : angle.shape[1]], TABLE)
    if h.paints:
        checks.same("gen.noise", h.noise(RELEASED))
        if "gen.vae_embed_step0" in h.file:
            _within_ulp(h, "gen.vae_embed_step0", embedded(h.case(RELEASED), h.state(RELEASED)))


def _within_ulp(h: Halves, name: str, ours: Tensor) -> None:
    """In units of the last place: of each number, or of the average one where that is larger, since sums that come out
    near zero keep the errors of what was added."""
    want, have = h.file.take(name).double(), ours.double()
    error = torch.tensor(torch.inf)
    if want.shape == have.shape:
        size = want.abs().clamp(min=float(want.abs().mean()) + 1e-30)
        error = ((want - have).abs() / torch.exp2(size.log2().floor() - 7)).max()  # bfloat16 has 8 significant bits
    h.checks.add(name, float(error), ULP, note="units in the last place")


def _check_codec(h: Halves) -> None:
    """Moments of every source, and pixels of the stored final latents."""
    checks, file, parts = h.checks, h.file, h.family.of(RELEASED)
    for k, (_, kept) in enumerate(h.clips.values()):
        if kept is None:
            continue
        for name in (f"cond.latent{k}", f"cond.latent{k}_first_frame"):
            if name in file:
                _within_ulp(h, name, h.latents(PLAIN, k).bfloat16())
        if f"vae.mean{k}" in file or f"vae.logvar{k}" in file:
            mean, logvar = parts.moments(kept)
            checks.near_norm(f"vae.mean{k}", mean, MOMENTS)
            checks.near_norm(f"vae.logvar{k}", logvar, MOMENTS)
    latents = file.get("gen.kv.latent_final")
    if "vae.decoded_u8" in file and latents is not None:
        with torch.no_grad():
            ours = to_uint8(parts.vae.decode(channels_first(latents)))
        want = file.take("vae.decoded_u8")
        ours = ours[[0, -1]] if len(want) == 2 < len(ours) else ours  # of a clip its ends
        levels = (want.int() - ours.int()).abs().float() if want.shape == ours.shape else torch.tensor([torch.inf])
        checks.add("vae.decoded_u8", float(levels.mean()), LEVELS, note=f"levels on average, at most {levels.max():g}")


# How much of what rounding the frequencies changes is there.


def _check_shares(h: Halves) -> None:
    """Of the first keys in every case; of hidden rows and velocities where positions reach far, as those of edits and
    references do: elsewhere the noise of bfloat16 is larger than the difference."""
    codes = h.case(PLAIN).rows.code
    far = bool(((codes == SOURCE) | (codes == REFERENCE)).any())
    for form in (RELEASED, UNROUNDED):
        if h.has(form, "layer0.k"):
            _share(h, form, "layer0.k", h.joined(h.trace(form).k), h.joined(h.trace(PLAIN).k))
        if far and h.has(form, "prefix.hidden_last"):
            _share(h, form, "prefix.hidden_last", h.of_prefix(h.trace(form).last), h.of_prefix(h.trace(PLAIN).last))
        plain = h.inputs.get("gen.kv.v_cond_step0")
        if far and h.has(form, "gen.kv.v_cond_step0") and plain is not None:
            case, noisy = h.case(form), h.case(form).rows.noisy[h.case(form).rows.is_latent]
            sampling = replace(_sampling(h.file.fact("gen") or {}), cached=True)
            ours = _velocities(case, sampling, h.state(form)[noisy])[0]
            _share(h, form, "gen.kv.v_cond_step0", ours, plain)


def _share(h: Halves, form: Form, name: str, ours: Tensor, plain: Tensor) -> None:
    """<x - f, r - f> / <r - f, r - f> with r of rounded frequencies and f plain, both in float32: 1 where the
    frequencies are rounded, 0 where they are not."""
    rounded = h.file.get(ROUNDED.name + name)
    if rounded is None or not rounded.shape == ours.shape == plain.shape:
        return
    change = rounded.double() - plain.double()
    share = float((ours.double() - plain.double()).mul(change).sum() / change.square().sum())
    error = 1 - share if form.rounded else share
    h.checks.add(f"{form.name}{name}: share", max(error, 0.0), SHARE, note=f"share {share:.2f}")
