"""Which tokens are drawn, where answers end, and what they say about it; transformers is the measure."""

import numpy as np
import pytest
import torch

from openlance.config.sampling import Decoding
from openlance.errors import UserError
from openlance.inference.text import AnswerInfo, Shown, choose, penalized, stopping, up_to_stop

PICTURE = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def probabilities(logits, d, draws=4000):
    generator = torch.Generator().manual_seed(0)
    chosen = choose(logits.expand(draws, -1), d, generator)
    return torch.bincount(chosen, minlength=logits.shape[-1]) / draws


def test_top_k_keeps_so_many_of_the_likeliest_and_comes_before_top_p():
    """transformers' order: what top_p counts is the probability among the k that are left."""
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()[None]
    assert probabilities(logits, Decoding(temperature=1.0, top_k=1))[0] == 1
    two = probabilities(logits, Decoding(temperature=1.0, top_k=2))
    assert torch.allclose(two, torch.tensor([5 / 7, 2 / 7, 0.0, 0.0]), atol=0.03)
    assert (probabilities(logits, Decoding(temperature=1.0, top_k=2, top_p=0.7)) == torch.tensor([1.0, 0, 0, 0])).all()
    everything = [choose(logits, Decoding(temperature=1.0, top_k=k), torch.Generator().manual_seed(1)) for k in (0, 9)]
    assert torch.equal(*everything)


def test_the_penalty_is_that_of_transformers():
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits, ids = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 2, 2], [0, 8, 3]])
    seen = torch.zeros(2, 9, dtype=torch.bool).scatter(1, ids, True)
    assert torch.equal(penalized(logits, seen, 1.3), RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone()))


def test_a_strong_penalty_repeats_nothing(pipe):
    inputs = pipe.processor("how many?", images=PICTURE)
    length = inputs["input_ids"].shape[1]
    plain, new = (pipe.generate(**inputs, max_new_tokens=12, **how)[0] for how in ({}, {"repetition_penalty": 1000.0}))
    said = new[length:].tolist()
    assert len(set(said)) == len(said) and not set(said) & set(new[:length].tolist())
    assert torch.equal(pipe.generate(**inputs, max_new_tokens=12, repetition_penalty=1.0)[0], plain)


def test_options_of_a_batch_are_those_of_its_items(pipe):
    how = {"max_new_tokens": 10, "repetition_penalty": 1.5}
    both = pipe.ask([PICTURE, PICTURE[::-1].copy()], ["how many?", "what colour is it?"], **how)
    assert both == [pipe.ask(PICTURE, "how many?", **how), pipe.ask(PICTURE[::-1].copy(), "what colour is it?", **how)]


def test_an_answer_ends_before_the_text_that_stops_it(pipe):
    whole = pipe.ask(PICTURE, "how many?", max_new_tokens=16)
    assert len(whole) > 6 and whole.finish_reason == "length"
    for at in (2, 5):
        end = whole[at : at + 3]
        pieces = []
        cut = pipe.ask(PICTURE, "how many?", max_new_tokens=16, stop=["never said", end], stream=pieces.append)
        assert cut == whole[: whole.index(end)].strip() == "".join(pieces) and cut.finish_reason == "stop"
        assert pipe.ask(PICTURE, "how many?", max_new_tokens=16, stop=end) == cut
        both = pipe.ask([PICTURE] * 2, ["how many?", "what is it?"], max_new_tokens=16, stop=end)
        assert both[0] == cut and both[1] == pipe.ask(PICTURE, "what is it?", max_new_tokens=16, stop=end)
    assert pipe.ask(PICTURE, "how many?", max_new_tokens=16, stop="never said") == whole


def test_token_ids_end_with_the_text_that_stops_them(pipe):
    inputs = pipe.processor("how many?", images=PICTURE)
    length = inputs["input_ids"].shape[1]
    whole = pipe.generate(**inputs, max_new_tokens=16)[0, length:]
    text = pipe.tokenizer.text(whole.tolist())
    cut = pipe.generate(**inputs, max_new_tokens=16, stop=text[3:6])[0, length:]
    assert len(cut) < len(whole) and torch.equal(cut, whole[: len(cut)])
    assert text[3:6] in pipe.tokenizer.text(cut.tolist()) and text[3:6] not in pipe.tokenizer.text(cut[:-1].tolist())


def test_a_text_that_may_become_the_end_waits(tokenizer):
    """Nothing is shown that has to be taken back."""
    text, stop, pieces = "three small red stars and more", ["red star!", "and m"], []
    shown, ended, ids = Shown(tokenizer, pieces.append, stop), stopping(tokenizer, stop), tokenizer.ids(text)
    for n, token in enumerate(ids):
        shown.add(0, token)
        assert text.startswith("".join(pieces)) and len("".join(pieces)) <= text.index("and m")
        assert ended(ids[: n + 1]) == ("and m" in tokenizer.text(ids[: n + 1]))
    assert "".join(pieces) == "three small red stars" and up_to_stop(text, stop) == ("three small red stars ", True)
    assert up_to_stop(text, ["no"]) == (text, False) and stopping(tokenizer, ()) is None


def test_answers_say_why_they_ended(pipe):
    told = pipe.ask(PICTURE, "how many?", max_new_tokens=3, return_info=True)
    assert told == AnswerInfo(text=pipe.ask(PICTURE, "how many?", max_new_tokens=3), finish_reason="length")
    several = pipe.caption([PICTURE] * 2, max_new_tokens=3, return_info=True)
    assert [a.finish_reason for a in several] == ["length"] * 2 and type(several[0].text) is str


@pytest.mark.parametrize("wrong", [
    {"top_k": -1}, {"top_k": 1.5}, {"repetition_penalty": 0}, {"repetition_penalty": -1}, {"repetition_penalty": "x"},
    {"stop": [""]}, {"stop": [3]}, {"stop": None}, {"return_info": "maybe"},
])  # fmt: skip
def test_wrong_options_are_named(pipe, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        pipe.ask(PICTURE, "how many?", **wrong)
