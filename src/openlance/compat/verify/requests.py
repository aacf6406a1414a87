"""One request of the release: its segments from the JSON, its media and its layout; then what is made of it."""

from __future__ import annotations

import re

from openlance.compat.interleave import request
from openlance.compat.verify import layout
from openlance.compat.verify.answers import check_decoding
from openlance.compat.verify.case import Case
from openlance.compat.verify.checks import EXACT, Checks
from openlance.compat.verify.files import GoldenFile
from openlance.compat.verify.generation import check_generation
from openlance.compat.verify.parts import Parts
from openlance.compat.verify.preprocessing import check_encoders, check_media
from openlance.config.sampling import RELEASED_RUN, Sampling
from openlance.inference.visual import branch_out
from openlance.media.clip import Clip
from openlance.sequence.segment import Kind, Role, Segments, drop
from openlance.sequence.tasks import Views, spec_of

BLOCK = 128  # the release pads its full-forward sequences to a multiple of this


def check_request(checks: Checks, parts: Parts) -> None:
    """All comparisons of one `case_*` file."""
    with checks.part("media"):
        check_media(checks)
    clips: dict[int, Views] = {}
    segments: Segments = []
    with checks.part("segments"):
        segments = _segments(checks, parts, clips)
    if not segments:
        return
    segments = check_encoders(checks, parts, segments, clips)
    case = Case(checks, parts, segments, parts.pack([segments]))
    for what, check in (("layout", check_layout), ("unconditional layout", check_unconditional)):
        with checks.part(what):
            check(case)
    paints = any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in segments)
    for what, check in (("generation", check_generation),) if paints else (("decoding", check_decoding),):
        with checks.part(what):
            check(case)


# From the JSON to segments.


def _segments(checks: Checks, parts: Parts, clips: dict[int, Views]) -> Segments:
    """Built by the rules of `compat.interleave`; the rendered text only decides what the release draws at random."""
    file = checks.file
    size = _size(file)

    def views(element: object, kind: str) -> Views:
        number = int(re.findall(r"\d+", str(element))[0])
        if number not in clips:
            found = [file.get(f"in.media{number}.{branch}_u8") for branch in ("vit", "vae")]
            seen, kept = (None if pixels is None else Clip(pixels.numpy()) for pixels in found)
            clips[number] = Views(seen, kept)
        return clips[number]

    wanted, task = file.fact("rendered_text"), file.fact("task")
    for caption in range(len(RELEASED_RUN.captions)):
        segments = request(task, file.fact("input"), views, size=size, caption=caption)
        text = layout.rendered(parts.pack([segments]).rows.token.tolist(), parts.tokenizer)
        if wanted is None or layout.same_text(text, wanted):
            break
    else:
        segments = request(task, file.fact("input"), views, size=size)
        text = layout.rendered(parts.pack([segments]).rows.token.tolist(), parts.tokenizer)
    if wanted is not None:
        checks.add("rendered_text", float(not layout.same_text(text, wanted)), EXACT)
    return segments


def _size(file: GoldenFile) -> tuple[int, int, int] | None:
    """(frames, height, width) that the run asked for; where the arguments are silent, that of the stored target."""
    arguments = file.fact("dataset_args") or {}
    stored = file.source.read("pack.video_sizes")[-1].tolist() if "pack.video_sizes" in file else [None] * 3
    asked = [arguments.get(name, known) for name, known in zip(("num_frames", "H", "W"), stored, strict=True)]
    return (asked[0], asked[1], asked[2]) if all(asked) else None


# Layout.


def check_layout(case: Case) -> None:
    """Tokens, indexes, splits, positions before and after the shift, and the mask."""
    checks, rows = case.checks, case.rows
    lengths, modes = layout.recorded_splits(case.packed)
    checks.fact("split_lens", lengths)
    checks.fact("attn_modes", modes)
    checks.fact("sample_lens", case.packed.lengths)
    target = [v for v in case.packed.visuals if rows.noisy[v.rows[0]]]
    checks.fact("sample_type", ["gen" if target else "und"])
    if target:
        checks.fact("target_modality", spec_of(checks.file.fact("task")).makes)
        start, end = target[-1].rows[0] - 1, target[-1].rows[1] + 1
        checks.fact("target_split_start", start)
        checks.fact("target_split_len", end - start)
    else:
        checks.file.seen.add("target_modality")  # what is left over from the release's flags
    layout.check_rows(checks, case.packed)
    checks.same("pos.mape", rows.position.T)
    checks.same("pos.rope_index", case.parts.pack([case.segments], shift=False).rows.position.T)
    layout.check_mask(checks, "mask.packbits", rows)


def check_unconditional(case: Case) -> None:
    """The sequence without the prompt: packed again, and as the cached path of the release sees it."""
    checks, rows = case.checks, case.rows
    checks.same("uncond.keep_mask", rows.code != 0)
    packed = case.parts.pack([drop(case.segments, {Role.PROMPT})])
    checks.same("uncond.text_ids", packed.rows.token)
    checks.same("uncond.pos_nocache", packed.rows.position.T)
    checks.same("uncond.pos_kvcache", packed.rows.position.T)
    layout.check_mask(checks, "uncond.mask.packbits", packed.rows)
    lengths, modes = layout.without_prompt(case.packed)
    tail = -len(packed) % BLOCK
    checks.fact("uncond_split_lens", lengths + [tail] * bool(tail))
    checks.fact("uncond_attn_modes", modes + ["causal"] * bool(tail))
    if "uncond.pos_kvcache_effective" in checks.file or "uncond_kv_context_len" in checks.file.facts:
        sampling = Sampling(guidance_scale=4.0, cached=True)
        kept = branch_out(case.parts.lance, case.parts.codec, [case.segments], sampling).pack.rows
        kept = kept.at(layout.where(kept.doc == 1))
        noisy = layout.where(kept.noisy)
        checks.fact("uncond_kv_context_len", int(noisy[0]))
        checks.same("uncond.pos_kvcache_effective", kept.position[: int(noisy[-1]) + 1].T)
