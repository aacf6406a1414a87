"""Writing a checkpoint in any form: from another form, or with random weights. Tensors stream from place to place.

write(out, gather(find("downloads/Lance_3B")), "openlance")
write(out, random_checkpoint(ModelConfig(), torch.bfloat16), "released", shards=3)
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openlance.checkpoint.formats import (
    CODEC,
    IMAGES,
    INSIDE,
    PUBLISHED,
    TOWER,
    Files,
    write_config,
    write_json,
)
from openlance.checkpoint.names import COMPUTED, config_for_diffusers, released_names
from openlance.checkpoint.tensors import TensorSource, compare, open_tensors
from openlance.checkpoint.writer import Stream, progress, stream_of, write_shards
from openlance.config.model import ModelConfig, VAEConfig
from openlance.errors import UserError
from openlance.runtime.expected import PARTS, expected
from openlance.runtime.quantization import in_few_bits, kinds_of
from openlance.text.tokenizer import Tokenizer

FORMS = ("openlance", "released", "diffusers")
BESIDE = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
PREFERENCES = "generation_config.json"
SPARE = 1.02  # of the bytes to be written, what must be free
BLOCK = 1_000_003  # random numbers that are repeated; a prime, so that no two rows of a matrix are alike


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is to be written: tensors by part and released name; beside: the folder of the tokenizer and, with
    `preferences`, of what the model does when it is not told (`generation_config.json`)."""

    config: ModelConfig
    tensors: dict[str, dict[str, Stream]]
    beside: Path
    preferences: bool = True

    @property
    def bytes(self) -> int:
        return sum(t.bytes for part in self.tensors.values() for t in part.values())


def gather(
    files: Files, dtype: torch.dtype | None = None, *, quantise: str | None = None, allow_pickle: bool = False
) -> Checkpoint:
    """All parts of a checkpoint on disk, compared with what its configuration asks for; nothing is read yet.

    dtype: of floating-point tensors; None keeps them. quantise: a recipe of `runtime.quantization`. UserError if
    something is missing or does not fit, or is quantized already.
    """
    if len(files.decoders) > 1:
        names = " or ".join(str(d) for d in files.decoders)
        raise UserError(f"{files.root} holds a checkpoint for pictures and one for clips: convert {names}")
    files.require()
    tower, prefix = files.vit_of()
    wan = released_names(files.config.vae)
    sources = {
        "decoder": (open_tensors(files.decoder()), _decoder_name),
        "vit": (open_tensors(tower), lambda n: n[len(prefix) :] if n.startswith(prefix) else None),
        "vae": (open_tensors(files.vae, allow_pickle=allow_pickle), lambda n: _codec_name(wan.to_ours(n), wan)),
    }
    if kinds_of(sources["decoder"][0]):
        raise UserError(f"{files.root} holds quantized weights, which are final: convert the folder they came from")
    wanted = expected(files.config)
    found = {part: _streams(source, rename, wanted[part], dtype) for part, (source, rename) in sources.items()}
    if quantise is not None:
        found["decoder"] = in_few_bits(found["decoder"], quantise)
    return Checkpoint(config=files.config, tensors=found, beside=files.tokenizer)


def _decoder_name(name: str) -> str | None:
    return None if name in COMPUTED or name.startswith(INSIDE) else name


def _codec_name(ours: str | None, names: Any) -> str | None:
    return ours if ours is None or ours.startswith("unknown:") else names.to_released(ours)


def _streams(
    source: TensorSource,
    rename: Callable[[str], str | None],
    wanted: dict[str, tuple[int, ...]],
    dtype: torch.dtype | None,
) -> dict[str, Stream]:
    plan = {name: target for name in source.shapes if (target := rename(name)) is not None}
    compare(source, plan, wanted)
    places = {target: name for name, target in plan.items()}
    return {name: stream_of(source, places[name], dtype) for name in wanted}


def random_checkpoint(
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    beside: Path,
    preferences: bool = True,
    seed: int = 0,
    parts: Iterable[str] = PARTS,
) -> Checkpoint:
    """Weights that keep activations of ordinary size. One block of random numbers is used over and over, from a place
    of each tensor's own, so that writing is as fast as the disk."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    tensors = {
        part: {name: _random(name, shape, dtype, block) for name, shape in shapes.items()}
        for part, shapes in expected(config, parts).items()
    }
    return Checkpoint(config=config, tensors=tensors, beside=beside, preferences=preferences)


def _random(name: str, shape: tuple[int, ...], dtype: torch.dtype, block: Tensor) -> Stream:
    count = torch.Size(shape).numel()
    gain = name.endswith(".gamma") or (len(shape) == 1 and name.endswith(".weight"))  # of a norm
    spread = 0.02 if len(shape) == 1 or gain or "embed_tokens" in name else (count // shape[0]) ** -0.5

    def pieces() -> Iterator[Tensor]:
        length = min(count, BLOCK)
        begin = zlib.crc32(name.encode()) % BLOCK
        values = torch.cat([block[begin : begin + length], block[: max(begin + length - BLOCK, 0)]])
        values = (values * spread + float(gain)).to(dtype)
        for at in range(0, count, BLOCK):
            yield values[: count - at]

    return Stream(shape, dtype, pieces)


def write(out: Path, checkpoint: Checkpoint, form: str = "openlance", *, shards: int = 1, show: bool = True) -> None:
    """Write a checkpoint into a new folder, which appears whole or not at all. shards: of the decoder.

    UserError if the folder is there already or the disk has no room.
    """
    if form not in _WRITERS:
        raise UserError(f"the form {form!r} is unknown: use one of {', '.join(FORMS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: choose another folder, or delete it first")
    out = out.resolve()
    if out == Path.cwd():
        raise UserError("a folder appears whole or not at all, so it cannot be the one we are in: name another one")
    nearest = next(place for place in out.absolute().parents if place.is_dir())
    free, needed = shutil.disk_usage(nearest).free, int(checkpoint.bytes * SPARE)
    if free < needed:
        raise UserError(
            f"{out} needs {needed / 1e9:.3g} GB and its disk has {free / 1e9:.3g} GB left: free some, or choose "
            f"another place"
        )
    fresh = out.absolute().with_name(f".{out.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with progress(checkpoint.bytes, f"writing {out.name}", show) as on_bytes:
            _WRITERS[form](fresh, checkpoint, shards, on_bytes)
        if out.is_dir():
            out.rmdir()
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _openlance(folder: Path, c: Checkpoint, shards: int, on_bytes: Callable[[int], Any]) -> None:
    write_config(folder, c.config)
    for part, stem, count in (("decoder", "model", shards), ("vit", "vit", 1), ("vae", "vae", 1)):
        if part in c.tensors:
            write_shards(folder, stem, c.tensors[part], count, on_bytes)
    _copy_beside(c, folder)


def _released(folder: Path, c: Checkpoint, shards: int, on_bytes: Callable[[int], Any]) -> None:
    """As the release lies. The codec comes as safetensors too, which is read without --allow-pickle; JSON files that
    the release does not have say what differs from the published model."""
    configs = c.config.files()
    vit = configs["vit_config.json"]
    lance = {k: v for k, v in configs["lance_config.json"].items() if v != _published(k)}
    write_json(folder / IMAGES / "llm_config.json", configs["llm_config.json"] | {"vision_config": vit})
    if lance:
        write_json(folder / IMAGES / "lance_config.json", lance)
    if c.config.vae != VAEConfig():
        write_json(folder / "vae_config.json", configs["vae_config.json"])
    write_json(folder / TOWER / "config.json", {"model_type": "qwen2_5_vl"} | vit)
    _copy_beside(c, folder / IMAGES)
    if "decoder" in c.tensors:
        write_shards(folder / IMAGES, "model", c.tensors["decoder"], shards, on_bytes)
    if "vit" in c.tensors:
        write_shards(folder / TOWER, "vit", c.tensors["vit"], 1, on_bytes)
    if "vae" in c.tensors:
        [file] = write_shards(folder, CODEC, c.tensors["vae"], 1, on_bytes)
        tensors = open_tensors(file)
        torch.save({name: tensors.read(name) for name in c.tensors["vae"]}, folder / f"{CODEC}.pth")


def _published(key: str) -> Any:
    return (ModelConfig().files()["lance_config.json"] | PUBLISHED).get(key)


def _diffusers(folder: Path, c: Checkpoint, shards: int, on_bytes: Callable[[int], Any]) -> None:
    """diffusers and transformers read their parts with `from_pretrained(folder, subfolder=...)`."""
    configs, names = c.config.files(), released_names(c.config.vae)
    write_json(folder / "model_index.json", {
        "_class_name": "LancePipeline", "_diffusers_version": "0.41.0",
        "transformer": ["openlance", "Lance"], "vae": ["diffusers", "AutoencoderKLWan"],
        "vision_tower": ["transformers", "Qwen2_5_VisionTransformerPretrainedModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    })  # fmt: skip
    own = {"_class_name": "Lance", "llm": configs["llm_config.json"], "lance": configs["lance_config.json"]}
    write_json(folder / "transformer" / "config.json", own)
    write_json(
        folder / "vision_tower" / "config.json", {"model_type": "qwen2_5_vl_vision"} | configs["vit_config.json"]
    )
    write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKLWan"} | config_for_diffusers(c.config.vae))
    _copy_beside(c, folder / "tokenizer")
    Tokenizer.from_folder(c.beside).backend.save(str(folder / "tokenizer" / "tokenizer.json"))
    if not (c.beside / "tokenizer_config.json").is_file():
        ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        write_json(
            folder / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | ends
        )
    vae = {names.to_ours(name): tensor for name, tensor in c.tensors.get("vae", {}).items()}
    for part, stem, tensors, count in (
        ("transformer", "diffusion_pytorch_model", c.tensors.get("decoder", {}), shards),
        ("vision_tower", "model", c.tensors.get("vit", {}), 1),
        ("vae", "diffusion_pytorch_model", vae, 1),
    ):
        if tensors:
            write_shards(folder / part, stem, tensors, count, on_bytes)  # type: ignore[arg-type]


def _copy_beside(c: Checkpoint, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (*BESIDE, *([PREFERENCES] if c.preferences else [])):
        if (c.beside / name).is_file():
            shutil.copyfile(c.beside / name, target / name)


_WRITERS = dict(zip(FORMS, (_openlance, _released, _diffusers), strict=True))
