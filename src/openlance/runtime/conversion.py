"""Writing a checkpoint in any form: from another form, or with random weights. Tensors stream from place to place.

write(out, gather(find("downloads/Lance_3B")), "openlance")
write(out, random_checkpoint(ModelConfig(), torch.bfloat16), "released", shards=3)
"""

from __future__ import annotations

import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from openlance.checkpoint import formats
from openlance.checkpoint.formats import CODEC, IMAGES, TOWER, Files, config_for_diffusers, released_names
from openlance.checkpoint.tensors import compare, open_tensors
from openlance.checkpoint.writer import Stream, progress, stream_of, write_shards
from openlance.config.model import ModelConfig, VAEConfig
from openlance.config.sampling import DISTILLED, FILE, undistilled
from openlance.config.values import read_json
from openlance.errors import UserError
from openlance.media.files import write_json
from openlance.runtime.inspection import PARTS, expected, opened, weights_of
from openlance.runtime.quantization import kinds_of, quantized
from openlance.text.tokenizer import Tokenizer

FORMS = ("openlance", "released", "diffusers")
BESIDE = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
FEW = Path(DISTILLED).stem  # the part, and its file
LEFT_OUT = f"{DISTILLED} is left out"
SPARE = 1.02  # of the bytes to be written, what must be free
BLOCK = 1_000_003  # random numbers that are repeated; a prime, so that no two rows of a matrix are alike


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is to be written.

    Attributes:
        tensors: By part and released name.
        beside: The folder of the tokenizer.
        preferences: Whether what the model does when it is not told (`generation_config.json`) is taken over, too.
    """

    config: ModelConfig
    tensors: dict[str, dict[str, Stream]]
    beside: Path
    preferences: bool = True

    @property
    def bytes(self) -> int:
        return sum(t.bytes for part in self.tensors.values() for t in part.values())


def gather(
    files: Files, dtype: torch.dtype | None = None, *, quantize: str | None = None, allow_pickle: bool = False
) -> Checkpoint:
    """Compare all parts of a checkpoint on disk with what its configuration asks for; nothing is read yet.

    Args:
        files: The checkpoint.
        dtype: Of floating-point tensors; None keeps them.
        quantize: A recipe of `runtime.quantization`.
        allow_pickle: Whether a part may be a pickle.

    Raises:
        UserError: If something is missing or does not fit, or is quantized already.
    """
    if len(files.decoders) > 1:
        names = " or ".join(str(d) for d in files.decoders)
        raise UserError(f"{files.root} holds a checkpoint for images and one for videos: convert {names}")
    files.require()
    tensors = dict[str, dict[str, Stream]]()
    for part, weights, prefix in weights_of(files):
        source, plan, wanted = opened(files, part, weights, prefix, allow_pickle)
        if part == "decoder" and kinds_of(source):
            raise UserError(f"{files.root} holds quantized weights, which are final: convert the folder they came from")
        compare(source, plan, wanted)
        places = {target: name for name, target in plan.items()}
        tensors[part] = {name: stream_of(source, places[name], dtype) for name in wanted}
    if quantize is not None:
        tensors["decoder"] = quantized(tensors["decoder"], quantize)
    if files.distilled.is_file() and quantize is not None:
        print(f"note: {LEFT_OUT}, which works with weights that are not quantized", file=sys.stderr)
    elif files.distilled.is_file():
        few = open_tensors(files.distilled)
        tensors[FEW] = {name: stream_of(few, name, dtype) for name in few.shapes}
    elif files.repo is not None and files.defaults.distilled:
        print(f"note: {LEFT_OUT}, which is not on this machine: {files.remedy} first to take it along", file=sys.stderr)
    return Checkpoint(config=files.config, tensors=tensors, beside=files.tokenizer)


def random_checkpoint(
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    beside: Path,
    preferences: bool = True,
    seed: int = 0,
    parts: Iterable[str] = PARTS,
) -> Checkpoint:
    """Make weights that keep activations of ordinary size.

    One block of random numbers is used over and over, from a place of each tensor's own, so that writing is as fast as
    the disk.

    Args:
        config: Of the model.
        dtype: Of its weights.
        beside: Folder of the tokenizer.
        preferences: Whether its `generation_config.json` is taken over, too.
        seed: Of the block.
        parts: Of `PARTS`, what is made.
    """
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
    """Write a checkpoint into a new folder, which appears whole or not at all.

    Args:
        out: The folder.
        checkpoint: From `gather` or `random_checkpoint`.
        form: One of `FORMS`.
        shards: Files of the decoder.
        show: Whether there is a progress bar.

    Raises:
        UserError: If the form is unknown, the folder is there already or the disk has no room.
    """
    if form not in _WRITERS:
        raise UserError(f"the form {form!r} is unknown: use one of {', '.join(FORMS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: choose another folder, or delete it first")
    out = out.resolve()
    if out == Path.cwd():
        raise UserError("a folder appears whole or not at all, so it cannot be the one we are in: name another one")
    if form != "openlance" and FEW in checkpoint.tensors:
        print(f"note: {LEFT_OUT}, for which the form {form} has no place", file=sys.stderr)
        kept = {part: tensors for part, tensors in checkpoint.tensors.items() if part != FEW}
        checkpoint = replace(checkpoint, tensors=kept)
    nearest = next(place for place in out.absolute().parents if place.is_dir())
    free, needed = shutil.disk_usage(nearest).free, int(checkpoint.bytes * SPARE)
    if free < needed:
        said = f"{out} needs {needed / 1e9:.3g} GB and its disk has {free / 1e9:.3g} GB left"
        raise UserError(f"{said}: free some, or choose another place")
    fresh = out.absolute().with_name(f".{out.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with progress(checkpoint.bytes, f"writing {out.name}", show) as on_bytes:

            def put(part: str, folder: str, stem: str, rename: Callable[[str], str | None] = str) -> list[Path]:
                """Write a part, if there is one: its files."""
                tensors = {str(rename(name)): tensor for name, tensor in checkpoint.tensors.get(part, {}).items()}
                count = shards if part == "decoder" else 1
                return write_shards(fresh / folder, stem, tensors, count, on_bytes) if tensors else []

            _WRITERS[form](fresh, checkpoint, put)
        if out.is_dir():
            out.rmdir()
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _openlance(folder: Path, c: Checkpoint, put: Callable[..., list[Path]]) -> None:
    formats.write_config(folder, c.config)
    _copy_beside(c, folder)
    for part, stem in (("decoder", "model"), ("vit", "vit"), ("vae", "vae"), (FEW, FEW)):
        put(part, "", stem)


def _released(folder: Path, c: Checkpoint, put: Callable[..., list[Path]]) -> None:
    """As the release lies. The VAE comes as safetensors too, which is read without `allow_pickle`; JSON files that the
    release does not have say what differs from the published model."""
    configs, published = c.config.files(), ModelConfig().files()["lance_config.json"] | formats.PUBLISHED
    vit = configs["vit_config.json"]
    lance = {k: v for k, v in configs["lance_config.json"].items() if v != published.get(k)}
    write_json(folder / IMAGES / "llm_config.json", configs["llm_config.json"] | {"vision_config": vit})
    if lance:
        write_json(folder / IMAGES / "lance_config.json", lance)
    if c.config.vae != VAEConfig():
        write_json(folder / "vae_config.json", configs["vae_config.json"])
    write_json(folder / TOWER / "config.json", {"model_type": "qwen2_5_vl"} | vit)
    _copy_beside(c, folder / IMAGES)
    put("decoder", IMAGES, "model")
    put("vit", TOWER, "vit")
    for file in put("vae", "", CODEC):
        tensors = open_tensors(file)
        torch.save({name: tensors.read(name) for name in c.tensors["vae"]}, folder / f"{CODEC}.pth")


def _diffusers(folder: Path, c: Checkpoint, put: Callable[..., list[Path]]) -> None:
    """diffusers and transformers read their parts with `from_pretrained(folder, subfolder=...)`."""
    configs, tokenizer = c.config.files(), folder / "tokenizer"
    write_json(folder / "model_index.json", {
        "_class_name": "LancePipeline", "_diffusers_version": "0.41.0",
        "transformer": ["openlance", "Lance"], "vae": ["diffusers", "AutoencoderKLWan"],
        "vision_tower": ["transformers", "Qwen2_5_VisionTransformerPretrainedModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    })  # fmt: skip
    own = {"_class_name": "Lance", "llm": configs["llm_config.json"], "lance": configs["lance_config.json"]}
    vit = {"model_type": "qwen2_5_vl_vision"} | configs["vit_config.json"]
    write_json(folder / "transformer" / "config.json", own)
    write_json(folder / "vision_tower" / "config.json", vit)
    write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKLWan"} | config_for_diffusers(c.config.vae))
    _copy_beside(c, tokenizer)
    Tokenizer.from_folder(c.beside).backend.save(str(tokenizer / "tokenizer.json"))
    if not (c.beside / "tokenizer_config.json").is_file():
        ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        write_json(tokenizer / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | ends)
    put("decoder", "transformer", "diffusion_pytorch_model")
    put("vit", "vision_tower", "model")
    put("vae", "vae", "diffusion_pytorch_model", released_names(c.config.vae).to_ours)


def _copy_beside(c: Checkpoint, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (*BESIDE, *([FILE] if c.preferences else [])):
        if (c.beside / name).is_file():
            shutil.copyfile(c.beside / name, target / name)
    told = target / FILE
    if told.is_file() and FEW not in c.tensors and (kept := undistilled(said := read_json(told))) != said:
        write_json(told, kept)


_WRITERS = dict(zip(FORMS, (_openlance, _released, _diffusers), strict=True))
