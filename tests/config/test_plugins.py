"""A package adds by entry points alone; without them everything else works, and what it adds is named."""

import json
import subprocess
import sys

import pytest

from openlance.cli.main import COMMANDS, load_command
from openlance.config.plugins import plugin, plugins

GROUPS = ("sources", "recipes", "benchmarks", "commands", "rewards")


@pytest.mark.parametrize("group", GROUPS)
def test_everything_that_is_listed_can_be_loaded(group):
    assert plugins(group) and all(plugin(group, name) is not None for name in plugins(group))
    assert plugin(group, "nothing") is None


def test_a_plugin_adds_and_never_replaces_a_command():
    assert not COMMANDS.keys() & plugins("commands").keys()
    assert all(load_command(name).name == name for name in plugins("commands"))


HIDDEN = """
import contextlib, io, json, sys
sys.modules["toyworld"] = sys.modules["lance_parity"] = None
from openlance.cli.main import main
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(line)
    print(json.dumps([code, out.getvalue()]))
"""


def test_without_what_plugs_in(tmp_path):
    """One process does all of it."""
    lines = [
        (["--help"], 0, "generate"),
        (["explain", "t2i", "--model", "nano"], 0, "LATENTS"),
        (["demo"], 2, "the plugin demo"),
        (["verify", "somewhere"], 2, "the plugin verify"),
        (["train", "recipe/nano", "-o", "nowhere"], 2, "the plugin nano"),
    ]
    start = [sys.executable, "-c", HIDDEN, json.dumps([line for line, _, _ in lines])]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (line, code, said), told in zip(lines, map(json.loads, done.stdout.splitlines()), strict=True):
        assert told[0] == code and said in told[1], line
    assert not list(tmp_path.iterdir())
