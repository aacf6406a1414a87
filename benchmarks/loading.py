"""Time and peak memory of a large checkpoint: one question, one denoising step, both, and a budget.

    openlance init 3b --random -o lance-random          # 15 GB of random weights with the published names and shapes
    python benchmarks/loading.py lance-random           # each row in a process of its own

Without a folder a small one is made, to see that the script runs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import child, markdown, random_checkpoint, verdict, write_results

WORK = """
import json, resource, sys, time
import numpy as np
folder, size, memory, *works = sys.argv[1:]
import openlance
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
pipe = openlance.load(folder, memory=memory or None)
picture = np.zeros((int(size), int(size), 3), np.uint8)
if "question" in works:
    pipe.ask(picture, "what is in the picture?", max_new_tokens=4)
if "step" in works:
    pipe.generate("a red circle", height=int(size), width=int(size), num_inference_steps=1, seed=0)
seconds = time.perf_counter() - began
print(json.dumps({"GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 * 1.024, "seconds": seconds,
                  "start_GB": base / 1e6 * 1.024, "dtype": str(pipe.dtype)}))
"""
ROWS = (
    ("a question", ["question"], "", 8.0),
    ("one denoising step", ["step"], "", 20.0),
    ("a question and one step", ["question", "step"], "", 20.0),
    ("the same, --memory 12GB", ["question", "step"], "12GB", 20.0),
)


def measure(folder: Path, size: int, memory: str, works: list[str]) -> dict[str, float]:
    return child("-c", WORK, folder, size, memory, *works)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--size", type=int, help="side of the picture in pixels")
    parser.add_argument("--rows", default="0,1,2,3", help="which rows, by number")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or random_checkpoint(Path(scratch) / "small")
        size = given.size or (224 if given.folder else 64)
        found = {}
        for number in map(int, given.rows.split(",")):
            name, works, memory, limit = ROWS[number]
            found[name] = measure(folder, size, memory, works) | {"limit_GB": limit}
    stored = sum(f.stat().st_size for f in given.folder.rglob("*.safetensors")) / 1e9 if given.folder else 0.0
    rows = [
        [name, f"{r['seconds']:.1f}", f"{r['GB']:.2f}", verdict(r["GB"], r["limit_GB"])] for name, r in found.items()
    ]
    head = f"{stored:.1f} GB of weights on disk, pictures of {size}x{size}; times with a file cache as it was.\n\n"
    write_results("loading", {"size": size, "stored_GB": stored, "rows": found},
                  head + markdown(["", "s", "peak GB of the process", "bound"], rows))  # fmt: skip


if __name__ == "__main__":
    main()
