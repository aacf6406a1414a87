"""How much of a gradient is signal: what its parts agree in, against what they differ in.

The gradient G of an update is the sum of K independent parts g, and m its mean over what might have been drawn. Scalar
products of two parts have no noise on average, so |m|^2 = (|G|^2 - sum |g|^2) / (1 - 1/K) without bias, and var G =
sum |g|^2 - |m|^2 / K (the pair behind the gradient noise scale, arXiv 1812.06162, appendix A).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from openlance.runtime.distributed import Distributed
from openlance.training.parallel import local

SEEN = 4096  # entries of a parameter that are looked at, every so many


class Agreement:
    """Follows the gradients of parameters while the parts of an update are added to them.

    Args:
        parameters: Of which those that learn are looked at; gradients begin as none.
        processes: That do it together. Whole gradients are summed after the last part, sharded ones with each.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], processes: Distributed) -> None:
        self.parameters, self.processes = [p for p in parameters if p.requires_grad], processes
        self.sum, self.squares, self.parts = self._seen(), 0.0, 0

    def _seen(self) -> Tensor:
        found = list[Tensor]()
        for p in self.parameters:
            [own] = local([p.detach() if p.grad is None else p.grad])
            flat = own.flatten()
            some = flat[:: flat.numel() // SEEN | 1].float()
            found.append(torch.zeros_like(some) if p.grad is None else some * (len(flat) / max(len(some), 1)) ** 0.5)
        return torch.cat(found)

    def add(self) -> None:
        """Note that a part was added to the gradients."""
        now = self._seen()
        self.squares += float((now - self.sum).square().sum())
        self.sum, self.parts = now, self.parts + 1

    def signal(self) -> dict[str, float]:
        """Give |m|^2 / var G, 0 on average where parts share nothing (a single one may be far off, where gradients have
        few directions); nothing where there are no two that differ. Every process has to ask."""
        sharded, parts = self.processes.sharded, float(self.parts)
        whole = self.sum if sharded else self.processes.total(self.sum)
        told = [self.squares, float(whole.square().sum()), parts]
        summed = self.processes.total(torch.tensor(told, dtype=torch.float64)).tolist()
        squares, square = summed[0], summed[1] if sharded else told[1]
        parts = parts if sharded else summed[2]
        if parts < 2:
            return {}
        shared = (square - squares) / (1 - 1 / parts)
        noise = squares - shared / parts
        return {"signal": shared / noise} if noise > 0 else {}
