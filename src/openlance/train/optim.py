"""Optimiser, schedule and moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class MuonAdamW:
    """Muon for the matrices inside layers, AdamW for everything else, under one interface.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix; with its update scaled to AdamW's size one
    learning rate serves both.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float, betas: tuple[float, float]) -> None:
        named = [(n, p) for n, p in named if p.requires_grad]
        inner = [p for n, p in named if p.ndim == 2 and (".layers." in f".{n}" or ".blocks." in n)]
        chosen = {id(p) for p in inner}
        rest = [p for _, p in named if id(p) not in chosen]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=0.0, fused=True)
        ]
        if inner:
            self.parts.append(torch.optim.Muon(inner, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))

    def set_rate(self, lr: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Linear warm-up, constant, then a cosine to a twentieth over the last `decay` share of the steps."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = steps * (1 - decay)
    if step < start:
        return peak
    along = min((step - start) / max(steps - start, 1), 1.0)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * along)))


class Ema:
    """Moving average of parameters; young averages warm up so that they do not remember the initialisation."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {n: p.detach().clone() for n, p in module.named_parameters()}
        self.count = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        live = dict(module.named_parameters())
        names = list(self.values)
        torch._foreach_lerp_([self.values[n] for n in names], [live[n].detach() for n in names], 1 - decay)
