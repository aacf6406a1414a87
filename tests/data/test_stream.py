"""A stream is a function of stage, sources and rank: not of workers, and not of being stopped."""

import json
from itertools import islice

import pytest

from openlance.config.train import Resolution
from openlance.data.source import Reader, Reading
from openlance.data.stream import Stream, length_of
from openlance.errors import UserError
from openlance.sequence.pack import pack
from openlance.sequence.segment import Role


@pytest.fixture
def open_stream(tiny, greys, stage):
    opened = []

    def make(bad=(), count=200, changes=None, **reading):
        source = greys(count, bad=frozenset(bad))
        sources = {"t2i": source, "image_edit": greys(50)}
        stream = Stream(sources, stage(**changes or {}), tiny.codec, style=tiny.style, reading=Reading(**reading))
        opened.append(stream)
        return stream

    yield make
    for stream in opened:
        stream.close()


def content(samples):
    """What a model would see: ids, texts and sizes."""
    return [
        (s.id, [(x.kind, x.role, x.value if isinstance(x.value, str) else x.size) for x in s.segments]) for s in samples
    ]


CURRICULUM = {
    "resolutions": (Resolution(until=0.2, image=(16, 16)), Resolution(image=(32, 32))), "steps": 20, "accumulate": 2,
}  # fmt: skip


@pytest.mark.parametrize("stop", [0, 1, 5, 13])
@pytest.mark.parametrize("changes", [{}, CURRICULUM], ids=["plain", "curriculum"])
def test_a_resumed_stream_sees_what_an_uninterrupted_one_would(open_stream, stop, changes):
    whole = [content(p) for p in islice(open_stream(bad=[3, 50], changes=changes, max_broken=9), stop + 12)]
    first = open_stream(bad=[3, 50], changes=changes, max_broken=9)
    assert [content(p) for p in islice(first, stop)] == whole[:stop]
    saved = json.loads(json.dumps(first.state_dict()))
    second = open_stream(bad=[3, 50], changes=changes, max_broken=9)
    list(islice(second, 2))  # a stream that has been used is reset too
    second.load_state_dict(saved)
    assert second.state_dict() == saved
    assert [content(p) for p in islice(second, 12)] == whole[stop:]
    assert second.report()["rows"] > 0 and set(second.broken) <= {"greys, row 3", "greys, row 50"}


def test_workers_change_nothing(open_stream):
    alone, helped = open_stream(), open_stream(workers=2)
    for _ in range(4):
        assert content(next(alone)) == content(next(helped))
    assert alone.state_dict() == helped.state_dict()


def test_packs_fit_the_budget_and_fill_it(open_stream, tiny, stage):
    stream = open_stream()
    for samples in islice(stream, 20):
        length = len(pack([s.segments for s in samples], tiny.codec, tiny.model.config.position, stage().draws))
        assert length <= 420
    assert stream.report()["efficiency"] >= 0.95


def test_conditions_are_dropped_as_often_as_the_stage_says(open_stream):
    samples = [s for p in islice(open_stream(), 100) for s in p]
    without = sum(not any(x.role is Role.PROMPT for x in s.segments) for s in samples)
    assert 0.1 < without / len(samples) < 0.3


@pytest.mark.parametrize("world", [2, 3, 40])
def test_ranks_share_an_epoch_without_overlap(greys, world):
    source = greys(120, block=8)  # 15 parts: with 40 ranks rows are dealt, not parts
    ranks = [[row.values for row in Reader(source, Reading(rank=r, world=world, repeat=False))] for r in range(world)]
    assert sorted(sum(ranks, [])) == list(range(120))


def test_epochs_differ_and_each_is_whole(greys):
    rows = [row.values for row in islice(Reader(greys(40), seed=1), 80)]
    assert sorted(rows[:40]) == sorted(rows[40:]) == list(range(40)) and rows[:40] != rows[40:]


def test_a_stream_without_repetition_gives_every_row_once(open_stream):
    ids = [s.id for p in open_stream(count=30, repeat=False, shuffle=False) for s in p]
    assert sorted(ids) == sorted([f"greys, row {n}" for n in range(30)] + [f"greys, row {n}" for n in range(50)])


def test_broken_rows_are_named_counted_and_skipped_up_to_a_limit(open_stream, caplog):
    stream = open_stream(bad=[3, 7], count=16, max_broken=2)
    list(islice(stream, 30))  # several epochs: a row counts once
    assert set(stream.broken) == {"greys, row 3", "greys, row 7"}
    assert "skipped greys, row 3: it is broken" in caplog.text and caplog.text.count("row 3:") == 1
    with pytest.raises(UserError, match=r"greys, row \d: it is broken .*max_broken=1 allows 1"):
        list(islice(open_stream(bad=[3, 7], count=16, max_broken=1), 30))
    with pytest.raises(UserError, match="max_broken=0 allows 0"):
        list(islice(open_stream(bad=[3], count=16, max_broken=0), 30))


@pytest.mark.parametrize("count, bad", [(1, [0]), (3, [0, 1, 2])])
def test_data_of_which_nothing_is_of_use_end_the_run(open_stream, count, bad):
    with pytest.raises(UserError, match="no row of the data can be used"):
        next(open_stream(bad=bad, count=count, max_broken=5, changes={"mixture": {"t2i": 1}}))


def test_one_good_row_among_broken_ones_is_enough(open_stream):
    stream = open_stream(bad=range(1, 9), count=9, max_broken=8, changes={"mixture": {"t2i": 1}})
    assert {s.id for p in islice(stream, 20) for s in p} == {"greys, row 0"}


def test_samples_that_are_too_long_are_left_out_and_counted(open_stream, tiny, caplog):
    lengths = [length_of(s.segments, tiny.codec) for p in islice(open_stream(), 5) for s in p]
    most = sorted(lengths)[len(lengths) * 3 // 4]
    stream = open_stream(changes={"max_sample_tokens": most})
    kept = [length_of(s.segments, tiny.codec) for p in islice(stream, 5) for s in p]
    assert max(kept) == most < max(lengths) and stream.report()["too_long"] > 1 and not stream.broken
    assert caplog.text.count(f"more than max_sample_tokens={most}") == 1
    with pytest.raises(UserError, match=r"more than max_sample_tokens=20, and so have most"):
        next(open_stream(changes={"max_sample_tokens": 20}))


def test_a_task_without_data_and_another_rank_are_refused(open_stream, tiny, greys, stage):
    with pytest.raises(UserError, match="mixes in image_edit, which has no data"):
        Stream({"t2i": greys()}, stage(), tiny.codec)
    with pytest.raises(UserError, match="rank 0 of 1, not of rank 1 of 2"):
        open_stream(rank=1, world=2).load_state_dict(open_stream().state_dict())


def test_several_sources_of_one_task_come_by_their_weights_and_are_resumed(tiny, greys, stage):
    weights = {"t2i": 1.0, "t2i@others": 3.0}
    sources = {"t2i": greys(20), "t2i@others": greys(300)}

    def opened():
        return Stream(sources, stage(mixture=weights), tiny.codec, style=tiny.style)

    with opened() as stream, opened() as again:
        packs = list(islice(stream, 9))
        shares = stream.report()["shares"]["samples"]
        assert shares["t2i@others"] == pytest.approx(0.75, abs=0.1) and shares.keys() == weights.keys()
        again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert [content(p) for p in islice(again, 3)] == [content(p) for p in islice(stream, 3)]
    assert sum(map(len, packs)) > 20


def test_the_shares_of_the_tasks_are_counted_and_resumed(open_stream, tiny):
    stream, again = open_stream(), open_stream()
    packs = list(islice(stream, 6))
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert again.report()["shares"] == stream.report()["shares"]
    assert stream.tally["samples"].total() == sum(map(len, packs))
    lengths = [length_of(s.segments, tiny.codec, stream.stage.draws) for pack in packs for s in pack]
    assert stream.tally["tokens"].total() == stream.tokens == sum(lengths)
    assert all(sum(shares.values()) == pytest.approx(1) for shares in stream.report()["shares"].values())
