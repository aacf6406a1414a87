"""Rows that a step of nano's training gets through in a CPU second: another checkout against this one.

    git worktree add /tmp/before REVISION
    python benchmarks/rows.py --before /tmp/before

Both take the same steps with the same packs from the shipped weights, in turn, one thread each, on nano's first and
last mixed stage (`toyworld/nano.yaml`) and on the ablation's packs of 4,000 tokens. The first steps, which warm up, are
left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import markdown, write_results

PARTS = ("data", "encoding", "forward and backward", "optimizer")
MIXTURES = ("pt", "sft", "ablation")
HERE = Path(__file__).parents[1]
WARM = 2


def plan_of(mixture: str) -> Any:
    from openlance.config.train import stage

    if mixture != "ablation":
        return stage(mixture, "nano")
    tasks = {"t2i": 4.0, "image_edit": 3.0, "x2t_image": 3.0}  # benchmarks/ablation.py
    return replace(stage("pt", "nano"), mixture=tasks, pack_tokens=(4000, 4500))


def serve(mixture: str, compiled: bool) -> None:
    """Take a step for every line that is read, and say what it took."""
    import torch

    from openlance.checkpoint.formats import folder_of
    from openlance.training.files import Settings
    from openlance.training.run import begin, prepare

    torch.set_num_threads(1)
    plan, clock = plan_of(mixture), time.process_time
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = Settings(out=Path(folder), model=folder_of("nano"), compiled=compiled)
        processes, base = begin((plan,), settings)
        run, work = prepare(plan, settings, base, processes, stack)
        print(flush=True)
        for _ in sys.stdin:
            times = [clock()]
            samples = next(work.batches)
            times.append(clock())
            [number] = run.numbers()
            batch = work.prepare(samples, number)
            times.append(clock())
            losses, _ = run.backward([batch])
            times.append(clock())
            told, _ = run.descend()
            run.step += 1
            times.append(clock())
            spent = [b - a for a, b in zip(times, times[1:])]
            print(json.dumps({"rows": batch.size, "seconds": spent, "losses": losses.tolist(), **told}), flush=True)


class Side:
    """A process that trains with the code of one checkout."""

    def __init__(self, tree: Path, mixture: str, compiled: bool) -> None:
        environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, __file__, "--serve", mixture, *([] if compiled else ["--no-compile"])]
        self.process = subprocess.Popen(
            line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a side ended with {self.process.wait()}")
        return line

    def step(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(trees: dict[str, Path], mixture: str, steps: int, compiled: bool) -> dict[str, Any]:
    sides = {name: Side(tree, mixture, compiled) for name, tree in trees.items()}
    found: dict[str, list[Any]] = {name: [] for name in trees}
    for _ in range(WARM + steps):
        for name, side in sides.items():
            found[name].append(side.step())
    for side in sides.values():
        side.end()
    return {name: summary(rows) for name, rows in found.items()}


def summary(steps: list[dict[str, Any]]) -> dict[str, Any]:
    kept = steps[WARM:]
    parts = {name: statistics.median(s["seconds"][n] for s in kept) for n, name in enumerate(PARTS)}
    rate = statistics.median(s["rows"] / sum(s["seconds"]) for s in kept)
    return {"rows_per_cpu_second": rate, "seconds": parts, "steps": steps}


def apart(found: dict[str, Any]) -> tuple[float, float]:
    """The ratio of each pair of steps in the middle, and the largest distance of a loss as a share."""
    pairs = list(zip(found["before"]["steps"], found["after"]["steps"], strict=True))
    ratios = [sum(a["seconds"]) / sum(b["seconds"]) for a, b in pairs[WARM:]]
    away = [abs(y - x) / max(abs(x), 1e-6) for a, b in pairs for x, y in zip(a["losses"][:2], b["losses"][:2])]
    return statistics.median(ratios), max(away)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--steps", type=int, default=6, help="that count, of each mixture and side")
    parser.add_argument("--mixtures", nargs="+", choices=MIXTURES, default=MIXTURES)
    parser.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    parser.add_argument("--serve", choices=MIXTURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, not args.no_compile)
    if args.before is None:
        parser.error("name the other checkout with --before")
    found, rows = {}, []
    for mixture in args.mixtures:
        found[mixture] = measure({"before": args.before, "after": HERE}, mixture, args.steps, not args.no_compile)
        ratio, away = apart(found[mixture])
        found[mixture] |= {"ratio": ratio, "loss_apart": away}
        for name in ("before", "after"):
            side = found[mixture][name]
            whole = sum(side["seconds"].values())
            shares = [f"{seconds:.3f} ({seconds / whole:.0%})" for seconds in side["seconds"].values()]
            last = [f"{ratio:.2f}", f"{away:.2%}"] if name == "after" else ["", ""]
            rows.append([mixture, name, f"{side['rows_per_cpu_second']:.0f}", *shares, *last])
            print(rows[-1], flush=True)
    heads = ["mixture", "", "rows per CPU second", *(f"{part}, CPU s" for part in PARTS), "times", "losses apart"]
    how = "as it is" if args.no_compile else "compiled"
    table = (
        f"Medians of {args.steps} steps on each side, taken in turn, {how}. Losses apart: the largest of any step.\n\n"
    )
    write_results("rows", {"compiled": not args.no_compile, "mixtures": found}, table + markdown(heads, rows))


if __name__ == "__main__":
    main()
