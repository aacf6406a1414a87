"""What adapters of docs/uses bring, on data that they have not seen, and what becomes of everything else.

    python examples/own_data.py edits pairs; python examples/own_data.py questions asked
    openlance train lora --task edit --data pairs --targets 'layers\\.\\d+\\.gen\\.\\w+' --steps 40 -o framing
    openlance train lora --task vqa --data asked --steps 40 --lr 1e-3 -o corners
    python benchmarks/adapters.py run --edits framing --questions corners --records adapters.jsonl   # may be stopped
    python benchmarks/adapters.py table --records adapters.jsonl

Held out: pictures of other seeds. A framed one is right if 95 % of the border are within 40 of 255 of the frame's
colour, in the mean of the channels, and what is inside is the source's (PSNR of 20 dB). Everything else: `bench world`,
the same requests and noise with and without the adapter.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, markdown, put, write_results
from PIL import Image
from samplers import read

from openlance import load
from openlance.eval.estimate import paired
from openlance.inference.lance_pipeline import LancePipeline
from toyworld.suites.bench import Bench, Scored
from toyworld.suites.bench import run as world

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from own_data import CORNERS, CREAM, FRAME, edits, questions  # noqa: E402

SEED, EACH = 9000, 2  # of round r SEED + r; requests of a category of the world in a round
WORLD = ("t2i", "image_edit", "vqa")
PAGES = Path(__file__).parents[1] / "docs" / "uses"
HELD_OUT = {"edits": "framed", "questions": "corners"}  # adapter: what it is trained for


def is_framed(before: np.ndarray, after: np.ndarray) -> bool:
    inside = (slice(FRAME, -FRAME), slice(FRAME, -FRAME))
    border = np.ones(before.shape[:2], bool)
    border[inside] = False
    off = np.abs(after.astype(float) - CREAM).mean(-1)[border]
    error = ((before[inside].astype(float) - after[inside]) ** 2).mean()
    return bool(np.percentile(off, 95) < 40 and 10 * np.log10(255**2 / max(error, 1e-9)) > 20)


def framed(pipe: LancePipeline, number: int) -> dict[str, bool]:
    """Ten pictures that are to be framed."""
    with tempfile.TemporaryDirectory() as place:
        edits(Path(place), np.random.default_rng(SEED + number))
        rows = [json.loads(text) for text in (Path(place) / "metadata.jsonl").read_text().splitlines()][:10]
        sources = [Image.open(Path(place) / row["input_image"]).convert("RGB") for row in rows]
        made = pipe.edit(list(sources), [row["instruction"] for row in rows], seed=SEED + 100 * number)
    return {str(n): is_framed(np.asarray(s), np.asarray(m)) for n, (s, m) in enumerate(zip(sources, made))}


def corners(pipe: LancePipeline, number: int) -> dict[str, bool]:
    """Twenty questions for corners."""
    with tempfile.TemporaryDirectory() as place:
        questions(Path(place), np.random.default_rng(SEED + number))
        rows = [json.loads(text) for text in (Path(place) / "metadata.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["answer"] in CORNERS.values()][:20]
        shown = [Image.open(Path(place) / row["image"]).convert("RGB") for row in rows]
        said = pipe.ask(shown, [row["question"] for row in rows])
    return {str(n): a.strip().lower() == row["answer"] for n, (row, a) in enumerate(zip(rows, said, strict=True))}


def of_world(pipe: LancePipeline, number: int) -> dict[str, dict[str, bool]]:
    found: dict[str, dict[str, bool]] = defaultdict(dict)

    def note(s: Scored) -> None:
        found[f"{s.task} {s.category}"][str(s.index)] = s.right

    world(pipe, Bench(tasks=WORLD, samples=EACH, seed=SEED + number), note)
    return found


def run(args: argparse.Namespace) -> None:
    args.records.touch()
    done = {(r["name"], r["part"], r["round"]) for r in read(args.records)}
    pipes = {"none": load(args.model)}
    for name, path in (("edits", args.edits), ("questions", args.questions)):
        if path is not None:
            pipes[name] = load(args.model)
            pipes[name].load_lora_weights(path)
    parts = {"framed": framed, "corners": corners, "world": of_world}
    for number in range(args.rounds):
        for name, pipe in pipes.items():
            for part, measure in parts.items():
                trained = [HELD_OUT[one] for one in ([name] if name in HELD_OUT else pipes.keys() - {"none"})]
                if part != "world" and part not in trained:
                    continue
                if (name, part, number) not in done:
                    began = time.process_time()
                    found = measure(pipe, number)
                    row = {"name": name, "part": part, "round": number, "right": found}
                    row["cpu_seconds"] = time.process_time() - began
                    with args.records.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


def items(found: list[dict[str, Any]], name: str, part: str, task: str = "") -> dict[str, dict[str, float]]:
    """Means of items by category."""
    out: dict[str, dict[str, float]] = defaultdict(dict)
    for r in found:
        if (r["name"], r["part"]) == (name, part):
            for category, own in (r["right"] if part == "world" else {part: r["right"]}).items():
                if category.startswith(task):
                    out[category] |= {f"{r['round']} {n}": float(right) for n, right in own.items()}
    return out


def table(args: argparse.Namespace) -> None:
    found, rows, lines = read(args.records), list[dict[str, Any]](), []
    for name in HELD_OUT:
        for part, task in ((HELD_OUT[name], ""), *(("world", task) for task in WORLD)):
            first, second = (items(found, one, part, task) for one in ("none", name))
            pairs = {c: own.keys() & second.get(c, {}).keys() for c, own in first.items()}
            if not any(pairs.values()):
                continue
            change = paired(first, second)
            means = [np.mean([np.mean([own[c][k] for k in keys]) for c, keys in pairs.items() if keys])
                     for own in (first, second)]  # fmt: skip
            row = {"adapter": name, "what": task or part, "n": sum(map(len, pairs.values())), "before": means[0],
                   "after": means[1], "difference": change.value, "low": change.low, "high": change.high,
                   "p": change.p}  # fmt: skip
            rows.append(row)
            lines.append([
                f"{'edit pairs' if name == 'edits' else 'questions'}", f"bench world: {task}" if task else part,
                row["n"], f"{row['before']:.3f}", f"{row['after']:.3f}",
                f"{100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})", f"{change.p:.2g}",
            ])  # fmt: skip
    text = f"{args.model}; held-out pictures and requests from seed {SEED} on, the same with and without the adapter; "
    text += "categories count alike.\n\n"
    columns = ["adapter of", "what", "n", "before", "after", "points (95 %)", "p"]
    write_results(
        "adapters", {"model": args.model, "seed": SEED, "rows": rows}, text + markdown(columns, lines), args.out
    )
    for name in HELD_OUT if args.docs else ():
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
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/uses as well")
    args = parser.parse_args()
    run(args) if args.what == "run" else table(args)


if __name__ == "__main__":
    main()
