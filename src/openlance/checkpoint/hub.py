"""From a name to files: a shipped model, a folder, or a repository of the hub; what of it is on this machine,
fetching the rest, and whether files are what the hub has.

Everything goes through huggingface_hub: its cache, its tokens (HF_TOKEN), its offline switch (HF_HUB_OFFLINE=1), and
its way to go on where a download stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from openlance.checkpoint.formats import CODEC, Files, Hub, find
from openlance.checkpoint.tensors import listed_files
from openlance.config.values import brief, path_of
from openlance.errors import UserError
from openlance.media.files import atomic_path

RELEASED = "bytedance-research/Lance"
# Commits that are fetched unless another revision is asked for, so that a later upload changes nothing unnoticed.
PINNED = {RELEASED: "7395315758865e6f56ab87ad06a88c7ac172f056"}
SMALL = ("*.json", "*.txt", "*.jinja")  # configurations, tokenizers and indices of shards
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
SHA256 = re.compile(r"[0-9a-f]{64}")


SHIPPED = ("nano",)
HUB = Hub()  # read as it is when nobody says otherwise


def folder_of(model: str | Path) -> Path:
    """The folder of a shipped model or of a path; UserError if there is none."""
    if isinstance(model, str) and model in SHIPPED:
        return Path(str(files("openlance"))) / "assets" / model
    path = path_of("the model", model)
    if path.is_file():
        raise UserError(f"{path} is a file, neither a name nor a folder: give its folder, {path.absolute().parent}")
    if not path.is_dir():
        shipped = ", ".join(SHIPPED)
        raise UserError(
            f"no model {brief(str(model))}: it is neither shipped ({shipped}) nor a folder nor owner/name on the hub; "
            f"try --model nano"
        )
    return path


def find_model(model: str | Path, *, base: str | Path | None = None, hub: Hub = HUB) -> Files:
    """Where the parts of a model are; of a repository of the hub the small files are fetched, weights when needed."""
    if isinstance(model, str) and is_repository(model) and not path_of("the model", model).exists():
        return find_repository(model, hub)
    return find(hub.below(folder_of(model)), base=None if base is None else folder_of(base))


def is_repository(name: str) -> bool:
    """Whether a name has the form owner/model."""
    return REPOSITORY.fullmatch(name) is not None and not name.startswith(".")


def find_repository(repo: str, hub: Hub = HUB) -> Files:
    """The checkpoint of a repository with its small files on this machine; weights are fetched when they are needed.

    What the cache has is used as it is; `openlance download` brings it up to date. Of a repository that is pinned it is
    the pinned commit, whatever else was fetched.
    """
    folder = _cached(repo, hub)
    index = "model_index.json"
    if folder is None or not any(folder.rglob("llm_config.json")) and not (hub.below(folder) / index).is_file():
        folder = fetch(repo, SMALL, hub=hub)
    return replace(find(hub.below(folder)), repo=repo, hub=hub)


def complete(files: Files, part: Path) -> Files:
    """Fetch what is missing of a part (a path of these files) and look again; the revision stays the same."""
    assert files.repo is not None
    deep = len(Path(files.hub.subfolder or "").parts)
    root = files.root.parents[deep - 1] if deep else files.root
    inside = part.parent.relative_to(root).as_posix()
    stems = (CODEC, "vae") if part == files.vae else (part.name.split(".")[0],)
    patterns = [f"{inside}/*"] if inside != "." else [f"{stem}*" for stem in stems]
    folder = fetch(files.repo, patterns, revision=root.name, hub=files.hub)
    return replace(find(files.hub.below(folder)), repo=files.repo, hub=files.hub)


def _cached(repo: str, hub: Hub = HUB) -> Path | None:
    from huggingface_hub import constants

    folder = Path(hub.cache_dir or constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    wanted = hub.revision or PINNED.get(repo) or "main"
    name = folder / "refs" / wanted
    found = folder / "snapshots" / (name.read_text(encoding="utf-8").strip() if name.is_file() else wanted)
    return found if found.is_dir() else None


def fetch(
    repo: str,
    patterns: Sequence[str] | None = None,
    *,
    folder: Path | None = None,
    revision: str | None = None,
    hub: Hub = HUB,
) -> Path:
    """Files of a repository whose names match, in the cache or in a folder; what is there already is kept, and what
    was cut off goes on. revision: left out, the commit in `PINNED` or else the newest. UserError if the hub cannot be
    reached or has no such thing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

    again = f"openlance download {repo}" + (f" -o {folder}" if folder is not None else "")
    revision = revision or hub.revision or PINNED.get(repo)
    how: dict[str, Any] = {
        "cache_dir": hub.cache_dir,
        "local_files_only": hub.local_files_only or None,
        "token": hub.token,
    }
    how = {name: value for name, value in how.items() if value is not None}
    try:
        allowed = None if patterns is None else list(patterns)
        return Path(snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=allowed, **how))
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no repository name: give owner/model, for example {RELEASED}") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{repo} is not on this machine and the hub cannot be reached: run `{again}` where there is a network, or "
            f"give a local folder"
        ) from error
    except (HfHubHTTPError, HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the hub does not give {repo} ({reason}): check the name, then run `{again}`") from error


def known_hash(path: Path) -> str | None:
    """The sha256 that the hub has for a file: from the name of the cached blob, or from what it wrote beside a folder
    that it filled. None for files from elsewhere and small ones, which have no such hash."""
    if path.is_symlink() and SHA256.fullmatch(name := Path(os.readlink(path)).name):
        return name
    for folder in path.absolute().parents:
        notes = folder / ".cache" / "huggingface" / "download"
        if notes.is_dir():
            note = notes / f"{path.absolute().relative_to(folder)}.metadata"
            lines = note.read_text(encoding="utf-8").split("\n") if note.is_file() else []
            return lines[1].strip() if len(lines) > 1 and SHA256.fullmatch(lines[1].strip()) else None
    return None


def check_hashes(weights: Path) -> int:
    """Compare a file, or an index and its shards, with what the hub has, where that is known; returns how many were
    compared. What has passed is remembered by its size and time, so that this costs once. UserError if one differs."""
    compared = 0
    for path in listed_files(weights):
        wanted = known_hash(path)
        if wanted is None:
            continue
        compared += 1
        stat = path.stat()
        seen = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if _remembered().get(seen) == wanted:
            continue
        found = sha256(path)
        if found != wanted:
            raise UserError(
                f"{path} is not what the hub has (sha256 {found[:12]}, expected {wanted[:12]}): delete it and get it "
                f"again with `openlance download`"
            )
        _remember(seen, wanted)
    return compared


def sha256(path: Path) -> str:
    from tqdm import tqdm

    digest, size = hashlib.sha256(), path.stat().st_size
    bar = tqdm(total=size, desc=f"checking {path.name}", unit="B", unit_scale=True, delay=2.0, leave=False)
    with path.open("rb") as file, bar:
        while piece := file.read(1 << 24):
            digest.update(piece)
            bar.update(len(piece))
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


def _remember(seen: str, wanted: str) -> None:
    try:
        with atomic_path(_memory()) as path:
            path.write_text(json.dumps(_remembered() | {seen: wanted}), encoding="utf-8")
    except (UserError, OSError):
        return  # a home that cannot be written: it is checked again next time
