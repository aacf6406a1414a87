"""What adapters of docs/uses bring, on data that they have not seen, and what becomes of everything else.

    python examples/own_data.py edits pairs; python examples/own_data.py questions asked
    # train both as docs/uses/edits.md and docs/uses/questions.md say
    python benchmarks/adapters.py run --edits runs/framing --questions runs/corners --records adapters.jsonl
    python benchmarks/adapters.py table --records adapters.jsonl

Held out: pictures of other seeds. A framed one is right if it is nearer, in mean squared error, to the picture with its
frame than to the one without; its PSNR is that to the picture with the frame. Everything else: `bench world`, the same
requests and noise with and without the adapter.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, markdown, put, record, recorded, write_results
from PIL import Image

from openlance import load
from openlance.eval.estimate import paired
from openlance.inference.lance_pipeline import LancePipeline
from toyworld.suites.bench import Bench, Scored
from toyworld.suites.bench import run as world

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from own_data import edits, framed, questions  # noqa: E402

SEED = 9000  # of round r SEED + r
# Suite of the world: how many requests of a category a round has, fewest where there are many categories.
WORLD = {
    "t2i": 2, "image_edit": 2, "vqa": 2, "subject": 4, "t2v": 4, "i2v": 4, "video_edit": 1, "video_vqa": 2,
    "multi_turn": 4,
}  # fmt: skip
PAGES = Path(__file__).parents[1] / "docs" / "uses"
# Adapter: what it is trained for, and how that is measured.
SCORES = {"edits": ("framed", "PSNR to the framed one, dB"), "questions": ("corners",)}


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one.astype(float) - other) ** 2).mean())


def framing(pipe: LancePipeline, number: int) -> dict[str, dict[str, float]]:
    """Ten pictures that are to be framed."""
    with tempfile.TemporaryDirectory() as place:
        edits(Path(place), np.random.default_rng(SEED + number))
        rows = recorded(Path(place) / "metadata.jsonl")[:10]
        sources = [Image.open(Path(place) / row["input_image"]).convert("RGB") for row in rows]
        made = pipe.edit(list(sources), [row["instruction"] for row in rows], seed=SEED + 100 * number)
    pairs = [(np.asarray(s), np.asarray(m)) for s, m in zip(sources, made, strict=True)]
    return {
        "framed": {str(n): float(error(m, framed(s)) < error(m, s)) for n, (s, m) in enumerate(pairs)},
        "PSNR to the framed one, dB": {
            str(n): 10 * np.log10(255**2 / max(error(m, framed(s)), 1e-3)) for n, (s, m) in enumerate(pairs)
        },
    }


def corners(pipe: LancePipeline, number: int) -> dict[str, dict[str, float]]:
    """Twenty questions for corners."""
    with tempfile.TemporaryDirectory() as place:
        questions(Path(place), np.random.default_rng(SEED + number))
        rows = recorded(Path(place) / "metadata.jsonl")[:20]
        shown = [Image.open(Path(place) / row["image"]).convert("RGB") for row in rows]
        said = pipe.ask(shown, [row["question"] for row in rows])
    pairs = zip(rows, said, strict=True)
    return {"corners": {str(n): float(a.strip().lower() == row["answer"]) for n, (row, a) in enumerate(pairs)}}


def of_world(pipe: LancePipeline, number: int, suite: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)

    def note(s: Scored) -> None:
        found[f"{suite} {s.category}"][str(s.index)] = float(s.right)

    world(pipe, Bench(tasks=(suite,), samples=WORLD[suite], seed=SEED + number), note)
    return found


def run(args: argparse.Namespace) -> None:
    done = {(r["name"], r["part"], r["round"]) for r in recorded(args.records)}
    pipes = {"none": load(args.model)}
    for name, path in (("edits", args.edits), ("questions", args.questions)):
        if path is not None:
            pipes[name] = load(args.model)
            pipes[name].load_lora_weights(path)
    for part, number in ((part, number) for part in args.parts for number in range(args.rounds)):
        for name, pipe in pipes.items():
            if part in WORLD or part in pipes and name in ("none", part):
                if (name, part, number) not in done:
                    began = time.process_time()
                    row = {"name": name, "part": part, "round": number, "found": PARTS[part](pipe, number)}
                    row["cpu_seconds"] = time.process_time() - began
                    record(args.records, row)


PARTS = {"edits": framing, "questions": corners} | {name: partial(of_world, suite=name) for name in WORLD}


def items(found: list[dict[str, Any]], name: str, what: str) -> dict[str, dict[str, float]]:
    """Values of items by category: of a task of the world, or of one score."""
    out: dict[str, dict[str, float]] = defaultdict(dict)
    for r in found:
        for category, own in r["found"].items() if r["name"] == name else ():
            if what in (category, category.split(" ")[0]):
                out[category] |= {f"{r['round']} {n}": value for n, value in own.items()}
    return out


def table(args: argparse.Namespace) -> None:
    found, rows, lines = recorded(args.records), list[dict[str, Any]](), []
    for name, scores in SCORES.items():
        for what in (*scores, *WORLD):
            first, second = (items(found, one, what) for one in ("none", name))
            pairs = {c: own.keys() & second.get(c, {}).keys() for c, own in first.items()}
            if not any(pairs.values()):
                continue
            change = paired(first, second)
            means = [np.mean([np.mean([own[c][k] for k in keys]) for c, keys in pairs.items() if keys])
                     for own in (first, second)]  # fmt: skip
            row = {"adapter": name, "what": what, "n": sum(map(len, pairs.values())), "before": means[0],
                   "after": means[1], "difference": change.value, "low": change.low, "high": change.high,
                   "p": change.p}  # fmt: skip
            rows.append(row)
            by = 1 if what.endswith("dB") else 100
            lines.append([
                "edit pairs" if name == "edits" else name, f"bench world: {what}" if what in WORLD else what, row["n"],
                f"{row['before']:.3f}", f"{row['after']:.3f}",
                f"{by * change.value:+.1f} ({by * change.low:+.1f} to {by * change.high:+.1f})", f"{change.p:.2g}",
            ])  # fmt: skip
    text = f"{args.model}; held-out pictures and requests from seed {SEED} on, the same with and without the adapter; "
    text += "categories count alike.\n\n"
    columns = ["adapter of", "what", "n", "before", "after", "points or dB (95 %)", "p"]
    write_results(
        "adapters", {"model": args.model, "seed": SEED, "rows": rows}, text + markdown(columns, lines), args.out
    )
    for name in SCORES if args.docs else ():
        own = [line[1:] for line, row in zip(lines, rows, strict=True) if row["adapter"] == name]
        put(PAGES / f"{name}.md", "adapter", markdown(columns[1:], own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--edits", help="adapter of examples/own_data.py edits")
    parser.add_argument("--questions", help="adapter of examples/own_data.py questions")
    parser.add_argument("--records", type=Path, required=True, help="a .jsonl file, which grows")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of what is measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/uses as well")
    args = parser.parse_args()
    run(args) if args.what == "run" else table(args)


if __name__ == "__main__":
    main()
