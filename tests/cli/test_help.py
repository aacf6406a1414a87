"""Help answers at once: no command imports torch or numpy before it has parsed its arguments."""

import importlib
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from openlance.cli.main import COMMANDS, load_command, main

SRC = Path(__file__).parents[2] / "src"
HEAVY = {"torch", "numpy", "transformers", "diffusers", "PIL", "av", "safetensors", "tokenizers"}
HERE = {name: module for name, (module, _) in COMMANDS.items() if find_spec(module)}


def python(code: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )


def test_help_imports_nothing_heavy():
    lines = [["--help"], *([name, "--help"] for name in HERE), ["generate", "t2i", "--help"]]
    done = python(
        f"import sys; from openlance.cli.main import main\nfor line in {lines}:\n    code = main(line)\n"
        f"    print('HEAVY', code, sorted({HEAVY} & set(sys.modules)), line)"
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("HEAVY ")]
    assert said == [f"HEAVY 0 [] {line}" for line in lines], done.stderr


def test_help_imports_no_subcommand():
    done = python("import sys; from openlance.cli.main import main, COMMANDS; main(['--help'])\n"
                  "print('LOADED', [m for m, _ in COMMANDS.values() if m in sys.modules])")  # fmt: skip
    assert "LOADED []" in done.stdout, done.stdout + done.stderr


# The least program of the library that shows help.
LEAST = """
import typer
app = typer.Typer(rich_markup_mode="markdown")
app.callback()(lambda: None)
app.command("one")(lambda: None)
app(["--help"])
"""


def processor_seconds(program: str) -> float:
    before = os.times()
    assert python(program).returncode == 0
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def test_help_is_quick():
    """At most twice what the library itself takes, which is 0.3 s on the machine of the figures; best of three."""
    ours, least = ("from openlance.cli.main import main; main(['--help'])", LEAST)
    spent = [(processor_seconds(ours), processor_seconds(least)) for _ in range(3)]
    mine, its = (min(times) for times in zip(*spent, strict=True))
    assert mine < 2 * its, spent


def test_a_wrong_word_answers_without_a_model():
    start = time.perf_counter()
    assert main(["generate", "t2i", ""]) == 2
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("name", sorted(HERE))
def test_every_command_says_what_it_does(name, capsys):
    assert load_command(name).help
    assert importlib.import_module(HERE[name]).__doc__
    assert main([name, "--help"]) == 0
    assert "Usage: openlance " + name in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(HERE.keys() - {"bench"}))
def test_help_says_image_video_and_vae(name):
    """One word per thing, in what people read first."""
    command = load_command(name)
    leaves = [command, *getattr(command, "commands", {}).values()]
    said = [text or "" for one in leaves for text in (one.help, *(getattr(p, "help", "") for p in one.params))]
    assert not re.findall(r"(?i)\b(?:picture|clip|medium|visual|codec|few bit)s?\b", "\n".join(said))


def test_help_lists_every_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said and summary in said for name, (_, summary) in COMMANDS.items())


def test_version_is_the_installed_one(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("openlance")
