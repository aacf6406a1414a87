"""The results of a benchmark in the folders that its official scorer reads, and how they were made.

An item that is there is not made again. What must not change between two runs into a folder stands in its manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.config.sampling import LARGEST_SEED, Decoding
from openlance.config.values import differences, read_json
from openlance.config.versions import versions
from openlance.errors import UserError
from openlance.eval.records import Record, read_lines, read_records, write_records
from openlance.media import Clip
from openlance.media.files import atomic_path, notice, write_json
from openlance.media.write import write_image, write_media
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import TASKS

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

MANIFEST, ITEMS = "manifest.json", "items.jsonl"
ANSWERS = "answers.jsonl"
LARGER = 4  # times a model's usual area at most: what is asked beyond that is made in the model's own size


@dataclass(frozen=True, kw_only=True)
class Job:
    """One item of a benchmark: what is asked, how often, and where the results stand.

    Args:
        group: Task, tag or category.
        key: Of the item in its group.
        task: A name of `sequence.tasks.TASKS`.
        prompt: Words.
        media: What is read, each when it is called.
        samples: Results of it.
        file: Of result {k}, below the folder; empty for answers.
        grid: Whether all results stand in one file, left to right and line by line.
        beside: Other files that belong to it, by their names.
        found: What a record of an answer says besides.
    """

    group: str
    key: str
    task: str
    prompt: str
    media: tuple[Callable[[], Clip], ...] = ()
    samples: int = 1
    file: str = ""
    grid: bool = False
    beside: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Where its results stand."""
        return list(dict.fromkeys(self.file.format(k=k) for k in range(self.samples))) if self.file else []


def braced(name: str) -> str:
    """A name as part of `Job.file`."""
    return name.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True, kw_only=True)
class Seeding:
    """Where noise comes from.

    Args:
        seed: The first one.
        world: None: every item and sample has noise of its own. A number: as the release's scripts on so many
            processes, where result k of all items of a process has the seed seed + k + rank * most.
        most: See world (release: --max_samples, 8, or 100000 for GEdit).
    """

    seed: int = 42
    world: int | None = None
    most: int = 8

    def of(self, job: Job, number: int, k: int) -> int:
        """The seed of result k of item `number`."""
        if self.world is not None:
            return self.seed + k + number % self.world * self.most
        place = json.dumps([self.seed, job.group, job.key, k]).encode()
        return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big") % LARGEST_SEED


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the results of a benchmark are made.

    Args:
        benchmark: Its name.
        size: Frames, height and width in pixels; None where the input decides.
        sampling: Fields of `Sampling`.
        seeding: Where noise comes from.
        limit: Items of a group at most, for a look; 0: all.
        max_new_tokens: Of an answer.
    """

    benchmark: str
    size: tuple[int, int, int] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seeding: Seeding = field(default_factory=Seeding)
    limit: int = 0
    max_new_tokens: int = 100


def fitting(pipe: LancePipeline, run: Run) -> tuple[int | None, int | None, int | None]:
    """The size that is asked for: the benchmark's, or the model's own where that is far too large for it."""
    if run.size is None:
        return None, None, None
    frames, height, width = run.size
    usual = pipe.defaults
    if height * width > LARGER * usual.height * usual.width:
        notice(f"{width}x{height} is far too large for this model: its own {usual.width}x{usual.height} is used")
        height, width = usual.height, usual.width
        frames = min(frames, usual.num_frames)
    return frames, height, width


def chosen(jobs: Sequence[Job], limit: int) -> list[Job]:
    """The first items of every group, as many as `limit`; all without one."""
    seen, kept = dict[str, int](), list[Job]()
    for job in jobs:
        seen[job.group] = seen.get(job.group, 0) + 1
        if not limit or seen[job.group] <= limit:
            kept.append(job)
    return kept


def expected(jobs: Sequence[Job]) -> dict[str, int]:
    """Results by group."""
    found = dict[str, int]()
    for job in jobs:
        found[job.group] = found.get(job.group, 0) + job.samples
    return found


def sample(
    pipe: LancePipeline,
    jobs: Sequence[Job],
    folder: Path,
    run: Run,
    *,
    rank: int = 0,
    world: int = 1,
    on_done: Callable[[int], Any] = lambda n: None,
) -> None:
    """Make what is missing in a folder, and its manifest.

    Args:
        pipe: The model.
        jobs: All items, in the benchmark's order.
        folder: Of the results.
        run: How.
        rank: Which of the processes that share the work this is.
        world: How many there are; each takes every world-th item.
        on_done: Told of every so many results that are there.

    Raises:
        UserError: The folder has results of another run, or the model cannot make what is asked.
    """
    asked = fitting(pipe, run)
    kept = chosen(jobs, run.limit)
    if len({(job.group, job.key) for job in kept}) != len(kept):
        raise UserError(f"{run.benchmark}: two items have one name in their group: its files are not those expected")
    check_manifest(folder, manifest(pipe, kept, run, asked), write=rank == 0)
    if rank == 0:
        write_items(folder, kept)
    answers = folder / (ANSWERS if world == 1 else f"answers-{rank}.jsonl")
    told = {record.place: record for record in read_records(answers)} if answers.is_file() else {}
    waiting = list[tuple[Job, int]]()
    for number, job in enumerate(kept):
        if number % world != rank:
            continue
        there = (job.group, job.key, 0) in told if not job.file else all((folder / f).is_file() for f in job.files)
        if there:
            on_done(job.samples)
        else:
            waiting.append((job, number))
    for batch in _batches(pipe, waiting, asked):
        if TASKS[batch[0][0].task].makes == "text":
            said = pipe.fill_text([request for _, _, request in batch], Decoding(max_new_tokens=run.max_new_tokens))
            for (job, _, _), answer in zip(batch, said, strict=True):
                found = {"prompt": job.prompt, "answer": str(answer), **job.found}
                told[job.group, job.key, 0] = Record(group=job.group, key=job.key, found=found)
            write_records(answers, told.values())
            on_done(len(batch))
        for job, number, request in batch:
            if job.file:
                _draw(pipe, job, request, run, number, folder)
                on_done(job.samples)


def _draw(pipe: LancePipeline, job: Job, request: Segments, run: Run, number: int, folder: Path) -> None:
    """Make and write the results of one item that are not there yet, as many together as the model's batch has."""
    for name, content in job.beside.items():
        with atomic_path(folder / name) as path:
            path.write_bytes(content())
    missing = [k for k in range(job.samples) if job.grid or not (folder / job.file.format(k=k)).is_file()]
    frames = (request[-1].size or (1, 1, 1))[0]
    some = max(pipe.defaults.batch // (1 + (frames - 1) // pipe.config.vae.temporal_stride), 1)
    sampling, cells = pipe.sampling([request], **run.sampling), list[Clip]()
    for at in range(0, len(missing), some):
        ks = missing[at : at + some]
        clips = pipe.fill_visual([request] * len(ks), sampling, [run.seeding.of(job, number, k) for k in ks])
        if job.grid:
            cells += clips
            continue
        for k, clip in zip(ks, clips, strict=True):
            write_media(folder / job.file.format(k=k), clip)
    if cells:
        side = math.ceil(math.sqrt(len(cells)))
        pixels = [clip.pixels for clip in cells] + [np.zeros_like(cells[0].pixels)] * (side * side - len(cells))
        lines = [np.concatenate(pixels[n : n + side], axis=2) for n in range(0, len(pixels), side)]
        write_image(folder / job.file, cells[0].with_pixels(np.concatenate(lines, axis=1)))


def _batches(
    pipe: LancePipeline, waiting: Sequence[tuple[Job, int]], asked: tuple[int | None, int | None, int | None]
) -> Iterator[list[tuple[Job, int, Segments]]]:
    """Items with their requests, as many questions together as the model's batch has; results are drawn an item at a
    time, all samples of it together."""
    batch = list[tuple[Job, int, Segments]]()
    for job, number in waiting:
        request = pipe.front.request(job.task, job.prompt, [read() for read in job.media], asked=asked)
        batch.append((job, number, request))
        if TASKS[job.task].makes != "text" or len(batch) >= pipe.defaults.batch:
            yield batch
            batch = []
    if batch:
        yield batch


def manifest(pipe: LancePipeline, jobs: Sequence[Job], run: Run, asked: tuple[int | None, ...]) -> dict[str, Any]:
    """What results depend on, and what is expected of them."""
    clips = any(TASKS[job.task].makes == "video" for job in jobs)
    return {
        "benchmark": run.benchmark, "model": pipe.parts.files.repo or pipe.parts.files.root.absolute().name,
        "model_hash": pipe.parts.fingerprint(clips), "dtype": str(pipe.dtype).removeprefix("torch."),
        "lora": [adapter.name for adapter in pipe.parts.adapters], "asked": list(asked),
        "sampling": asdict(pipe.sampling(**run.sampling)), "seeding": asdict(run.seeding), "limit": run.limit,
        "max_new_tokens": run.max_new_tokens, "expected": expected(jobs),
        "items": hashlib.blake2b(
            json.dumps([[job.group, job.key, job.prompt] for job in jobs]).encode(), digest_size=8
        ).hexdigest(),
        "versions": versions("openlance", "torch"),
    }  # fmt: skip


def check_manifest(folder: Path, made: Mapping[str, Any], *, write: bool = True) -> None:
    """Begin a folder, or go on in it.

    Raises:
        UserError: It has results of another run.
    """
    file = folder / MANIFEST
    if file.is_file():
        before = read_json(file)
        changed = differences({**before, "versions": None}, {**json.loads(json.dumps(made)), "versions": None})
        if changed:
            name, (old, new) = next(iter(changed.items()))
            raise UserError(f"{folder} has results with {name} {old!r}, not {new!r}: choose another -o, or delete it")
    elif write:
        write_json(file, dict(made))


def write_items(folder: Path, jobs: Sequence[Job]) -> None:
    """List what was asked and where its results stand, for readers that have no checkout."""
    with atomic_path(folder / ITEMS) as file:
        file.write_text("".join(json.dumps(item_of(job)) + "\n" for job in jobs), encoding="utf-8")


def item_of(job: Job) -> dict[str, Any]:
    """One line of the list."""
    shown = [name for name in job.beside if name.endswith(".png")]
    plain = {name: getattr(job, name) for name in ("group", "key", "prompt", "samples", "file", "grid")}
    return plain | {"beside": shown}


def read_items(folder: Path) -> dict[tuple[str, str], Job]:
    """The list by group and key; empty where there is none."""
    file, found = folder / ITEMS, dict[tuple[str, str], Job]()
    for line in read_lines(file) if file.is_file() else []:
        try:
            beside = {name: (folder / name).read_bytes for name in line.pop("beside")}
            job = Job(**line, task="", beside=beside)
            if any(".." in Path(name).parts or Path(name).is_absolute() for name in [job.file, *beside]):
                raise ValueError("a file outside the folder")
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"{file} is no list of items ({error}): make it again with openlance bench sample"
            ) from None
        found[job.group, job.key] = job
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `sample` wrote; empty where it did not."""
    file = folder / MANIFEST
    return read_json(file) if file.is_file() else {}
