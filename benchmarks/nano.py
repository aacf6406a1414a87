"""Scores of nano on its world, as a dated JSON, a table, and the score table of its model card.

    python benchmarks/nano.py --samples 100 --seed 1 --model nano --card

Each row of the table is one placement; a picture is right only if every fact of its prompt holds.
"""

import argparse
import datetime
import json
import platform
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MARKS = "<!-- scores -->", "<!-- /scores -->"


def measure(model: str, samples: int, seed: int, sizes: list[str], more: list[str]) -> dict:
    """Scores of all placements at the first size, and of loose placement for `more` tasks and the other sizes."""
    import torch
    from tqdm import tqdm

    import openlance
    from openlance.eval.world import BENCH_CATEGORIES, Bench, run

    pipe = openlance.load(model)
    rows = [(placement, sizes[0], ("t2i", "vqa")) for placement in ("free", "loose", "canonical")]
    rows += [("loose", sizes[0], (task,)) for task in more]
    rows += [("loose", size, ("t2i",)) for size in sizes[1:]]
    found = []
    for placement, size, tasks in rows:
        width, height = map(int, size.split("x"))
        bench = Bench(tasks=tasks, samples=samples, seed=seed, placement=placement, height=height, width=width)
        total = samples * sum(len(BENCH_CATEGORIES[task]) for task in tasks)
        began = time.perf_counter()
        with tqdm(total=total, desc=f"{placement} {size}") as bar:
            scores = run(pipe, bench, lambda *_, bar=bar: bar.update())
        found.append({"placement": placement, "size": size, "scores": scores, "seconds": time.perf_counter() - began})
    return {
        "date": datetime.date.today().isoformat(), "command": " ".join(["python", *sys.argv]), "model": model,
        "samples": samples, "seed": seed, "torch": torch.__version__, "machine": platform.machine(),
        "threads": torch.get_num_threads(), "rows": found,
    }  # fmt: skip


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
    said = f"{result['samples']} per category, seed {result['seed']}, {result['date']}; in brackets 95 % intervals."
    return "\n".join([said, "", *out])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--samples", type=int, default=100, help="per category")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sizes", default="64x64,96x96,96x64", help="WIDTHxHEIGHT, the first for all placements")
    parser.add_argument("--more", default="", help="further tasks, at loose placement: image_edit,subject ...")
    parser.add_argument("--card", action="store_true", help="write the table into the shipped model card as well")
    options = parser.parse_args()
    more = [task for task in options.more.split(",") if task]
    result = measure(options.model, options.samples, options.seed, options.sizes.split(","), more)
    RESULTS.mkdir(exist_ok=True)
    name = RESULTS / f"{result['date']}-nano"
    name.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = tables(result)
    name.with_suffix(".md").write_text(f"# nano on its world\n\n`{result['command']}`\n\n{text}")
    print(text)
    if options.card:
        import openlance

        card = Path(openlance.__file__).parent / "assets" / "nano" / "README.md"
        before, _, rest = card.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        card.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
