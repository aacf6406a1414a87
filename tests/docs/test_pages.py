"""Every block of the tutorials runs as it stands there, from top to bottom, with nano.

`downloads` is nano in the form of the released tree, so commands for released weights run too; training is cut short.
A block is left out only after a comment `<!-- not run: why -->`. The README runs in tests/install.py.
"""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from openlance.cli.main import main

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>.*?) -->\n)?^(?P<indent> *)```(?P<kind>python|sh)\n(?P<code>.*?)^(?P=indent)```", re.M | re.S
)
SHORTER = {"openlance train lora": " --steps 2"}


def blocks(page: Path):
    """(mark, kind, code) of every block."""
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield found["mark"] or "", found["kind"], re.sub(rf"(?m)^{found['indent']}", "", found["code"])


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The released tree, with nano's weights."""
    folder = tmp_path_factory.mktemp("released") / "downloads"
    assert main(["convert", "nano", str(folder), "--to", "released"]) == 0
    return folder


@pytest.fixture
def server(tmp_path):
    """The address of a server with nano."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    line = [sys.executable, "-m", "openlance.cli.main", "serve", "--port", str(port)]
    with subprocess.Popen([*line, "--folder", str(tmp_path / "served")], stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not answers(f"{url}/ready"):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        yield url
        process.terminate()


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


@pytest.mark.nightly
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_tutorial_runs(page, released, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(released, "downloads")
    shutil.copytree(ROOT / "examples", "examples")
    shell = "set -eo pipefail; openlance() { " + f'"{sys.executable}" -m openlance.cli.main "$@"; }}\n'
    url = request.getfixturevalue("server") if any(mark == "server" for mark, *_ in blocks(page)) else ""
    names: dict = {"__name__": "tutorial"}
    for mark, kind, code in blocks(page):
        code = code.replace("http://localhost:8000", url)
        if mark.startswith("not run"):
            continue
        if kind == "python":
            exec(compile(code, str(page), "exec"), names)
            continue
        for line, more in SHORTER.items():
            code = re.sub(rf"(?m)^({line}(?:(?!--steps).)*)$", rf"\1{more}", code)
        code = code.replace("python examples", f'"{sys.executable}" examples').replace(
            "| head -3", "| sed 3q > start.txt"
        )
        done = subprocess.run(["bash", "-c", shell + code], capture_output=True, text=True)
        assert done.returncode in (0, 141), f"{code}\n{done.stdout}\n{done.stderr}"


def test_what_is_not_run_says_why():
    marks = [mark for page in TUTORIALS for mark, *_ in blocks(page)]
    assert len(marks) > 30 and {mark.split(":")[0] for mark in marks} <= {
        "",
        "server",
        "not run",
        "fit",
        "/fit",
        "lora",
        "/lora",
    }
    assert sum(mark.startswith("not run: ") for mark in marks) < 6
