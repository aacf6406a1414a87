"""Entries as requests: what becomes of answers, sizes and priors; prompts that a server rewrites."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from openlance.compat.inputs import Entry
from openlance.compat.requests import Job, build, find_file
from openlance.config.sampling import NO_PRIOR
from openlance.errors import UserError
from openlance.inference.enhance import Enhancer
from openlance.media import write_image
from openlance.sequence.segment import Kind, Role


def entry(data):
    return Entry("1", "000001", data)


def arrays(values, kinds, targets):
    return {"interleave_array": values, "element_dtype_array": kinds, "istarget_in_interleave": targets}


@pytest.fixture
def picture(tmp_path, tiny):
    write_image(tmp_path / "one.png", tiny.clip(0, height=24, width=16))
    return tmp_path / "one.png"


def test_a_known_answer_is_a_hole_to_fill(pipe, picture):
    data = arrays([str(picture), ["Look.", "what?", "a ring"]], ["image", "text"], [0, 1])
    segments, prompt = build(pipe, entry(data), Job(task="x2t_image", size=(1, 16, 16)))
    assert prompt == "what?" and segments[-1].is_empty
    assert [s.value for s in segments if s.kind is Kind.TEXT] == ["Look.", "what?", None]


def test_a_model_without_priors_gets_none_and_is_asked_in_words(checkpoint, picture):
    pipe = checkpoint.load()
    pipe.defaults = replace(pipe.defaults, style=NO_PRIOR)
    data = arrays([str(picture), "a ring"], ["image", "text"], [0, 1])
    segments, _ = build(pipe, entry(data), Job(task="x2t_image", size=(1, 16, 16)))
    assert not any(s.role is Role.SYSTEM for s in segments)
    assert [s.value for s in segments if s.kind is Kind.TEXT] == ["describe the picture", None]


def test_an_edit_has_the_size_of_its_source(pipe, picture):
    data = arrays(["make it red", str(picture)], ["text", "image"], [0, 0])
    segments, prompt = build(pipe, entry(data), Job(task="image_edit", size=(1, 16, 16)))
    assert prompt == "make it red" and segments[-1].size == segments[1].size[:1] + segments[2].size[1:]
    assert segments[-1].size[1] > segments[-1].size[2]


def test_paths_are_looked_up_from_the_file_upwards(tmp_path, tiny, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    write_image(tmp_path / "top.png", tiny.clip(0))
    assert find_file("top.png", tmp_path / "a" / "b").samefile(tmp_path / "top.png")
    with pytest.raises(UserError, match="no file nothing.png"):
        find_file("nothing.png", tmp_path / "a" / "b")


class Chat(BaseHTTPRequestHandler):
    asked: list = []
    answer = {"choices": [{"message": {"content": " a red circle in soft light \n"}}]}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, self.headers.get("Authorization"), json.loads(body)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A real server on this machine that speaks the chat form."""
    found = HTTPServer(("127.0.0.1", 0), Chat)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()
    found.server_close()


def test_prompts_are_rewritten_and_pictures_shown(pipe, picture, server):
    Chat.asked.clear()
    enhancer = Enhancer(url=server, model="m", key="secret")
    job = Job(task="t2i", size=(1, 16, 16), enhancer=enhancer)
    segments, prompt = build(pipe, entry("a red circle"), job)
    assert prompt == "a red circle in soft light" and prompt in [s.value for s in segments]
    path, key, body = Chat.asked[0]
    assert (
        path == "/v1/chat/completions" and key == "Bearer secret" and "a red circle" in body["messages"][0]["content"]
    )
    data = arrays(["it moves", str(picture)], ["text", "image"], [0, 0])
    build(pipe, entry(data), Job(task="i2v", size=(5, 16, 16), enhancer=enhancer))
    assert Chat.asked[1][2]["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    edit = Job(task="image_edit", size=(1, 16, 16), enhancer=enhancer)
    assert build(pipe, entry(data), edit)[1] == "it moves" and len(Chat.asked) == 2, "instructions stay as they are"


def test_a_server_that_fails_is_one_sentence(server):
    with pytest.raises(UserError, match="does not answer"):
        Enhancer(url="http://127.0.0.1:9/v1", model="m", timeout=2).rewrite("a ring", "image")
    Chat.answer, before = {"error": "no"}, Chat.answer
    with pytest.raises(UserError, match="another form"):
        Enhancer(url=server, model="m").rewrite("a ring", "image")
    Chat.answer = before
