"""The Dockerfile and the compose file fit the project: what they copy is there, what they start is our command with
options that exist, and it is not root that runs it. (hadolint reads the Dockerfile in `make nightly`.)"""

import fnmatch
import json
import re
from pathlib import Path

import pytest
import typer
import yaml

from openlance.serve.command import KEYS, app

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
FINAL = ("cpu", "cuda")


def stages():
    """Instructions of each stage by its name, those of the stage it begins with in front."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    found, now = {}, []
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            now = found[name] = list(found.get(base, []))
        elif word:
            now.append((word, rest.strip()))
    return found


def ignored(path):
    """Whether .dockerignore leaves a path out: the last pattern that fits decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        fits = fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path, pattern.removeprefix("**/"))
        if line and not line.startswith("#") and fits:
            out = not line.startswith("!")
    return out


def last(stage, word):
    return [rest for name, rest in stages()[stage] if name == word][-1]


def options():
    command = typer.main.get_command(app).commands["serve"]
    return {name: option for option in command.params for name in option.opts}


def test_every_source_of_a_copy_is_there_and_not_ignored():
    copied, made = [], stages()
    for stage in made.values():
        for rest in (rest for word, rest in stage if word == "COPY"):
            *sources, _ = rest.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in made
            else:
                copied += sources
    assert {"src", "pyproject.toml", "README.md", "LICENSE"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and not ignored(source), source
    assert ignored("outputs") and ignored(".git") and ignored("tests") and ignored("module.pyc")


@pytest.mark.parametrize("stage", FINAL)
def test_an_image_runs_our_command_itself_and_not_as_root(stage):
    start = json.loads(last(stage, "ENTRYPOINT")) + json.loads(last(stage, "CMD"))  # JSON: no shell between
    assert start[:2] == ["openlance", "serve"] and {name for name in start[2:] if name[:2] == "--"} <= set(options())
    said = dict(zip(start[2::2], start[3::2], strict=True))
    assert said["--host"] == "0.0.0.0" and said["--port"] == last(stage, "EXPOSE") == str(options()["--port"].default)
    assert int(last(stage, "USER")) > 0
    volumes = json.loads(last(stage, "VOLUME"))
    assert said["--folder"] in volumes and f"HF_HOME={volumes[1]}" in last("server", "ENV").split()


@pytest.mark.parametrize("stage", FINAL)
def test_an_image_has_no_build_tools_of_ours_and_asks_for_its_health(stage, server):
    runs = " ".join(rest for word, rest in stages()[stage] if word == "RUN")
    assert "pip" not in runs and "apt" not in runs and "gcc" not in runs
    check = json.loads(last(stage, "HEALTHCHECK").partition("CMD ")[2])
    [url] = re.findall(r"http://[^']+", check[-1])
    exec(check[-1].replace(url, url.replace("http://127.0.0.1:8000", server.url)))  # as it stands, on a real server
    with pytest.raises(OSError):
        exec(check[-1].replace(url, "http://127.0.0.1:9/health"))


def test_compose_builds_the_stages_on_loopback_with_the_volumes_and_keys():
    services = COMPOSE["services"]
    assert {name: one["profiles"] for name, one in services.items()} == {"cpu": ["cpu"], "gpu": ["gpu"]}
    assert {one["build"]["target"] for one in services.values()} == set(FINAL) <= set(stages())
    for one in services.values():
        assert one["ports"] == [f"127.0.0.1:{last('server', 'EXPOSE')}:{last('server', 'EXPOSE')}"]
        mounted = dict(volume.split(":") for volume in one["volumes"])
        assert set(mounted) == set(COMPOSE["volumes"]) and set(mounted.values()) == set(
            json.loads(last("server", "VOLUME"))
        )
        assert KEYS in one["environment"] and set(one["command"][::2]) <= set(options())
    assert "deploy" in services["gpu"] and "deploy" not in services["cpu"]
