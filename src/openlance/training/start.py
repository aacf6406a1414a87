"""Where a run starts from, and what it becomes in the end: checkpoint folders in the released form, both ways.

base = open_base(Path("src/openlance/assets/nano"), stage)               # go on from its weights
base = open_base(folder, stage, init="fresh")                             # its sizes, tokenizer and codec alone
base = open_base(folder, stage, init="Qwen2.5-VL-3B-Instruct")            # both experts from Qwen2.5-VL
export(run, base, Path("runs/mine/model"))
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openlance.checkpoint.formats import find, write_config
from openlance.checkpoint.names import released_name
from openlance.checkpoint.writer import write_tensors
from openlance.config.model import ModelConfig
from openlance.config.sampling import GenerationConfig, PromptStyle
from openlance.config.train import Stage
from openlance.errors import UserError
from openlance.media.files import atomic_path
from openlance.runtime.components import Components
from openlance.text.tokenizer import SequenceCodec, Tokenizer
from openlance.training.learner import Learner, fresh
from openlance.training.parallel import full
from openlance.training.trainer import Trainer
from openlance.vae.lazy import LazyVAE

BESIDE = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model in training. beside: files that training leaves alone (codec, tokenizer, sampling defaults) and that the
    result takes over where they exist. style: how its requests are worded, and so its samples."""

    beside: tuple[Path, ...]
    config: ModelConfig
    codec: SequenceCodec
    style: PromptStyle
    learner: Learner
    vae: LazyVAE


def open_base(folder: Path, stage: Stage, init: str = "model", *, allow_pickle: bool = False) -> Base:
    """Read a folder. init: "model" takes its weights, "fresh" none, anything else is a folder of Qwen2.5-VL.

    UserError if something is missing or does not fit.
    """
    files = find(folder)
    parts = Components(files, device=torch.device("cpu"), dtype=torch.float32, allow_pickle=allow_pickle)
    config, tokenizer = files.config, Tokenizer.from_folder(files.tokenizer)
    if init == "model":
        if parts.bytes_of():
            raise UserError(f"{folder} holds quantized weights, which cannot learn: give the folder they came from")
        # A trained tower needs no auxiliary loss, whose head is not kept.
        learner = Learner(parts.lance("und", "gen"), parts.vit(), len(tokenizer))
    else:
        classes = stage.dense_classes if stage.dense_weight > 0 else ()
        learner = fresh(config, len(tokenizer), stage.seed, classes, stage.dense_point)
        if init != "fresh":
            from openlance.training.qwen import fill_from_qwen, read_qwen

            fill_from_qwen(learner, read_qwen(Path(init)))
    return Base(
        beside=(files.vae, *(files.tokenizer / name for name in BESIDE)),
        config=config,
        codec=SequenceCodec(tokenizer, config),
        style=GenerationConfig.read(files.tokenizer).style,
        learner=learner,
        vae=parts.vae(),
    )


def averaged(run: Trainer) -> dict[str, Tensor]:
    """All weights by name, whole and on the CPU, averages where there are any; every process has to ask."""
    live = {n: p.detach() for n, p in run.learner.named_parameters()} | run.ema.values
    return {name: full(value).cpu() for name, value in live.items()}


def export(run: Trainer, base: Base, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a complete checkpoint folder: averaged weights under the released names, and what came with the start.
    Every process has to call it; rank 0 writes."""
    values = averaged(run)
    if not run.processes.leads:
        return
    write_config(folder, base.config)
    for file, prefix, name_of in (
        ("model.safetensors", "lance.", released_name),
        ("vit.safetensors", "vit.tower.", str),
    ):
        own = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
        write_tensors(folder / file, {name_of(n): v.to(dtype) for n, v in own.items()})
    for beside in base.beside:
        # A folder of ours calls the codec vae, whatever it was called before.
        name = "vae.safetensors" if beside == base.beside[0] and beside.suffix == ".safetensors" else beside.name
        if beside.is_file() and not same_file(beside, folder / name):
            with atomic_path(folder / name) as path:
                shutil.copyfile(beside, path)


def same_file(one: Path, other: Path) -> bool:
    return other.is_file() and (one.resolve() == other.resolve() or one.read_bytes() == other.read_bytes())
