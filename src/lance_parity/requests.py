"""The comparisons of a request: in float32, and in half precision with what tells rounded rotary frequencies from
unrounded ones.

The inputs of a file in half precision are those of the float32 case that it names. It may hold up to four runs of the
released code: as released, with unrounded frequencies, and both in float32; each is compared with our code in the same
form. Tolerances are those of the golden format's description.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from lance_parity.case import Case, read_request
from lance_parity.checks import DEEP, EXACT, LATENT, ULP, UNIT, VAE, Checks, Measure, Table, apart, average
from lance_parity.layout import LAYOUT, packed_mask, where, without_prompt
from lance_parity.parts import FORMS, PLAIN, RELEASED, ROUNDED, UNROUNDED, Form, Parts
from lance_parity.preprocessing import check_media
from openlance.flow import schedule
from openlance.model.attention import frequencies
from openlance.sequence.segment import PROMPT, REFERENCE, SOURCE, Rows
from openlance.sequence.tasks import spec_of
from openlance.vae.autoencoder import sample
from openlance.vae.frames import channels_first, to_uint8

BLOCK = 128  # rows
SHARE = Measure(0.5)  # of what rounding the frequencies changes
COSINES = Measure(4e-3)


def _unconditional(case: Case) -> Rows:
    """The rows of the cached branch without the prompt."""
    rows = case.branches(cached=True).pack.rows
    return rows.at(where(rows.doc == 1))


def _until_target(case: Case) -> Tensor:
    rows = _unconditional(case)
    return rows.position[: int(where(rows.noisy)[-1]) + 1].T


def _shortened(case: Case) -> list[tuple[int, str]]:
    """Length and mode of the splits without the prompt, padded as the release pads its full-forward sequences."""
    padding = -len(case.unprompted) % BLOCK
    return without_prompt(case.packed) + [(padding, "causal")] * bool(padding)


def _sampled(case: Case, n: int, eps: str) -> Tensor:
    """A condition as the release draws it."""
    noise = case.file.get(eps)
    return case.moments[n][0] if noise is None else sample(*case.moments[n], noise)


# Of every run, with the tolerances of a case in float32 and of a run in half precision.
RUN: dict[str, tuple] = {
    "vit.embed": (lambda c: torch.cat([x.flatten(0, 2) for x in c.features]), DEEP, apart(1.3e-2)),
    "gen.{path}.v_cond_step0": (lambda c, path: c.velocities(path)[0], DEEP, apart(1.2e-2)),
    "gen.{path}.v_uncond_step0": (lambda c, path: c.velocities(path)[1], DEEP, apart(1.2e-2)),
    "gen.{path}.x_steps": (lambda c, path: c.run(path)[1], LATENT, apart(1.2e-2)),
    "gen.{path}.latent_final": (lambda c, path: c.run(path)[0], LATENT, apart(3e-2)),
    "und.{path}.token_ids": (lambda c, path: c.tokens(path), EXACT, EXACT),
    "und.{path}.logits_step0": (lambda c, path: c.answer(path)[1], DEEP, apart(2e-2)),
    "rope.cos": (lambda c: c.trace["rope.cos"].to(c.parts.form.dtype), DEEP, COSINES),
    "rope.sin": (lambda c: c.trace["rope.sin"].to(c.parts.form.dtype), DEEP, COSINES),
    "layer0.q": (lambda c: c.trace["layer0.q"], DEEP, apart(1.2e-2)),
    "layer0.k": (lambda c: c.trace["layer0.k"], DEEP, apart(1.2e-2)),
    "prefix.hidden_layer0": (lambda c: c.trace["prefix.hidden_layer0"], DEEP, apart(1e-2)),
    "prefix.hidden_last": (lambda c: c.trace["prefix.hidden_last"], DEEP, apart(1.5e-2)),
}
CASE: Table = LAYOUT | {
    "cond.first_frame_mu": (lambda c: c.moments[0][0], VAE),
    "cond.first_frame_logvar": (lambda c: c.moments[0][1], VAE),
    "cond.latent{n}_first_frame": (lambda c, n: _sampled(c, n, "cond.first_frame_eps"), VAE),
    "cond.latent{n}": (lambda c, n: _sampled(c, n, f"cond.eps{n}"), VAE),
    "uncond.keep_mask": (lambda c: c.packed.rows.code != PROMPT, EXACT),
    "uncond.text_ids": (lambda c: c.unprompted.rows.token, EXACT),
    "uncond.pos_nocache": (lambda c: c.unprompted.rows.position.T, EXACT),
    "uncond.pos_kvcache": (lambda c: c.unprompted.rows.position.T, EXACT),
    "uncond.mask.packbits": (lambda c: packed_mask(c.unprompted.rows), EXACT),
    "uncond_split_lens": (lambda c: [n for n, _ in _shortened(c)], EXACT),
    "uncond_attn_modes": (lambda c: [mode for _, mode in _shortened(c)], EXACT),
    "uncond_kv_context_len": (lambda c: int(where(_unconditional(c).noisy)[0]), EXACT),
    "uncond.pos_kvcache_effective": (_until_target, EXACT),
    **{name: (ours, plain) for name, (ours, plain, _) in RUN.items()},
}
DRAWING: Table = {
    "target_modality": (lambda c: spec_of(c.file.take("task")).makes, EXACT),
    "target_split_start": (lambda c: c.context, EXACT),
    "target_split_len": (lambda c: int(c.rows.noisy.sum()), EXACT),
    "gen.timesteps": (lambda c: schedule(c.sampling().num_inference_steps, c.sampling().shift), Measure(1e-6)),
    "gen.noise": (lambda c: c.drawn_noise(), UNIT),
    "gen.x_init": (lambda c: c.state, DEEP),
    "gen.vae_embed_step0": (lambda c: c.embedded(), DEEP),
    "var.{name}.{path}.latent_final": (lambda c, name, path: c.run(path, name)[0], LATENT),
}
ANSWERING: Table = {
    "und_context_len": (lambda c: len(c.question), EXACT),
    "und.pos_used_by_decoder": (
        lambda c: c.decoder_positions(c.file.take("und.pos_used_by_decoder").shape[1] - len(c.question)), EXACT,
    ),
}  # fmt: skip


@torch.no_grad()
def check_request(checks: Checks, parts: Parts) -> None:
    """Make all comparisons of one file in float32."""
    check_media(checks)
    with checks.part("segments"):
        case = Case(checks.file, parts, read_request(checks, parts))
        checks.table(CASE | (DRAWING if case.draws else ANSWERING), case)


# Half precision.


def _decoded(case: Case) -> Tensor:
    """Pixels of the stored final latents; of a video its ends, if no more are stored."""
    ours = to_uint8(case.parts.components.vae().decode(channels_first(case.file.take("gen.kv.latent_final"))))
    return ours[[0, -1]] if len(case.file.take("vae.decoded_u8")) == 2 < len(ours) else ours


# Of the run as released alone.
HALF: Table = {
    "prefix_rows": (lambda c: c.context, EXACT),
    "target_rows": (lambda c: int(c.rows.noisy.sum()), EXACT),
    "largest_position": (lambda c: int(c.rows.position[: c.context].max()), EXACT),
    "rope.inv_freq": (lambda c: frequencies(c.parts.config), EXACT),
    "vit.inv_freq": (lambda c: c.parts.components.vit().tower.rotary_pos_emb.inv_freq, EXACT),
    "vit.angle": (lambda c: c.rotation[0], EXACT),
    "vit.cos": (lambda c: c.rotation[1], COSINES),
    "vit.sin": (lambda c: c.rotation[2], COSINES),
    "gen.noise": (lambda c: c.noise, EXACT),
    "gen.vae_embed_step0": (lambda c: c.embedded(), ULP),
    "vae.mean{n}": (lambda c, n: c.moments[n][0], apart(1.8e-2)),
    "vae.logvar{n}": (lambda c, n: c.moments[n][1], apart(1.8e-2)),
    "vae.decoded_u8": (_decoded, Measure(1.2, average, note="levels on average")),
}
CONDITIONS = ("cond.latent{n}", "cond.latent{n}_first_frame")  # those of the inputs, rounded
SHARED = ("layer0.k", "prefix.hidden_last", "gen.{path}.v_cond_step0")


@torch.no_grad()
def check_half(checks: Checks, parts: Parts) -> None:
    """Make all comparisons of one file in half precision.

    Args:
        checks: Those of the file.
        parts: The model.
    """
    with checks.part("inputs"):
        assert checks.file.inputs is not None
        quiet = Checks(checks.file.inputs)
        request = read_request(quiet, parts)
        for row in quiet.rows:
            if not row.passed:
                checks.add(f"inputs: {row.quantity}", row.error, note=row.note)
        cases = {form: Case(checks.file, parts.of(form), request) for form in FORMS}
        for form, case in cases.items():
            for name, (ours, plain, half) in RUN.items():
                measure = half if form.dtype is torch.bfloat16 else min(plain, DEEP)
                checks.table({form.prefix + name: (ours, measure)}, case)
        checks.table(HALF, cases[RELEASED])
        checks.table({name: (lambda c, n: c.latents(n).bfloat16(), ULP) for name in CONDITIONS}, cases[PLAIN])
        _check_shares(checks, cases)


def _check_shares(checks: Checks, cases: Mapping[Form, Case]) -> None:
    """Compare how much of what rounding the frequencies changes is there.

    Of the first keys in every case; of hidden rows and velocities where positions reach far, as those of edits and
    references do: elsewhere the noise of bfloat16 is larger than the difference. The share is
    <x - f, r - f> / <r - f, r - f> with r of rounded frequencies and f plain, both in float32: 1 where the frequencies
    are rounded, 0 where they are not.
    """
    codes = cases[PLAIN].rows.code
    far = bool(((codes == SOURCE) | (codes == REFERENCE)).any())
    for form, pattern in product((RELEASED, UNROUNDED), SHARED if far else SHARED[:1]):
        for name, found in checks.file.matching(form.prefix + pattern):
            rounded = ROUNDED.prefix + name.removeprefix(form.prefix)
            if rounded in checks.file:
                with checks.part(f"{name}: share"):
                    plain, ours = (RUN[pattern][0](case, **found).double() for case in (cases[PLAIN], cases[form]))
                    change = checks.file.take(rounded).double() - plain
                    share = float((ours - plain).mul(change).sum() / change.square().sum())
                    error = 1 - share if form.rounded else share
                    checks.add(f"{name}: share", max(error, 0.0), SHARE, f"share {share:.2f}")
