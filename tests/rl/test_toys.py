"""Every objective raises a reward, in a flow whose velocity is known but for one shift."""

import pytest
import torch

from openlance.flow import euler
from openlance.flow.stochastic import SDE
from openlance.rl.advantages import shuffled
from openlance.rl.objectives import AWM, GRPO, NFT, BestOfN, GRPOGuard, Times
from openlance.rl.results import Result, Transition

C = 3


class Shifted(torch.nn.Module):
    """The exact velocity of a flow from noise to data of variance 0.25, and one learned shift of it all."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(C))

    def forward(self, x_NC, times_N):
        t = times_N[:, None]
        return (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2) * x_NC + self.shift


@torch.no_grad()
def drawn(model, count, generator):
    """Results of one row, of two stochastic steps and two of Euler."""
    kind, x, steps = SDE(), torch.randn(count, C, generator=generator), [list[Transition]() for _ in range(count)]
    for t, t_next in zip((1.0, 0.8, 0.6, 0.3), (0.8, 0.6, 0.3, 0.0)):
        v = model(x, torch.full((count,), t))
        if t_next < 0.6:
            x = euler(x, v, t, t_next)
            continue
        moments = kind.moments(x, v, t, t_next)
        x_next = moments.draw(torch.randn(x.shape, generator=generator))
        log_probs = kind.log_prob(x_next, moments, [1] * count)
        rows = (values[:, None] for values in (x, x_next, moments.mean))
        for own, one, two, mean, log_prob in zip(steps, *rows, log_probs):
            own.append(Transition(kind=kind, t=t, t_next=t_next, x=one, x_next=two, mean=mean, log_prob=log_prob))
        x = x_next
    return [Result(clean=clean, transitions=tuple(own)) for clean, own in zip(x[:, None], steps)]


def improve(objective, rate, shuffle=False, rounds=12, groups=4, size=8):
    """How much higher the first value of results is after some rounds in which it was rewarded."""
    generator, ids = torch.Generator().manual_seed(1), torch.arange(groups).repeat_interleave(size)
    model, average = Shifted(), Shifted()
    optimizer, means = torch.optim.SGD(model.parameters(), lr=rate), list[float]()
    for step in range(rounds):
        results = drawn(model, len(ids), generator)
        rewards = {"right": torch.stack([r.clean[0, 0] for r in results])}
        means.append(float(rewards["right"].mean()))
        scored = objective.select(shuffled(rewards, ids, generator) if shuffle else rewards, ids, generator)
        asks = [
            ask
            for n, advantage in zip(scored.kept.tolist(), scored.advantages.tolist())
            for ask in objective.asks(results[n], advantage, generator)
        ]
        x, times = torch.cat([ask.x for ask in asks]), torch.cat([ask.times for ask in asks])
        v = {"new": model(x, times), "old": model(x, times).detach(), "average": average(x, times).detach()}
        optimizer.zero_grad()
        objective.loss(asks, v).per_ask.mean().backward()
        optimizer.step()
        average.shift.data.lerp_(model.shift.data, 1 - objective.keeps("average", step))
    return sum(means[-4:]) / 4 - sum(means[:4]) / 4


@pytest.mark.parametrize(
    "objective, rate",
    [
        (GRPO(clip=0.2), 1.0),
        (GRPOGuard(clip=0.2), 0.5),
        (NFT(square=0.0, times=Times(draws=1)), 0.2),
        (AWM(square=0.0, times=Times(draws=1)), 0.2),
        (BestOfN(times=Times(draws=1)), 0.3),
    ],
)
def test_rewards_rise_and_shuffled_ones_do_not(objective, rate):
    still = improve(objective, rate=0.0)
    risen, null = improve(objective, rate) - still, improve(objective, rate, shuffle=True) - still
    assert risen > 0.3 and abs(null) < risen / 3
