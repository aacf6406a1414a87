"""The drawing of a sequence says what `explain` says, and its mask is the mask."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from openlance.planning.workload import placeholder
from openlance.sequence import tasks
from openlance.sequence.explain import explain
from openlance.sequence.segment import dense_mask
from openlance.sequence.view import LEFT, MASK, svg

SVG = "{http://www.w3.org/2000/svg}"


def found(tiny, task, prompt="a red circle", fill=None, **changes):
    reads, makes = tasks.TASKS[task].reads, tasks.TASKS[task].makes
    clip = placeholder(5 if reads == "video" else 1, 16, 16)
    media = [tasks.Views(clip, clip)] if reads else []
    segments = tasks.request(task, prompt, media, (5 if makes == "video" else 1, 16, 16), fill)
    position = replace(tiny.model.config.position, **changes)
    return explain(segments, tiny.codec, position, tiny.codec.tokenizer.text)


def texts(drawn: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_drawing_says_of_every_split_what_is_known_of_it(tiny, task):
    read = found(tiny, task)
    drawn = svg(read, f"{task} with <tiny>")
    said = texts(drawn)
    assert said[:2] == [f"{task} with <tiny>", f"{len(read.splits)} splits, {read.tokens} tokens"]
    blocks = [[e.text for e in g.iter(f"{SVG}text")] for g in ElementTree.fromstring(drawn).findall(f"{SVG}g")]
    bars = [(number, count) for *_, number, count in blocks]
    assert bars == [(str(n), str(split.tokens)) for n, split in enumerate(read.splits, start=1)]
    assert sum("see it" == text for text in said) == sum(split.later for split in read.splits)
    assert sum(text.startswith("velocity") for text in said) == ("velocity" in str([s.loss for s in read.splits]))
    assert ("given" in said) == (task in ("i2v", "flf2v"))
    assert any("before MaPE" in text for text in said) == any(s.index != s.shifted for s in read.splits)
    assert not any("before MaPE" in text for text in texts(svg(found(tiny, task, shift=False))))


def area(path: str, key: tuple[float, float], query: tuple[float, float]) -> float:
    """How much of one block is covered."""
    total = 0.0
    for x, y, w, h in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-", path):
        wide = min(float(x) + float(w), key[1]) - max(float(x), key[0])
        high = min(float(y) + float(h), query[1]) - max(float(y), query[0])
        total += max(wide, 0) * max(high, 0)
    return total / ((key[1] - key[0]) * (query[1] - query[0]))


@pytest.mark.parametrize("task", ["t2v", "i2v", "image_edit", "flf2v", "x2t_video"])
def test_the_square_is_the_mask(tiny, task):
    """Each block is covered by the share of its tokens that may look, half of it where text looks back."""
    read = found(tiny, task)
    mask, tree = dense_mask(read.rows).numpy(), ElementTree.fromstring(svg(read))
    paths = [(e.get("d", ""), e.get("fill", "")) for e in tree.iter(f"{SVG}path")]
    lines = [re.findall(r"M([\d.]+)", d)[1] for d, _ in paths if f"v{MASK}" in d]
    cells = "".join(d for d, fill in paths if fill.startswith("var"))
    edges = [0.0, *(float(x) - LEFT for x in lines), float(MASK)]
    assert len(edges) == len(read.splits) + 1
    for q, query in enumerate(read.splits):
        for k, key in enumerate(read.splits):
            true = mask[query.first : query.last + 1, key.first : key.last + 1]
            share = area(cells, (edges[k], edges[k + 1]), (edges[q], edges[q + 1]))
            assert share == pytest.approx(true.mean(), abs=0.06)
            assert (share > 0.02) == bool(true.any()) and (share > 0.98) == bool(true.all())


@pytest.mark.parametrize("prompt", ["<b>&amp; \"'", "a\x00b\ud800\ufffe", "雪 ☃ \n\n <|im_end|>", "x" * 5000, ""])
def test_any_words_give_a_whole_file_that_needs_nothing_else(tiny, prompt):
    read = found(tiny, "t2i")
    odd = replace(read, splits=[replace(split, content=prompt) for split in read.splits])
    drawn = svg(odd, prompt)
    drawn.encode()
    ElementTree.fromstring(drawn)
    assert not re.search(r"<script|href|url\(h|@import|<image|on\w+=", drawn)
    assert re.findall(r"https?://[^\"]+", drawn) == ["http://www.w3.org/2000/svg"]
    assert len(drawn) < 80_000


def test_two_drawings_in_one_page_share_nothing(tiny):
    ids = [set(re.findall(r'id="([^"]+)"', svg(found(tiny, task)))) for task in ("flf2v", "t2i")]
    assert all(ids) and not ids[0] & ids[1]


def test_a_drawing_is_always_the_same(tiny):
    assert svg(found(tiny, "flf2v")) == svg(found(tiny, "flf2v"))
    assert "answer" in texts(svg(found(tiny, "x2t_image", fill="three of them.")))
