"""Optimiser, schedule and moving average."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al., "Muon", 2024: the quintic iteration and its coefficients are theirs).

    Its update has AdamW's typical size, 0.2 per entry (Liu et al., "Muon is scalable", 2025), so that one learning rate
    serves both. Matrices of one shape are worked out together, in bfloat16.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, same in shapes.items():
                averages = [self.state[p].setdefault("average", torch.zeros_like(p)) for p in same]
                gradients = [p.grad for p in same if p.grad is not None]
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                looked_ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
                updates = orthogonalised(torch.stack(looked_ahead)).to(same[0].dtype)
                size = 0.2 * group["lr"] * max(shape) ** 0.5
                torch._foreach_add_([p.data for p in same], list(updates.unbind()), alpha=-size)


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(B, n, m) -> matrices with the same singular vectors and singular values near one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, b * gram + c * (gram @ gram), x, beta=a)
    return x.mT if tall else x


class MuonAdamW:
    """Muon for the matrices inside layers, AdamW without decay for everything else, under one interface."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float, betas: tuple[float, float]) -> None:
        named = [(n, p) for n, p in named if p.requires_grad]
        inner = [p for n, p in named if p.ndim == 2 and (".layers." in f".{n}" or ".blocks." in n)]
        chosen = {id(p) for p in inner}
        rest = [p for _, p in named if id(p) not in chosen]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=0.0, fused=True)
        ]
        if inner:
            self.parts.append(Muon(inner, lr))

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
