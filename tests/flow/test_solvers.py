"""Solvers: their order on a flow whose solution is known, and what they have in common with Euler's."""

import math

import pytest
import torch

from openlance.flow import DPM, SOLVERS, UniPC, euler, schedule
from openlance.flow.multistep import corrector_weights

MEAN, SPREAD = 0.7, 0.8


def velocity(x, t):
    """Of the flow that carries noise to normal data: x(t) = (1 - t) mean + sqrt((1 - t)^2 spread^2 + t^2) z."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    return -MEAN + (t - (1 - t) * SPREAD**2) / variance * (x - (1 - t) * MEAN)


def solution(z, t):
    return (1 - t) * MEAN + math.sqrt((1 - t) ** 2 * SPREAD**2 + t**2) * z


def error(solver, times):
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    x = solution(z, times[0])
    for t, t_next in zip(times, times[1:]):
        x = solver.step(x, velocity(x, t), t, t_next)
    return float((x - solution(z, times[-1])).abs().max())


def order(make, start, end, steps=40):
    """From halving the steps."""
    coarse, fine = (error(make(), torch.linspace(start, end, n + 1).double().tolist()) for n in (steps, 2 * steps))
    return math.log2(coarse / fine)


@pytest.mark.parametrize("name, least", [("euler", 0.9), ("dpm++", 1.9), ("unipc", 1.9)])
def test_the_order_is_that_of_the_method(name, least):
    assert order(SOLVERS[name], 0.9, 0.1) > least


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_the_ends_cost_the_second_order_solvers_little(name):
    """At t = 1 and t = 0 the log ratio is infinite and a step is of first order; the whole flow stays far above it."""
    assert order(SOLVERS[name], 1.0, 0.0) > 1.6
    times = schedule(40, 2.0).double().tolist()
    assert error(SOLVERS[name](), times) < error(SOLVERS["euler"](), times) / 4


@pytest.mark.parametrize("solver", [DPM, UniPC])
def test_order_one_is_eulers_method(solver):
    times = schedule(7, 3.5).double().tolist()
    x = y = torch.linspace(-2, 2, 9, dtype=torch.float64)
    first = solver(order=1)
    for t, t_next in zip(times, times[1:]):
        x, y = first.step(x, velocity(x, t), t, t_next), euler(y, velocity(y, t), t, t_next)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_straight_path_is_solved_in_any_steps(name):
    """Where the clean latents never change, every solver is exact."""
    clean, noise = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x, solver, times = noise, SOLVERS[name](), schedule(3, 3.5).double().tolist()
    for t, t_next in zip(times, times[1:]):
        x = solver.step(x, (x - clean) / t, t, t_next)
    torch.testing.assert_close(x, clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_after_a_restart_nothing_of_the_past_is_left(name):
    x, solver = torch.randn(4), SOLVERS[name]()
    for t, t_next in ((0.9, 0.8), (0.8, 0.6)):
        solver.step(torch.randn(4), torch.randn(4), t, t_next)
    solver.restart()
    v = torch.randn(4)
    torch.testing.assert_close(solver.step(x, v, 0.6, 0.5), SOLVERS[name]().step(x, v, 0.6, 0.5), rtol=0, atol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_number_goes_its_own_way(name):
    """Which is why given frames can be put back after each step, and a batch equals its requests alone."""
    both, alone = SOLVERS[name](), SOLVERS[name]()
    x = torch.randn(2, 3)
    y = x[0]
    for t, t_next in ((1.0, 0.8), (0.8, 0.5), (0.5, 0.0)):
        v = torch.randn(2, 3)
        x, y = both.step(x, v, t, t_next), alone.step(y, v[0], t, t_next)
    assert torch.equal(x[0], y)


def test_the_corrector_integrates_lines_and_parabolas():
    """Its weights are exact for clean latents that are constant, linear and quadratic in lambda (UniPC, eq. 10-12)."""
    h, h_before = 0.7, 0.4
    earlier, newest = corrector_weights(h, h_before)
    s = torch.linspace(0, h, 20001, dtype=torch.float64)
    weight = torch.exp(s - h)
    for power in (1, 2):
        exact = float(torch.trapezoid(weight * s**power, s) / torch.trapezoid(weight, s))
        ours = newest * h**power - earlier * (h / h_before) * (-h_before) ** power
        assert abs(ours - exact) < 1e-6
