"""Encoding ahead of time: shards of samples whose media are latents and ViT features already.

A shard is one safetensors file. Tensors: "SAMPLE/SEGMENT" (T, Y, X, C) latents or (t, y, x, D) features in half
precision or uint8 pixels (T, H, W, 3), "SAMPLE/SEGMENT/given", "SAMPLE/labels". Its metadata hold everything else as
JSON, and nothing is unpickled. Targets may be what a model drew (`training.results`): their samples have a seed.

The parts of a source become shards on processes of this machine or on a Ray cluster. What a shard holds depends on the
source alone, not on how many work on it or where. A shard appears whole or not at all. One that is there already is not
made again, unless what it was made of has changed (by content: the rows of its part, the weights, the sizes): the same
command resumes a stopped run, and brings a folder up to date.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from openlance.config.values import read_json
from openlance.data.front import Fit
from openlance.data.pool import in_order
from openlance.data.source import BrokenRow, Files, Row, Sample, Source, check_broken, readable
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import atomic_path, write_json
from openlance.sequence.segment import Kind, Region, Role, Segment

if TYPE_CHECKING:
    from torch import Tensor

MARK = ".encoded.safetensors"
FORMAT = "openlance encoded 1"
SETTINGS = "encode.json"
# An image whose latents tell one VAE from another, in whatever file and precision either is kept.
PROBE = Clip(np.arange(64 * 64 * 3, dtype=np.uint32).reshape(1, 64, 64, 3).astype(np.uint8))
ALIKE = 0.1  # by how much means of normalized latents may differ between precisions


def probed(latents: Any) -> list[float]:
    """Return the means of the channels of PROBE's latents (..., C), as a shard notes them."""
    return [round(float(mean), 3) for mean in latents.reshape(-1, latents.shape[-1]).float().mean(0)]


def write_shard(path: Path, samples: Sequence[Sample], about: dict[str, Any]) -> None:
    """Write a shard, which appears whole or not at all.

    Args:
        path: The file.
        samples: Their media are tensors or videos.
        about: Plain data that `read_about` gives back.

    Raises:
        UserError: If the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors, described = dict[str, Any](), []
    for n, sample in enumerate(samples):
        entries = []
        for k, s in enumerate(sample.segments):
            held = {"text": s.value} if s.kind is Kind.TEXT else {"size": list(s.size or ())}
            entries.append({"kind": s.kind.name, "role": s.role.name} | held)
            if s.kind is not Kind.TEXT:
                tensors |= {f"{n}/{k}": s.value, f"{n}/{k}/given": s.given}
                tensors[f"{n}/{k}/region"] = s.region.inside if s.region is not None else None
        tensors[f"{n}/labels"] = sample.labels
        drawn = {} if sample.seed is None else {"seed": sample.seed}
        described.append({"id": sample.id, "segments": entries} | drawn)
    # One entry, since the order of several is not fixed and equal data should be equal files.
    metadata = {FORMAT: json.dumps({"about": about, "samples": described})}
    with atomic_path(path) as temporary:
        try:
            save_file({k: _stored(v) for k, v in tensors.items() if v is not None}, temporary, metadata)
        except (SafetensorError, OSError) as error:
            fix = "make room and start again, finished shards stay"
            raise UserError(f"cannot write {path} ({error}): {fix}") from error


def _stored(value: Any) -> Tensor:
    """Pixels and labels as they are, latents and features in half precision."""
    import torch

    if isinstance(value, (Clip, np.ndarray)):
        return torch.from_numpy(np.ascontiguousarray(value.pixels if isinstance(value, Clip) else value))
    return value.half().contiguous()


def _opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """The shard and what it says of itself."""
    from safetensors import SafetensorError, safe_open

    with readable(path, lambda: "is damaged", SafetensorError):
        file = safe_open(path, framework="pt")
        metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise UserError(f"{path} is not a shard of `openlance encode`: encode the data again with this version")
    return file, json.loads(metadata[FORMAT])


def read_about(path: Path) -> dict[str, Any]:
    """Return what `write_shard` noted; UserError if the file has vanished or is damaged."""
    return _opened(path)[1]["about"]


@dataclass(frozen=True)
class EncodedSource(Files):
    """Rows of encoded shards; a part is one shard."""

    task: str
    light = True

    def __post_init__(self) -> None:
        held = read_about(self.files[0])["task"]
        if held != self.task:
            raise UserError(f"{self.files[0]} holds samples of {held}, not of {self.task}: encode those as well")

    def check_vae(self, found: Sequence[float]) -> None:
        """Raise a UserError if the latents are of another VAE than the one that makes `found` of PROBE."""
        held = read_about(self.files[0]).get("codec", ())
        if len(held) != len(found) or max(abs(a - b) for a, b in zip(held, found, strict=True)) > ALIKE:
            said = f"{self.files[0].parent} holds latents of another VAE than the model's"
            raise UserError(f"{said}: encode the data again with the model that is trained")

    def rows(self, part: Path) -> list[Row]:
        file, said = _opened(part)
        names = set(file.keys())
        return [Row(f"{part}, row {n}", (file, names, n, described)) for n, described in enumerate(said["samples"])]

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        import torch

        file, names, n, described = row.values

        def value(name: str) -> Any:
            if name not in names:
                return None
            tensor = file.get_tensor(name)
            return Clip(tensor.numpy()) if tensor.dtype is torch.uint8 else tensor.float()

        segments = []
        for k, entry in enumerate(described["segments"]):
            held, size = entry.get("text", value(f"{n}/{k}")), tuple(entry["size"]) if "size" in entry else None
            given, inside = value(f"{n}/{k}/given"), f"{n}/{k}/region"
            region = Region(file.get_tensor(inside).numpy()) if inside in names else None
            segments.append(Segment(Kind[entry["kind"]], Role[entry["role"]], held, size, given, region))
        labels = file.get_tensor(f"{n}/labels").numpy() if f"{n}/labels" in names else None
        return Sample(segments, described["id"], labels, seed=described.get("seed"))


class Encode(Protocol):
    """Turns the media of the samples of a shard into latents and features. probe: `probed` latents of its VAE."""

    probe: list[float]

    def __call__(self, samples: Iterable[Sample], /) -> list[Sample]: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to encode, how and where to.

    Args:
        source: What is read.
        fit: How its rows become samples.
        make: Builds the encoder, once in every process that works.
        out: Folder of the shards.
        rows: Rows of the source per shard.
        about: What identifies the result; a folder holds shards of one `about` only.
        content: Of what else its values depend, such as a hash of the weights and the sizes: where that has changed,
            shards are made anew.
        max_broken: Broken rows to skip, see `check_broken`.
        refuses: Says why a sample cannot be used, whose row is then a broken one; nothing where it can.
    """

    source: Source
    fit: Fit
    make: Callable[[], Encode]
    out: Path
    rows: int = 64
    about: dict[str, Any] = field(default_factory=dict)
    content: str = ""
    max_broken: float = 0.001
    refuses: Callable[[Sample], str] | None = None

    def shards(self) -> dict[Path, list[int]]:
        """Return the shards that are there, with the numbers of their parts and their numbers in these."""
        return {p: [int(n) for n in p.name.removesuffix(MARK).split("-")] for p in self.out.glob(f"*-*{MARK}")}

    def settle(self) -> None:
        """Note in the folder what it holds; UserError if it holds something else already."""
        path, about = self.out / SETTINGS, self.about | {"rows": self.rows}
        held = read_json(path) if path.is_file() else about
        names = [name for name in held | about if held.get(name) != about.get(name)]
        other = [f"{name} {held.get(name)!r} and not {about.get(name)!r}" for name in names]
        if other:
            raise UserError(f"{self.out} holds shards of {', '.join(other)}: choose another folder")
        write_json(path, about)


class PartEncoder:
    """Encodes whole parts of a source, given by their number; one lives in every working process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._parts: list[Any] | None = None
        self._encode: Encode | None = None

    def __call__(self, number: int) -> dict[str, Any]:
        """Make the shards of a part that are not there yet; return plain data about all of them: rows, made, broken,
        refused."""
        job, at, made, done = self.job, 0, 0, list[dict[str, Any]]()
        if self._parts is None:
            self._parts = list(job.source.parts(0, None))
        part = self._parts[number]
        stamp = hashlib.sha256(f"{job.source.stamp(part)}\n{job.content}".encode()).hexdigest()[:16]
        while (path := self._path(number, at)).is_file() and (about := read_about(path)).get("part") == stamp:
            done.append(about)
            at += 1
            if about["last"]:
                break
        else:
            for path, (of, later) in job.shards().items():
                if of == number and later >= at:  # it holds what the source no longer does
                    path.unlink()
            rows = islice(job.source.rows(part), at * job.rows, None)
            held = list(islice(rows, job.rows))
            while held:
                following = list(islice(rows, job.rows))
                done.append(self._shard(self._path(number, at), held, {"part": stamp, "last": not following}))
                made, at, held = made + 1, at + 1, following
        broken = [row for about in done for row in about["broken"]]
        refused = sum(about.get("refused", 0) for about in done)
        return {"rows": sum(about["rows"] for about in done), "made": made, "broken": broken, "refused": refused}

    def _path(self, number: int, at: int) -> Path:
        return self.job.out / f"{number:05d}-{at:03d}{MARK}"

    def _shard(self, path: Path, rows: list[Row], more: dict[str, Any]) -> dict[str, Any]:
        if self._encode is None:
            self._encode = self.job.make()
        broken = list[list[str]]()
        encoded = self._encode(self._samples(rows, broken))  # one by one, since each may be a long video
        refused = sum(s.seed is not None and s.segments[-1].is_empty for s in encoded)
        about = self.job.about | more | {"rows": len(rows), "broken": broken, "codec": self._encode.probe}
        about |= {"refused": refused} if refused else {}
        write_shard(path, encoded, about)
        return about

    def _samples(self, rows: list[Row], broken: list[list[str]]) -> Iterator[Sample]:
        """The samples of rows; those that cannot be used are noted."""
        for row in rows:
            try:
                sample = self.job.source.sample(row, self.job.fit, _draws_of(row))
            except BrokenRow as error:
                broken.append([error.place, error.reason])
                continue
            if self.job.refuses is not None and (reason := self.job.refuses(sample)):
                broken.append([row.place, reason])
            else:
                yield sample


def _draws_of(row: Row) -> np.random.Generator:
    """The draws of a row that leaves a choice: always the same for one, others for another."""
    return np.random.default_rng(zlib.crc32(row.place.encode()))


def encode(job: Job, workers: int = 0, ray: str | None = None, gpus: float = 0) -> Iterator[dict[str, Any]]:
    """Encode every part and yield what was done so far after each: parts, of, rows, made, broken, refused (targets that
    were drawn and not kept).

    Args:
        job: What to encode.
        workers: Processes, 0 for this one.
        ray: Address of a cluster, "auto" for the one at hand, "local" to start one.
        gpus: Of each worker there.

    Raises:
        UserError: Beyond the allowed share of broken rows, with the last one's place.
    """
    job.settle()
    count = len(job.source.parts(0, None))
    for path, (number, _) in job.shards().items():
        if number >= count:
            path.unlink()
    results = in_order(PartEncoder(job), range(count), workers)
    if ray is not None:
        results = _on_ray(job, count, max(workers, 1), ray, gpus)
    total: dict[str, Any] = {"rows": 0, "made": 0, "broken": [], "refused": 0}
    try:
        for parts, done in enumerate(results, start=1):
            total = {k: total[k] + done[k] for k in ("rows", "made", "broken", "refused")}
            if total["broken"]:
                check_broken(BrokenRow(*total["broken"][-1]), len(total["broken"]), total["rows"], job.max_broken)
            yield total | {"parts": parts, "of": count}
    finally:
        if not job.shards():  # what could not begin is not what the folder holds
            (job.out / SETTINGS).unlink(missing_ok=True)


def _on_ray(job: Job, count: int, workers: int, address: str, gpus: float) -> Iterator[dict[str, Any]]:
    """The same on Ray: one call per part, one actor per worker. Paths must mean the same on every machine."""
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise UserError("a Ray cluster needs Ray: pip install 'openlance[scale]', or leave ray out") from error
    try:
        if not ray.is_initialized():
            ray.init(address, log_to_driver=False, include_dashboard=False)
        actor = ray.remote(num_cpus=1, num_gpus=gpus)(PartEncoder)
        pool: Any = ActorPool([actor.remote(job) for _ in range(workers)])
        yield from pool.map(lambda encoder, number: encoder.__call__.remote(number), range(count))
    except ConnectionError as error:
        raise UserError(f"there is no Ray cluster at {address!r}: start one, or choose ray='local'") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        if address == "local":
            ray.shutdown()
