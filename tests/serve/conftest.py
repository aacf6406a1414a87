"""One real server for all tests, with nano and few steps, and real clients."""

import base64
import io
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

import openlance
from openlance.media import Clip
from openlance.serve.app import create_app
from openlance.serve.config import ServeConfig
from openlance.serve.media import encoded
from openlance.serve.run import Server


@pytest.fixture(scope="session")
def serving():
    return _serving


@pytest.fixture(scope="session")
def until():
    return _until


@pytest.fixture(scope="session")
def pixels():
    return _pixels


@pytest.fixture(scope="session")
def defects():
    return _defects


@contextmanager
def _defects() -> Iterator[list[str]]:
    """What is logged as an error in a block."""
    told = list[str]()
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    yield told
    logging.getLogger().removeHandler(handler)


@contextmanager
def _serving(pipe, **config) -> Iterator[Server]:
    """A server that runs in a thread until the block ends, ready for work."""
    server = Server(create_app(pipe, ServeConfig(**config)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    _until(lambda: server.started and server.serving.worker.state == "ready", 120)
    yield server
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def _until(true, seconds: float = 30.0):
    """The first true answer of a function."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} seconds")


@pytest.fixture(scope="session")
def pipe():
    return openlance.load("nano")


@pytest.fixture
def whole(pipe, monkeypatch) -> None:
    """nano edits the whole where nobody names a region: to find one by itself costs more than a short edit does."""
    monkeypatch.setattr(pipe, "defaults", replace(pipe.defaults, region={}))


@pytest.fixture(scope="session")
def server(pipe, tmp_path_factory) -> Iterator[Server]:
    with _serving(pipe, folder=tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture(scope="session")
def client(server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def later(server) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def picture(pipe) -> Clip:
    return Clip(np.array(pipe.generate("a red circle", seed=7, num_inference_steps=2)[0])[None])


@pytest.fixture(scope="session")
def png(picture) -> bytes:
    return encoded(picture)


@pytest.fixture(scope="session")
def mp4() -> bytes:
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    for n, frame in enumerate(frames):
        frame[8:16, 2 * n : 2 * n + 8] = 255
    return encoded(Clip(frames), "mp4")


def _pixels(data: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))
