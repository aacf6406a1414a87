"""Objectives: what their losses and gradients are, on velocities that are free or those of a linear model."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from openlance.config.values import as_data, build
from openlance.errors import UserError
from openlance.flow import schedule
from openlance.flow.stochastic import CPS, SDE, STOCHASTIC, Moments
from openlance.rl.advantages import Advantages, Best
from openlance.rl.objectives import AWM, GRPO, NFT, OBJECTIVES, SFT, GRPOGuard, Times, trust
from openlance.rl.results import Result, Transition

C = 3
FORWARD = {
    "nft": NFT(square=0.0), "nft, plain": NFT(square=0.0, adaptive=False), "awm": AWM(square=0.0),
    "awm, t": AWM(square=0.0, weighting="t"), "awm, none": AWM(square=0.0, weighting="none"), "sft": SFT(),
}  # fmt: skip

# With ratios that no clip holds, so that every gradient shows.
EVERY = [kind(clip=9.0) if issubclass(kind, GRPO) else kind() for kind in OBJECTIVES.values()]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


class Linear(torch.nn.Module):
    """A model of velocities."""

    def __init__(self, seed=0):
        super().__init__()
        self.weight = torch.nn.Parameter(0.3 * random(C, C, seed=seed))
        self.bias = torch.nn.Parameter(0.3 * random(C, seed=seed + 1))

    def forward(self, x_NC):
        return x_NC @ self.weight + self.bias


@torch.no_grad()
def rollout(model, rows, kind, seed=0, times=(1.0, 0.8, 0.5, 0.2), given=0, moves=None):
    """A result of stochastic steps alone."""
    generator = seeded(seed)
    x, steps = torch.randn(rows, C, generator=generator), list[Transition]()
    given = torch.arange(len(x)) < given
    learned = Result(clean=x, given=given, moves=moves).learned
    for t, t_next in zip(times, times[1:]):
        moments = kind.moments(x, model(x), t, t_next)
        x_next = torch.where(learned[:, None], moments.draw(torch.randn(x.shape, generator=generator)), x)
        log_prob = kind.log_prob(x_next, moments, [rows], learned)[0]
        steps.append(
            Transition(kind=kind, t=t, t_next=t_next, x=x, x_next=x_next, mean=moments.mean, log_prob=log_prob)
        )
        x = x_next
    return Result(clean=x, given=given, moves=moves, transitions=tuple(steps))


def states(asks):
    return torch.cat([ask.x for ask in asks])


def asked(objective, results, advantages, seed=0):
    return [a for r, adv in zip(results, advantages) for a in objective.asks(r, adv, seeded(seed))]


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


# Of trajectories


@pytest.mark.parametrize("kind", [kind() for kind in STOCHASTIC.values()])
@pytest.mark.parametrize("objective", [GRPO(), GRPOGuard()])
def test_at_the_first_update_ratios_are_1_and_the_gradient_is_the_policys(objective, kind):
    model, advantages = Linear(), [1.5, -0.5]
    results = [rollout(model, rows, kind, seed=rows) for rows in (2, 5)]
    asks = asked(objective, results, advantages)
    loss = objective.loss(asks, {"new": model(states(asks))})
    assert loss.statistics["ratio"] == pytest.approx(1, abs=1e-6) and loss.statistics["clipped"] == 0
    assert loss.statistics["moved"] == pytest.approx(0, abs=1e-9)
    surrogate = []
    for ask in asks:
        step = ask.transition
        moments = kind.moments(step.x, model(step.x), step.t, step.t_next)
        density = Normal(moments.mean, moments.std).log_prob(step.x_next).mean()
        if isinstance(objective, GRPOGuard):
            density = density * moments.std / (step.t - step.t_next)
        elif isinstance(kind, CPS):  # its log-probability has no constants
            density = density * 2 * moments.std**2
        surrogate.append(-ask.advantage * density)
    expected = gradient(torch.stack(surrogate).mean(), model)
    torch.testing.assert_close(gradient(loss.per_ask.mean(), model), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [SDE(), CPS()])
def test_the_log_probability_of_a_recorded_trajectory_is_the_rollouts(kind):
    model = Linear()
    result = rollout(model, 7, kind, given=2)
    for step in result.transitions:
        moments = kind.moments(step.x, model(step.x), step.t, step.t_next)
        again = kind.log_prob(step.x_next, moments, [7], result.learned)[0]
        torch.testing.assert_close(again, step.log_prob, rtol=0, atol=1e-6)


@pytest.mark.parametrize("t, t_next", [(1.0, 0.9), (0.6, 0.5), (0.2, 0.05)])
def test_guards_exponent_is_the_noise_times_the_change_of_the_mean(t, t_next):
    """As the paper has it: the difference of log-probabilities, corrected by the squared change, times the noise."""
    result = rollout(Linear(), 4, SDE(), times=(t, t_next))
    [ask] = GRPOGuard().asks(result, 1.0, seeded())
    step, new = ask.transition, Linear(seed=5)(ask.x).detach()
    ratio = GRPOGuard().loss([ask], {"new": new}).statistics["ratio"]
    mean, std = SDE().moments(step.x, new, t, t_next)
    log_prob = SDE().log_prob(step.x_next, SDE().moments(step.x, new, t, t_next), [4])[0]
    paper = float(log_prob - step.log_prob + (mean - step.mean).square().mean() / (2 * std**2)) * std
    assert math.log(ratio) == pytest.approx(paper, abs=1e-5)
    noise = (step.x_next - step.mean) / std
    assert math.log(ratio) == pytest.approx(float((noise * (mean - step.mean)).mean()), abs=1e-6)


def parts(result, rows):
    """A result cut into results of a few rows."""

    def cut(values):
        return values.split(rows)

    steps = [zip(cut(s.x), cut(s.x_next), cut(s.mean)) for s in result.transitions]
    return [
        Result(clean=clean, transitions=tuple(
            Transition(
                kind=s.kind, t=s.t, t_next=s.t_next, x=x, x_next=x_next, mean=mean,
                log_prob=s.kind.log_prob(x_next, Moments(mean, s.kind.coefficients(s.t, s.t_next).std), [len(x)])[0],
            )
            for s, (x, x_next, mean) in zip(result.transitions, cuts)
        ))
        for clean, *cuts in zip(cut(result.clean), *steps)
    ]  # fmt: skip


def test_guards_ratios_are_centered_where_plain_ones_lean_down():
    asks = asked(GRPO(), parts(rollout(Linear(), 400, SDE(), times=(0.5, 0.4)), 2), [1.0] * 200)
    new = Linear(seed=5)(states(asks)).detach()
    plain = (-GRPO(clip=9.0).loss(asks, {"new": new}).per_ask).log()
    guarded = (-GRPOGuard(clip=9.0).loss(asks, {"new": new}).per_ask * 0.1).log()
    errors = [float(logs.mean() / (logs.std() / 200**0.5)) for logs in (plain, guarded)]
    assert errors[0] < -3 and abs(errors[1]) < 3


def test_the_divergence_of_grpo_is_that_of_the_two_distributions_times_the_step():
    model, other = Linear(), Linear(seed=5)
    asks = asked(GRPO(kl=0.04), [rollout(model, 4, SDE())], [0.0])
    loss = GRPO(kl=0.04).loss(asks, {"new": model(states(asks)), "reference": other(states(asks))})
    for ask, found in zip(asks, loss.per_ask):
        step = ask.transition
        one, two = (Normal(*SDE().moments(step.x, made(step.x), step.t, step.t_next)) for made in (model, other))
        expected = kl_divergence(one, two).mean() * (step.t - step.t_next)
        torch.testing.assert_close(found, 0.04 * expected)
        # (m - m_ref)^2 / (2 g^2) of Flow-GRPO
        g = SDE().diffusion(step.t, step.t_next)
        torch.testing.assert_close(found, 0.04 * ((one.mean - two.mean).square() / (2 * g**2)).mean())


def test_ratios_outside_of_the_clip_have_no_gradient_where_they_went_the_right_way():
    model = Linear()
    result = rollout(model, 4, SDE())
    for advantage, moved in ((1.0, 1), (-1.0, -1), (1.0, -1), (-1.0, 1)):
        step = replace(result.transitions[1], log_prob=result.transitions[1].log_prob - 0.01 * moved)  # ratio 1 +- .01
        [ask] = GRPO().asks(replace(result, transitions=(step,)), advantage, seeded())
        loss = GRPO(clip=1e-3).loss([ask], {"new": model(ask.x)})
        assert loss.statistics["clipped"] == 1
        assert bool(gradient(loss.per_ask.mean(), model).abs().sum() == 0) == (advantage * moved > 0)


def test_a_result_without_stochastic_steps_is_refused_by_what_needs_them():
    with pytest.raises(ValueError, match="no stochastic steps"):
        GRPO().asks(Result(clean=random(2, C)), 1.0, seeded())


# Of results alone


def free(objective, result, advantage, scale=1.0):
    """(asks, velocities): one new velocity that is free, and old ones."""
    asks = asked(objective, [result], [advantage])
    old = torch.cat([ask.target for ask in asks]) + scale * random(len(states(asks)), C, seed=9)
    return asks, old


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("advantage", [-7.0, -2.0, 0.0, 1.0, 5.0])
def test_nft_is_a_square_around_one_target_and_a_constant(beta, advantage):
    objective = NFT(square=0.0, beta=beta, adaptive=False)
    asks, old = free(objective, Result(clean=random(4, C)), advantage)
    rho = 0.5 + max(-5.0, min(5.0, advantage)) / 10
    v = torch.cat([ask.target for ask in asks])
    target = old + (2 * rho - 1) / beta * (v - old)
    constant = 4 * rho * (1 - rho) * torch.stack([d.square().mean() for d in (v - old).split(4)])
    for seed in range(5):
        new = old + 2 * random(*old.shape, seed=20 + seed)
        loss = objective.loss(asks, {"new": new, "old": old}).per_ask * beta / 5
        squares = torch.stack([d.square().mean() for d in (new - target).split(4)])
        torch.testing.assert_close(loss, beta**2 * squares + constant, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("advantage", [-3.0, 0.5, 5.0])
def test_nfts_gradient_at_the_old_velocity(advantage):
    """-2 beta (2 rho - 1) (v - v_old) in each value, times 5 / beta, over the number of values."""
    objective = NFT(square=0.0, beta=0.5, adaptive=False)
    asks, old = free(objective, Result(clean=random(4, C)), advantage)
    new = old.clone().requires_grad_()
    objective.loss(asks, {"new": new, "old": old}).per_ask.sum().backward()
    rho, v = 0.5 + advantage / 10, torch.cat([ask.target for ask in asks])
    expected = -2 * 0.5 * (2 * rho - 1) * (v - old) * 5 / 0.5 / (4 * C)
    torch.testing.assert_close(new.grad, expected, rtol=1e-4, atol=1e-6)


def test_nft_adaptive_divides_each_square_of_clean_latents_by_its_own_error():
    objective = NFT(square=0.0, beta=0.5)
    [ask, *_], old = free(objective, Result(clean=random(4, C)), 2.0)
    old, new = old[:4], random(4, C, seed=3)
    clean, expected = ask.result.clean, 0.0
    for weight, v in ((0.7, 0.5 * old + 0.5 * new), (0.3, 1.5 * old - 0.5 * new)):
        off = ask.x - ask.t * v - clean
        expected += weight * off.square().mean() / off.abs().mean() * 5 / 0.5
    torch.testing.assert_close(objective.loss([ask], {"new": new, "old": old}).per_ask[0], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_on_policy_all_forward_objectives_have_one_gradient_up_to_weights_of_the_time(name, advantage):
    objective = FORWARD[name]
    asks, old = free(objective, Result(clean=random(4, C)), advantage)
    new = old.clone().requires_grad_()
    objective.loss(asks, {"new": new, "old": old, "average": old}).per_ask.sum().backward()
    for ask, found, before in zip(asks, new.grad.split(4), old.split(4)):
        assert cosine(found, -advantage * (ask.target - before)) == pytest.approx(1, abs=1e-5)


def test_awms_log_probability_is_the_weighted_flow_loss():
    asks, old = free(AWM(), Result(clean=random(4, C)), 0.5)
    new = random(*old.shape, seed=4)
    losses = [[s.square().mean() for s in (v - torch.cat([a.target for a in asks])).split(4)] for v in (new, old)]
    weights = {
        "none": lambda loss, t: loss, "t": lambda loss, t: t * loss,
        "ghuber": lambda loss, t: t / 0.25 * ((loss + 1e-10) ** 0.25 - 1e-10**0.25),
    }  # fmt: skip
    for name, weigh in weights.items():
        objective = AWM(square=0.0, pull=0.0, weighting=name, clip=0.2)
        found = objective.loss(asks, {"new": new, "old": old}).per_ask
        for ask, value, one, two in zip(asks, found, *losses):
            ratio = torch.exp(-weigh(one, ask.t) + weigh(two, ask.t))
            torch.testing.assert_close(value, torch.maximum(-0.5 * ratio, -0.5 * ratio.clamp(0.8, 1.2)))
    with pytest.raises(UserError, match="none, t, ghuber"):
        AWM(weighting="huber")


def test_awm_is_pulled_to_the_average_and_to_the_start():
    asks, old = free(AWM(), Result(clean=random(4, C)), 0.0)
    new, average, start = (random(*old.shape, seed=n) for n in (4, 5, 6))
    v = {"new": new, "old": old, "average": average, "reference": start}
    found = AWM(square=0.001, pull=1.0).loss(asks, v).per_ask.mean()
    torch.testing.assert_close(found, (new - average).square().mean() + 0.001 * (new - start).square().mean())


def test_fine_tuning_is_the_flow_loss():
    asks, old = free(SFT(), Result(clean=random(4, C)), 1.0)
    loss = SFT().loss(asks, {"new": old})
    torch.testing.assert_close(loss.per_ask.mean(), (old - torch.cat([a.target for a in asks])).square().mean())
    assert not SFT.samples and OBJECTIVES["best-of-n"].samples and not OBJECTIVES["best-of-n"].trajectories


# Of all


def made(objective, kind=None, lengths=(3, 5, 2), given=0):
    """Results that every objective can learn from, and what it asks."""
    results = [rollout(Linear(), rows, kind or SDE(), seed=rows, given=given) for rows in lengths]
    asks = asked(objective, results, [1.0, -0.5, 0.25])
    rows = len(states(asks))
    return asks, {name: random(rows, C, seed=n) for n, name in enumerate(["new", *sorted(objective.needs)])}


@pytest.mark.parametrize("objective", [*EVERY, GRPO(kl=0.1, square=0.1)])
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_the_loss_of_ragged_results_is_that_of_each_alone(objective, lengths):
    asks, v = made(objective, lengths=lengths)
    together, start, alone = objective.loss(asks, v), 0, []
    for n, ask in enumerate(asks):
        rows = slice(start, start + len(ask.x))
        found = objective.loss([ask], {name: values[rows] for name, values in v.items()})
        assert torch.equal(found.per_ask[0], together.per_ask[n])
        alone.append(found.statistics)
        start = rows.stop
    for name, mean in together.statistics.items():
        assert mean == pytest.approx(sum(s[name] for s in alone) / len(asks), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("objective", [*EVERY, GRPO(kl=0.1, square=0.1, clip=9.0)])
def test_rows_that_were_given_or_lie_outside_of_a_region_take_no_part(objective):
    moves = torch.tensor([True, True, True, False, True])
    result = rollout(Linear(), 5, SDE(), given=2, moves=moves)
    asks = asked(objective, [result], [1.0])
    assert all((ask.times[:2] == 0).all() and (ask.times[2:] == ask.t).all() for ask in asks)
    assert all(torch.equal(ask.x[:2], result.clean[:2]) for ask in asks)
    rows = len(states(asks))
    v = {name: random(rows, C, seed=n) for n, name in enumerate(["new", *sorted(objective.needs)])}
    v["new"].requires_grad_()
    loss = objective.loss(asks, v)
    loss.per_ask.sum().backward()
    touched = v["new"].grad.abs().sum(1).reshape(-1, 5) > 0
    assert (touched == torch.tensor([False, False, True, False, True])).all()
    assert all(math.isfinite(value) for value in loss.statistics.values())
    with torch.no_grad():
        for values in v.values():
            values.reshape(-1, 5, C)[:, [0, 1, 3]] = 1e6
    assert torch.equal(objective.loss(asks, v).per_ask, loss.per_ask)


def test_cells_outside_of_a_region_are_noised_as_the_others():
    result = Result(clean=random(4, C), given=torch.arange(4) < 1, moves=torch.tensor([True, True, False, True]))
    for ask in SFT().asks(result, 1.0, seeded()):
        assert torch.equal(ask.x[0], result.clean[0]) and (ask.x[1:] != result.clean[1:]).all()


def test_the_square_to_the_start_is_added_to_any_objective():
    for name, kind in OBJECTIVES.items():
        without, with_it = kind(square=0.0), kind(square=0.3)
        assert "reference" in with_it.needs and "reference" not in without.needs
        asks, v = made(with_it)
        change = with_it.loss(asks, v).per_ask - without.loss(asks, v).per_ask
        squares = (v["new"] - v["reference"]).square().split([len(a.x) for a in asks])
        torch.testing.assert_close(change, 0.3 * torch.stack([s.mean() for s in squares]), rtol=1e-3, atol=1e-4)
        assert with_it.loss(asks, v).statistics["square"] == pytest.approx(float(change.mean()) / 0.3, rel=1e-3), name


@pytest.mark.parametrize("objective", [GRPO(), NFT(square=0.0), AWM(square=0.0)])
def test_trust_is_0_at_the_old_velocity_and_1_where_it_leads_straight_to_the_result(objective):
    result = rollout(Linear(), 4, SDE())
    asks = asked(objective, [result], [1.0])
    old, target = Linear()(states(asks)).detach(), torch.cat([ask.target for ask in asks])
    for share in (0.0, 0.5, 1.0):
        new = old + share * (target - old)
        found = objective.loss(asks, {"new": new, "old": old, "average": old}).statistics
        assert trust(found) == pytest.approx(share**2, abs=1e-4)


def test_missing_velocities_are_named():
    asks, v = made(AWM())
    with pytest.raises(ValueError, match="of the weights average, old are missing"):
        AWM().loss(asks, {"new": v["new"], "reference": v["reference"]})


@pytest.mark.parametrize("objective", EVERY)
def test_every_objective_asks_equally_often_and_finds_its_target(objective):
    results = [rollout(Linear(), rows, SDE(), seed=rows) for rows in (2, 6)]
    counts = {len(objective.asks(r, 1.0, seeded())) for r in results}
    assert len(counts) == 1
    for ask in asked(objective, results, [1.0, 1.0]):
        # A straight step along the target ends at the result.
        torch.testing.assert_close(ask.x - ask.t * ask.target, ask.result.clean, rtol=0, atol=1e-6)
        assert ask.x.dtype == ask.target.dtype == torch.float32


# Times and noise


def test_results_of_one_group_share_times_and_noise_where_their_generators_have_one_seed():
    one, two = (SFT().asks(Result(clean=random(4, C, seed=n)), 1.0, seeded(7)) for n in (1, 2))
    assert [a.t for a in one] == [a.t for a in two]
    for a, b in zip(one, two):
        torch.testing.assert_close(a.target + a.result.clean, b.target + b.result.clean, rtol=0, atol=1e-5)  # the noise
    other = SFT().asks(Result(clean=random(4, C, seed=1)), 1.0, seeded(8))
    assert not torch.equal(one[0].x, other[0].x)


def test_randomness_comes_from_the_generator_alone():
    state = torch.get_rng_state()
    for objective in EVERY:
        a, b = (objective.asks(rollout(Linear(), 4, SDE()), 1.0, seeded(3)) for _ in range(2))
        assert torch.equal(states(a), states(b))
    assert torch.equal(torch.get_rng_state(), state)


def test_times_are_drawn_near_noise_without_repetition_while_others_are_left():
    grid = schedule(7, 2.0).tolist()
    assert [round(t, 3) for t in Times(steps=7, shift=2.0).draw(seeded())] == [0.923, 0.833, 0.727, 0.6]
    some = Times(steps=7, shift=2.0, skip=0, among=4, draws=2)
    found = {tuple(some.draw(seeded(n))) for n in range(100)}
    assert len(found) == 6 and all(a > b and {a, b} <= set(grid[:4]) for a, b in found)
    often = Times(steps=4, shift=2.0, skip=1, among=3, draws=7).draw(seeded())
    assert sorted(often.count(t) for t in set(often)) == [2, 2, 3] and often == sorted(often, reverse=True)
    for wrong in ({"skip": 7}, {"draws": 0}, {"among": 0}, {"skip": -1}):
        with pytest.raises(UserError, match="not enough times"):
            Times(**wrong)


# What the old weights keep


def test_old_weights_follow_as_published():
    assert [NFT().keeps("old", step) for step in (0, 100, 500, 9000)] == [0, 0.1, 0.5, 0.5]
    texts = NFT(eta=(0.0075, 75, 0.999))
    assert [texts.keeps("old", step) for step in (0, 75, 175, 900)] == [0, 0, 0.75, 0.999]
    assert [AWM().keeps("average", step) for step in (0, 100, 900)] == [0, 0.1, 0.3]
    assert AWM().keeps("old", 900) == NFT().keeps("reference", 900) == GRPO().keeps("old", 900) == 0


# Settings


def test_every_objective_and_its_parts_are_built_from_plain_data_and_back():
    for kind in OBJECTIVES.values():
        assert build(kind, as_data(kind())) == kind()
    data = {"beta": "5e-1", "times": {"draws": 2}, "selection": {"weights": {"right": 1}, "scale": "none", "keep": 4}}
    made = build(NFT, data)
    assert made == NFT(beta=0.5, times=Times(draws=2), selection=Advantages(weights={"right": 1.0}, keep=4))


@pytest.mark.parametrize("kind, setting", [
    (GRPO, {"clip": 0.0}), (GRPO, {"kl": -1.0}), (NFT, {"beta": 0.0}), (NFT, {"most": 0.0}), (AWM, {"pull": -0.1}),
    (SFT, {"square": -1.0}), (Advantages, {"clip": -1.0}), (Advantages, {"keep": -1}), (Best, {"keep": 0}),
])  # fmt: skip
def test_settings_out_of_range_are_named(kind, setting):
    [name] = setting
    with pytest.raises(UserError, match=f"{name} must be"):
        kind(**setting)
