"""Latency, throughput and memory of requests, as one table that anybody's machine can fill.

    data = measured(openlance.load("nano"), wanted(pipe, (), ["64x64"]), repeats=3)
    print(table(data))

Every repeat has words, media and noise of its own, so that nothing is remembered from the one before.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.config.sampling import Decoding
from openlance.config.values import whole
from openlance.errors import UserError
from openlance.media import Clip
from openlance.planning import sampling as planning
from openlance.runtime.machine import machine, peak, restart_peak
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import TASKS, spec_of

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

FORM = 1  # of the JSON
WORDS = "number {n}: a red kite over dunes at sunset"
TOKENS = 32  # of an answer, at most


@dataclass(frozen=True, kw_only=True)
class Row:
    """Requests that are made together.

    Args:
        task: Its name.
        height: Of what is made or read, in pixels.
        width: Likewise.
        frames: Likewise; 1 for an image.
        batch: How many.
    """

    task: str
    height: int
    width: int
    frames: int = 1
    batch: int = 1


def usual_tasks(pipe: LancePipeline) -> list[str]:
    """One task for everything that can be read and made, among those that the checkpoint was trained for."""
    found = dict[tuple[str, str], str]()
    for name, spec in TASKS.items():
        if pipe.defaults.knows(name):
            found.setdefault((spec.reads, spec.makes), name)
    return list(found.values())


def wanted(
    pipe: LancePipeline,
    tasks: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = (),
    frames: int | None = None,
    batches: Sequence[int] = (1,),
) -> list[Row]:
    """Every task with every size and number of requests.

    Args:
        pipe: The model, whose own values stand for what is left out.
        tasks: Names.
        sizes: Widths and heights in pixels.
        frames: Of videos.
        batches: Requests at once.

    Raises:
        UserError: For an unknown task or a number below 1.
    """
    usual, rows = pipe.defaults, list[Row]()
    for name in tasks or usual_tasks(pipe):
        spec = spec_of(name)
        count = (frames or usual.num_frames) if "video" in (spec.reads, spec.makes) else 1
        for width, height in sizes or [(usual.width, usual.height)]:
            pipe.config.vae.check((count, height, width))
            rows += [
                Row(task=name, height=height, width=width, frames=count, batch=whole("batch", batch))
                for batch in batches
            ]
    return rows


def measured(
    pipe: LancePipeline,
    rows: Sequence[Row],
    *,
    repeats: int = 3,
    steps: int | None = None,
    on_done: Callable[[int], Any] = lambda n: None,
) -> dict[str, Any]:
    """Measure requests: once to warm up, then so many times.

    Args:
        pipe: The model.
        rows: What is asked.
        repeats: Times that count.
        steps: Denoising steps; None: the model's own.
        on_done: Told of every run that is done.

    Returns:
        JSON: the machine, the model, and per row the seconds of all repeats, their median, results a second, and the
        most memory in bytes, beside what `openlance plan` counts for one request.
    """
    whole("repeats", repeats)
    sampling: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
    found = [asdict(row) | _row(pipe, row, repeats, sampling, on_done) for row in rows]
    files = pipe.parts.files
    return {
        "openlance_speed": FORM, "machine": machine(pipe.device, pipe.dtype),
        "model": files.repo or files.root.absolute().name, "model_hash": pipe.parts.fingerprint(False),
        "sampling": asdict(pipe.sampling(**sampling)), "most_tokens": TOKENS, "repeats": repeats, "rows": found,
    }  # fmt: skip


def _row(
    pipe: LancePipeline, row: Row, repeats: int, sampling: dict[str, Any], on_done: Callable[[int], Any]
) -> dict[str, Any]:
    numbers, seconds, tokens, most = iter(range(10**9)), list[float](), 0, 0
    for run in range(repeats + 1):
        requests, seeds = zip(*((_request(pipe, row, n), n) for n, _ in zip(numbers, range(row.batch))))
        restart_peak(pipe.device)
        start = time.perf_counter()
        said = _made(pipe, row, list(requests), list(seeds), sampling)
        if run:
            seconds.append(time.perf_counter() - start)
            tokens, most = tokens + said, max(most, peak(pipe.device) or 0)
        on_done(1)
    middle = statistics.median(seconds)
    task = planning.Wanted(task=row.task, height=row.height, width=row.width, frames=row.frames)
    planned = planning.plan(pipe.config, task).placements[0][1]
    return {
        "seconds": [round(one, 4) for one in seconds], "median": round(middle, 4),
        "per_second": round(row.batch / middle, 4), "tokens_per_second": round(tokens / sum(seconds), 2),
        "peak_bytes": most or None, "planned_bytes": round(planned),
    }  # fmt: skip


def _request(pipe: LancePipeline, row: Row, number: int) -> Segments:
    """A request with words and media of its own."""
    spec, rng = spec_of(row.task), np.random.default_rng(number)
    frames = row.frames if spec.reads == "video" else 1
    pixels = rng.integers(0, 256, (frames, row.height, row.width, 3), dtype=np.uint8)
    media = [Clip(pixels)] if spec.reads else []
    sides = (None, None) if spec.keeps_size else (row.height, row.width)
    size = (None if spec.makes == "text" or spec.sized_by_source else row.frames, *sides)
    return pipe.front.request(row.task, WORDS.format(n=number), media, asked=size)


def _made(pipe: LancePipeline, row: Row, requests: list[Segments], seeds: list[int], sampling: dict[str, Any]) -> int:
    """Make results, and count the tokens of answers."""
    if spec_of(row.task).makes == "text":
        return sum(map(len, pipe.fill_ids(requests, Decoding(max_new_tokens=TOKENS))))
    pipe.fill_visual(requests, pipe.sampling(requests, **sampling), seeds)
    return 0


def lines(data: dict[str, Any]) -> Iterator[list[str]]:
    """Cells of the table, its head first."""
    yield ["task", "size", "batch", "s", "from .. to", "1/s", "tokens/s", "peak GB", "planned GB"]
    try:
        for row in data["rows"]:
            size = f"{row['width']}x{row['height']}" + (f"x{row['frames']}" if row["frames"] > 1 else "")
            spread = f"{min(row['seconds']):.3g} .. {max(row['seconds']):.3g}"
            cells = [row["task"], size, str(row["batch"]), f"{row['median']:.3g}", spread, f"{row['per_second']:.3g}"]
            cells.append(f"{row['tokens_per_second']:.3g}" if row["tokens_per_second"] else "")
            cells += [f"{(row[name] or math.nan) / 1e9:.2f}" for name in ("peak_bytes", "planned_bytes")]
            yield [*cells[:-2], *("" if cell == "nan" else cell for cell in cells[-2:])]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"no results of openlance bench speed ({type(error).__name__}: {error})") from None
