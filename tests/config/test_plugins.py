"""A package adds by entry points alone; without them everything else works, and what it adds is named."""

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


@pytest.mark.parametrize(
    "line, code, said",
    [
        (["--help"], 0, "generate"),
        (["explain", "t2i", "--model", "nano"], 0, "LATENTS"),
        (["demo"], 2, "the plugin demo"),
        (["verify", "somewhere"], 2, "the plugin verify"),
        (["train", "recipe/nano", "-o", "nowhere"], 2, "the plugin nano"),
    ],
)
def test_without_what_plugs_in(line, code, said, tmp_path):
    hidden = "import sys; sys.modules['toyworld'] = sys.modules['lance_parity'] = None; "
    hidden += f"from openlance.cli.main import main; sys.exit(main({line}))"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code and said in done.stdout + done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
