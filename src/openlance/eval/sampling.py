"""The results of a benchmark in the folders that its official scorer reads, and how they were made.

An item that is there is not made again. What must not change between two runs into a folder stands in its manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from openlance.config.sampling import LARGEST_SEED, Decoding, Sampling
from openlance.config.values import differences
from openlance.config.versions import versions
from openlance.errors import UserError
from openlance.eval.records import Record, read_lines, read_object, read_records, write_records
from openlance.media import Clip
from openlance.media.files import atomic_path, notice, write_json
from openlance.media.write import write_image, write_media
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import TASKS

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

MANIFEST, ITEMS = "manifest.json", "items.jsonl"
ANSWERS, OTHER_ANSWERS = "answers.jsonl", "answers*.jsonl"  # of one process, of any
Size: TypeAlias = tuple[int | None, int | None, int | None]  # frames, height and width; None: the input's
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
        counts: Results that are judged, by group of the score, where that is not `samples` in its own group.
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
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def judged(self) -> Mapping[str, int]:
        """Results that are judged, by group of the score."""
        return self.counts or {self.group: self.samples}

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


def fitting(pipe: LancePipeline, run: Run) -> Size:
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
    """The first items of every group, as many as `limit` (more where an item is in several); all without one."""
    seen, kept = Counter[str](), list[Job]()
    for job in jobs:
        if not limit or any(seen[group] < limit for group in job.judged):
            seen.update(job.judged.keys())
            kept.append(job)
    return kept


def expected(jobs: Sequence[Job]) -> dict[str, int]:
    """Results that are judged, by group."""
    found = Counter[str]()
    for job in jobs:
        found.update(job.judged)
    return dict(found)


def sample(
    pipe: LancePipeline,
    jobs: Sequence[Job],
    folder: Path,
    run: Run,
    *,
    rank: int = 0,
    world: int = 1,
    on_done: Callable[[int], Any] = lambda n: None,
) -> dict[str, int]:
    """Make what is missing in a folder, and its manifest. Items whose media cannot be read are left out.

    Args:
        pipe: The model.
        jobs: All items, in the benchmark's order.
        folder: Of the results.
        run: How.
        rank: Which of the processes that share the work this is.
        world: How many there are; each takes every world-th item.
        on_done: Told of every so many results that are there.

    Returns:
        Why results could not be made, and how many; empty if all are there.

    Raises:
        UserError: The folder has results of another run, or the model cannot make what is asked.
    """
    asked = fitting(pipe, run)
    kept = chosen(jobs, run.limit)
    twice = [place for place, count in Counter((job.group, job.key) for job in kept).items() if count > 1]
    if twice:
        first = "/".join(twice[0])
        raise UserError(
            f"{len(twice)} names of {run.benchmark} stand for two items, first {first}: get its files again"
        )
    check_manifest(folder, manifest(pipe, kept, run, asked), write=rank == 0)
    if rank == 0:
        write_items(folder, kept)
    answers = folder / (ANSWERS if world == 1 else f"answers-{rank}.jsonl")
    told = {record.place: record for record in read_records(answers)} if answers.is_file() else {}
    others = (record for file in folder.glob(OTHER_ANSWERS) if file != answers for record in read_records(file))
    given = {record.place for record in others if not record.failed}  # of a run that shared its work otherwise
    waiting = list[tuple[Job, int]]()
    for number, job in enumerate(kept):
        if number % world != rank:
            continue
        place = (job.group, job.key, 0)
        answered = place in given or (place in told and not told[place].failed)
        there = all((folder / f).is_file() for f in job.files) if job.file else answered
        if there:
            on_done(job.samples)
        else:
            waiting.append((job, number))
    lost = Counter[str]()

    def on_lost(job: Job, why: str) -> None:
        lost[why] += job.samples
        if not job.file:
            told[job.group, job.key, 0] = Record(group=job.group, key=job.key, failed=why)
            write_records(answers, told.values())

    for batch in _batches(pipe, waiting, asked, on_lost):
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
    return dict(lost)


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
    pipe: LancePipeline, waiting: Sequence[tuple[Job, int]], asked: Size, on_lost: Callable[[Job, str], Any]
) -> Iterator[list[tuple[Job, int, Segments]]]:
    """Items with their requests, as many questions together as the model's batch has; results are drawn an item at a
    time, all samples of it together."""
    batch = list[tuple[Job, int, Segments]]()
    for job, number in waiting:
        try:
            media = [read() for read in job.media]
        except UserError as error:
            on_lost(job, str(error))
            continue
        request = pipe.front.request(job.task, job.prompt, media, asked=asked)
        batch.append((job, number, request))
        if TASKS[job.task].makes != "text" or len(batch) >= pipe.defaults.batch:
            yield batch
            batch = []
    if batch:
        yield batch


def items_hash(jobs: Sequence[Job]) -> str:
    """What tells the items of one commit from those of another."""
    asked = [[job.group, job.key, job.prompt] for job in jobs]
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest()


def manifest(pipe: LancePipeline, jobs: Sequence[Job], run: Run, asked: Size) -> dict[str, Any]:
    """What results depend on, and what is expected of them."""
    clips = any(TASKS[job.task].makes == "video" for job in jobs)
    return {
        "benchmark": run.benchmark, "model": pipe.parts.files.repo or pipe.parts.files.root.absolute().name,
        "model_hash": pipe.parts.fingerprint(clips), "dtype": str(pipe.dtype).removeprefix("torch."),
        "lora": [adapter.name for adapter in pipe.parts.adapters], "asked": list(asked),
        "sampling": asdict(_sampling(pipe, jobs, run, asked)), "seeding": asdict(run.seeding), "limit": run.limit,
        "max_new_tokens": run.max_new_tokens, "expected": expected(jobs),
        "items": items_hash(jobs),
        "versions": versions("openlance", "torch"),
    }  # fmt: skip


def _sampling(pipe: LancePipeline, jobs: Sequence[Job], run: Run, asked: Size) -> Sampling:
    """How the first item is denoised; a checkpoint may have other settings for edits than for images from words."""
    if not jobs or TASKS[jobs[0].task].makes == "text":
        return pipe.sampling(**run.sampling)
    black = Clip(np.zeros((1, pipe.defaults.height, pipe.defaults.width, 3), np.uint8))
    given = [black] if TASKS[jobs[0].task].reads else []
    return pipe.sampling([pipe.front.request(jobs[0].task, "", given, asked=asked)], **run.sampling)


def check_manifest(folder: Path, made: Mapping[str, Any], *, write: bool = True) -> None:
    """Begin a folder, or go on in it.

    Raises:
        UserError: It has results of another run.
    """
    before = read_manifest(folder)
    if before:
        changed = differences({**before, "versions": None}, {**json.loads(json.dumps(made)), "versions": None})
        if changed:
            name, (old, new) = next(iter(changed.items()))
            raise UserError(f"{folder} has results with {name} {old!r}, not {new!r}: choose another -o, or delete it")
    elif write:
        write_json(folder / MANIFEST, dict(made))


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
            if not all(isinstance(text, str) for text in (job.group, job.key, job.prompt, job.file)):
                raise ValueError("an item without group, key, prompt or file")
            check_inside(*job.files, *beside)
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{file} is no list of items ({error}): make it again with openlance bench sample"
            ) from None
        found[job.group, job.key] = job
    return found


def check_inside(*names: str) -> None:
    """Refuse names of files that lead out of a folder. ValueError for such a one."""
    if any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
        raise ValueError("a file outside the folder")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `sample` wrote; empty where it did not.

    Raises:
        UserError: It is damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    made = read_object(file, "what openlance bench sample wrote")
    counts, sampling = made.get("expected", {}), made.get("sampling", {})
    if not (
        isinstance(made.get("benchmark"), str)
        and isinstance(sampling, dict)
        and isinstance(counts, dict)
        and all(type(count) is int and count >= 0 for count in counts.values())
        and type(made.get("limit", 0)) is int
    ):
        raise UserError(f"{file} is damaged: restore it, or begin again in another folder")
    return made
