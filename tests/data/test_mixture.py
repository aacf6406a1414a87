"""Which task comes next: shares are the stage's, a sample's task depends on its number alone."""

from collections import Counter

import pytest

from openlance.config.train import recipe, stage
from openlance.data.mixture import Mixture
from openlance.errors import UserError

STAGES = [one for scale in ("3b", "nano") for one in recipe(scale)]


@pytest.mark.parametrize("one", STAGES, ids=lambda s: f"{s.scale}/{s.name}")
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_thousand_samples_have_the_shares_of_the_stage(one, seed):
    mixture, total = Mixture(one.mixture, seed), sum(one.mixture.values())
    drawn = Counter(mixture.task(i) for i in range(10_000))
    assert set(drawn) == set(one.mixture)
    for task, weight in one.mixture.items():
        assert abs(drawn[task] / 10_000 - weight / total) < 0.002  # asked: 0.01


@pytest.mark.parametrize("ranks", [2, 5, 128])
def test_every_rank_has_the_shares_too(ranks):
    mixture = Mixture(stage("ct-iii").mixture)
    for rank in (0, ranks - 1):
        drawn = Counter(mixture.task(i) for i in range(rank, 2000 * ranks, ranks))
        assert all(abs(drawn[t] / 2000 - share) < 0.04 for t, share in mixture.shares.items())  # 4 deviations


def test_the_task_of_a_sample_is_a_function_of_seed_and_number():
    weights = stage("ct-i").mixture
    one, other = Mixture(weights, 3), Mixture(weights, 3)
    forward = [one.task(i) for i in range(600)]
    assert [other.task(i) for i in reversed(range(600))] == forward[::-1]
    assert [Mixture(weights, 4).task(i) for i in range(600)] != forward


def test_the_order_has_no_period():
    mixture = Mixture({"t2i": 1, "t2v": 1})
    first, second = ([mixture.task(i) for i in range(start, start + 256)] for start in (0, 256))
    assert first != second and Counter(first) == Counter(second)


@pytest.mark.parametrize("weights", [{}, {"t2i": 0}, {"t2i": -1, "t2v": 2}, {"t2i": float("inf")}, {"txi": 1}])
def test_a_mixture_that_cannot_be_drawn_from_is_refused(weights):
    with pytest.raises(UserError):
        Mixture(weights)
