"""Advantages: what each result counts, and which are left out."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openlance.errors import UserError
from openlance.rl.advantages import Advantages, Best, Everything, expected_best, mixed, shuffled, table_of
from openlance.rl.rewards import Score

RARE = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])  # one of eight is right


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", ["none", "group", "round"])
def test_facts_count_as_much_as_their_rewards_say(scale):
    """Whatever divides; and of each group as its own facts do."""
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    one, two = torch.tensor([1.0, 0, 0, 1, 0, 1, 1, 0]), torch.tensor([0.0, 0, 1, 1, 1, 0, 1, 1])
    shares = {"one": torch.tensor([0.9] * 4 + [0.5] * 4), "two": torch.tensor([0.1] * 4 + [0.5] * 4)}
    both = Advantages(scale=scale)({"one": one, "two": two}, groups, None, shares).advantages
    alone = [Advantages(scale=scale)({"r": r}, groups).advantages for r in (one, two)]
    torch.testing.assert_close(both, shares["one"] * alone[0] + shares["two"] * alone[1])
    nothing = Best()({"one": one, "two": two}, groups, None, {"one": torch.zeros(8), "two": torch.zeros(8)})
    assert nothing.statistics["mute"] == 1.0


def test_a_table_of_scores_keeps_what_each_result_says():
    told = [(3, Score({"a": 1.0}, {"a": 1.0})), (4, Score({"a": 0.0, "b": 1.0}, {"a": 0.25, "b": 0.75}))]
    table, groups, shares = table_of(told)
    assert table["a"].tolist() == [1, 0] and table["b"][1] == 1 and table["b"][0].isnan()
    assert groups.tolist() == [3, 4] and shares["a"].tolist() == [1, 0.25] and shares["b"].tolist() == [0, 0.75]


def test_without_a_deviation_a_rare_success_keeps_its_weight():
    plain = Advantages()({"right": RARE}, torch.zeros(8, dtype=torch.long)).advantages
    torch.testing.assert_close(plain, RARE - 1 / 8)
    assert float(plain.sum()) == pytest.approx(0, abs=1e-6)
    # Divided by the group's deviation it is worth 2.65; clipped at 1 it loses 62 % of that, and the wrong ones win.
    whole = Advantages(scale="group")({"right": RARE}, torch.zeros(8, dtype=torch.long)).advantages
    clipped = Advantages(scale="group", clip=1.0)({"right": RARE}, torch.zeros(8, dtype=torch.long)).advantages
    assert float(whole[0]) == pytest.approx(2.65, abs=0.01) and float(whole.sum()) == pytest.approx(0, abs=1e-5)
    assert 1 - float(clipped[0] / whole[0]) == pytest.approx(0.62, abs=0.005)
    assert float(clipped.sum()) == pytest.approx(-1.65, abs=0.01)


@pytest.mark.parametrize("values", [[1, 0, 0, 1, 0], [0.5, -1.0, 2.0, 0.25, 0.5]])
def test_the_expected_best_is_the_mean_over_all_choices(values):
    for k in range(1, len(values) + 1):
        choices = [max(some) for some in itertools.combinations(values, k)]
        assert expected_best(values, k) == pytest.approx(sum(choices) / len(choices))
    right = sum(values)
    if set(values) <= {0, 1}:  # pass@k
        assert expected_best(values, 2) == pytest.approx(1 - math.comb(5 - right, 2) / math.comb(5, 2))


def test_deviations_of_groups_and_of_the_round():
    rewards, groups = torch.tensor([0.0, 1, 2, 10, 10, 13]), torch.tensor([4, 4, 4, 9, 9, 9])
    centered = torch.tensor([-1.0, 0, 1, -1, -1, 2])
    by_group = torch.tensor([math.sqrt(2 / 3)] * 3 + [math.sqrt(2)] * 3)
    torch.testing.assert_close(Advantages()({"r": rewards}, groups).advantages, centered)
    found = Advantages(scale="group")({"r": rewards}, groups).advantages
    torch.testing.assert_close(found, centered / (by_group + 1e-4))
    found = Advantages(scale="round")({"r": rewards}, groups).advantages
    torch.testing.assert_close(found, centered / (rewards.std(unbiased=False) + 1e-4))
    found = Advantages(center="round", scale="round", clip=0.5)({"r": rewards}, groups).advantages
    expected = (rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-4)
    torch.testing.assert_close(found, expected.clamp(-0.5, 0.5))


def test_mute_groups_are_left_out_and_counted():
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    rewards = torch.tensor([1.0, 1, 0, 1, 0.5, 0.5 + 1e-5])
    scored = Advantages(scale="group", least=0.01)({"r": rewards}, groups)
    assert scored.kept.tolist() == [2, 3] and scored.statistics == {"groups": 3.0, "mute": pytest.approx(2 / 3)}
    assert mixed({"r": rewards}, groups).tolist() == [False, False, True, True, True, True]
    # Against the round's mean a group of equal results says something.
    assert Advantages(center="round")({"r": rewards}, groups).kept.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_round_of_mute_groups_has_nothing_to_learn_from():
    scored = Advantages(keep=2)({"r": torch.ones(6)}, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert len(scored.kept) == len(scored.advantages) == 0 and scored.statistics["mute"] == 1
    assert len(Advantages()({"r": torch.zeros(0)}, torch.zeros(0, dtype=torch.long)).kept) == 0


def test_facts_are_centered_alone_and_summed_with_their_weights():
    groups = torch.zeros(4, dtype=torch.long)
    asked, kept = torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 1])
    both = Advantages(weights={"asked": 1.0, "kept": 0.5})({"asked": asked, "kept": kept}, groups)
    torch.testing.assert_close(both.advantages, 0.5 * asked - 0.25 * torch.ones(4))
    # Two facts that cancel in their mean still speak when each has its own deviation or weight.
    assert mixed({"asked": asked, "kept": kept}, groups).all()
    weightless = Advantages(weights={"asked": 0.0})({"asked": asked}, groups)
    assert len(weightless.kept) == 0


def test_a_fact_that_a_group_does_not_have_says_nothing_there():
    groups = torch.tensor([0, 0, 1, 1])
    text = torch.tensor([math.nan, math.nan, 0.0, 1.0])
    right = torch.tensor([0.0, 1.0, 0.0, 1.0])
    found = Advantages()({"right": right, "text": text}, groups).advantages
    torch.testing.assert_close(found, torch.tensor([-0.5, 0.5, -1.0, 1.0]))
    alone = Advantages(scale="round")({"text": text}, groups)
    assert alone.kept.tolist() == [2, 3]
    torch.testing.assert_close(alone.advantages, torch.tensor([-0.5, 0.5]) / (0.5 + 1e-4))


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 1.0]])
def test_rewards_that_are_not_finite_are_named(bad):
    with pytest.raises(ValueError, match="some rewards ocr are not finite"):
        Advantages()({"right": torch.ones(2), "ocr": torch.tensor(bad)}, torch.zeros(2, dtype=torch.long))


def test_other_wrong_rewards_and_settings_are_refused():
    groups = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="no rewards"):
        Advantages()({}, groups)
    with pytest.raises(ValueError, match="3 rewards r do not fit 2 results"):
        Advantages()({"r": torch.ones(3)}, groups)
    with pytest.raises(UserError, match="one of none, group, round"):
        Advantages(scale="batch")


def test_right_and_wrong_ones_are_kept_in_equal_numbers_and_centered_on_them():
    groups = torch.tensor([0] * 16 + [1] * 16)
    rewards = torch.zeros(32)
    rewards[[3, 5, 9]] = 1.0  # 3 right of the first
    rewards[[16, 18, 20, 21, 25, 30]] = 1.0  # 6 of the second
    scored = Advantages(keep=4)({"r": rewards}, groups, seeded())
    counts = {
        (g, r): int(((groups[scored.kept] == g) & (rewards[scored.kept] == r)).sum()) for g in (0, 1) for r in (0, 1)
    }
    assert counts == {(0, 1): 3, (0, 0): 4, (1, 1): 4, (1, 0): 4}
    second = groups[scored.kept] == 1
    torch.testing.assert_close(scored.advantages[second], rewards[scored.kept][second] - 0.5)
    torch.testing.assert_close(scored.advantages[~second], rewards[scored.kept][~second] - 3 / 7)
    # Which of the equals are kept is drawn, as a function of the generator alone.
    assert torch.equal(scored.kept, Advantages(keep=4)({"r": rewards}, groups, seeded()).kept)
    others = {tuple(Advantages(keep=4)({"r": rewards}, groups, seeded(n)).kept.tolist()) for n in range(9)}
    assert len(others) == 9


def test_the_farthest_are_kept_where_rewards_are_not_binary():
    rewards = torch.tensor([0.5, 0.9, 0.1, 0.6, 0.4, 0.8])
    scored = Advantages(keep=1)({"r": rewards}, torch.zeros(6, dtype=torch.long), seeded())
    assert scored.kept.tolist() == [1, 2]
    torch.testing.assert_close(scored.advantages, torch.tensor([0.4, -0.4]))


def test_best_of_n_takes_one_right_result_of_groups_that_have_wrong_ones_too():
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    rewards = torch.tensor([0.0, 1, 1, 1, 1, 1, 0, 0, 0])
    scored = Best()({"r": rewards}, groups, seeded())
    assert len(scored.kept) == 1 and int(scored.kept) in (1, 2) and scored.advantages.tolist() == [1.0]
    assert {int(Best()({"r": rewards}, groups, seeded(n)).kept) for n in range(20)} == {1, 2}
    assert Best(keep=2)({"r": rewards}, groups, seeded()).kept.tolist() == [1, 2]
    graded = Best(keep=2)({"r": torch.tensor([10.0, 6, 0, 5, 0])}, torch.zeros(5, dtype=torch.long), seeded())
    assert graded.kept.tolist() == [0, 1]


def test_everything_is_everything():
    scored = Everything()({"r": torch.ones(3)}, torch.tensor([0, 0, 1]))
    assert scored.kept.tolist() == [0, 1, 2] and scored.advantages.tolist() == [1, 1, 1]


rounds = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=30)


@given(found=rounds, seed=st.integers(0, 99), center=st.sampled_from(["group", "round"]),
       scale=st.sampled_from(["none", "group", "round"]))  # fmt: skip
def test_advantages_do_not_depend_on_the_order_of_results(found, seed, center, scale):
    groups, rewards = torch.tensor([g for g, _ in found]), torch.tensor([float(r) for _, r in found])
    order = torch.randperm(len(found), generator=seeded(seed))
    make = Advantages(center=center, scale=scale)
    one, other = make({"r": rewards}, groups), make({"r": rewards[order]}, groups[order])
    by_result = torch.zeros(len(found)).index_put((one.kept,), one.advantages)
    again = torch.zeros(len(found)).index_put((order[other.kept],), other.advantages)
    torch.testing.assert_close(by_result, again, rtol=0, atol=1e-4)
    if center == "group":  # in each group they sum to zero, unless clipped
        for group in groups.unique():
            assert float(by_result[groups == group].sum()) == pytest.approx(0, abs=1e-3)


@given(found=rounds, seed=st.integers(0, 99))
def test_shuffled_rewards_stay_in_their_group_and_facts_of_one_result_together(found, seed):
    groups, rewards = torch.tensor([g for g, _ in found]), torch.tensor([float(r) for _, r in found])
    dealt = shuffled({"one": rewards, "two": rewards * 2 + 1}, groups, seeded(seed))
    assert torch.equal(dealt["two"], dealt["one"] * 2 + 1)
    for group in groups.unique():
        assert torch.equal(dealt["one"][groups == group].sort().values, rewards[groups == group].sort().values)


def test_shuffled_rewards_are_those_of_other_results():
    rewards, groups = torch.arange(8.0), torch.tensor([0, 1] * 4)
    found = {tuple(shuffled({"r": rewards}, groups, seeded(n))["r"].tolist()) for n in range(300)}
    assert len(found) > 200  # of 576
