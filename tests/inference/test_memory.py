"""Where weights are changes no number: every plan of memory gives the same bits."""

import numpy as np
import pytest
import torch

from openlance import load
from openlance.checkpoint.formats import find
from openlance.errors import UserError
from openlance.inference import engine
from openlance.runtime.offload import PLANS, SLOTS, group, parse_memory, plans, sizes
from openlance.sequence import tasks

SOURCE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def outputs(pipe) -> tuple:
    drawn = pipe.generate(["a ring", "a star"], seed=1)[1]
    edited = pipe.edit(SOURCE, "make it blue", seed=2)[0]
    return drawn.tobytes(), edited.tobytes(), pipe.ask(SOURCE, "what is it?", max_new_tokens=4)


@pytest.fixture(scope="module")
def usual(checkpoint):
    return outputs(checkpoint.load())


@pytest.mark.parametrize("number", range(len(PLANS)))
def test_every_plan_gives_the_same_bits(checkpoint, usual, number):
    pipe = checkpoint.load()
    pipe.parts.memory, pipe.parts._decide = 1, lambda *request: PLANS[number]
    assert outputs(pipe) == usual
    lance = pipe.lance("und", "gen")
    for stream in ("und", "gen"):
        places = {p.data_ptr() for layer in lance.layers for p in getattr(layer, stream).parameters()}
        each = len(list(getattr(lance.layers[0], stream).parameters()))
        count = len(lance.layers)
        assert len(places) == each * (min(SLOTS, count) if stream in PLANS[number].streamed else count)
    assert ("vit" in pipe.parts._held) is not PLANS[number].offload_auxiliary


def test_a_budget_takes_the_roomiest_plan_that_fits_and_says_so(checkpoint, usual, capsys):
    c = find(checkpoint.folder).config
    least = min(p.bytes for p in plans(sizes(c, ("und",)), [0, 0], layers=c.layers, itemsize=4))
    for budget in ("1GB", "3MB"):
        pipe = load(checkpoint.folder, memory=budget)
        assert outputs(pipe) == usual
        assert capsys.readouterr().err.startswith("memory: ")
    with pytest.raises(UserError, match=r"too little for this request: use memory=\S+GB or more"):
        outputs(load(checkpoint.folder, memory=least // 2))


def test_less_room_never_needs_more(checkpoint):
    c = find(checkpoint.folder).config
    found = plans(sizes(c, ("und", "gen")), [500, 9000], layers=100, itemsize=2)
    assert found[0].bytes == max(p.bytes for p in found) and found[-1].bytes == min(p.bytes for p in found)


def test_the_published_model_fits_the_usual_cards():
    """The bytes of the release in half precision, without reading any: one picture of 768x768."""
    from openlance.config.model import ModelConfig
    from openlance.runtime.offload import Work

    c = ModelConfig()
    decoder, auxiliary = sizes(c, ("und", "gen")), [668_684_288, 704_688_668]
    assert sum(decoder.values()) == 6_176_817_200
    work = Work(rows=2 * 48 * 48, pixels=768 * 768).bytes(c, itemsize=2)
    found = plans(decoder, auxiliary, layers=c.layers, work=work)
    for budget, streamed, leave in ((12e9, True, True), (15e9, False, True), (17e9, False, False)):
        plan = next(p for p in found if p.bytes <= budget)
        assert bool(plan.streamed) is streamed and plan.offload_auxiliary is leave
    assert next(p for p in found if p.bytes <= 12e9).bytes < 9e9


def test_names_of_parameters_fall_into_groups():
    names = {
        "embed.weight": "ends",
        "layers.3.gen.q.bias": "gen",
        "layers.0.und.up.weight": "und",
        "time.up.bias": "rest",
    }
    assert {name: group(name) for name in names} == names


@pytest.mark.parametrize("text, size", [("auto", None), (None, None), ("12GB", 12 * 10**9), ("1.5 GiB", 3 << 29)])
def test_a_budget_is_a_size(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["12 apples", "-1GB", "0GB", "GB", ""])
def test_a_budget_that_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="^memory=.*is not a size"):
        parse_memory(text)


def test_every_decoder_that_is_read_is_quantized(checkpoint, usual):
    """Also one that was put away and read again."""
    pipe = checkpoint.load()
    pipe.parts._decide = lambda *request: PLANS[2]  # decoder and auxiliary components are loaded in turn
    pipe.quantize("int8")
    answers = [pipe.ask(SOURCE, "what?", max_new_tokens=3) for _ in range(2)]
    assert answers[0] == answers[1]
    assert pipe.lance("und").layers[0].und.up.weight.dtype == torch.int8


def test_codec_memory_grows_with_a_batch_until_it_decodes_in_turns(checkpoint, monkeypatch):
    pipe, seen = checkpoint.load(), []
    latents = [
        torch.randn(1, 4, 4, pipe.config.vae.z_dim, generator=torch.Generator().manual_seed(n)) for n in range(5)
    ]
    whole = pipe.decode_latents(latents)
    size = whole[0].pixels.shape[:3]
    one = size[1] * size[2]
    monkeypatch.setattr(engine, "DECODED", 2 * one)
    monkeypatch.setattr(pipe.parts, "prepare", lambda *names, work, **kinds: seen.append(work.pixels))
    in_turns = pipe.decode_latents(latents)
    for a, b in zip(whole, in_turns, strict=True):
        np.testing.assert_allclose(a.pixels.astype(int), b.pixels.astype(int), atol=1)
    request = tasks.text_to_visual("a dog", [], size)
    for count in (1, 2, 5):
        pipe._settle([request] * count, "und", "gen")
    assert seen == [one, 2 * one, 2 * one]
