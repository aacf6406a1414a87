"""What a self-check brings to what is drawn from words, and to videos: `check=4` against the first draw of the same
requests, judged by the world from pixels. (`regions.py run --ways checked` does the same for edits.)

    python benchmarks/checks.py run --records checks.jsonl      # goes on where it was stopped
    python benchmarks/checks.py table --records checks.jsonl --docs

The check sees the request and the results alone. A record is one block of requests of a category; its first draws are
the results without a check. Beside that: how often a result is right where the check finds no fault, and where it does.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown, paired, points, put, record, recorded, recorder, write_results

from openlance import load
from openlance.inference.checking import checked, draw_seed
from openlance.inference.lance_pipeline import LancePipeline
from openlance.media.clip import Clip
from openlance.sequence.segment import Segments
from toyworld.judge import is_right
from toyworld.motion import render_clip
from toyworld.suites.bench import Bench
from toyworld.suites.clips import FILMED, filmings, judge_filming
from toyworld.suites.images import drawings

BLOCK, SEED, DRAWS = 20, 700, 4  # requests of a record; the seed of block b is SEED + b
BLOCKS = dict.fromkeys(("text", "two", "attribute"), 20) | dict.fromkeys(("i2v one", "i2v two", "t2v two"), 10)
PAGE = Path(__file__).parents[1] / "docs" / "howto" / "checking.md"
Judge = Callable[[np.ndarray], bool]


def requests_of(pipe: LancePipeline, category: str, block: int) -> tuple[list[Segments], list[Judge]]:
    """Requests, and what says of pixels, (T, H, W, 3), whether they are right."""
    suite, _, kind = category.rpartition(" ")
    bench = Bench(tasks=(suite or "t2i",), samples=BLOCK, seed=SEED + block)
    if not suite:
        drawn = list(drawings(kind, bench))
        made = [pipe.front.request("t2i", d.prompt, asked=(1, 64, 64)) for d in drawn]
        return made, [lambda pixels, d=d: is_right(pixels[0], d.facts) for d in drawn]  # type: ignore[misc]
    asked, filmed = (bench.frames, 64, 64), list(filmings(kind, bench, FILMED[suite]))
    firsts = [render_clip(f.clip, 64, 64)[:1] if suite == "i2v" else None for f in filmed]
    made = [
        pipe.front.request(suite, f.prompt, [] if first is None else [Clip(first)], asked=asked)
        for f, first in zip(filmed, firsts, strict=True)
    ]
    return made, [
        lambda pixels, f=f, first=first: judge_filming(f, pixels, None if first is None else first[0])[0]  # type: ignore[misc]
        for f, first in zip(filmed, firsts, strict=True)
    ]


def block_of(pipe: LancePipeline, category: str, block: int) -> dict[str, Any]:
    requests, judges = requests_of(pipe, category, block)
    seeds = [1000 * (SEED + block) + n for n in range(BLOCK)]
    made, spent, sampling = dict[int, list[tuple[int, Clip]]](), list[float](), pipe.sampling(requests)

    def make(which: list[int], own: list[int]) -> list[Clip]:
        began = time.process_time()
        clips = pipe.fill_visual([requests[n] for n in which], sampling, own)
        spent.append(time.process_time() - began)
        for n, clip in zip(which, clips, strict=True):
            made.setdefault(n, []).append(clip)
        return clips

    began = time.process_time()
    best = checked(pipe, requests, seeds, DRAWS, make)
    whole = time.process_time() - began
    verdicts = [clip.verdict for clip in best]
    right = [[judge(clip.pixels) for clip in made[n]] for n, judge in enumerate(judges)]
    assert [draw_seed(s, v.draw) for s, v in zip(seeds, verdicts)] == [clip.made.seed for clip in best]
    return {
        "category": category, "block": block, "draws": [v.draws for v in verdicts], "draw": [v.draw for v in verdicts],
        "right": right, "sure": [v.fine for v in verdicts], "facts": [v.facts for v in verdicts],
        "seconds": {"one": spent[0] / BLOCK, "drawing": sum(spent) / BLOCK, "looking": (whole - sum(spent)) / BLOCK},
    }  # fmt: skip


def run(model: str, records: Path, only: str) -> None:
    pipe = load(model)
    done = {(r["category"], r["block"]) for r in recorded(records)}
    for block in range(max(BLOCKS.values())):
        for category, blocks in BLOCKS.items():
            if block < blocks and only in category and (category, block) not in done:
                record(records, block_of(pipe, category, block))


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The first draws against what the check chose."""
    first = [own[0] for r in found for own in r["right"]]
    chosen = [own[k - 1] for r in found for own, k in zip(r["right"], r["draw"], strict=True)]
    sure = [s for r in found for s in r["sure"]]
    looked = defaultdict[bool, list[bool]](list)
    for r in found:
        for own, fine in zip(r["right"], r["sure"], strict=True):
            for n, right in enumerate(own):
                looked[fine and n == len(own) - 1].append(right)
    draws = [d for r in found for d in r["draws"]]
    return paired(first, chosen) | {
        "draws": sum(draws) / len(draws), "sure": sum(sure) / len(sure),
        "right_where_no_fault": sum(looked[True]) / max(len(looked[True]), 1),
        "right_where_a_fault": sum(looked[False]) / max(len(looked[False]), 1),
        "seconds": {k: sum(r["seconds"][k] for r in found) / len(found) for k in ("one", "drawing", "looking")},
    }  # fmt: skip


def table(model: str, records: Path, out: Path, docs: bool) -> None:
    found, rows, lines = recorded(records), dict[str, Any](), []
    for name in BLOCKS:
        mine = [r for r in found if r["category"] == name]
        if not mine:
            continue
        rows[name] = r = summed(mine)
        s = r["seconds"]
        lines.append([
            name, r["n"], f"{r['old']:.3f}", f"{r['new']:.3f}", points(r), f"{r['p']:.2g}", f"{r['draws']:.2f}",
            f"{r['right_where_no_fault']:.2f} / {r['right_where_a_fault']:.2f}",
            f"{s['drawing'] + s['looking']:.2f} for {s['one']:.2f}",
        ])  # fmt: skip
    head = f"{model}, free placement, 64x64, blocks of {BLOCK} from seed {SEED}, `check={DRAWS}`; videos of 9 frames "
    head += "from words (t2v) or a true first frame (i2v). No fault / fault: how many of all draws are right where the "
    head += "model is sure and where it is not. CPU seconds per request, those of the questions included.\n\n"
    columns = ["", "n", "one draw", "checked", "points (95 %)", "p", "draws", "no fault / fault", "CPU s"]
    text = head + markdown(columns, lines)
    write_results("checks", {"model": model, "draws": DRAWS, "rows": rows}, text, out)
    if docs:
        put(PAGE, "checks", text)


def main() -> None:
    parser = recorder(__doc__, "categories")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/howto/checking.md as well")
    args = parser.parse_args()
    if args.what == "run":
        run(args.model, args.records, args.only)
    else:
        table(args.model, args.records, args.out, args.docs)


if __name__ == "__main__":
    main()
