"""Packs are as full as any choice from the buffer makes them, and nothing waits for ever."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlance.data.stream import best_fill, length_of, next_pack
from openlance.sequence.pack import pack

lengths = st.lists(st.integers(1, 30), max_size=9)


@settings(max_examples=80, deadline=None)
@given(lengths, st.integers(0, 60))
def test_no_other_choice_fills_more(values, room):
    chosen = best_fill(values, room)
    sums = [sum(c) for n in range(len(values) + 1) for c in combinations(values, n)]
    assert sum(values[i] for i in chosen) == max(s for s in sums if s <= room)
    assert chosen == sorted(set(chosen))


def test_among_equals_the_older_come_first():
    assert best_fill([5, 5, 5, 5], 10) == [0, 1]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_the_oldest_is_always_in_the_pack(values):
    chosen = next_pack(values, 30)
    assert chosen[0] == 0 and sum(values[i] for i in chosen) <= 30


@pytest.mark.parametrize("draws", [1, 4])
def test_a_length_is_that_of_the_pack(tiny, draws):
    for sample in tiny.samples():
        packed = pack([sample], tiny.codec, tiny.model.config.position, draws)
        assert length_of(sample, tiny.codec, draws) == len(packed)
