"""Prefixes that are there already need not run, and nothing comes out differently."""

from dataclasses import replace

import pytest
import torch

from openlance.config.sampling import Decoding, Sampling
from openlance.inference.prefix import PrefixStore, names_of
from openlance.inference.text import decode
from openlance.inference.visual import denoise
from openlance.sequence import tasks

FEW = Sampling(num_inference_steps=2, guidance_scale=3.0)


def draw(tiny, requests, seeds, store=None, sampling=FEW):
    encoded = [tiny.encoded(r) for r in requests]
    return denoise(tiny.model, tiny.codec, encoded, sampling, seeds=seeds, store=store)


def answer(tiny, requests, store=None):
    encoded, d = [tiny.encoded(r) for r in requests], Decoding(max_new_tokens=5)
    return decode(tiny.model, tiny.codec, encoded, d, vocabulary=tiny.vocabulary, store=store)


def prefix_rows(tiny, run):
    """Rows that went through the embedding of tokens: those of prefixes, and the two markers of each target."""
    rows = []
    hook = tiny.model.embed.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    made = run()
    hook.remove()
    return made, rows[0]


def test_seeds_of_one_prompt_share_its_prefix(tiny):
    request = tiny.edit(seed=None)
    one = prefix_rows(tiny, lambda: draw(tiny, [request], [1]))
    four = prefix_rows(tiny, lambda: draw(tiny, [request] * 4, [1, 2, 3, 4]))
    assert four[1] == one[1], "four seeds run no more rows than one"
    torch.testing.assert_close(four[0][0], one[0][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(four[0][3], draw(tiny, [request], [4])[0], rtol=0, atol=1e-5)


def test_the_branch_without_a_prompt_runs_once_for_all_prompts(tiny):
    prompts = ["a", "a red circle", "the star"]
    requests = [tiny.draw(p, None) for p in prompts]
    rows = prefix_rows(tiny, lambda: draw(tiny, requests, [1, 2, 3]))[1]
    alone = [prefix_rows(tiny, lambda r=r: draw(tiny, [r], [1]))[1] for r in requests]
    unguided = [prefix_rows(tiny, lambda r=r: draw(tiny, [r], [1], None, Sampling(num_inference_steps=2,
                guidance_scale=1.0)))[1] for r in requests]  # fmt: skip
    assert rows == sum(unguided) + alone[0] - unguided[0]


@pytest.mark.parametrize("task", ["draw", "animate", "edit", "place"])
def test_a_stored_prefix_changes_nothing(tiny, task):
    store, request = PrefixStore(limit=4096), getattr(tiny, task)(seed=None)
    sampling = replace(FEW, image_guidance_scale=1.5)
    plain = draw(tiny, [request], [5], None, sampling)
    first = draw(tiny, [request], [4], store, sampling)
    assert store.reused == 0 or task in ("draw", "animate")
    before = store.reused
    again = draw(tiny, [request], [5], store, sampling)
    assert store.reused > before and not torch.allclose(first[0], again[0], atol=0.01)
    torch.testing.assert_close(again[0], plain[0], rtol=0, atol=1e-5)


def test_a_later_turn_finds_the_earlier_ones(tiny):
    """Another question about the same picture, and a dialogue that goes on."""
    store = PrefixStore(limit=4096)
    for text in ("how many squares?", "what color is the star?", "how many rings are there?"):
        request = tiny.answer(text, None)
        plain, with_store = answer(tiny, [request]), answer(tiny, [request], store)
        assert plain[0] == with_store[0]
        torch.testing.assert_close(with_store[1], plain[1], rtol=0, atol=1e-4)
    assert store.reused > 8, "the picture ran once"
    turn = tiny.answer("how many squares?", "three of them.")
    longer = [s.as_context() for s in turn] + [tasks.say("and rings?"), tasks.reply()]
    before = store.reused
    assert answer(tiny, [longer], store)[0] == answer(tiny, [longer])[0] and store.reused > before


def test_another_picture_or_other_weights_share_nothing_wrong(tiny):
    store, request = PrefixStore(limit=4096), tiny.edit(seed=None)
    draw(tiny, [request], [5], store)
    other = tiny.clip(77)
    changed = tiny.put("image_edit", "make it blue", [other], tiny.size, None)
    torch.testing.assert_close(draw(tiny, [changed], [5], store)[0], draw(tiny, [changed], [5])[0], rtol=0, atol=1e-5)
    copy = tiny.build(seed=3)
    plain = draw(copy, [request], [5])[0]
    torch.testing.assert_close(draw(copy, [request], [5], store)[0], plain, rtol=0, atol=1e-5)
    with torch.no_grad():
        copy.model.layers[0].und.v.weight.mul_(1.5)
    torch.testing.assert_close(draw(copy, [request], [5], store)[0], draw(copy, [request], [5])[0], rtol=0, atol=1e-5)


def test_a_store_keeps_to_its_limit(tiny):
    store = PrefixStore(limit=60)
    for n in range(6):
        draw(tiny, [tiny.draw(f"prompt number {n}", None)], [n], store)
    assert sum(len(p.names) for p in store.prefixes) <= 60 and store.prefixes


def test_names_tell_media_apart(tiny):
    def names(clip):
        packed = tiny.pack([tiny.put("x2t_image", "what?", [clip], (1, 1, 1), None)])
        features = tiny.media(packed)[0]
        return names_of(packed, torch.arange(len(packed.rows)), features, torch.zeros(0, 1))

    same, other = names(tiny.clip(1)), names(tiny.clip(2))
    assert (same == names(tiny.clip(1))).all() and (same != other).any()
