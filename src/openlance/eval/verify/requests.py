"""One request of the release: its segments from the JSON, its layout, and what generation or decoding make of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openlance.config.model import EXACT as EXACT_FORM
from openlance.eval.verify import layout
from openlance.eval.verify.checks import DEEP, EXACT, LATENT, Checks
from openlance.eval.verify.files import GoldenFile
from openlance.eval.verify.parts import Media, Parts
from openlance.eval.verify.preprocessing import check_codecs, check_media
from openlance.flow import schedule
from openlance.media.clip import Clip
from openlance.sample.guidance import Sampling
from openlance.sample.text import Decoding, decode
from openlance.sample.visual import Denoiser, branch_out, denoise
from openlance.sequence.interleave import FORMS, form_of, request
from openlance.sequence.pack import Pack
from openlance.sequence.rows import LATENTS, Rows
from openlance.sequence.segment import Kind, Role, Segments, drop
from openlance.sequence.tasks import RELEASED

BLOCK = 128  # the release pads its full-forward sequences to a multiple of this
PATHS = {"kv": True, "nocache": False}


@dataclass
class Case:
    """A request with everything that runs on it."""

    checks: Checks
    parts: Parts
    segments: Segments
    media: Media
    packed: Pack

    @property
    def rows(self) -> Rows:
        return self.packed.rows

    @property
    def asked(self) -> Segments:
        """The request as it is put: with an empty answer."""
        return [replace(s, value=None) if s.role is Role.TARGET and s.kind is Kind.TEXT else s for s in self.segments]


def check_request(checks: Checks, parts: Parts) -> None:
    """All comparisons of one `case_*` file."""
    with checks.part("media"):
        check_media(checks)
    clips: dict[int, tuple[Clip | None, Clip | None]] = {}
    segments: Segments = []
    with checks.part("segments"):
        segments = _segments(checks, parts, clips)
    if not segments:
        return
    media = check_codecs(checks, parts, clips)
    case = Case(checks, parts, segments, media, parts.pack([segments]))
    for what, check in (("layout", check_layout), ("unconditional layout", check_unconditional)):
        with checks.part(what):
            check(case)
    paints = any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in segments)
    for what, check in (("generation", check_generation),) if paints else (("decoding", check_decoding),):
        with checks.part(what):
            check(case)


# From the JSON to segments.


def _segments(checks: Checks, parts: Parts, clips: dict[int, tuple[Clip | None, Clip | None]]) -> Segments:
    """Built by the rules of `sequence.interleave`; the rendered text only decides what the release draws at random."""
    file = checks.file
    size = _size(file)

    def views(element: object, kind: str) -> tuple[Clip | None, Clip | None]:
        number = int(re.findall(r"\d+", str(element))[0])
        if number not in clips:
            found = [file.get(f"in.media{number}.{branch}_u8") for branch in ("vit", "vae")]
            seen, kept = (None if pixels is None else Clip(pixels.numpy()) for pixels in found)
            clips[number] = seen, kept
        return clips[number]

    wanted, task = file.fact("rendered_text"), file.fact("task")
    for caption in range(len(RELEASED.captions)):
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
        checks.fact("target_modality", form_of(checks.file.fact("task")).makes)
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
    lengths, modes = layout.recorded_splits(packed)
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


# Generation.


def check_generation(case: Case) -> None:
    """Noise, first embeddings, velocities of both branches, every state and the end, with and without the cache."""
    checks, file = case.checks, case.checks.file
    sampling = _sampling(file.fact("gen") or {})
    checks.near("gen.timesteps", schedule(sampling.num_inference_steps, sampling.shift), 1e-6)
    state = _start(case)
    for path, cached in PATHS.items():
        if any(name.startswith(f"gen.{path}.") for name in file.names()):
            with checks.part(f"gen.{path}"):
                _check_path(case, replace(sampling, cached=cached), path, state)
    for name, settings in (file.fact("variants") or {}).items():
        varied = _varied(sampling, settings)
        for path, cached in PATHS.items():
            final = f"var.{name}.{path}.latent_final"
            if final in file:
                with checks.part(final):
                    checks.near(final, _run(case, replace(varied, cached=cached), state)[0], LATENT)
    for name in file.names():
        if name.startswith("var.") and name not in file.seen:
            checks.add(name, float("inf"), EXACT, note="the JSON does not say with which settings")


def _sampling(gen: dict) -> Sampling:
    """Settings in the release's names."""
    return Sampling(
        num_inference_steps=gen.get("num_timesteps", 4),
        guidance_scale=gen.get("cfg_text_scale", 4.0),
        shift=gen.get("timestep_shift", 3.5),
        interval=tuple(gen.get("cfg_interval", (0.4, 1.0))),
        renorm=gen.get("cfg_renorm_type") or "none",
        renorm_min=gen.get("cfg_renorm_min", 0.0),
    )


def _varied(base: Sampling, settings: dict) -> Sampling:
    ours = {"steps": "num_inference_steps", "cfg": "guidance_scale", "renorm_min": "renorm_min", "shift": "shift"}
    changed = {name: settings[key] for key, name in ours.items() if key in settings}
    if "interval" in settings:
        changed["interval"] = tuple(settings["interval"])
    if "renorm" in settings:
        changed["renorm"] = settings["renorm"] or "none"
    return replace(base, **changed)


def _start(case: Case) -> Tensor:
    """(Nt, C) noise of the target's rows; the first state and its embedding are compared on the way."""
    checks, file, rows = case.checks, case.checks.file, case.rows
    latent = rows.at(layout.where(rows.is_latent))
    gen = file.fact("gen") or {}
    seed = gen.get("noise_seed", file.fact("seed", 42))
    noise = torch.randn(len(latent), case.parts.config.latent_channels, generator=torch.Generator().manual_seed(seed))
    checks.near("gen.noise", noise, EXACT, note=f"drawn from seed {seed}")
    given = file.get("gen.noise")
    noise = noise if given is None else given
    x = noise.clone()
    for row, clean in _clean(case):
        x[row : row + len(clean)] = clean
    checks.near("gen.x_init", x, DEEP)
    if "gen.vae_embed_step0" in file:
        lance = case.parts.lance
        with torch.no_grad():
            streams = lance.inputs(
                lance.layout(rows), case.media.patches(case.packed), x, torch.where(latent.denoise, 1.0, 0.0)
            )
        checks.near("gen.vae_embed_step0", streams[1], DEEP)
    return noise[latent.noisy]


def _clean(case: Case) -> Iterator[tuple[int, Tensor]]:
    """(row among the latents, clean latents) of conditions and given frames."""
    before = 0
    for v in case.packed.visuals:
        if v.kind != LATENTS:
            continue
        if not case.rows.noisy[v.rows[0]]:
            yield before, case.media.encode([v.segment])[0]
        elif v.given:
            yield before, case.media.encode([replace(v.segment, value=v.segment.given)])[0][: v.given]
        before += v.rows[1] - v.rows[0]


def _run(case: Case, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Final latents (T, Y, X, C) and the state before each step (steps, Nt, C), from the sampler itself."""
    states = list[Tensor]()
    final = denoise(
        case.parts.lance, case.parts.codec, [case.segments], sampling, see=case.media.see, encode=case.media.encode,
        noise=[noise.clone()], on_step=lambda i, t, x: states.append(x.clone()),
    )  # fmt: skip
    return final[0], torch.stack(states)


def _check_path(case: Case, sampling: Sampling, path: str, noise: Tensor) -> None:
    checks = case.checks
    final, states = _run(case, sampling, noise)
    cond, uncond = _velocities(case, sampling, states[0])
    checks.near(f"gen.{path}.v_cond_step0", cond, DEEP)
    checks.near(f"gen.{path}.v_uncond_step0", uncond, DEEP)
    checks.near(f"gen.{path}.x_steps", states, LATENT)
    checks.near(f"gen.{path}.latent_final", final, LATENT)


@torch.no_grad()
def _velocities(case: Case, sampling: Sampling, x: Tensor) -> list[Tensor]:
    """Both branches at t = 1 before guidance; without the cache the release states the denoised rows only."""
    model = case.parts.lance
    branches = branch_out(model, case.parts.codec, [case.segments], replace(sampling, guidance_scale=4.0))
    packed = branches.pack
    denoiser = Denoiser(model, branches, case.media.patches(packed), case.media.clean(packed), sampling.cached)
    moves = case.rows.denoise[case.rows.is_latent & case.rows.noisy]
    velocities = denoiser.velocities(x, torch.where(moves, 1.0, 0.0), 2)
    return velocities if sampling.cached else [v[moves] for v in velocities]


# Answers.


def check_decoding(case: Case) -> None:
    """Greedy tokens and first logits, with the cache and without, and the positions they stand at."""
    checks, file, parts = case.checks, case.checks.file, case.parts
    plain = parts.pack([case.asked], shift=False)
    checks.fact("und_context_len", len(plain))
    if "und.pos_used_by_decoder" in file:
        known = len(plain) - file.source.shapes["und.pos_used_by_decoder"][1]
        following = plain.rows.position[-1].max() + 1 + torch.arange(-known)[:, None].expand(-1, 3)
        checks.same("und.pos_used_by_decoder", torch.cat([plain.rows.position, following]).T)
    if "und.kv.token_ids" in file:
        with checks.part("und.kv"):
            _check_answer(case, "kv", *_cached_answer(case, file.source.shapes["und.kv.token_ids"][0]))
    if "und.nocache.token_ids" in file:
        with checks.part("und.nocache"):
            _check_answer(case, "nocache", *_plain_answer(case, file.source.shapes["und.nocache.token_ids"][0]))


def _check_answer(case: Case, path: str, tokens: list[int], logits: Tensor) -> None:
    name = f"und.{path}.token_ids"
    ended = case.parts.codec.im_end
    want = case.checks.file.source.read(name).tolist()
    if want and want[-1] == ended and len(tokens) == len(want) - 1:
        tokens = [*tokens, ended]  # the release keeps the closing token
    case.checks.same(name, torch.tensor(tokens, dtype=torch.long))
    case.checks.near(f"und.{path}.logits_step0", logits, DEEP)


def _cached_answer(case: Case, steps: int) -> tuple[list[int], Tensor]:
    parts = case.parts
    tokens, logits = decode(
        parts.lance, parts.codec, [case.asked], Decoding(max_new_tokens=steps), vocabulary=len(parts.tokenizer),
        see=case.media.see, encode=case.media.encode,
    )  # fmt: skip
    return tokens[0], logits[0]


@torch.no_grad()
def _plain_answer(case: Case, steps: int) -> tuple[list[int], Tensor]:
    """The whole sequence again for every token: the plain form that decoding against a cache must equal."""
    parts, model = case.parts, case.parts.lance
    rows, patches = parts.pack([case.asked], shift=False).rows, case.media.patches(case.packed)
    tokens, first = list[int](), None
    for _ in range(steps):
        layout_ = model.layout(rows)
        hidden = model.restore(layout_, model(layout_, patches=patches))[-1:]
        logits = model.logits(hidden)[:, : len(parts.tokenizer)].float()
        first = logits[0] if first is None else first
        tokens.append(int(logits.argmax()))
        if tokens[-1] == parts.codec.im_end:
            break
        last = rows.at(torch.tensor([len(rows) - 1]))
        after = last.position.max(dim=1, keepdim=True).values.expand(-1, 3) + 1
        rows = Rows.concat([rows, replace(last, index=last.index + 1, token=torch.tensor(tokens[-1:]), position=after)])
    assert first is not None
    return tokens, first


__all__ = ["EXACT_FORM", "FORMS", "check_request"]
