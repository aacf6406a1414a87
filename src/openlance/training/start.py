"""Where a run starts from, and what it becomes in the end: checkpoint folders in the released form, both ways.

base = open_base(Path("src/openlance/assets/nano"), stage)               # go on from its weights
base = open_base(folder, stage, init="fresh")                             # its sizes, tokenizer and VAE alone
base = open_base(folder, stage, init="Qwen2.5-VL-3B-Instruct")            # both experts from Qwen2.5-VL
export(run, base, Path("runs/mine/model"))
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openlance.checkpoint.formats import find, our_name, released_name, write_config
from openlance.checkpoint.tensors import TensorSource, load_into, open_tensors
from openlance.checkpoint.writer import write_tensors
from openlance.config.model import ModelConfig
from openlance.config.sampling import FILE, GenerationConfig, PromptStyle, undistilled
from openlance.config.train import Resolution, Stage
from openlance.config.values import override, read_json
from openlance.errors import UserError
from openlance.media.files import atomic_path, write_json
from openlance.model.lance import lance_parameters
from openlance.model.lora import below_adapters
from openlance.runtime.components import Components, LazyVAE
from openlance.sequence.tasks import TaskSpec, source_name, spec_of
from openlance.text.tokenizer import SequenceCodec, Tokenizer
from openlance.training.learner import Learner, fresh
from openlance.training.parallel import full
from openlance.training.trainer import Trainer

BESIDE = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "generation_config.json")
# Qwen2.5-VL's prefixes: in memory of transformers 5, in the published files.
VISION = ("model.visual.", "visual.")
TEXT = ("model.language_model.", "model.")
# What it does not have: q/k norms (ones), the time embedding and the connectors of the latents.
FRESH = (".q_norm.", ".k_norm.", "time.", "latent_in.", "latent_out.")
TRAINED = 4.0  # the released training shift, for a checkpoint that says nothing of its own


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model in training.

    Args:
        beside: Files that training leaves alone (VAE first, tokenizer, sampling defaults) and that the result takes
            over where they exist.
        config: Its sizes.
        codec: Turns its segments into tokens.
        defaults: How it samples, and how its requests are worded.
        learner: What learns.
        vae: Its VAE.
    """

    beside: tuple[Path, ...]
    config: ModelConfig
    codec: SequenceCodec
    defaults: GenerationConfig
    learner: Learner
    vae: LazyVAE

    @property
    def style(self) -> PromptStyle:
        """How its requests are worded, and so its samples."""
        return self.defaults.style


def open_base(
    folder: Path, stage: Stage, init: str = "model", *, allow_pickle: bool = False, halved: bool = False
) -> Base:
    """Read a checkpoint folder for training.

    Args:
        folder: Where it lies.
        stage: Gives the seed and the auxiliary loss of fresh weights.
        init: "model" takes its weights, "fresh" none, anything else is a folder of Qwen2.5-VL.
        allow_pickle: Read weights that are pickles.
        halved: Keep matrices below adapters in bfloat16, see `below_adapters`.

    Raises:
        UserError: If something is missing or does not fit.
    """
    files = find(folder)
    parts = Components(
        files, device=torch.device("cpu"), dtype=torch.float32, dtypes=below_adapters if halved else None,
        allow_pickle=allow_pickle,
    )  # fmt: skip
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
            fill_from_qwen(learner, open_tensors(Path(init)))
    beside, defaults = [files.tokenizer / name for name in BESIDE], files.defaults
    codec, vae = SequenceCodec(tokenizer, config), parts.vae()
    return Base(beside=(files.vae, *beside), config=config, codec=codec, defaults=defaults, learner=learner, vae=vae)


def fill_from_qwen(learner: Learner, source: TensorSource | Mapping[str, Tensor]) -> None:
    """Fill a fresh learner from Qwen2.5-VL: both experts begin as copies of its decoder, the tower is its tower (paper,
    section 3).

    Args:
        learner: Filled in place; what Qwen2.5-VL does not have stays.
        source: Tensors of Qwen2_5_VLForConditionalGeneration. Tied output embeddings, which files leave out, are taken
            from the input.

    Raises:
        UserError: Naming what is missing or misshapen; the learner is then as it was.
    """
    tensors = source if isinstance(source, TensorSource) else TensorSource.of(source)
    decoder, tower = {}, {}
    for name in tensors.shapes:
        vision = next((name.removeprefix(p) for p in VISION if name.startswith(p)), None)
        text = next((name.removeprefix(p) for p in TEXT if name.startswith(p)), name)
        if vision is not None:
            tower[vision] = name
        elif (ours := our_name(f"language_model.{'' if text.startswith('lm_head') else 'model.'}{text}")) is not None:
            decoder[ours] = name
    if "embed.weight" not in decoder or not tower:
        raise UserError(f"{tensors.origin} is not a Qwen2.5-VL: give the folder of its safetensors files as init")
    decoder.setdefault("head.weight", decoder["embed.weight"])
    decoder |= {n.replace("und", "gen"): t for n, t in decoder.items() if ".und." in n}
    own = learner.lance.state_dict()
    kept = {n: t for n, t in own.items() if any(part in f".{n}" or n.startswith(part) for part in FRESH)}
    values = {n: tensors.read(t) for n, t in decoder.items()} | kept
    load_into(learner.vit.tower, {n: tensors.read(t) for n, t in tower.items()})
    load_into(learner.lance, values)


def averaged(run: Trainer) -> dict[str, Tensor]:
    """Return all weights by name, whole and on the CPU, averages where there are any; every process has to ask."""
    live = {n: p.detach() for n, p in run.learner.named_parameters()} | run.ema.values
    return {name: full(value).cpu() for name, value in live.items()}


def export(run: Trainer, base: Base, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a complete checkpoint folder: averaged weights under the released names, and what came with the start.
    Every process has to call it; rank 0 writes."""
    values = averaged(run)
    if not run.processes.leads:
        return
    write_config(folder, base.config)
    for stem, prefix, name_of in (("model", "lance.", released_name), ("vit", "vit.tower.", str)):
        own = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
        write_tensors(folder / f"{stem}.safetensors", {name_of(n): v.to(dtype) for n, v in own.items()})
    for beside in base.beside:
        # A folder of ours calls the VAE vae, whatever it was called before.
        name = "vae.safetensors" if beside == base.beside[0] and beside.suffix == ".safetensors" else beside.name
        out = folder / name
        told = read_json(beside) if beside.name == FILE and beside.is_file() else {}
        if (named := trained(told, run.stage)) != told:
            write_json(out, named)
        elif beside.is_file() and not (out.is_file() and filecmp.cmp(beside, out, shallow=False)):
            with atomic_path(out) as path:
                shutil.copyfile(beside, path)


def trained(said: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """Change a `generation_config.json` for other weights: what a stage trained stands beside the tasks that it lists
    (one that lists none claims nothing), and what was distilled from the weights before is gone."""
    listed = list(said.get("tasks", ()))
    named = dict.fromkeys(spec_of(task).name for task, weight in stage.mixture.items() if weight)
    more = [task for task in named if task not in listed]
    return undistilled(said) | ({"tasks": [*listed, *more]} if listed else {})


LONG = 32_768  # tokens of a sample from which on a pack holds few of them
LARGE = 10**9  # parameters of a decoder whose numbers and layers do not fit a GPU as a small one's do


def lora_stage(model: Path, tasks: Sequence[str], *, steps: int, lr: float, seed: int = 0) -> Stage:
    """Return the stage of a fine-tune with low-rank adapters of a checkpoint, see `adapter_stage`.

    Args:
        model: Folder of the checkpoint.
        tasks: What the samples are for.
        steps: Updates.
        lr: Learning rate.
        seed: Of the adapter, the order and the noise.
    """
    files = find(model)
    usual = files.defaults
    return adapter_stage(files.config, usual, tasks, steps=steps, lr=lr, seed=seed)


def adapter_stage(
    config: ModelConfig, usual: GenerationConfig, tasks: Sequence[str], *, steps: int, lr: float, seed: int = 0
) -> Stage:
    """Return the stage of a fine-tune with low-rank adapters, on as many samples of each task.

    Adapters want a higher rate than whole matrices, and few samples per update; several noise levels of a target share
    its context, since samples are few, unless it is a long video. Sizes, length of videos and shift are those that the
    model samples with. A large model works in bfloat16 on one or two samples at a time, and computes layers again, so
    that one GPU is enough.

    Args:
        config: Sizes of the model.
        usual: How it samples.
        tasks: What the samples are for.
        steps: Updates.
        lr: Learning rate.
        seed: Of the adapter, the order and the noise.
    """
    specs, large = [spec_of(task) for task in tasks], sum(n for _, n in lance_parameters(config)) >= LARGE
    released, side = usual == GenerationConfig(), round((usual.height * usual.width) ** 0.5)
    sizes = Resolution() if released else Resolution(image=(side, side), video=(side, side))
    targets = {spec: latents_of(config, sizes, spec.makes, usual.num_frames) for spec in specs}
    draws = 4 if not large and 4 * max(targets.values()) < LONG else 1
    # Twice what the usual shape needs: buckets of other shapes hold more, and inputs may be several.
    longest = max(2 * (draws * targets[spec] + read_of(config, sizes, spec, usual.num_frames)) for spec in specs) + 400
    packs = (2, 3) if not large and longest < LONG else (0.5, 1)
    reads = any(spec.reads and spec.makes != "text" for spec in specs)
    return Stage(
        name="lora", scale="3b" if large else "nano", steps=steps, lr=lr, schedule="cosine", lr_end=0.1,
        warmup=min(10, steps), eps=1e-8, ema=0.0, draws=draws, shift=TRAINED if released else usual.sampling.shift,
        text_weight=0.25 if any(spec.makes == "text" for spec in specs) else 0.0,
        mixture=dict.fromkeys(tasks, 1.0), drop_text=0.1, drop_all=0.05 if reads else 0.0,
        pack_tokens=(int(packs[0] * longest), int(packs[1] * longest)), max_sample_tokens=longest,
        resolutions=(sizes,), max_frames=usual.num_frames, dtype="auto" if large else "float32", checkpointing=large,
        seed=seed,
    )  # fmt: skip


@dataclass(frozen=True)
class _Mixed:
    mixture: dict[str, float]


def sources_in(settings: Sequence[str]) -> list[str]:
    """Return the sources that settings of a stage mix in, images from words where they say nothing of it."""
    said = [one for one in settings if one.startswith("mixture")]
    mixed = override(_Mixed({"t2i": 1.0}), said)
    return [source_name(name) for name, weight in mixed.mixture.items() if weight]


def settled(stage: Stage, settings: Sequence[str]) -> Stage:
    """Return a stage changed by settings, its sources under the names that they have everywhere."""
    stage = override(stage, settings)
    return replace(stage, mixture={source_name(name): weight for name, weight in stage.mixture.items()})


def latents_of(config: ModelConfig, sizes: Resolution, kind: str, frames: int) -> int:
    """Return the latent tokens of an image or of a video of so many frames, none for a text."""
    if kind not in ("image", "video"):
        return 0
    side, frames = (sizes.image[0], 1) if kind == "image" else (sizes.video[0], frames)
    return (1 + (frames - 1) // config.vae.temporal_stride) * (side // config.vae.stride) ** 2


def read_of(config: ModelConfig, sizes: Resolution, spec: TaskSpec, frames: int) -> int:
    """Return the tokens of one input of a task, as the vision tower sees it and as the VAE keeps it."""
    if not spec.reads:
        return 0
    side, frames = (sizes.video if spec.makes != "image" else sizes.image)[1], frames if spec.reads == "video" else 1
    seen = -(-frames // 2) * (side // config.vit.stride) ** 2
    return seen + (0 if spec.makes == "text" else latents_of(config, sizes, spec.reads, frames))
