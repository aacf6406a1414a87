"""The Studio as people have it: the command in its own process, and Chromium with an empty profile for each test."""

import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "outputs" / "studio"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
LIMIT = 30_000  # milliseconds; a busy machine is slow


@contextmanager
def _studio(folder, *options):
    """The address of a running Studio and its process; what it says on stderr lands in the folder."""
    command = [sys.executable, "-m", "openlance.cli.main", "studio", "--no-browser", "--port", "0", "--folder"]
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    with open(folder / "stderr", "w") as stderr:
        process = subprocess.Popen(
            [*command, str(folder), *options], stdout=subprocess.PIPE, stderr=stderr, text=True, env=unbuffered
        )
    watch = threading.Timer(120, process.kill)  # a server that never answers ends the test
    watch.start()
    try:
        found = (re.search(r"http://\S+", line) for line in process.stdout)
        url = next(match[0] for match in found if match)
        watch.cancel()
        yield url, process
    finally:
        watch.cancel()
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="session")
def studio():
    return _studio


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    with _studio(tmp_path_factory.mktemp("studio")) as (url, _):
        yield url


@pytest.fixture(scope="session")
def chromium():
    if not CHROMIUM:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Opens the page in a new profile; at the end nothing may have gone wrong in it, or left for another host."""
    contexts, wrong, host = [], [], address.split("/studio")[0]

    def see(**options):
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        context.set_default_timeout(LIMIT)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: wrong.append(asked.url) if elsewhere(asked.url) else None)
        page.goto(address)
        page.wait_for_selector("#chips button")
        return page

    def elsewhere(url):
        return not url.startswith((host, "data:", "blob:"))

    yield see
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def shot():
    """Keeps a picture of a page for people."""
    SHOTS.mkdir(parents=True, exist_ok=True)

    def keep(page, name):
        page.mouse.move(0, 0)
        page.screenshot(path=SHOTS / f"{name}.png")

    return keep
