"""The reward for texts: what is asked for stands between quotes, all that is read is compared with it, and the real
reader reads real words."""

import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.rl.rewards import Drawn, RewardPool
from openlance.rl.rewards.ocr import Ocr, rapid_ocr
from openlance.rl.rewards.spelling import best_order, closeness, quoted, wanted


def sign(*lines, size=256, letters=None):
    """A picture with lines of text, uint8 (size, size, 3)."""
    image = Image.new("RGB", (size, size), (30, 60, 40))
    font = ImageFont.load_default(size=letters or size // 9)
    for row, line in enumerate(lines):
        place = (size // 2, size * (row + 1) // (len(lines) + 1))
        ImageDraw.Draw(image).text(place, line, font=font, fill=(250, 240, 200), anchor="mm")
    return np.asarray(image)


def asked(prompt, *frames):
    return Drawn(prompt=prompt, media=Clip(np.stack(frames)))


@pytest.mark.parametrize(
    "prompt, texts",
    [
        ('a sign that says "OPEN"', ("OPEN",)),
        ("a sign that says “Hello  World”, please", ("Hello World",)),
        ('"A" over "B c" and „d“, «e» 「营业」', ("A", "B c", "d", "e", "营业")),
        ('change "BC" to "7J".', ("7J",)),
        ('replace "old" with “new”, keep "mine"', ("new", "mine")),
        ('a poster that says "SALE" for "SHOES"', ("SALE", "SHOES")),
        ('the cover of "DUNE" by "HERBERT"', ("DUNE", "HERBERT")),
        ('swap the words "A" for "B"', ("B",)),
        ("the baker's sign, 'closed'", ()),
        ('an empty ""', ()),
        ('half a "quote', ()),
    ],
)
def test_what_stands_between_quotes_is_asked_for(prompt, texts):
    assert quoted(prompt) == texts
    if not texts:
        with pytest.raises(UserError, match="no text between quotes.*such as"):
            wanted(prompt)


@given(st.text("abc", max_size=6), st.text("abc", min_size=1, max_size=6), st.text("abc", min_size=1, max_size=4))
def test_only_the_text_itself_is_worth_one_and_more_of_it_is_worth_less(read, target, extra):
    assert 0 <= closeness(read, target) <= 1
    assert (closeness(read, target) == 1) == (read == target)
    assert closeness(target + extra, target) < 1  # where containing it was enough, this was free
    assert closeness("", target) == 0


def test_the_order_of_several_texts_is_free_and_capitals_count_for_exactness_alone():
    assert best_order(["world", "HELLO"], ["HELLO", "world"]) == (1.0, True)
    assert best_order(["hello", "world"], ["HELLO", "world"]) == (1.0, False)
    assert best_order([], ["HELLO"]) == (0.0, False)


def test_the_real_reader_reads_words_and_what_is_wrong_or_too_much_costs():
    pytest.importorskip("rapidocr")
    prompt = 'a shop sign that says "Fresh Coffee"'
    drawn = [
        asked(prompt, sign("Fresh Coffee")),
        asked(prompt, sign("FRESH COFFEE")),
        asked(prompt, sign("Fresh Toffee")),
        asked(prompt, sign("Fresh Coffee", "and hot tea")),
        asked(prompt, sign()),
        asked('a shop sign "Coffee" above "Fresh"', sign("Fresh", "Coffee")),
    ]
    with RewardPool("ocr") as pool:
        right, large, wrong, more, blank, turned = pool.submit(drawn).collect()
    assert not pool.failed
    assert right.facts == {"ocr.read": 1.0, "ocr.exact": 1.0} and right.total == pytest.approx(1)
    assert large.facts == {"ocr.read": 1.0, "ocr.exact": 0.0}
    assert wrong.facts["ocr.read"] == pytest.approx(1 - 1 / 12) and wrong.facts["ocr.exact"] == 0
    assert more.facts["ocr.read"] < 0.2 and more.facts["ocr.exact"] == 0
    assert blank.total == 0
    assert turned.facts["ocr.exact"] == 1


def test_the_real_reader_reads_small_pictures_and_the_frames_of_clips():
    pytest.importorskip("rapidocr")
    ocr = Ocr()
    ocr.load()
    rapid_ocr()(np.zeros((48, 48, 3), np.uint8), use_det=False)  # as the world's judge asks it: the reader keeps that
    prompt, word, none = 'the word "K7P" in white', sign("K7P", size=64, letters=22), sign(size=64)
    assert [facts["exact"] for facts in ocr([asked(prompt, word), asked(prompt, none)])] == [1, 0]
    assert ocr([asked(prompt, *[word] * 4, none)])[0]["exact"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("reader, missing", [("", "rapidocr"), ("paddle", "paddleocr"), ("tesseract", None)])
def test_a_missing_reader_is_named_with_what_to_install(reader, missing, monkeypatch):
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setenv("PATH", "")
    rapid_ocr.cache_clear()
    with pytest.raises(UserError, match=f"(?s){missing or 'tesseract'}.*install"):
        Ocr(reader).load()


def test_an_unknown_reader_is_named():
    with pytest.raises(UserError, match="no reader 'paddel': use ocr, ocr=paddle, ocr=tesseract"):
        Ocr("paddel")


def test_paddleocr_is_asked_in_its_own_form(monkeypatch):
    """Its package brings no models along, so that what it returns is written here as its documentation has it."""
    seen = []

    class PaddleOCR:
        def __init__(self, **switches):
            assert not any(switches.values())

        def predict(self, pixels):
            seen.append(pixels)
            return [{"rec_texts": ["OPEN", "24 h"], "rec_scores": [0.99, 0.98]}]

    module = ModuleType("paddleocr")
    module.PaddleOCR = PaddleOCR
    monkeypatch.setitem(sys.modules, "paddleocr", module)
    ocr = Ocr("paddle")
    ocr.load()
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    assert ocr([asked('a sign "OPEN 24 h"', red)]) == [{"read": 1.0, "exact": 1.0}]
    assert seen[0][0, 0].tolist() == [0, 0, 255] and seen[0].flags.c_contiguous  # BGR, as OpenCV reads files


def test_tesseract_reads_words():
    ocr = Ocr("tesseract")
    try:
        ocr.load()
    except UserError as missing:
        pytest.skip(str(missing))
    assert ocr([asked('a sign "Fresh Coffee"', sign("Fresh Coffee"))]) == [{"read": 1.0, "exact": 1.0}]
