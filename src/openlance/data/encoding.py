"""Encoding ahead of time: the parts of a source become shards, on processes of this machine or on a Ray cluster.

What a shard holds depends on the source alone, not on how many work on it or where. A shard appears whole or not at
all, and one that is there already is not made again, unless its part of the source has changed: so the same command
resumes a stopped run, and brings a folder up to date after the data grew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from openlance.config.values import read_json
from openlance.data.encoded import MARK, read_about, write_shard
from openlance.data.fit import Fit
from openlance.data.pool import spread
from openlance.data.source import BrokenRow, Row, Sample, Source
from openlance.errors import UserError
from openlance.media.files import atomic_path

SETTINGS = "encode.json"


class Encode(Protocol):
    """Turns clips into latents and features. codec: what its codec makes of `encoded.PROBE`."""

    codec: list[float]

    def __call__(self, sample: Sample, /) -> Sample: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to encode, how and where to. make: builds the encoder, once in every process that works.

    rows: of the source per shard. about: what identifies the result; a folder holds shards of one `about` only.
    """

    source: Source
    fit: Fit
    make: Callable[[], Encode]
    out: Path
    rows: int = 64
    about: dict[str, Any] = field(default_factory=dict)
    max_broken: float = 0.001


def settle(job: Job) -> None:
    """Note in the folder what it holds; UserError if it holds something else already."""
    path, about = job.out / SETTINGS, job.about | {"rows": job.rows}
    if path.is_file():
        held = read_json(path)
        names = [name for name in held | about if held.get(name) != about.get(name)]
        other = [f"{name} {held.get(name)!r} and not {about.get(name)!r}" for name in names]
        if other:
            raise UserError(f"{job.out} holds shards of {', '.join(other)}: give another folder with -o")
    else:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


class PartEncoder:
    """Encodes whole parts of a source, given by their number; one lives in every working process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._parts: list[Any] | None = None
        self._encode: Encode | None = None

    def __call__(self, number: int) -> dict[str, Any]:
        """Make the shards of a part that are not there yet; plain data about all of them: rows, made, broken."""
        job, at = self.job, 0
        done: dict[str, Any] = {"rows": 0, "made": 0, "broken": []}
        if self._parts is None:
            self._parts = list(job.source.parts(0, None))
        part = self._parts[number]
        stamp = hashlib.sha256(job.source.stamp(part).encode()).hexdigest()[:16]
        while (path := self._path(number, at)).is_file() and (about := read_about(path)).get("part") == stamp:
            _add(done, about)
            if about["last"]:
                return done
            at += 1
        forget(job.out, number, at)
        rows = islice(job.source.rows(part), at * job.rows, None)
        held = list(islice(rows, job.rows))
        while held:
            following = list(islice(rows, job.rows))
            _add(done, self._shard(self._path(number, at), held, {"part": stamp, "last": not following}))
            done["made"] += 1
            at, held = at + 1, following
        return done

    def _path(self, number: int, at: int) -> Path:
        return self.job.out / f"{number:05d}-{at:03d}{MARK}"

    def _shard(self, path: Path, rows: list[Row], more: dict[str, Any]) -> dict[str, Any]:
        if self._encode is None:
            self._encode = self.job.make()
        samples, broken = [], []
        for row in rows:
            try:
                sample = self.job.source.sample(row, self.job.fit, np.random.default_rng(0))
            except BrokenRow as error:
                broken.append([error.place, error.reason])
            else:
                samples.append(self._encode(sample))
        about = self.job.about | more | {"rows": len(rows), "broken": broken, "codec": self._encode.codec}
        write_shard(path, samples, about)
        return about


def forget(folder: Path, number: int, at: int = 0) -> None:
    """Remove the shards of a part, from one of them on: they hold what the source no longer does."""
    for path in folder.glob(f"{number:05d}-*{MARK}"):
        if int(path.name[6:].partition(".")[0]) >= at:
            path.unlink()


def _add(done: dict[str, Any], about: dict[str, Any]) -> None:
    done["rows"] += about["rows"]
    done["broken"] += about["broken"]


def encode(job: Job, workers: int = 0, ray: str | None = None, gpus: float = 0) -> Iterator[dict[str, Any]]:
    """Encode every part and yield what was done so far after each: parts, of, rows, made, broken.

    workers: processes, 0 for this one. ray: address of a cluster, "auto" for the one at hand, "local" to start one;
    gpus: of each worker there. UserError beyond the allowed share of broken rows, with the last one's place.
    """
    settle(job)
    count = len(job.source.parts(0, None))
    for number in {int(path.name[:5]) for path in job.out.glob(f"*{MARK}")}:
        if number >= count:
            forget(job.out, number)
    results = spread(PartEncoder(job), range(count), workers)
    if ray is not None:
        results = _on_ray(job, count, max(workers, 1), ray, gpus)
    total: dict[str, Any] = {"parts": 0, "of": count, "rows": 0, "made": 0, "broken": []}
    for done in results:
        total = {k: total[k] + done[k] for k in ("rows", "made", "broken")} | {"parts": total["parts"] + 1, "of": count}
        most = job.max_broken if job.max_broken >= 1 else math.ceil(job.max_broken * total["rows"])
        if len(total["broken"]) > most:
            place, reason = total["broken"][-1]
            raise UserError(
                f"{place}: {reason} ({len(total['broken'])} of {total['rows']} rows are broken, "
                f"--max-broken {job.max_broken:g} allows {most:g}: mend the data or raise the limit)"
            )
        yield total


class _RayWorker:
    def __init__(self, job: Job) -> None:
        self.encode = PartEncoder(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"done": json.dumps(self.encode(int(row["id"])))}
        except UserError as error:  # Ray would wrap it in its own
            return {"done": json.dumps(str(error))}


def _on_ray(job: Job, count: int, workers: int, address: str, gpus: float) -> Iterator[dict[str, Any]]:
    """The same on Ray Data: one row per part, one actor per worker. Paths must mean the same on every machine."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'openlance[scale]', or leave --ray out") from error
    if not ray.is_initialized():
        try:
            ray.init("local" if address == "local" else address, log_to_driver=False, include_dashboard=False)
        except ConnectionError as error:
            raise UserError(f"there is no Ray cluster at {address!r}: start one, or use --ray local") from error
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of ours
        make: Any = _RayWorker  # a class: Ray makes one object per worker
        pool = ray.data.ActorPoolStrategy(size=workers)
        rows = ray.data.range(count, override_num_blocks=count).map(
            make, compute=pool, fn_constructor_kwargs={"job": job}, num_cpus=1, num_gpus=gpus
        )
        for row in rows.iter_rows():
            done = json.loads(row["done"])
            if isinstance(done, str):
                raise UserError(done)
            yield done
    finally:
        if address == "local":
            ray.shutdown()
