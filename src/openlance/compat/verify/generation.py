"""Denoising one request: noise, first embeddings, velocities of both branches, every state, the end, and variants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from openlance.compat.verify import layout
from openlance.compat.verify.case import Case
from openlance.compat.verify.checks import DEEP, EXACT, LATENT, UNIT
from openlance.config.sampling import Sampling
from openlance.flow import schedule
from openlance.inference.visual import Denoiser, branch_out, conditions, denoise
from openlance.sequence.segment import LATENTS

PATHS = {"kv": True, "nocache": False}


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
    """Settings in the release's names; it guides at scales above 1 only."""
    return Sampling(
        num_inference_steps=gen.get("num_timesteps", 4),
        guidance_scale=max(gen.get("cfg_text_scale", 4.0), 1.0),
        shift=gen.get("timestep_shift", 3.5),
        interval=tuple(gen.get("cfg_interval", (0.4, 1.0))),
        renorm=gen.get("cfg_renorm_type") or "none",
        renorm_min=gen.get("cfg_renorm_min", 0.0),
    )


def _varied(base: Sampling, settings: dict) -> Sampling:
    ours = {"steps": "num_inference_steps", "shift": "shift", "renorm_min": "renorm_min"}
    changed = {name: settings[key] for key, name in ours.items() if key in settings}
    if "cfg" in settings:
        changed["guidance_scale"] = max(settings["cfg"], 1.0)
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
    checks.near("gen.noise", noise, UNIT, note=f"drawn from seed {seed}")
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
                lance.layout(rows), conditions(case.packed)[0], x, torch.where(latent.denoise, 1.0, 0.0)
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
            yield before, v.segment.value.flatten(0, 2)
        elif v.given:
            yield before, v.segment.given.flatten(0, 2)[: v.given]
        before += v.rows[1] - v.rows[0]


def _run(case: Case, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Final latents (T, Y, X, C) and the state before each step (steps, Nt, C), from the sampler itself."""
    states = list[Tensor]()
    parts, rows = case.parts, len(noise)
    final = denoise(
        parts.runner, parts.codec, [case.segments] * parts.copies, replace(sampling, compile="compile" in parts.ways),
        noise=[noise.clone()] * parts.copies, store=parts.store,
        on_step=lambda i, t, x: states.append(x[:rows].clone()),
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
    denoiser = Denoiser(model, branches, *conditions(packed)[:2], sampling.cached)
    moves = case.rows.denoise[case.rows.is_latent & case.rows.noisy]
    velocities = denoiser.velocities(x, torch.where(moves, 1.0, 0.0), 2)
    return velocities if sampling.cached else [v[moves] for v in velocities]
