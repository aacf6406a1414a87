"""Low-rank adapters of the decoder, in PEFT's file layout: `adapter_config.json` and `adapter_model.safetensors`.

    inject(lance, Lora(rank=16))                 # training: every chosen linear layer gets A and B, the rest is frozen
    write_adapter(folder, tensors, Lora(rank=16), base)
    read_adapter(folder).merge(lance)            # generation: W + scale * B A, at no cost in speed

PEFT reads these folders too: `PeftModel.from_pretrained(lance, folder)`; and `merge` reads what PEFT writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.checkpoint.tensors import read_tensors
from openlance.checkpoint.writer import write_tensors
from openlance.config.values import number, path_of, read_json
from openlance.errors import UserError
from openlance.media.files import write_json
from openlance.model.lance import Lance

# The matrices of the experts: what adapters change and what is quantized.
TARGETS = r"layers\.\d+\.(und|gen)\.(q|k|v|o|gate|up|down)"
PREFIX = "base_model.model."  # of every name in a file of PEFT
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """rank: of the update of each matrix; alpha / rank: its scale; targets: a pattern that whole module names match."""

    rank: int = 16
    alpha: float = 16.0
    targets: str = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise UserError(f"rank={self.rank}, alpha={self.alpha:g}: both must be above 0, for example 16 and 16")


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank update beside its own weight, which keeps its name."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def inject(lance: Lance, lora: Lora, seed: int = 0) -> None:
    """Freeze a decoder and give its chosen layers an update that begins at zero. UserError if the pattern fits none."""
    generator = torch.Generator().manual_seed(seed)
    lance.requires_grad_(False)
    chosen = [m for n, m in lance.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(lora.targets, n)]
    if not chosen:
        raise UserError(f"no layer is called {lora.targets!r}: use a pattern like {TARGETS!r}")
    for module in chosen:
        module.__class__ = LoraLinear
        a = torch.empty(lora.rank, module.in_features, dtype=torch.float32)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)  # as PEFT
        module.lora_A = nn.Parameter(a.to(module.weight.device))
        module.lora_B = nn.Parameter(torch.zeros(module.out_features, lora.rank, device=module.weight.device))
        module.scale = lora.alpha / lora.rank  # type: ignore[assignment]


@dataclass(frozen=True)
class Adapter:
    """updates: per module of the decoder, (B, A) of shapes (out, r) and (r, in), the scale already in B;
    weight: how much of it that is."""

    origin: str
    updates: Mapping[str, tuple[Tensor, Tensor]]
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Of its folder, with its strength."""
        return f"{Path(self.origin).absolute().name}:{self.weight:g}"

    @torch.no_grad()
    def merge(self, lance: Lance) -> None:
        """Add the updates to a decoder; those of a stream that it was built without are left out. UserError if it has
        no such layer."""
        modules = dict(lance.named_modules())
        for name, (b, a) in self.updates.items():
            if ".gen." in name and "gen" not in lance.norm:
                continue
            module = modules.get(name)
            if hasattr(module, "scale"):
                raise UserError(f"{name} is quantized, so {self.origin} cannot be added: add it before quantizing")
            if not isinstance(module, nn.Linear) or module.weight.shape != (b.shape[0], a.shape[1]):
                raise UserError(f"{self.origin} does not fit at {name}: use it with the model it was made for")
            update = (b.float() @ a.float()).to(module.weight.device)
            module.weight.copy_((module.weight.float() + update).to(module.weight.dtype))


def write_adapter(folder: str | Path, tensors: Mapping[str, Tensor], lora: Lora, base: str = "") -> None:
    """Write an adapter. tensors: NAME.lora_A and NAME.lora_B of the decoder; base: the model that it belongs to."""
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "r": lora.rank,
        "lora_alpha": lora.alpha, "target_modules": lora.targets, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    write_tensors(Path(folder) / WEIGHTS, {f"{PREFIX}{name}.weight": t for name, t in tensors.items()})
    write_json(Path(folder) / CONFIG, config)


def read_adapter(folder: str | Path, weight: float = 1.0) -> Adapter:
    """An adapter of ours or of PEFT; weight: how much of it. UserError if it is none, or of a kind that is more than an
    addition of low rank."""
    folder = path_of("the adapter", folder)
    weight = number("weight", weight)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no adapter: give a folder with {CONFIG} and {WEIGHTS}, such as runs/mine")
    said = read_json(folder / CONFIG)
    if said.get("peft_type") != "LORA" or said.get("use_dora") or said.get("rank_pattern") or said.get("alpha_pattern"):
        raise UserError(f"{folder} is not a plain LoRA (peft_type {said.get('peft_type')!r}): merge it with peft first")
    tensors = {n.removeprefix(PREFIX): t for n, t in read_tensors(folder / WEIGHTS).items()}
    names = sorted({n.partition(".lora_")[0] for n in tensors})
    try:
        root = math.sqrt(said["r"]) if said.get("use_rslora") else said["r"]
        scale = weight * said["lora_alpha"] / root
        pairs = {n: (tensors[f"{n}.lora_B.weight"] * scale, tensors[f"{n}.lora_A.weight"]) for n in names}
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{folder} is not a whole adapter ({error!r}): train or download it again") from error
    return Adapter(str(folder), pairs, weight)
