"""Files of low-rank adapters, in the forms in which people share them; names of modules become ours.

    peft        a folder of adapter_config.json and adapter_model.safetensors:
                base_model.model.layers.0.gen.q.lora_A.weight
    kohya       a file, as ComfyUI has it: lora_unet_language_model_..._q_proj.lora_down.weight, .lora_up.weight, .alpha
    diffusers   pytorch_lora_weights.safetensors, settings in its header:
                transformer.language_model. ... .q_proj.lora_A.weight

Each is read under our names of modules and under the released ones. What is more than an addition of low rank (DoRA,
PiSSA, LoHa ...) is refused by name, and so is every tensor that has no place here: nothing is left out in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openlance.checkpoint.formats import RELEASED_MODULES, released_name
from openlance.checkpoint.tensors import first, read_tensors
from openlance.checkpoint.writer import write_tensors
from openlance.config.values import read_json
from openlance.errors import UserError
from openlance.media.files import write_json

FORMS = ("peft", "kohya", "diffusers")
CONFIG, WEIGHTS, DIFFUSERS = "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
SETTINGS = "lora_adapter_metadata"  # where diffusers keeps PEFT's settings in a header
PEFT_PREFIX, KOHYA_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "lora_unet_", "transformer."
# What names of modules begin with elsewhere; kohya's stand before names with underscores.
PREFIXES = (
    PEFT_PREFIX, "model.diffusion_model.", "diffusion_model.", DIFFUSERS_PREFIX, "lance.",
    KOHYA_PREFIX, "lora_transformer_", "lycoris_",
)  # fmt: skip
DOWN = ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down")
UP = ("lora_B", "lora_up", "lora.up", "lora_linear_layer.up")
_PART = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, DOWN + UP))})(?:\.default)?\.(weight|bias)")
_BIAS = re.compile(r"(.+?)(?:\.base_layer)?\.bias")
# Parts of names of tensors by which other kinds are known.
OTHER_KINDS = {
    "magnitude": "DoRA", "dora_scale": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "ia3": "IA3",
    "vera_": "VeRA", "lora_mid": "a Tucker LoRA", "lora_embedding": "a LoRA of an embedding",
    "diff": "a difference of full rank", "modules_to_save": "whole modules",
}  # fmt: skip
# Fields of PEFT's LoraConfig (0.21) that change nothing of what a finished adapter computes, or are read here; whatever
# else is set is a kind of its own.
KNOWN = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "bias", "lora_bias", "megatron_core", "qalora_group_size",
    "init_lora_weights", "fan_in_fan_out",
}  # fmt: skip
# Beginnings that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ ...) train what is left of it.
PLAIN_STARTS = (True, None, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class Update:
    """An addition of low rank to one matrix: scale * b @ a.

    Args:
        a: (r, in).
        b: (out, r).
        scale: alpha / r, or alpha / sqrt(r).
        shift: (out,), added to the bias, times the scale (PEFT's `lora_bias`).
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0
    shift: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def alpha(self) -> float:
        return self.scale * self.rank


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What an adapter's files hold.

    Args:
        form: Of `FORMS`.
        updates: By module of the decoder.
        biases: Biases that were trained along, whole, by module.
        base: The model that it names as its own.
        targets: The pattern that names its modules; empty where it is a list of names.
    """

    form: str
    updates: Mapping[str, Update]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    base: str = ""
    targets: str = ""


def _underscored(name: str) -> str:
    return re.sub(r"(?<=layers_)\d+(?=_)", "*", name.replace(".", "_"), count=1)


_MODULES = {
    _underscored(known): ours
    for ours, released in RELEASED_MODULES.items()
    for known in (ours, released, *(released.removeprefix(p) for p in ("language_model.model.", "language_model.")))
}  # fmt: skip


def our_module(name: str) -> str | None:
    """Translate a module's name of any form, dots or underscores, released or ours; None for one that is unknown."""
    while (prefix := next((p for p in PREFIXES if name.startswith(p)), None)) is not None:
        name = name.removeprefix(prefix)
    number = re.search(r"layers[._](\d+)[._]", name)
    found = _MODULES.get(_underscored(name))
    return None if found is None else found.replace("*", number[1] if number else "*")


def read_stored(path: str | Path) -> Stored:
    """Read an adapter in any form.

    Args:
        path: A folder of PEFT or diffusers, or a file.

    Raises:
        UserError: If it is none, is not whole, is of another model, or is more than an addition of low rank.
    """
    path = Path(path)
    file = _file(path)
    beside = file.parent / CONFIG
    said = read_json(beside) if file.name == WEIGHTS and beside.is_file() else _settings(file)
    if said is not None:
        _check(said, path)
    tensors = read_tensors(file)
    found, biases, alphas = dict[str, dict[str, Any]](), dict[str, Tensor](), dict[str, float]()
    for name, tensor in tensors.items():
        if match := _PART.fullmatch(name):
            kind = ("a" if match[2] in DOWN else "b") if match[3] == "weight" else "shift"
            found.setdefault(match[1], {})[kind] = tensor
        elif name.endswith(".alpha"):
            if tensor.numel() != 1:
                raise UserError(f"{path} is not a whole adapter: {name} holds {tensor.numel()} numbers, expected one")
            alphas[name.removesuffix(".alpha")] = float(tensor)
        elif said is not None and said.get("bias", "none") != "none" and (match := _BIAS.fullmatch(name)):
            biases[_module(match[1], path)] = tensor
        elif not any(_PART.fullmatch(one) or any(part in one for part in OTHER_KINDS) for one in tensors):
            raise UserError(f"{path} holds no adapter, but whole weights ({name}): that is a model: give a LoRA of one")
        else:
            kind = next((kind for part, kind in OTHER_KINDS.items() if part in name), "")
            raise UserError(
                f"{path} is not a plain LoRA ({kind or 'unknown'}: it holds {name}): merge it where it was made"
            )
    if not found:
        raise UserError(f"{path} holds no adapter, only {first(tensors) or 'nothing'}: give a LoRA")
    if lone := sorted(alphas.keys() - found.keys()):
        raise UserError(f"{path} is not a whole adapter: it has {lone[0]}.alpha and no matrices of it")
    updates = {_module(name, path): _update(name, parts, alphas, said, path) for name, parts in found.items()}
    if len(updates) < len(found):
        raise UserError(f"{path} has two updates of one layer, under different names: convert it where it was made")
    form = "peft" if file.name == WEIGHTS and beside.is_file() else "diffusers" if said is not None else _form(tensors)
    base, targets = (str((said or {}).get(name) or "") for name in ("base_model_name_or_path", "target_modules"))
    try:
        fits = all(re.fullmatch(targets, name) for name in updates)
    except re.error:  # which would be a pattern of another program
        fits = False
    targets = targets if fits else ""
    return Stored(form=form, updates=updates, biases=biases, base=base, targets=targets)


def _file(path: Path) -> Path:
    """The file of weights of an adapter."""
    if path.is_file():
        return path
    if path.is_dir():
        named = [path / name for name in (WEIGHTS, DIFFUSERS) if (path / name).is_file()]
        files = named[:1] or sorted(path.glob("*.safetensors"))
        if len(files) == 1 and ((path / CONFIG).is_file() or files[0].name != WEIGHTS):
            return files[0]
        if len(files) > 1:
            raise UserError(f"{path} holds {len(files)} files: name one of them, such as {files[0]}")
        if (path / "adapter_model.bin").is_file():
            raise UserError(f"{path} holds a pickle, adapter_model.bin: save it again with safe_serialization=True")
    good = f"a folder with {CONFIG} and {WEIGHTS}, such as runs/mine, or a .safetensors file"
    raise UserError(f"{path} holds no adapter: give {good}")


def _settings(file: Path) -> dict[str, Any] | None:
    """PEFT's settings in the header of a file of diffusers; None where there are none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(SETTINGS)
        said = json.loads(text) if text else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a readable safetensors file ({error}): get the file again") from error
    if not isinstance(said, dict):
        return None
    return {name.rpartition(".")[2]: value for name, value in said.items()}


def _form(names: Iterable[str]) -> str:
    return "kohya" if any(name.endswith((".alpha", ".lora_down.weight")) for name in names) else "diffusers"


def _check(said: Mapping[str, Any], path: Path) -> None:
    """UserError for settings that make more of an adapter than an addition of low rank."""
    kind, start = str(said.get("peft_type") or "LORA"), said.get("init_lora_weights")
    if isinstance(start, str):
        start = {"true": True, "false": False}.get(start.lower(), start.lower())
    wrong = [] if kind.rpartition(".")[2] == "LORA" else [f"peft_type={kind}"]
    wrong += [] if start in PLAIN_STARTS else [f"init_lora_weights={start}"]
    wrong += [f"{name}={value!r}" for name, value in said.items() if name not in KNOWN and value]
    if wrong:
        fix = "merge it into its model with peft, or save it as a plain LoRA (for PiSSA, OLoRA and CorDA: "
        fix += "save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        raise UserError(f"{path} is not a plain LoRA ({', '.join(wrong)}): {fix}")


def _module(name: str, path: Path) -> str:
    found = our_module(name)
    if found is None:
        raise UserError(f"{path} does not fit: it adapts {name}, and Lance has no such layer")
    return found


def _update(
    name: str, parts: Mapping[str, Any], alphas: Mapping[str, float], said: Mapping[str, Any] | None, path: Path
) -> Update:
    a, b, shift = parts.get("a", torch.empty(0)), parts.get("b", torch.empty(0)), parts.get("shift")
    whole = a.ndim == b.ndim == 2 and len(a) == b.shape[1] and len(a) > 0
    whole = whole and a.is_floating_point() and b.is_floating_point()  # whole numbers lack a scale
    if not whole or (shift is not None and shift.shape != b.shape[:1]):
        raise UserError(f"{path} is not a whole adapter at {name}: train or download it again")
    rank = len(a)
    if said is None:
        return Update(a=a, b=b, shift=shift, scale=alphas.get(name, rank) / rank)
    try:
        key = name.removeprefix(PEFT_PREFIX)
        r, alpha = (_by_pattern(said.get(f"{kind}_pattern"), key, said[field]) for kind, field in
                    (("rank", "r"), ("alpha", "lora_alpha")))  # fmt: skip
        scale = alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)
    except (KeyError, TypeError, AttributeError, re.error) as error:
        raise UserError(f"the settings of {path} are not those of an adapter ({error!r}): download it again") from error
    if r != rank:
        raise UserError(f"{path} has rank {rank} at {name} and its settings say {r!r}: train or download it again")
    return Update(a=a, b=b, shift=shift, scale=scale)


def _by_pattern(pattern: Mapping[str, Any] | None, key: str, usual: Any) -> Any:
    """The value of the first pattern that the end of a module's name matches, as PEFT finds it (`get_pattern_key`)."""
    return next((v for p, v in (pattern or {}).items() if re.match(rf"(.*\.)?({p})$", key)), usual)


def write_stored(path: str | Path, stored: Stored, *, dropout: float = 0.0) -> None:
    """Write an adapter in its form.

    Args:
        path: A folder; for kohya a file, .safetensors; for diffusers either.
        stored: What is written.
        dropout: That it was trained with, for PEFT.

    Raises:
        UserError: If the form has no place for what it holds.
    """
    path = Path(path)
    biased = [name for name, u in stored.updates.items() if u.shift is not None] or list(stored.biases)
    if biased and stored.form != "peft":
        raise UserError(f"biases, such as that of {biased[0]}, have no place in the form {stored.form}: write peft")
    if stored.form == "peft":
        if path.suffix == ".safetensors":
            raise UserError(f"{path} is a file, and peft's form is a folder: name one")
        write_tensors(path / WEIGHTS, _peft_tensors(stored))
        write_json(path / CONFIG, _peft_config(stored, str, dropout))
    elif stored.form == "kohya":
        if path.suffix != ".safetensors":
            raise UserError(f"{path} is a folder, and kohya's form is a file: write {path}.safetensors")
        tensors = dict[str, Tensor]()
        for name, u in stored.updates.items():
            stem = KOHYA_PREFIX + _released_module(name).replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": u.a, f"{stem}.lora_up.weight": u.b}
            tensors[f"{stem}.alpha"] = torch.tensor(u.alpha)
        usual = _usual(stored)
        about = {"ss_network_module": "networks.lora", "ss_network_dim": usual[0], "ss_network_alpha": usual[1]}
        write_tensors(path, tensors, {name: str(value) for name, value in about.items()})
    else:
        tensors = {}
        for name, u in stored.updates.items():
            stem = DIFFUSERS_PREFIX + _released_module(name)
            tensors |= {f"{stem}.lora_A.weight": u.a, f"{stem}.lora_B.weight": u.b}
        config = _peft_config(stored, _released_module)
        settings = {f"{DIFFUSERS_PREFIX}{name}": value for name, value in config.items()}
        file = path if path.suffix == ".safetensors" else path / DIFFUSERS
        write_tensors(file, tensors, {"format": "pt", SETTINGS: json.dumps(settings, indent=2, sort_keys=True)})


def _released_module(name: str) -> str:
    return released_name(f"{name}.weight").removesuffix(".weight")


def _usual(stored: Stored) -> tuple[int, float]:
    """Rank and alpha of most of the modules."""
    return Counter((u.rank, u.alpha) for u in stored.updates.values()).most_common(1)[0][0]


def _peft_tensors(stored: Stored) -> dict[str, Tensor]:
    tensors, shifted = dict[str, Tensor](), any(u.shift is not None for u in stored.updates.values())
    for name, u in stored.updates.items():
        stem = f"{PEFT_PREFIX}{name}"
        tensors |= {f"{stem}.lora_A.weight": u.a, f"{stem}.lora_B.weight": u.b}
        if shifted:
            tensors[f"{stem}.lora_B.bias"] = u.b.new_zeros(len(u.b)) if u.shift is None else u.shift
    for name, bias in stored.biases.items():
        tensors[f"{PEFT_PREFIX}{name}{'.base_layer' * (name in stored.updates)}.bias"] = bias
    return tensors


def _peft_config(stored: Stored, name_of: Callable[[str], str], dropout: float = 0.0) -> dict[str, Any]:
    rank, alpha = _usual(stored)
    ranks = {re.escape(name_of(n)): u.rank for n, u in stored.updates.items() if u.rank != rank}
    alphas = {re.escape(name_of(n)): u.alpha for n, u in stored.updates.items() if u.alpha != alpha}
    named = (stored.targets if name_of is str else "") or sorted(map(name_of, stored.updates))
    only = "lora_only" if stored.biases.keys() <= stored.updates.keys() else "all"
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": stored.base, "r": rank, "lora_alpha": alpha,
        "rank_pattern": ranks, "alpha_pattern": alphas, "lora_dropout": dropout,
        "target_modules": named, "bias": only if stored.biases else "none",
        "lora_bias": any(u.shift is not None for u in stored.updates.values()), "fan_in_fan_out": False,
        "inference_mode": True, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
