"""A run over an input file of the release: outputs named as there, `prompt.json`, `result.json`, and going on after a
stop.

What is done stands in `.run/<rank>.jsonl` of the output folder, one line per entry, written after its file; a run that
finds such lines for the same entry skips it, however many processes wrote them and share the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from openlance.compat.inputs import Entry
from openlance.compat.requests import Job, build, media_of
from openlance.config.sampling import Decoding
from openlance.config.values import append_line, lines_of, read_json
from openlance.errors import UserError
from openlance.inference.checking import checked
from openlance.inference.engine import Engine
from openlance.inference.enhance import thinker
from openlance.inference.inputs import batches
from openlance.media.clip import Clip
from openlance.media.files import atomic_path, write_json
from openlance.media.write import write_media
from openlance.model.lora import Adapter
from openlance.sequence.segment import Segments

Group = list[tuple[Entry, Segments, str]]  # entries with their requests and prompts


class Failure(NamedTuple):
    key: str
    why: str


class Record:
    """The journal of an output folder. settings: what must not change between two runs into it; UserError if it did."""

    def __init__(self, folder: Path, settings: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.place, self.rank = folder, folder / ".run", rank
        self.made: list[Path] | None = None  # folders that were not there, where this run is new
        said = json.loads(json.dumps(settings))
        file = self.place / "settings.json"
        if file.is_file():
            before = read_json(file)
            changed = [name for name in said if before.get(name) != said[name]]
            if changed:
                differs = f"{changed[0]} {before.get(changed[0])!r}, not {said[changed[0]]!r}"
                raise UserError(f"{folder} holds a run with {differs}: choose another -o, or delete it")
        elif rank == 0:
            self.made = [place for place in (self.place, folder) if not place.exists()]
            try:
                write_json(file, said)
            except (UserError, OSError):
                self.withdraw()
                raise
        self.done = {line["key"]: line for line in self._lines()}

    def _lines(self) -> Iterator[dict[str, Any]]:
        for file in sorted(self.place.glob("*.jsonl")):
            for text in lines_of(file.read_bytes().decode("utf-8", errors="replace")):
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue  # the last line of a process that was stopped while it wrote
                if isinstance(line, dict) and {"key", "digest", "prompt"} <= line.keys():
                    yield line

    def has(self, entry: Entry) -> bool:
        line = self.done.get(entry.key)
        if line is None or line["digest"] != digest(entry):
            return False
        return "answer" in line or (self.folder / line.get("file", "/")).is_file()

    def add(self, entry: Entry, **what: Any) -> None:
        line = {"key": entry.key, "digest": digest(entry), **what}
        # A line of its own even after one that a stop has cut short.
        append_line(self.place / f"{self.rank}.jsonl", "\n" + json.dumps(line))
        self.done[entry.key] = line

    def withdraw(self) -> None:
        """Leave nothing of a run that could not make anything."""
        if self.made is None or any(self.place.glob("*.jsonl")):
            return
        (self.place / "settings.json").unlink(missing_ok=True)
        for folder in self.made:
            with suppress(OSError):  # not empty
                folder.rmdir()

    def finish(self, entries: Sequence[Entry]) -> None:
        """Write prompt.json and result.json from the lines of all processes, in the order of the entries."""
        self.done = {line["key"]: line for line in self._lines()}
        kept = [(entry, self.done[entry.key]) for entry in entries if self.has(entry)]
        prompts = {line.get("file", entry.key): line.get("answer", line["prompt"]) for entry, line in kept}
        results = [_result(e, line) for e, line in kept]
        # Both or none: each becomes visible only after the other is written.
        with atomic_path(self.folder / "prompt.json") as one, atomic_path(self.folder / "result.json") as other:
            for path, content in ((one, prompts), (other, results)):
                path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def digest(entry: Entry) -> str:
    return hashlib.blake2b(json.dumps(entry.data, sort_keys=True).encode(), digest_size=8).hexdigest()


def _result(entry: Entry, line: dict[str, Any]) -> dict[str, Any]:
    """A row of result.json: of answers in the release's form, of images and videos their file and prompt."""
    if "answer" in line:
        medium = media_of(entry.data)
        cut = {"finish_reason": line["finish_reason"]} if "finish_reason" in line else {}
        said = {"question": line["prompt"], "answer": line["answer"]}
        return {**({medium[0]: medium[1]} if medium else {}), **said, **cut}
    found = {"check": line["check"]} if "check" in line else {}
    return {"key": entry.key, "file": line["file"], "prompt": line["prompt"], **found}


def settings_of(job: Job, model: str, adapters: Sequence[Adapter] = ()) -> dict[str, Any]:
    return {
        "model": model, "task": job.task, "preset": job.preset, "size": job.size, "seed": job.seed,
        "sampling": job.settings, "max_new_tokens": job.max_new_tokens,
        "enhance": getattr(job.enhance, "model", job.enhance), "lora": [adapter.name for adapter in adapters] or None,
    } | ({"check": job.check} if job.check else {}) | ({"think": True} if job.think else {})  # fmt: skip


def run(
    engine: Engine, entries: Sequence[Entry], job: Job, record: Record, on_done: Callable[[int], Any] = lambda n: None
) -> list[Failure]:
    """Make what is not yet made; on_done(n) is called when n more entries are done, failed or found done.

    An entry that cannot run is returned with its reason, and the others still run.
    """
    try:
        return _run(engine, entries, job, record, on_done)
    except (UserError, OSError):
        record.withdraw()
        raise


def _run(
    engine: Engine, entries: Sequence[Entry], job: Job, record: Record, on_done: Callable[[int], Any]
) -> list[Failure]:
    thinker(engine, job.think)  # says now whether it was trained to
    failures = list[Failure]()
    waiting = [entry for entry in entries if not record.has(entry)]
    on_done(len(entries) - len(waiting))
    for group in _groups(engine, waiting, job, failures):
        requests = [request for _, request, _ in group]
        if job.spec.makes == "text":
            answers = engine.fill_text(requests, Decoding(max_new_tokens=job.max_new_tokens))
            for (entry, _, prompt), answer in zip(group, answers, strict=True):
                cut = {} if answer.finish_reason == "stop" else {"finish_reason": answer.finish_reason}
                record.add(entry, prompt=prompt, answer=answer, **cut)
        else:
            clips = _drawn(engine, requests, job)
            for (entry, _, prompt), clip in zip(group, clips, strict=True):
                file = entry.name + (".png" if clip.frames == 1 else ".mp4")
                write_media(record.folder / file, clip)
                try:
                    found = {} if clip.verdict is None else {"check": clip.verdict.as_data()}
                    record.add(entry, prompt=prompt, file=file, **found)
                except UserError:
                    (record.folder / file).unlink()  # nobody would know what it is
                    raise
        on_done(len(group))
    on_done(len(failures))
    return failures


def _drawn(engine: Engine, requests: list[Segments], job: Job) -> list[Clip]:
    """What requests of one group come to."""
    how = [engine.sampling([request], **job.settings) for request in requests]  # whatever it shares a pass with
    think = thinker(engine, job.think)
    meant = requests if think is None else [think(request) for request in requests]

    def make(which: Sequence[int], seeds: Sequence[int]) -> list[Clip]:
        clips = list[Clip]()
        for some, sampling in batches([meant[n] for n in which], len(which), [how[n] for n in which]):
            clips += engine.fill_visual(some, sampling, seeds[len(clips) : len(clips) + len(some)])
        return clips

    seeds = [job.seed] * len(requests)
    return checked(engine, requests, seeds, job.check, make) if job.check else make(range(len(requests)), seeds)


def _groups(engine: Engine, entries: Sequence[Entry], job: Job, failures: list[Failure]) -> Iterator[Group]:
    """Requests that run together: as many as the model's batch has images, each latent frame counting as one."""
    group, frames = Group(), 0
    for entry in entries:
        try:
            request, prompt = build(engine, entry, job)
        except UserError as error:
            failures.append(Failure(entry.key, str(error)))
            continue
        group.append((entry, request, prompt))
        frames += sum(1 + (s.size[0] - 1) // engine.config.vae.temporal_stride for s in request if s.size)
        if frames >= engine.defaults.batch:
            yield group
            group, frames = Group(), 0
    if group:
        yield group
