"""Decoding text: against a cache as without one, alone as in a batch, greedy or drawn."""

from dataclasses import replace

import pytest
import torch

from openlance.config.model import Quirks
from openlance.config.sampling import Decoding
from openlance.inference.text import choose, decode
from openlance.sequence import tasks
from openlance.sequence.pack import pack

SHORT = Decoding(max_new_tokens=8)


def run(tiny, requests, d=SHORT, **more):
    encoded = [tiny.encoded(r) for r in requests]
    return decode(tiny.model, tiny.codec, encoded, d, **{"vocabulary": tiny.vocabulary} | more)


def question(tiny, text="how many squares?"):
    return tiny.answer(text, None)


@torch.inference_mode()
def plainly(tiny, request, count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy without a cache: everything anew for each token. Ids and the logits of each step."""
    ids, seen = list[int](), list[torch.Tensor]()
    config = tiny.model.config
    shift = config.position.shift and not config.quirks.decode_without_shift
    packed = pack([request], tiny.codec, replace(config.position, shift=shift))
    rows, features = packed.rows, tiny.media(packed)[0]
    for _ in range(count):
        layout = tiny.model.layout(rows)
        hidden = tiny.model.restore(layout, tiny.model(layout, patches=features))
        seen.append(tiny.model.logits(hidden[-1]))
        token = int(seen[-1][: tiny.vocabulary].argmax())
        if token == tiny.codec.im_end:
            break
        ids.append(token)
        last = rows.at(torch.tensor([len(rows) - 1]))
        grown = replace(
            last,
            index=last.index + 1,
            position=last.position.max() + last.position * 0 + 1,
            token=torch.tensor([token]),
        )
        rows = type(rows).concat([rows, grown])
    return ids, torch.stack(seen)


@pytest.mark.parametrize("text", ["how many squares?", ""])
@pytest.mark.parametrize("faithful", [False, True])
def test_cached_decoding_equals_recomputing_everything(tiny, faithful, text):
    mine, seen = tiny.build(quirks=Quirks()) if faithful else tiny, list[torch.Tensor]()
    hook = mine.model.head.register_forward_hook(lambda head, given, logits: seen.append(logits[0]))
    ids = run(mine, [question(mine, text)])[0][0]
    hook.remove()
    wanted, logits = plainly(mine, question(mine, text), 8)
    assert ids == wanted
    torch.testing.assert_close(torch.stack(seen[: len(logits)]), logits, rtol=0, atol=1e-4)


def test_the_released_form_leaves_the_shift_out(tiny):
    exact, faithful = tiny, tiny.build(quirks=Quirks())
    logits = [run(t, [question(t)])[1] for t in (exact, faithful)]
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3


def test_a_batch_equals_its_requests_alone(tiny):
    """Questions of different length, one without a picture, that stop at different times."""
    requests = [
        question(tiny),
        question(tiny, "a very much longer question about colors?"),
        [tasks.say("hi"), tasks.reply()],
    ]
    ids, logits = run(tiny, requests)
    for n, request in enumerate(requests):
        alone, first = run(tiny, [request])
        assert ids[n] == alone[0]
        torch.testing.assert_close(logits[n], first[0], rtol=0, atol=1e-5)


def test_a_seed_repeats_a_drawn_answer(tiny):
    d = Decoding(max_new_tokens=12, temperature=1.5, top_p=0.9)
    first, again, other = (
        run(tiny, [question(tiny)] * 2, d, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert first == again and first != other and first[0] != first[1]


def test_the_understanding_stream_alone_answers_the_same(tiny):
    half = tiny.build(streams=("und",))
    state = {n: p for n, p in tiny.model.state_dict().items() if n in half.model.state_dict()}
    half.model.load_state_dict(state)
    (ids, logits), (same, equal) = run(tiny, [question(tiny)]), run(half, [question(half)])
    assert ids == same and torch.equal(logits, equal)


def test_tokens_come_as_they_are_chosen(tiny):
    told: list[list[int]] = [[], []]
    ids, _ = run(tiny, [question(tiny), question(tiny, "why?")], on_token=lambda r, token: told[r].append(token))
    assert told == ids and all(1 <= len(i) <= 8 for i in ids)


def test_an_answer_ends_at_its_end_marker(tiny):
    mine = tiny.build()
    mine.model.head.weight.data[tiny.codec.im_end] = 1e3 * mine.model.head.weight.data.sum(0)
    logits = run(mine, [question(mine)])[1]
    ends = int(logits.argmax()) == tiny.codec.im_end
    assert (run(mine, [question(mine)])[0] == [[]]) == ends
    assert tiny.codec.im_end not in sum(run(mine, [question(mine), question(mine, "why?")])[0], [])


def test_words_outside_the_vocabulary_are_never_chosen(tiny):
    ids, logits = run(tiny, [question(tiny)], vocabulary=200)
    assert logits.shape == (1, 200) and max(ids[0]) < 200


def test_top_p_keeps_the_likeliest():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(400, -1)
    generator = torch.Generator().manual_seed(0)
    p = logits[0].softmax(-1)
    assert set(choose(logits, Decoding(temperature=1.0, top_p=float(p[0]) - 0.01), generator).tolist()) == {0}
    assert set(choose(logits, Decoding(temperature=1.0, top_p=float(p[:2].sum()) - 0.01), generator).tolist()) == {0, 1}
    drawn = choose(logits, Decoding(temperature=1.0), generator)
    assert abs(float((drawn == 0).float().mean()) - float(p[0])) < 0.08
    assert (choose(logits, Decoding()) == 0).all()


def test_a_drawn_picture_can_be_asked_about(tiny):
    """A second turn is a list put after the first."""
    drawn = [s.as_context() for s in tiny.draw()]
    ids, _ = run(tiny, [[*drawn, tasks.say("what is it?"), tasks.reply()]])
    assert 1 <= len(ids[0]) <= 8


def test_a_request_without_a_text_hole_is_refused(tiny):
    with pytest.raises(ValueError, match="reply"):
        run(tiny, [tiny.answer()])
