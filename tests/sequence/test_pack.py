"""Packing: what a sample, a request and a pack of several have in common."""

from dataclasses import fields, replace

import pytest
import torch

from openlance.sequence import tasks
from openlance.sequence.segment import NO_LABEL, SOURCE, TARGET, Kind, Role, Rows, Segment, drop

COUNTED = {"doc", "segment", "target"}  # columns that number things through the whole pack


def same(a: Rows, b: Rows, ignore: set[str] = COUNTED) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Rows) if f.name not in ignore)


def makers(tiny):
    return [tiny.draw, tiny.animate, tiny.edit, tiny.place]


def test_a_request_is_a_sample_with_its_target_empty(tiny):
    for make in makers(tiny):
        sample, request = make(), make(seed=None)
        assert [s.is_empty for s in request] == [s.role is Role.TARGET for s in sample]
        assert same(tiny.pack([sample]).rows, tiny.pack([request]).rows, ignore=set())


def test_a_question_ends_where_its_answer_begins(tiny):
    sample, request = (tiny.pack([tiny.answer(text=text)]).rows for text in ("three of them.", None))
    n = len(request)
    assert same(sample.at(torch.arange(n)), request, ignore={"label"})
    answer = tiny.codec.ids("three of them.")
    assert sample.token[n:].tolist() == [*answer, tiny.codec.im_end]
    assert not (request.label >= 0).any()


def test_a_pack_is_its_samples_one_after_the_other(tiny):
    samples = tiny.samples()
    packed, start = tiny.pack(samples), 0
    for doc, sample in enumerate(samples):
        alone = tiny.pack([sample])
        part = packed.rows.at(torch.arange(start, start + len(alone)))
        assert same(part, alone.rows) and (part.doc == doc).all()
        assert torch.equal(part.segment - part.segment[0], alone.rows.segment)
        start += len(alone)
    assert start == len(packed) and packed.lengths == [len(tiny.pack([s])) for s in samples]
    assert (packed.rows.segment.diff() >= 0).all()
    numbers = packed.rows.target[packed.rows.target >= 0].unique_consecutive()
    assert torch.equal(numbers, torch.arange(5))


def test_media_stand_where_their_rows_are(tiny):
    packed = tiny.pack(tiny.samples(), draws=2)
    for v in packed.visuals:
        rows = packed.rows.at(torch.arange(*v.rows))
        assert len(rows) == v.grid[0] * v.grid[1] * v.grid[2]
        assert (rows.kind == v.kind).all() and (rows.token == tiny.codec.visual_pad).all()
        before, after = packed.rows.token[v.rows[0] - 1], packed.rows.token[v.rows[1]]
        assert (before, after) == (tiny.codec.vision_start, tiny.codec.vision_end)


def test_draws_repeat_the_target_and_nothing_else(tiny):
    for make in makers(tiny):
        one, three = (tiny.pack([make()], draws).rows for draws in (1, 3))
        targets = one.at(one.noisy.nonzero()[:, 0])
        assert len(three) == len(one) + 2 * len(targets)
        for draw in range(3):
            mine = three.noisy & ((three.target == draw) | (three.segment == three.segment[three.noisy][0] + draw))
            assert same(three.at(mine.nonzero()[:, 0]), targets, ignore=COUNTED | {"index"})
        clean = {"index", *COUNTED}
        assert same(three.at((~three.noisy).nonzero()[:, 0]), one.at((~one.noisy).nonzero()[:, 0]), ignore=clean)


def test_a_label_is_the_next_token_of_an_answer(tiny):
    for sample, learned in [(tiny.answer(), ["three of them."]), (tiny.draw(), [])]:
        rows = tiny.pack([sample]).rows
        where = (rows.label != NO_LABEL).nonzero()[:, 0]
        assert torch.equal(rows.label[where], rows.token[where + 1])
        expected = [i for text in learned for i in [*tiny.codec.ids(text), tiny.codec.im_end]]
        assert rows.label[where].tolist() == expected


def test_only_the_last_answer_of_a_talk_is_learned(tiny):
    first = tiny.answer("how many?", "three of them.")
    talk = [s.as_context() for s in first] + [tasks.say("what color?"), tasks.reply("blue")]
    rows = tiny.pack([talk]).rows
    assert rows.label[rows.label >= 0].tolist() == [*tiny.codec.ids("blue"), tiny.codec.im_end]


def test_given_frames_are_not_denoised(tiny):
    rows = tiny.pack([tiny.animate()]).rows
    assert rows.noisy[rows.denoise].all() and int(rows.denoise.sum()) == 2 * 16  # of three latent frames
    assert not rows.denoise[rows.is_latent.nonzero()[:16, 0]].any()


def test_dropping_keeps_targets(tiny):
    for sample in tiny.samples():
        left = drop(sample, set(Role))
        assert left == [s for s in sample if s.role is Role.TARGET] and left
        assert not any(s.role is Role.PROMPT for s in drop(sample, {Role.PROMPT}))


def test_dropping_the_prompt_leaves_its_template(tiny):
    """Guidance packs again without the prompt: the same ids but for those of the prompt."""
    for make in makers(tiny):
        rows = tiny.pack([make(seed=None)]).rows
        dropped = tiny.pack([drop(make(seed=None), {Role.PROMPT})]).rows
        assert torch.equal(rows.token[rows.code != 0], dropped.token)
        assert (rows.code == 0).any()


def test_source_and_target_are_told_from_the_rest(tiny):
    rows = tiny.pack([tiny.edit()]).rows
    assert int((rows.code == TARGET).sum()) == int((rows.code == SOURCE).sum()) == 16 + 2
    assert torch.equal(rows.code == TARGET, rows.noisy)


def test_an_answer_given_is_only_read(tiny):
    filled = tasks.make(tiny.size, tiny.clip(0))
    assert filled.as_context().role is Role.HISTORY
    rows = tiny.pack([[tasks.say("draw it"), filled.as_context(), tasks.say("larger"), tasks.make(tiny.size)]]).rows
    assert int(rows.denoise.sum()) == 16 and int(rows.is_latent.sum()) == 32


def test_bad_input_is_refused(tiny):
    with pytest.raises(ValueError, match="at least one"):
        tiny.pack([])
    with pytest.raises(ValueError, match="size"):
        Segment(Kind.LATENTS, Role.TARGET)
    with pytest.raises(ValueError, match="string"):
        Segment(Kind.TEXT, Role.PROMPT, 3)
    with pytest.raises(ValueError, match="multiple"):
        tiny.pack([[tasks.make((1, 16, 18))]])
    assert replace(tasks.say("a")).value == "a"
