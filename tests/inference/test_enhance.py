"""Prompts that are rewritten first: what is drawn is what is said, whoever writes, and bad answers draw nothing."""

import base64
import io
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import openlance
from openlance.errors import UserError
from openlance.inference.dialogue import Dialogue
from openlance.inference.enhance import Enhancer
from openlance.text.phrases import quoted

SEED, STEP = 5, {"num_inference_steps": 1}
LOGGER = "openlance.inference.enhance"


def seeded():
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def enhancer(chat_server) -> Enhancer:
    return Enhancer(url=chat_server.url, model="m", key="secret")


@pytest.fixture
def picture(tiny):
    return tiny.clip(3).pixels[0]


def test_a_call_draws_and_gives_back_the_revised_prompts(pipe, chat_server, enhancer, caplog):
    words, both = ["a ring", "a star", "a ring"], {"output_type": "latent", **STEP}
    made = pipe(words, num_images_per_prompt=2, generator=seeded(), enhance=enhancer, **both)
    assert chat_server.prompts == ["a ring", "a star"], "each once"
    assert made.revised_prompts == [f"{text} in soft light" for text in words]
    same = pipe(made.revised_prompts, num_images_per_prompt=2, generator=seeded(), **both)
    assert torch.equal(made.images, same.images) and same.revised_prompts is None and list(same) == ["images"]
    assert [r.message for r in caplog.records if r.name == LOGGER] == [
        "note: prompt rewritten to 'a ring in soft light'", "note: prompt rewritten to 'a star in soft light'",
    ]  # fmt: skip
    path, key, body = chat_server.asked[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "m"
    pictures, revised = pipe("a ring", return_dict=False, enhance=enhancer.url, **both)
    assert len(pictures) == 1 and revised == ["a ring in soft light"]


def film(tiny):
    return tiny.clip(4, frames=5).pixels


CALLS = {
    "generate": lambda pipe, text, one, clip, **how: pipe.generate(text, **how),
    "generate_video": lambda pipe, text, one, clip, **how: pipe.generate_video(text, num_frames=5, **how),
    "animate": lambda pipe, text, one, clip, **how: pipe.animate(one, text, num_frames=5, **how),
    "animate to": lambda pipe, text, one, clip, **how: pipe.animate(one, text, last=clip[-1], num_frames=5, **how),
    "edit": lambda pipe, text, one, clip, **how: pipe.edit(one, text, **how),
    "edit a clip": lambda pipe, text, one, clip, **how: pipe.edit(clip, text, **how),
    "subject": lambda pipe, text, one, clip, **how: pipe.subject([one, clip[0]], text, **how),
}
SHOWN = {"animate": [0], "animate to": [0, -1], "edit": [0], "edit a clip": [1], "subject": [0, 1]}


@pytest.mark.parametrize("name", CALLS)
def test_every_method_shows_what_it_reads_and_draws_the_revised_prompt(pipe, tiny, chat_server, name, picture):
    clip, call = film(tiny), CALLS[name]
    made = call(pipe, "it glows", picture, clip, enhance=chat_server.url, seed=SEED, **STEP)
    same = call(pipe, "it glows in soft light", picture, clip, seed=SEED, **STEP)
    assert np.array_equal(*(getattr(some[0], "pixels", some[0]) for some in (made, same)))
    sent = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in chat_server.shown[0]]
    frames = {0: picture, 1: clip[0], -1: clip[-1]}
    assert len(sent) == len(SHOWN.get(name, []))
    assert all(np.array_equal(image, frames[at]) for image, at in zip(sent, SHOWN.get(name, [])))


def test_a_dialogue_remembers_what_was_said_and_what_was_drawn(pipe, chat_server):
    talk = Dialogue(pipe, seed=SEED, enhance=chat_server.url, history=1, **STEP)
    drawn, changed = talk.say("draw a ring"), talk.say("make it blue")
    assert (drawn.said, drawn.prompt, changed.prompt) == (
        "a ring",
        "a ring in soft light",
        "make it blue in soft light",
    )
    plain = Dialogue(pipe, seed=SEED, history=1, **STEP)
    plain.draw("a ring in soft light")
    assert np.array_equal(changed.picture.pixels, plain.edit("make it blue in soft light").picture.pixels)
    assert chat_server.prompts == ["a ring", "make it blue"] and [len(s) for s in chat_server.shown] == [0, 1]
    chat_server.reply = (500, b"busy")
    with pytest.raises(UserError, match="busy"):
        talk.edit("add a star")
    assert len(talk.turns) == talk.drawn == 2, "nothing came of it"


def test_a_dialogue_leads_away_from_what_is_not_wanted(pipe):
    away = Dialogue(pipe, seed=SEED, negative_prompt="a star", **STEP).draw("a ring").picture
    same = pipe.generate("a ring", negative_prompt="a star", seed=SEED, **STEP)[0]
    assert np.array_equal(away.pixels[0], same)


def chat(content, **more) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}, **more}]}).encode()


@pytest.mark.parametrize("status, body, said", [
    (200, chat(" \n"), "is empty"),
    (200, chat("<think>a ring, hm</think>"), "is empty"),
    (200, chat("a ring in", finish_reason="length"), "was cut at its limit"),
    (200, chat(None, finish_reason="length"), "was cut at its limit"),
    (200, chat(None), "otherwise than OpenAI's chat"),
    (200, chat([{"text": "a"}]), "otherwise than OpenAI's chat"),
    (200, b'{"error": "no"}', "otherwise than OpenAI's chat"),
    (200, b"[" * 99999, "otherwise than OpenAI's chat"),
    (200, b"<html>Welcome</html>", "otherwise than OpenAI's chat"),
    (200, b"", "otherwise than OpenAI's chat"),
    (200, b"\xff\xfe\x00", "otherwise than OpenAI's chat"),
    (404, b'{"error": {"message": "the model m does not exist"}}', "refused with 404 .*m does not exist"),
    (500, b"<html>\nOops</html>", "refused with 500"),
    (429, b"", "refused with 429: "),
])  # fmt: skip
def test_a_bad_answer_is_one_sentence_and_draws_nothing(pipe, chat_server, enhancer, monkeypatch, status, body, said):
    monkeypatch.setattr(pipe, "fill_latents", lambda *_, **__: pytest.fail("something was drawn"))
    chat_server.reply = (status, body)
    for call in (pipe, pipe.generate):
        with pytest.raises(UserError, match=said) as seen:
            call(["a ring", "a star"], enhance=enhancer)
        assert "\n" not in str(seen.value) and "--" not in str(seen.value) and len(str(seen.value)) < 400
    assert set(chat_server.prompts) == {"a ring"}, "the first failure ends it"


def test_a_server_that_keeps_silent_or_is_not_there(pipe, chat_server):
    wake = threading.Event()
    chat_server.answer = lambda prompt: str(wake.wait(5))
    with pytest.raises(UserError, match="does not answer .*timed out"):
        pipe.generate("a ring", enhance=Enhancer(url=chat_server.url, timeout=0.05))
    wake.set()
    with pytest.raises(UserError, match="does not answer .*refused"):
        pipe.generate("a ring", enhance="http://127.0.0.1:9/v1")


def test_an_answer_is_one_line_without_the_thoughts_before_it(pipe, chat_server):
    chat_server.answer = lambda prompt: f"<think>a ring?</think>\n\n{prompt},\n  golden \n"
    assert pipe("a ring", enhance=chat_server.url, **STEP).revised_prompts == ["a ring, golden"]


@pytest.mark.parametrize("text, found", [
    ('a sign with "OPEN" and “at 9”', {"OPEN", "at 9"}), ("the word 'cat' on the dog's bed, 'tis", {"cat"}),
    ("„Halt“ und «Non» 「止」", {"Halt", "Non", "止"}), ('a "two  word" sign', {"two word"}), ("a ring's star", set()),
])  # fmt: skip
def test_what_stands_in_quotation_marks(text, found):
    assert set(quoted(text)) == found


def test_quoted_text_survives_or_the_prompt_stays(pipe, chat_server, caplog):
    prompt = 'a sign with "OPEN 24" in red'
    good, bare, other = "A sign, “OPEN 24”, in red.", "A sign with OPEN 24 in red", 'a sign with "Open 24" in red'
    for answer, drawn in ((good, good), (bare, prompt), (other, prompt)):
        caplog.clear()
        chat_server.answer = lambda _, answer=answer: answer
        assert pipe(prompt, enhance=chat_server.url, **STEP).revised_prompts == [drawn]
        assert ("lost the quoted text 'OPEN 24'" in caplog.text) == (drawn == prompt)


def test_nano_rewrites_by_itself_and_says_what_it_draws(caplog):
    """It was not trained to, and that is said; the same words come again, and a picture is what they draw."""
    nano = openlance.load("nano")
    made = nano("a red circle", enhance=True, generator=seeded(), output_type="latent", **STEP)
    [revised] = made.revised_prompts
    assert revised and caplog.messages[-1].startswith(
        f"note: prompt rewritten to {revised!r} (the model was not trained"
    )
    again = nano(revised, generator=seeded(), output_type="latent", **STEP)
    assert torch.equal(made.images, again.images)
    assert nano("a red circle", enhance="self", output_type="latent", **STEP).revised_prompts == [revised]
    shown = nano.generate("a red circle", seed=SEED, **STEP)[0]
    assert nano("make it blue", image=shown, enhance=True, output_type="latent", **STEP).revised_prompts != [revised]


def test_an_own_text_without_end_is_refused(pipe, monkeypatch):
    monkeypatch.setattr("openlance.inference.enhance.OWN_TOKENS", 20)
    with pytest.raises(UserError, match="the rewrite of 'a ring' was cut at its limit"):
        pipe.generate("a ring", enhance=True)


@pytest.mark.parametrize("wrong, said", [
    ({"url": "localhost:80"}, "no address"), ({"url": "http://"}, "no address"), ({"url": "http://a\t"}, "no address"),
    ({"url": "file:///etc/passwd"}, "no address"), ({"url": 3}, "url is 3"), ({"url": "http://[::1/"}, "no address"),
    ({"key": "a\nb"}, "key"), ({"timeout": 0}, "timeout"), ({"timeout": "x"}, "timeout"), ({"model": None}, "model is"),
])  # fmt: skip
def test_what_no_server_can_be(wrong, said):
    with pytest.raises(UserError, match=said):
        Enhancer(**{"url": "http://localhost:8000/v1"} | wrong)


def test_keys_are_not_shown():
    assert openlance.Enhancer is Enhancer and "secret" not in repr(Enhancer(url="http://localhost", key="secret"))


@pytest.mark.parametrize("wrong", [3, [], "nowhere", b"self", Enhancer])
def test_what_cannot_write_is_named(pipe, wrong):
    for call in (lambda: pipe("a", enhance=wrong), lambda: Dialogue(pipe, enhance=wrong)):
        with pytest.raises(UserError, match="enhance is|no address"):
            call()
    assert pipe.generate("a ring", enhance=False, **STEP)
