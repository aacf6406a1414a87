"""What the parts of a gradient agree in, on gradients whose mean and noise are known."""

import pytest
import torch
from torch import nn

from openlance.runtime.distributed import Distributed
from openlance.training.rewarded.agreement import SEEN, Agreement

PARTS = 8


def added(parameters: list[nn.Parameter], mean: float, noise: float, draws: torch.Generator) -> Agreement:
    """Parts of a gradient, each the PARTS-th of a mean with noise of its own on it."""
    for p in parameters:
        p.grad = None
    agreement = Agreement(parameters, Distributed())
    for _ in range(PARTS):
        for p in parameters:
            part = mean / PARTS + noise / PARTS**0.5 * torch.randn(p.shape, generator=draws)
            p.grad = part if p.grad is None else p.grad + part
        agreement.add()
    return agreement


@pytest.mark.parametrize(("mean", "noise"), [(0.0, 1.0), (0.5, 1.0), (3.0, 0.5)])
def test_the_ratio_is_that_of_the_mean_to_the_noise_of_the_whole(mean, noise):
    draws = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(3 * SEEN)), nn.Parameter(torch.zeros(70, 90)), nn.Parameter(torch.zeros(5))]
    found = [added(parameters, mean, noise, draws).signal()["signal"] for _ in range(20)]
    assert sum(found) / len(found) == pytest.approx((mean / noise) ** 2, rel=0.05, abs=0.01)


def test_one_part_says_nothing_and_neither_do_equal_ones():
    frozen, learns = nn.Parameter(torch.ones(4), requires_grad=False), nn.Parameter(torch.ones(4))
    agreement = Agreement([frozen, learns], Distributed())
    for n in range(1, 3):
        learns.grad = torch.full((4,), float(n))  # the second part is what the first was
        agreement.add()
        assert agreement.signal() == {}


def test_parts_that_undo_each_other_are_below_nothing():
    learns = nn.Parameter(torch.ones(4))
    agreement = Agreement([learns], Distributed())
    for total in (1.0, 0.0):
        learns.grad = torch.full((4,), total)
        agreement.add()
    assert agreement.signal()["signal"] < 0
