"""nano from nothing: codec, tokenizer, vision tower and backbone, all on the procedural world.

    openlance train nano -o runs/nano          # the same command goes on where a stopped run was

The phases are those of the shipped weights (`assets/nano/README.md` tells the compute and the scores).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from openlance.config.model import VAEConfig
from openlance.config.presets import NANO_VOCABULARY, nano
from openlance.data.world import WorldMixture, world_batch
from openlance.media.clip import Clip
from openlance.media.files import atomic_path
from openlance.model.vae import VAE, channels_last, to_signed, vae_config
from openlance.sequence.tasks import NO_PRIOR
from openlance.text.tokenizer import Tokenizer, train_tokenizer
from openlance.train.codec import CodecRecipe, train_codec
from openlance.train.parallel import Team
from openlance.train.recipe import MANY, Phase, Recipe
from openlance.train.report import write_curves
from openlance.train.run import Run, fuse

SAMPLING = {"num_inference_steps": 10, "guidance_scale": 4.0, "shift": 2.0, "interval": [0.0, 1.0], "renorm": "none"}


def recipe(joint: int = 550, finish: int = 1000) -> Recipe:
    """Questions first, since they need no codec; then pictures too, with ever freer placement; then a falling rate and
    other sizes. The mixtures are those of one process; the shipped weights had two from the last part of "joint" on."""
    return Recipe(
        phases=(
            Phase(name="questions", steps=600, warmup=60, mixture=WorldMixture(drawn=0, asked=32)),
            Phase(name="widen", steps=760, spread=(0.25, 0.72), mixture=WorldMixture(drawn=24, asked=8)),
            Phase(name="joint", steps=joint, spread=(0.72, 1.0), mixture=WorldMixture(drawn=20, asked=16)),
            Phase(name="finish", steps=finish, lr_end=0.03, mixture=WorldMixture(drawn=24, asked=20, sizes=MANY)),
        )
    )


def world_tokenizer(seed: int = 999, batches: int = 400) -> Tokenizer:
    """A byte-level BPE over the words of the world. What a text to draw or to read spells stays single letters."""
    texts = []
    for step in range(batches):
        for sample in world_batch(WorldMixture(drawn=16, asked=16), seed, step).samples:
            texts += [s.value for s in sample if isinstance(s.value, str)]
    spelled = re.compile(r'"[A-Z0-9]{1,4}"')
    words = [spelled.sub('""', text) for text in texts if not re.fullmatch(r"[A-Z0-9]{1,4}", text)]
    return Tokenizer(train_tokenizer(words + ["system user assistant image video picture"] * 3000, NANO_VOCABULARY))


def encoder(path: Path, config: VAEConfig) -> Callable[[list[Clip]], Tensor]:
    """Clips to normalised latents (N, C), all clips of one size in one pass."""
    vae = VAE.load(path, config, parts=("encoder",)).eval()

    @torch.no_grad()
    def encode(clips: list[Clip]) -> Tensor:
        by_size: dict[tuple[int, ...], dict[int, Clip]] = {}
        for clip in clips:
            by_size.setdefault(clip.pixels.shape, {})[id(clip)] = clip
        found: dict[int, Tensor] = {}
        for group in by_size.values():
            pixels = torch.stack([to_signed(torch.from_numpy(clip.pixels)) for clip in group.values()])
            with torch.autocast("cpu", torch.bfloat16):
                mean, _ = vae.encode(pixels)
            found |= zip(group, channels_last(mean.float()).flatten(1, 3), strict=True)
        return torch.cat([found[id(clip)] for clip in clips])

    return encode


def start(out: Path, plan: Recipe, codec_plan: CodecRecipe, team: Team) -> tuple[Run, Path]:
    """The run in `out`, as far as it got, and the weights of its codec, which is trained first."""
    if team.leads:
        train_codec(codec_plan, out / "codec")
        if not (out / "tokenizer.json").is_file():
            with atomic_path(out / "tokenizer.json") as path:
                world_tokenizer().backend.save(str(path))
    team.wait()
    codec = out / "codec" / "final"
    vae = vae_config(json.loads((codec / "vae_config.json").read_text()))
    weights = codec / "vae.safetensors"
    run = Run(plan, nano(vae), Tokenizer.from_folder(out), encoder(weights, vae), team=team)
    if (out / "state.pt").is_file():
        run.load(out / "state.pt")
    return run, weights


def train_nano(
    out: Path, *, plan: Recipe | None = None, codec_plan: CodecRecipe | None = None, minutes: float = 1e9,
    save_every: float = 120.0, compiled: bool = True, show: Callable[[Path], None] | None = None,
) -> Path:  # fmt: skip
    """Train everything into `out` and return the checkpoint folder, `out/nano`; resumes what `out` holds.

    plan: phases of the backbone, `recipe()` by default. minutes: stop the backbone after that long, with all saved.
    compiled: fuse element-wise operations, which needs a C++ compiler. show(folder) is called with the checkpoint
    folder whenever it was written.
    """
    plan, team, log = plan or recipe(), Team.join(), out / "log.jsonl"
    run, weights = start(out, plan, codec_plan or CodecRecipe(compile=compiled, seed=plan.seed), team)
    if compiled:
        fuse()
    if team.leads:
        _forget_after(log, run.step)
    began = saved = time.monotonic()
    with _bar(plan.steps, run.step, team) as bar:
        while run.step < plan.steps and not team.agree(time.monotonic() - began > 60 * minutes):
            cpu, phase = time.process_time(), plan.phase(run.step)[0].name
            row = run.train_step() | {"step": run.step, "cpu_seconds": time.process_time() - cpu}
            bar.update()
            bar.set_postfix_str(f"{phase}: text {row['text']:.3f} flow {row['flow']:.3f}")
            if not team.leads:
                continue
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
            if time.monotonic() - saved > save_every:
                _keep(run, out, weights, show)
                saved = time.monotonic()
    if team.leads:
        _keep(run, out, weights, show)
    team.wait()
    return out / "nano"


def write_folder(run: Run, folder: Path, codec_weights: Path) -> None:
    """A complete checkpoint folder: averaged weights, codec, tokenizer, sampling defaults."""
    run.export(folder)
    with atomic_path(folder / "vae.safetensors") as path:
        path.write_bytes(codec_weights.read_bytes())
    defaults = {"height": 64, "width": 64, "sampling": SAMPLING, "system_prompts": asdict(NO_PRIOR)}
    with atomic_path(folder / "generation_config.json") as path:
        path.write_text(json.dumps(defaults, indent=1) + "\n")


def _keep(run: Run, out: Path, codec_weights: Path, show: Callable[[Path], None] | None) -> None:
    run.save(out / "state.pt")
    write_folder(run, out / "nano", codec_weights)
    write_curves(out / "log.jsonl", out / "curves.svg")
    if show is not None:
        show(out / "nano")


def _forget_after(log: Path, step: int) -> None:
    """Drop log lines of steps that a kill undid."""
    from openlance.train.report import read_log

    if log.is_file():
        kept = [row for row in read_log(log) if row["step"] <= step]
        with atomic_path(log) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _bar(total: int, done: int, team: Team):
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit="step", desc="nano", smoothing=0.05, disable=not team.leads)
