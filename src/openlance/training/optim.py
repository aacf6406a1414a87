"""Optimizer and moving average. Both hold plain tensors under the names of the parameters, sharded like these, so that
a checkpoint is a table of tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from openlance.config.train import Stage
from openlance.model.precision import fast_bfloat16
from openlance.training.parallel import local


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al., "Muon", 2024: the quintic iteration and its coefficients are theirs).

    Its update has AdamW's typical size, 0.2 per entry (Liu et al., "Muon is scalable", 2025), so that one learning rate
    serves both. Matrices of one shape are worked out together, in bfloat16 where that is fast; sharded ones are
    gathered for it. Every parameter needs a gradient.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"average": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes = defaultdict[torch.Size, list[nn.Parameter]](list)
            for p in group["params"]:
                shapes[p.shape].append(p)
            for shape, same in shapes.items():
                averages, gradients = local([self.state[p]["average"] for p in same]), local([p.grad for p in same])
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                looked_ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
                whole = [_whole(part, p) for part, p in zip(looked_ahead, same, strict=True)]
                updates = orthogonalized(torch.stack(whole)).to(same[0].dtype)
                own = [_part(update, p) for update, p in zip(updates.unbind(), same, strict=True)]
                size = 0.2 * group["lr"] * max(shape) ** 0.5
                values = local([p.data for p in same])
                torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])  # decoupled, as AdamW's
                torch._foreach_add_(values, own, alpha=-size)


def _whole(part: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return part
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=shape, stride=stride).full_tensor()


def _part(whole: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return (B, n, m) matrices with the same singular vectors and singular values near one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if fast_bfloat16(matrices.device) else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, b * gram + c * (gram @ gram), x, beta=a)
    return x.mT if tall else x


class Optimizer:
    """AdamW; with the stage's `muon`, Muon for the matrices inside layers and AdamW for everything else. Its state is
    there from the beginning, all zeros, so that a checkpoint has the same tensors at every step."""

    def __init__(self, stage: Stage, module: nn.Module) -> None:
        self.named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        matrices = {n: p for n, p in self.named.items() if p.ndim == 2 and re.search(r"(^|\.)layers\.|\.blocks\.", n)}
        inner = matrices if stage.optimizer == "muon" else {}
        rest = [p for n, p in self.named.items() if n not in inner]
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            adam = torch.optim.AdamW(
                rest, lr=0.0, betas=stage.betas, eps=stage.eps, weight_decay=stage.weight_decay, fused=True
            )
            for p in rest:
                moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                adam.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **moments}
            self.parts.append(adam)
        if inner:
            self.parts.append(Muon(inner.values(), 0.0, weight_decay=stage.weight_decay))

    def step(self, lr: float) -> None:
        """Do one update. A parameter that nothing used has a gradient of zero, so that the outcome does not depend on
        which process used what."""
        for p in self.named.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by parameter and kind; loading writes into these."""
        names = {id(p): n for n, p in self.named.items()}
        states = [(p, state) for part in self.parts for p, state in part.state.items()]
        return {f"{names[id(p)]}/{kind}": value for p, state in states for kind, value in state.items()}


class Ema:
    """Moving average of what is trained; young averages warm up so that they do not remember the first weights. With a
    decay of 0 it is the weights themselves."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        live = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {n: p.clone() for n, p in live.items()} if decay else live

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        if not self.decay:
            return
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        live = dict(module.named_parameters())
        theirs = [live[name].detach() for name in self.values]
        torch._foreach_lerp_(local(list(self.values.values())), local(theirs), 1 - decay)
