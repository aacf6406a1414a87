"""Stochastic steps: on a flow between normal distributions everything about them is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from openlance.errors import UserError
from openlance.flow import euler, schedule
from openlance.flow.stochastic import CPS, SDE, STOCHASTIC, WINDOWS, AllButLast, ConstantSDE, Drawn, Sliding
from openlance.flow.stochastic import means_of_results as means

VARIANCE = 0.25  # of the data, whose mean is 0


def at(t):
    """Variance of the states of the flow."""
    return (1 - t) ** 2 * VARIANCE + t**2


def slope(t):
    """Of the exact velocity, which is linear in the state."""
    return (t - (1 - t) * VARIANCE) / at(t)


def variance(step, count):
    """Of the results of even steps that begin with noise: a linear map in every step, so it is exact."""
    found = 1.0
    times = schedule(count, 1.0).double().tolist()
    for t, t_next in zip(times, times[1:]):
        state, velocity, std = step.coefficients(t, t_next)
        found = (state + velocity * slope(t)) ** 2 * found + std**2
    return found


@pytest.mark.parametrize("kind", [SDE, ConstantSDE])
def test_the_marginals_of_the_sde_are_those_of_the_ode_in_many_steps_and_differ_in_few(kind):
    few, many, most = (abs(variance(kind(), n) - variance(kind(noise=0), n)) for n in (10, 400, 4000))
    assert few > 0.009 and many < 0.004 and most < many
    assert variance(kind(), 4000) == pytest.approx(VARIANCE, abs=1e-3)


def test_variances_of_results():
    """The ODE and the SDE come near the data's; coefficient-preserving noise, which does not shrink with the step,
    never does."""
    found = {name: [round(variance(step, n), 3) for n in (10, 400)] for name, step in
             (("ode", SDE(noise=0)), ("sde", SDE()), ("cps", CPS()))}  # fmt: skip
    assert found == {"ode": [0.186, 0.248], "sde": [0.23, 0.251], "cps": [0.124, 0.161]}
    assert variance(CPS(), 20_000) < 0.17


def test_what_is_drawn_has_the_variance_of_the_moments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, 1, generator=generator)
    times = schedule(10, 1.0).tolist()
    for t, t_next in zip(times, times[1:]):
        moments = SDE().moments(x, slope(t) * x, t, t_next)
        x = moments.draw(torch.randn(x.shape, generator=generator))
    assert float(x.var()) == pytest.approx(variance(SDE(), 10), rel=0.03)  # 4 standard errors


@given(t=st.floats(0.02, 1), share=st.floats(0, 0.99), noise=st.floats(0, 1), seed=st.integers(0, 9))
def test_cps_keeps_the_coefficients_of_the_clean_latents_and_of_the_noise(t, share, noise, seed):
    clean, old = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(seed)).double()
    t_next = t * share
    state, velocity, std = CPS(noise=noise).coefficients(t, t_next)
    mean = state * ((1 - t) * clean + t * old) + velocity * (old - clean)
    kept = math.sqrt(max(t_next**2 - std**2, 0.0))
    torch.testing.assert_close(mean, (1 - t_next) * clean + kept * old, rtol=0, atol=1e-7)
    assert kept**2 + std**2 == pytest.approx(t_next**2, abs=1e-12)


@pytest.mark.parametrize("kind", STOCHASTIC.values())
def test_without_noise_every_kind_is_eulers_step(kind):
    x, v = torch.randn(2, 5, 3)
    for t, t_next in ((1.0, 0.8), (0.8, 0.3), (0.3, 0.0)):
        moments = kind(noise=0.0).moments(x, v, t, t_next)
        assert moments.std == 0
        torch.testing.assert_close(moments.mean, euler(x, v, t, t_next), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [SDE, ConstantSDE])
def test_the_sde_drifts_along_the_score(kind):
    """Euler's step and half the noise's variance times the score, which here is -x / variance."""
    step, x, t, t_next = kind(), torch.randn(6, 2), 0.7, 0.55
    mean, std = step.moments(x, slope(t) * x, t, t_next)
    torch.testing.assert_close(mean, euler(x, slope(t) * x, t, t_next) - 0.5 * std**2 * x / at(t))
    assert std == pytest.approx(step.diffusion(t, t_next) * math.sqrt(t - t_next))


def test_at_the_start_the_divisor_takes_the_second_time_of_the_schedule():
    first, second, *_ = schedule(10, 3.0).tolist()
    assert SDE(noise=0.7).diffusion(first, second) == pytest.approx(0.7 * math.sqrt(1 / (1 - second)))
    assert SDE(noise=0.7).diffusion(0.5, 0.4) == pytest.approx(0.7)
    assert SDE().coefficients(1.0, 0.0).std == pytest.approx(0.7)  # a schedule of one step


@pytest.mark.parametrize("kind", STOCHASTIC.values())
def test_log_probabilities_are_means_of_the_normal_density(kind):
    x, v, noise = torch.randn(3, 5, 4)
    moments = kind().moments(x, v, 0.8, 0.6)
    x_next = moments.draw(noise)
    exact = Normal(moments.mean, moments.std).log_prob(x_next)
    expected = [exact[:2].mean(), exact[2:].mean()]
    if kind is CPS:  # without constants
        expected = [-(x_next - moments.mean)[rows].square().mean() for rows in (slice(2), slice(2, 5))]
    found = kind().log_prob(x_next, moments, [2, 3])
    torch.testing.assert_close(found, torch.stack(expected))
    assert found.dtype == torch.float32


def test_log_probabilities_are_float32_whatever_the_model_computes_in():
    x, v, x_next = torch.randn(3, 5, 4, dtype=torch.bfloat16)
    moments = SDE().moments(x, v, 0.8, 0.6)
    assert moments.mean.dtype == torch.float32
    torch.testing.assert_close(moments.mean, SDE().moments(x.float(), v.float(), 0.8, 0.6).mean, rtol=0, atol=0)
    assert SDE().log_prob(x_next, moments, [5]).dtype == torch.float32


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), channels=st.integers(1, 48), seed=st.integers(0, 99)
)
def test_a_result_in_a_ragged_batch_has_the_very_number_that_it_has_alone(lengths, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    x, x_next, v = torch.randn(3, sum(lengths), channels, generator=generator)
    moves = torch.rand(sum(lengths), generator=generator) < 0.7
    moves[[sum(lengths[: n + 1]) - 1 for n in range(len(lengths))]] = True  # every result has a row
    step = SDE()

    def log_prob(rows, counts):
        return step.log_prob(x_next[rows], step.moments(x[rows], v[rows], 0.9, 0.7), counts, moves[rows])

    together, start = log_prob(slice(None), lengths), 0
    for n, length in enumerate(lengths):
        assert torch.equal(together[n], log_prob(slice(start, start + length), [length])[0])
        start += length


def test_means_are_exact_to_float32_in_results_of_many_rows():
    """Ratios that are clipped at 1 +- 1e-5 are differences of such means."""
    values = 5 + torch.randn(30_000, 2, generator=torch.Generator().manual_seed(0))
    exact = values.double().mean()
    assert abs(means(values, [30_000])[0].double() - exact) < 3e-7 * exact


def test_rows_that_are_given_take_no_part():
    values, moves = torch.arange(12.0).reshape(6, 2), torch.tensor([False, True, True, True, False, True])
    found = means(values, [3, 3], moves)
    assert found.tolist() == [values[1:3].mean(), values[[3, 5]].mean()]
    values[~moves] = torch.nan
    assert torch.equal(means(values, [3, 3], moves), found)
    with pytest.raises(ValueError, match="result 1 has no row that moves"):
        means(values, [4, 2], torch.tensor([True] * 4 + [False] * 2))


def test_a_step_without_noise_has_no_probability():
    for step, t_next in ((SDE(noise=0.0), 0.5), (CPS(), 0.0)):
        moments = step.moments(torch.zeros(1, 1), torch.zeros(1, 1), 0.6, t_next)
        with pytest.raises(ValueError, match="no log-probability"):
            step.log_prob(torch.zeros(1, 1), moments, [1])


@pytest.mark.parametrize("window", [kind() for kind in WINDOWS.values()])
@pytest.mark.parametrize("count", [6, 10, 25])
def test_windows_hold_steps_of_the_schedule_but_never_the_last(window, count):
    for update in range(200):
        steps = window.steps(count, update)
        assert len(steps) and steps[0] >= 0 and steps[-1] < count - 1 and steps.step == 1


def test_a_drawn_window_is_a_function_of_seed_and_round_and_reaches_every_place_in_its_share():
    window = Drawn(size=2, share=0.5, seed=3)
    found = [window.steps(10, n) for n in range(100)]
    state = torch.get_rng_state()
    assert found == [Drawn(size=2, share=0.5, seed=3).steps(10, n) for n in range(100)]
    assert found != [Drawn(size=2, share=0.5, seed=4).steps(10, n) for n in range(100)]
    assert {steps[0] for steps in found} == {0, 1, 2, 3}
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sliding_window_moves_towards_the_picture_and_begins_again():
    window = Sliding(size=4, every=25)
    assert [window.steps(25, n) for n in (0, 24, 25)] == [range(4), range(4), range(1, 5)]
    assert window.steps(25, 20 * 25) == range(20, 24) and window.steps(25, 21 * 25) == range(4)


@pytest.mark.parametrize(
    "window, count", [(Drawn(size=3), 4), (Sliding(size=4), 4), (AllButLast(), 1), (Drawn(size=0), 10)]
)
def test_a_window_that_does_not_fit_is_refused(window, count):
    with pytest.raises(UserError, match="does not fit a schedule of"):
        window.steps(count, 0)


@pytest.mark.parametrize("kind, noise", [(SDE, -0.1), (CPS, 1.1)])
def test_noise_levels_that_are_none_are_refused(kind, noise):
    with pytest.raises(UserError, match="noise must be"):
        kind(noise=noise)
