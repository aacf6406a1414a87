"""Seconds from a command to its result in a fresh process, imports and weights included, for one or two checkouts.

    python benchmarks/startup.py                        # this one
    python benchmarks/startup.py --before ../before     # and another of this repository, both in turn

Files may be in the page cache, as they are right after installing.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import RESULTS, markdown, write_results
from PIL import Image

from toyworld.render import render
from toyworld.scene import sample_scene

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "help": ["--help"],
    "ask about an image": ["ask", "in.png", "how many objects are there?"],
    "draw an image": ["generate", "t2i", "a red circle", "-o", "out.png"],
    "edit an image": ["edit", "in.png", "make the circle blue", "-o", "out.png"],
    "make a video": ["generate", "t2v", "a red circle moves left", "-o", "out.gif"],
}
PIXELS = render(sample_scene(np.random.default_rng(0), category="single"), 64, 64)


def once(line: list[str], checkout: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of a command of a checkout, which must succeed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(PIXELS).save(Path(folder) / "in.png")
        env = os.environ | {"PYTHONPATH": str(checkout / "src")}
        command = [sys.executable, "-m", "openlance.cli.main", *line]
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="the checkout to compare with")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="once each")
    parser.add_argument("--only", default="", help="commands whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    repeat = 1 if args.quick else args.repeat
    checkouts = {"now": ROOT} | ({"before": args.before.resolve()} if args.before else {})
    found, rows = dict[str, dict[str, float]](), []
    for name, line in COMMANDS.items():
        if args.only not in name:
            continue
        taken = [{who: once(line, place) for who, place in checkouts.items()} for _ in range(repeat + 1)][1:]
        found[name] = {
            f"{who} {what}": statistics.median(one[who][n] for one in taken)
            for who in checkouts for n, what in enumerate(("seconds", "CPU seconds"))
        }  # fmt: skip
        rows.append([name, *(f"{value:.2f}" for value in found[name].values())])
    columns = [f"{who}, {what}" for who in checkouts for what in ("s", "CPU s")]
    head = f"nano, a process for each; medians of {repeat}, checkouts in turn, the first time left out.\n\n"
    write_results("startup", {"commands": found, "repeat": repeat}, head + markdown(["", *columns], rows), args.out)


if __name__ == "__main__":
    main()
