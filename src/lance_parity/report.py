"""What a checkpoint is and does on a machine, in one file that can be sent and held against another one.

    found = report(openlance.load("downloads", device="cuda"))
    differences(found, earlier)

It has no names of users, machines and folders in it. `docs/howto/verify.md` tells how to read it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openlance.checkpoint.tensors import NAMES, PIECE, TensorSource, fingerprint, listed_files, misfits
from openlance.inference.inputs import as_clip
from openlance.inference.lance_pipeline import LancePipeline
from openlance.media.clip import Clip
from openlance.runtime.inspection import opened, weights_of
from openlance.runtime.machine import machine, resident

FORM = 1  # of the report
SEED, STEPS, TOKENS = 7, 10, 48
SIDE, FRAMES = 384, 17  # most of edits and clips; pictures from words have the model's usual size
RESULTS = 0.75  # share of the time after which no step of a result begins
THUMBNAIL = 64  # longer side of a frame
FAULTS = (ValueError, TypeError, RuntimeError, LookupError, AssertionError, AttributeError, OSError, MemoryError)
QUESTIONS = {
    "what color is the circle?": "red",
    "what shape is the blue object?": "square",
    "how many objects are there?": "2",
    "where is the red circle relative to the blue square?": "left",
    "is there a triangle?": "no",
    "": "",  # a description
}
PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/:;,'\"()]+)+[\\/]")

Data = dict[str, Any]


class OverTime(Exception):
    """The time is up."""


@dataclass(kw_only=True)
class Work:
    """A report in progress.

    Args:
        pipe: What is looked at.
        seconds: How long it may take.
        save: Called with the report as it stands, after each part.
        tell: Called with what is being done, parts that are done, and parts in all.
    """

    pipe: LancePipeline
    seconds: float
    save: Callable[[Data], None]
    tell: Callable[[str, int, int], None]
    data: Data = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)
    limit: float = 0.0
    place: tuple[str, int, int] = ("", 0, 0)

    def tick(self, said: str = "") -> None:
        """Tell how far it is; OverTime where that is too late."""
        name, done, total = self.place
        self.tell(f"{name} {said}".strip(), done, total)
        if time.perf_counter() - self.begun > self.limit:
            raise OverTime

    def run(self, place: tuple[str, int, int], share: float, job: Callable[[], None]) -> None:
        """Do one part; if it breaks down that is noted, and the others go on."""
        name, start = place[0], time.perf_counter()
        self.place, self.limit = place, share * self.seconds
        self.data["unfinished"] = name  # what a report says that was cut off here
        self.save(self.data)
        try:
            self.tick()
            job()
        except OverTime:
            self.data["left_out"].append(name)
        except FAULTS as error:
            self.fail(name, f"{type(error).__name__}: {error}")
        self.data["seconds"][name] = round(time.perf_counter() - start, 3)
        del self.data["unfinished"]

    def fail(self, name: str, why: str) -> None:
        root = self.pipe.folder
        for place in (root.absolute(), root, Path.home(), Path.cwd()):
            why = why.replace(f"{place}{os.sep}", "").replace(str(place), root.name if place is root else ".")
        self.data["failed"][name] = " ".join(PATH.sub("", why).split())


def report(
    pipe: LancePipeline,
    *,
    seconds: float = 600.0,
    save: Callable[[Data], None] = lambda data: None,
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> Data:
    """Look at every tensor of a checkpoint, and draw, edit and answer what is always the same.

    Args:
        pipe: The checkpoint, on the device and in the dtype to be tried.
        seconds: How long it may take: results begin in the first three quarters of it, and every part that is not
            done at the end is left out, which the report says. What reads a file or runs a step is not broken off.
        save: Called with the report as it stands, before and after each part.
        tell: Called with what is being done, parts that are done, and parts in all.

    Returns:
        The report, plain data for JSON. `failed` is empty where all is well.
    """
    work = Work(pipe=pipe, seconds=seconds, save=save, tell=tell)
    files = pipe.parts.files if pipe.parts.files.repo is None else pipe.parts.fetched()
    rows = weights_of(files)
    work.data |= {
        "form": FORM, "failed": {}, "left_out": [], "machine": machine(pipe.device, pipe.dtype),
        "model": {"form": files.form, "config": asdict(files.config)},
        "seconds": {}, "parts": {row[0]: {} for row in rows}, "results": {},
    }  # fmt: skip
    jobs: list[tuple[str, float, Callable[[], None]]] = [
        *((f"names of {row[0]}", 1.0, partial(_names, work, *row)) for row in rows),
        *((name, RESULTS, partial(_result, work, name, make)) for name, make in results(pipe, work.tick).items()),
        *((f"numbers of {row[0]}", 1.0, partial(_numbers, work, *row)) for row in rows),
    ]
    for number, (name, share, job) in enumerate(jobs):
        work.run((name, number, len(jobs)), share, job)
    save(work.data)
    return work.data


# Files.


def _names(work: Work, name: str, weights: Path, prefix: str) -> None:
    """Names, shapes and types of a part, against what the configuration asks for."""
    files = [{"name": p.name, "bytes": p.stat().st_size} for p in listed_files(weights) if p.is_file()]
    work.data["parts"][name] |= {"files": files}
    work.pipe.parts.files.require(weights)
    source, plan, wanted = opened(work.pipe.parts.files, name, weights, prefix, work.pipe.parts.allow_pickle)
    wrong = {fault: names for fault, names in misfits(source, plan, wanted).items() if names}
    tensors = {tensor: f"{_type(source, tensor)} {_by(source.shapes[tensor])}" for tensor in sorted(source.shapes)}
    work.data["parts"][name] |= {"fingerprint": fingerprint(weights), **wrong, "tensors": tensors}
    if wrong:
        work.fail(work.place[0], ", ".join(f"{len(names)} {fault}" for fault, names in wrong.items()))


def _numbers(work: Work, name: str, weights: Path, prefix: str) -> None:
    """The hash of every tensor, and whether its numbers are finite."""
    found = work.data["parts"][name]
    if "tensors" not in found:
        return  # it could not be opened, which is said there
    source, _, _ = opened(work.pipe.parts.files, name, weights, prefix, work.pipe.parts.allow_pickle)
    bad = list[str]()
    for number, (tensor, said) in enumerate(found["tensors"].items(), start=1):
        work.tick(f"{number} of {len(found['tensors'])}")
        value, digest = source.read(tensor), hashlib.blake2b(digest_size=8)
        for piece in value.reshape(-1).split(PIECE) if value.numel() else ():
            digest.update(piece.view(torch.uint8).numpy())
            wide = piece.float() if piece.dtype.itemsize == 1 else piece
            if value.is_floating_point() and not torch.stack(torch.aminmax(wide)).isfinite().all():
                bad.append(tensor)
            source.release(tensor, piece)
        found["tensors"][tensor] = f"{said} {digest.hexdigest()}"
    if bad:
        found["not finite"] = sorted(set(bad))
        work.fail(work.place[0], f"{len(set(bad))} tensors hold numbers that are not finite")


def _type(source: TensorSource, tensor: str) -> str:
    return NAMES.get(source.read(tensor).dtype, "other")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


# Results.


def results(pipe: LancePipeline, tick: Callable[[str], None]) -> dict[str, Callable[[], Data]]:
    """What is made, by name: equal for equal weights, whatever the machine."""
    d = pipe.defaults
    height, width = min(d.height, SIDE), min(d.width, SIDE)
    film = moving(min(d.num_frames, FRAMES), height, width)
    seen, length = film.with_pixels(film.pixels[:1]), {"num_frames": film.frames}
    sized = {"height": height, "width": width}

    def drawn(prompt: str, **more: Any) -> Callable[[], Data]:
        return partial(_drawn, pipe, tick, prompt, more)

    def answered(question: str, medium: Clip, expected: str) -> Callable[[], Data]:
        return partial(_answered, pipe, tick, question, medium, expected)

    picture = drawn("a red circle left of a blue square", height=d.height, width=d.width)
    asked = {f"answer to {q!r}" if q else "description": answered(q, seen, a) for q, a in QUESTIONS.items()}
    return {
        "picture from words": picture,
        "the same picture again": picture,
        **asked,
        "edited picture": drawn("make the circle green", image=seen),
        "clip from words": drawn("a red circle moves left", **length, **sized),
        "clip from a picture": drawn("the circle moves up", image=seen, **length),
        "edited clip": drawn("make the circle green", video=film),
        "answer about a clip": answered("which way does the circle move?", film, "left"),
    }


def moving(frames: int, height: int, width: int) -> Clip:
    """A red circle that moves left, away from a blue square, drawn by code."""
    radius = 0.16 * min(height, width)
    y, x = np.mgrid[0.5:height, 0.5:width]
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[:, np.maximum(abs(y - height / 2), abs(x - 0.75 * width)) < radius] = 30, 70, 235
    for frame, place in zip(pixels, np.linspace(0.4, 0.2, frames), strict=True):
        frame[np.hypot(y - height / 2, x - place * width) < radius] = 220, 25, 35
    return Clip(pixels)


def _result(work: Work, name: str, make: Callable[[], Data]) -> None:
    """A result with its time, and the most memory that was taken so far (on a GPU: for it)."""
    cuda = work.pipe.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(work.pipe.device)
    start = time.perf_counter()
    found = make()
    found |= {"seconds": round(time.perf_counter() - start, 3), "peak_memory": resident()}
    if cuda:
        found["peak_gpu_memory"] = torch.cuda.max_memory_allocated(work.pipe.device)
    work.data["results"][name] = found


def _drawn(pipe: LancePipeline, tick: Callable[[str], None], prompt: str, more: Data) -> Data:
    start = torch.Generator().manual_seed(SEED)
    output = pipe(
        prompt, generator=start, num_inference_steps=STEPS,
        callback_on_step_end=lambda _, step, *__: tick(f"step {step + 1} of {STEPS}"), **more,
    )  # fmt: skip
    made = as_clip((output.images or output.frames)[0])
    record = as_clip(output.images[0] if output.images else output.frames[0][0]).made
    said = {} if record is None else replace(record, model="").as_data()
    return {"made": said, "pixels": made.key.hex(), "thumbnail": thumbnail(made)}


def _answered(pipe: LancePipeline, tick: Callable[[str], None], question: str, medium: Clip, expected: str) -> Data:
    answer = pipe.ask(medium, question, max_new_tokens=TOKENS, stream=lambda _: tick(""))
    return {"question": question, "about": medium.key.hex(), "answer": str(answer), "expected": expected}


def thumbnail(clip: Clip) -> str:
    """The first, the middle and the last frame of a clip side by side, small, as PNG in base64."""
    some = sorted({0, clip.frames // 2, clip.frames - 1})
    images = clip.with_pixels(clip.pixels[some]).images()
    for image in images:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    strip, memory = np.concatenate([np.asarray(image) for image in images], axis=1), io.BytesIO()
    Clip(strip[None]).images()[0].save(memory, "PNG", optimize=True)
    return base64.b64encode(memory.getvalue()).decode("ascii")
