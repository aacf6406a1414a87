"""Muon: momentum whose update is made orthogonal, for the inner weight matrices of a network; AdamW for the rest.

After Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024): the quintic iteration and its
coefficients are theirs. A convolution's kernel counts as the matrix (out, in * height * width).
"""

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearly the nearest matrix with orthonormal rows or columns: singular values come out within 0.7 to 1.2.
    Worked out in bfloat16."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Groups with `orthogonal=True` get Muon, the others AdamW without decay. A group's rate is `lr * lr_scale`."""

    def __init__(self, groups: list[dict], momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.95)) -> None:
        super().__init__(groups, {"lr": 0.0, "lr_scale": 1.0, "orthogonal": False, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                update = self._orthogonal if group["orthogonal"] else self._adam
                update(p, group, self.state[p], group["lr"] * group["lr_scale"])

    def _orthogonal(self, p: Tensor, group: dict, state: dict, lr: float) -> None:
        average = state.setdefault("average", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - group["momentum"])
        update = orthogonalised(p.grad.lerp(average, group["momentum"]).flatten(1)).to(p.dtype)
        tallness = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        p.add_(update.reshape(p.shape), alpha=-lr * tallness)

    def _adam(self, p: Tensor, group: dict, state: dict, lr: float) -> None:
        (b1, b2), step = group["betas"], state.get("step", 0) + 1
        state["step"] = step
        first, second = (state.setdefault(name, torch.zeros_like(p)) for name in ("first", "second"))
        first.lerp_(p.grad, 1 - b1)
        second.lerp_(p.grad.square(), 1 - b2)
        p.addcdiv_(first / (1 - b1**step), (second / (1 - b2**step)).sqrt() + 1e-8, value=-lr)


def inner_kernels(module: nn.Module, least: int = 32) -> set[nn.Parameter]:
    """The 3x3 kernels with at least that many channels on both sides."""
    kernels = (m.weight for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    return {w for w in kernels if min(w.shape[:2]) >= least}
