"""Scores of nano on its world, as a dated JSON, a table, and the score table of its model card.

    python benchmarks/nano.py --samples 100 --seed 1 --model nano --card
    python benchmarks/nano.py --again outpaint --card     # this task anew, all others as the newest result has them

Each row of the table is one placement; a picture is right only if every fact of its prompt holds.
"""

import argparse
import datetime
import json
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from common import RESULTS, put


def score(row: tuple, model: str, seed: int) -> dict:
    """Scores of one row, in a process of its own."""
    import torch

    import openlance
    from toyworld.suites.bench import Bench, run

    torch.set_num_threads(1)
    placement, size, tasks, samples = row
    width, height = map(int, size.split("x"))
    bench = Bench(tasks=tasks, samples=samples, seed=seed, placement=placement, height=height, width=width)
    began = time.perf_counter()
    scores = run(openlance.load(model), bench)
    return {"placement": placement, "size": size, "scores": scores, "seconds": time.perf_counter() - began}


def measure(
    model: str, samples: int, seed: int, sizes: list[str], more: list[str], more_samples: int, workers: int
) -> dict:
    """Scores of all placements at the first size; `more` tasks at free, the other sizes at loose placement."""
    import torch
    from tqdm import tqdm

    rows = [("free", sizes[0], (task,), more_samples) for task in more]  # clips take longest, so they begin
    rows += [(placement, sizes[0], ("t2i", "vqa"), samples) for placement in ("free", "loose", "canonical")]
    rows += [("loose", size, ("t2i",), samples) for size in sizes[1:]]
    work = partial(score, model=model, seed=seed)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = list(tqdm(pool.map(work, rows), total=len(rows), unit="row"))
    found = found[len(more) :] + found[: len(more)]
    return {
        "date": datetime.date.today().isoformat(), "command": " ".join(["python", *sys.argv]), "model": model,
        "samples": samples, "more_samples": more_samples, "seed": seed, "torch": torch.__version__,
        "machine": platform.machine(), "workers": workers, "rows": found,
    }  # fmt: skip


def again(tasks: list[str], model: str, workers: int) -> dict:
    """The newest result with some of its further tasks measured anew, as it says."""
    result = json.loads(max(RESULTS.glob("????-??-??-nano.json")).read_text())
    places = {task: n for n, row in enumerate(result["rows"]) for task in row["scores"] if len(row["scores"]) == 1}
    rows = [
        (r["placement"], r["size"], (t,), result["more_samples"]) for t in tasks for r in [result["rows"][places[t]]]
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for task, row in zip(tasks, pool.map(partial(score, model=model, seed=result["seed"]), rows), strict=True):
            result["rows"][places[task]] = row
    today = datetime.date.today().isoformat()
    return result | {"date": today, "again": {**result.get("again", {}), **dict.fromkeys(tasks, today)}}


def tables(result: dict) -> str:
    """Markdown: one table per task, a row per placement and size, each cell the share right with its interval."""
    out = []
    for task in dict.fromkeys(task for r in result["rows"] for task in r["scores"]):
        rows = [r for r in result["rows"] if task in r["scores"]]
        names = list(rows[0]["scores"][task])
        out += [f"### {task}", "", "| placement, size | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for r in rows:
            cells = (r["scores"][task][n] for n in names)
            shown = (f"{c['mean']:.2f} ({c['ci95'][0]:.2f} to {c['ci95'][1]:.2f})" for c in cells)
            out.append(f"| {r['placement']}, {r['size']} | " + " | ".join(shown) + " |")
        out.append("")
    counts = f"{result['samples']} per category ({result['more_samples']} of further tasks)"
    said = f"{counts}, seed {result['seed']}, {result['date']}; in brackets 95 % intervals."
    anew = "".join(f" {task} was measured anew on {date}." for task, date in result.get("again", {}).items())
    return "\n".join([said + anew, "", *out])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--samples", type=int, default=100, help="per category")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sizes", default="64x64,96x96,96x64", help="WIDTHxHEIGHT, the first for all placements")
    parser.add_argument("--more", default="", help="further tasks, at free placement: image_edit,subject ...")
    parser.add_argument("--more-samples", type=int, default=20, help="per category of those; clips take seconds each")
    parser.add_argument("--card", action="store_true", help="write the table into the shipped model card as well")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread, a row each")
    parser.add_argument("--again", default="", help="further tasks of the newest result that are to be measured anew")
    options = parser.parse_args()
    if options.again:
        result = again(options.again.split(","), options.model, options.workers)
    else:
        more = [task for task in options.more.split(",") if task]
        sizes = options.sizes.split(",")
        result = measure(
            options.model, options.samples, options.seed, sizes, more, options.more_samples, options.workers
        )  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    name = RESULTS / f"{result['date']}-nano"
    name.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = tables(result)
    name.with_suffix(".md").write_text(f"# nano on its world\n\n`{result['command']}`\n\n{text}")
    print(text)
    if options.card:
        import openlance

        put(Path(openlance.__file__).parent / "assets" / "nano" / "README.md", "scores", text + "\n")


if __name__ == "__main__":
    main()
