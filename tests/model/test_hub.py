"""Which commit of a repository is used."""

import pytest

from openlance.checkpoint import hub
from openlance.checkpoint.formats import Hub, find_model
from openlance.cli.main import main
from openlance.errors import UserError


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the hub is asked for; nothing is fetched."""
    import huggingface_hub
    from huggingface_hub import constants

    calls = []

    def snapshot_download(repo, *, revision, local_dir, allow_patterns):
        calls.append((repo, revision))
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def snapshot(tmp_path, repo, commit, main=False):
    """A commit of a repository in the cache."""
    folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "snapshots" / commit).mkdir(parents=True)
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


PIN = hub.PINNED[hub.RELEASED]


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        ([], (hub.RELEASED, PIN)),
        ([hub.RELEASED, "--revision", "main"], (hub.RELEASED, "main")),
        (["owner/other"], ("owner/other", None)),
        (["owner/other", "--revision", "v2"], ("owner/other", "v2")),
    ],
)
def test_download_takes_the_pinned_commit_of_the_released_model_alone(asked, capsys, arguments, wanted):
    assert main(["download", *arguments]) == 2 and asked == [wanted]
    assert "cannot be reached" in capsys.readouterr().err


def test_the_cache_is_looked_up_at_the_pinned_commit_whatever_main_is(asked, tmp_path):
    snapshot(tmp_path, hub.RELEASED, "1" * 40, main=True)
    assert hub.cached(hub.RELEASED, Hub()) is None
    with pytest.raises(UserError, match="not on this machine"):
        find_model(hub.RELEASED)
    assert asked == [(hub.RELEASED, PIN)]
    assert snapshot(tmp_path, hub.RELEASED, PIN) == hub.cached(hub.RELEASED, Hub())


def test_other_repositories_follow_their_main(asked, tmp_path):
    assert hub.cached("owner/other", Hub()) is None
    assert snapshot(tmp_path, "owner/other", "2" * 40, main=True) == hub.cached("owner/other", Hub())
