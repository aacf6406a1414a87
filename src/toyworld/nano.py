"""nano from nothing: vae, tokenizer, vision tower and backbone, all on the procedural world.

    openlance train recipe/nano -o runs/nano          # the same command goes on where a stopped run was

The stages are `nano.yaml`; `assets/nano/README.md` tells the compute and the scores of the shipped weights.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from openlance.checkpoint.formats import folder_of, write_config
from openlance.config.model import NANO_VOCABULARY, VAEConfig, nano
from openlance.config.train import Stage, recipe
from openlance.errors import UserError
from openlance.media.files import atomic_path
from openlance.runtime.distributed import Distributed
from openlance.text.tokenizer import Tokenizer, train_tokenizer
from openlance.training.curves import write_curves
from openlance.training.files import Settings
from openlance.training.run import check_plan, run_recipe
from toyworld.batches import WorldMixture, world_batch
from toyworld.vae.pictures import VAERecipe, train_vae


def world_tokenizer(seed: int = 999, batches: int = 400) -> Tokenizer:
    """A byte-level BPE over the words of the world. What a text to draw or to read spells stays single letters."""
    texts = []
    for step in range(batches):
        for sample in world_batch(WorldMixture(drawn=16, asked=16), seed, step).samples:
            texts += [s.value for s in sample if isinstance(s.value, str)]
    spelled = re.compile(r'"[A-Z0-9]{1,4}"')
    words = [spelled.sub('""', text) for text in texts if not re.fullmatch(r"[A-Z0-9]{1,4}", text)]
    return Tokenizer(train_tokenizer(words + ["system user assistant image video picture"] * 3000, NANO_VOCABULARY))


def foundation(out: Path, vae_recipe: VAERecipe, processes: Distributed, minutes: float = float("inf")) -> Path | None:
    """What the backbone stands on, as a folder without weights of its own: sizes, tokenizer, sampling defaults and the
    vae, which is trained first; None if the time was up before. UserError if the VAE's training diverges."""
    folder, vae = out / "foundation", out / "vae" / "final"
    if processes.leads:
        try:
            train_vae(vae_recipe, out / "vae", minutes=minutes)
        except FloatingPointError as error:
            raise UserError(str(error)) from error
    processes.wait()
    if not vae.is_dir():
        return None
    if processes.leads:
        write_config(folder, nano(VAEConfig.of(json.loads((vae / "vae_config.json").read_text()))))
        for source in (vae / "vae.safetensors", folder_of("nano") / "generation_config.json"):
            with atomic_path(folder / source.name) as path:
                shutil.copyfile(source, path)
        if not (folder / "tokenizer.json").is_file():
            with atomic_path(folder / "tokenizer.json") as path:
                world_tokenizer().backend.save(str(path))
    processes.wait()
    return folder


def train_nano(
    out: Path, *, stages: tuple[Stage, ...] | None = None, vae_recipe: VAERecipe | None = None,
    settings: Settings | None = None, show: Callable[[Path], None] | None = None,
) -> Path:  # fmt: skip
    """Train everything into `out` and return the checkpoint folder, `out/model`, or that of the VAE if the time was
    up before that was done; resumes what `out` holds.

    stages: of the backbone, those of `nano.yaml` by default. settings: how to run them; their places are set
    here. show(folder) is called with the checkpoint folder whenever it was written.
    """
    stages, began = stages or recipe("nano"), time.monotonic()
    settings = settings or Settings(out=out, model=out, save_every=100, show_every=100, compiled=True)
    check_plan(stages, settings)
    processes = Distributed.join(settings.shard)
    plan = vae_recipe or VAERecipe(compile=settings.compiled, seed=stages[0].seed)
    folder = foundation(out, plan, processes, settings.minutes)
    if folder is None:
        return out / "vae" / "checkpoint"
    settings = replace(settings, minutes=settings.minutes - (time.monotonic() - began) / 60)

    def shown(written: Path) -> None:
        write_curves([out / f"{n}-{s.name}" / "log.jsonl" for n, s in enumerate(stages, 1)], out / "curves.svg")
        if show is not None:
            show(written)

    return run_recipe(stages, replace(settings, out=out, model=folder, init="fresh"), shown)
