"""Files of repositories of the hub: what is on this machine, fetching the rest, and whether files are what the hub has.

Everything goes through huggingface_hub: its cache, its tokens (HF_TOKEN), its offline switch (HF_HUB_OFFLINE=1), and
its way to go on where a download stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlance.checkpoint.writer import progress
from openlance.errors import UserError
from openlance.media.files import write_json

if TYPE_CHECKING:
    from openlance.checkpoint.formats import Hub

RELEASED = "bytedance-research/Lance"
# Commits that are fetched unless another revision is asked for, so that a later upload changes nothing unnoticed.
PINNED = {RELEASED: "7395315758865e6f56ab87ad06a88c7ac172f056"}
SMALL = ("*.json", "*.txt", "*.jinja")  # configurations, tokenizers and indices of shards


def small_files(repo: str, hub: Hub) -> Path:
    """Find the folder of a repository with its small files on this machine; weights are fetched when they are needed.

    What the cache has is used as it is; `openlance download` brings it up to date. Of a repository that is pinned it is
    the pinned commit, whatever else was fetched.
    """
    folder = cached(repo, hub)
    index = "model_index.json"
    if folder is None or not any(folder.rglob("llm_config.json")) and not (hub.below(folder) / index).is_file():
        return fetch(repo, SMALL, hub=hub)
    return folder


def cached(repo: str, hub: Hub) -> Path | None:
    """Find the snapshot of a repository in the cache, if it is there."""
    from huggingface_hub import constants

    folder = Path(hub.cache_dir or constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    wanted = hub.revision or PINNED.get(repo) or "main"
    name = folder / "refs" / wanted
    found = folder / "snapshots" / (name.read_text(encoding="utf-8").strip() if name.is_file() else wanted)
    return found if found.is_dir() else None


def fetch(repo: str, patterns: Sequence[str] | None = None, *, folder: Path | None = None, hub: Hub) -> Path:
    """Fetch files of a repository; what is there already is kept, and what was cut off goes on.

    Args:
        repo: Its name, owner/model.
        patterns: Of names of files; left out, all.
        folder: Where they go instead of the cache.
        hub: How the hub is read; without a revision it is the commit in `PINNED`, or else the newest.

    Raises:
        UserError: If the hub cannot be reached or has no such thing.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

    again = f"openlance download {repo}" + (f" -o {folder}" if folder is not None else "")
    revision = hub.revision or PINNED.get(repo)
    how: dict[str, Any] = {"cache_dir": hub.cache_dir, "local_files_only": hub.local_files_only or None}
    how = {name: value for name, value in (how | {"token": hub.token}).items() if value is not None}
    try:
        allowed = None if patterns is None else list(patterns)
        return Path(snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=allowed, **how))
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no repository name: give owner/model, for example {RELEASED}") from error
    except LocalEntryNotFoundError as error:
        fix = f"run `{again}` where there is a network, or give a local folder"
        raise UserError(f"{repo} is not on this machine and the hub cannot be reached: {fix}") from error
    except (HfHubHTTPError, HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the hub does not give {repo} ({reason}): check the name, then run `{again}`") from error


def check_hash(path: Path, wanted: str) -> None:
    """Compare a file with the sha256 that the hub has for it. What has passed is remembered by its size and time, so
    that this costs once.

    Raises:
        UserError: If it differs.
    """
    stat = path.stat()
    seen = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    if _remembered().get(seen) == wanted:
        return
    found = sha256(path)
    if found != wanted:
        hashes = f"sha256 {found[:12]}, expected {wanted[:12]}"
        raise UserError(f"{path} is not what the hub has ({hashes}): delete it and run `openlance download` again")
    try:
        write_json(_memory(), _remembered() | {seen: wanted})
    except (UserError, OSError):
        return  # a home that cannot be written: it is checked again next time


def sha256(path: Path) -> str:
    """Hash a file, with a bar where that takes long."""
    digest = hashlib.sha256()
    with path.open("rb") as file, progress(path.stat().st_size, f"checking {path.name}") as on_bytes:
        while piece := file.read(1 << 24):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


def _memory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "openlance" / "checked.json"


def _remembered() -> dict[str, str]:
    try:
        found = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
