"""How long training waits for data when these are photos of 12 megapixels.

    python benchmarks/photos.py             # a few minutes; --quick: few and small photos, nothing written

Generated photos, with a caption each, are trained on as `openlance train lora --data photos` does by default, without
the cache of encodings, and without a worker as well. An epoch is as many rows as the report of the run counts for one
(`found.json`); steps that begin behind the first count as later ones. What is measured is `waited` and `seconds` of
`log.jsonl`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown, put, verdict, write_results
from PIL import Image

from openlance.cli.main import main

LIMIT = 0.05
PAGE = Path(__file__).parents[1] / "docs" / "howto" / "data.md"
FORMS = {"as it is": [], "no cache": ["--cache-gb", "0"], "no cache, no worker": ["--cache-gb", "0", "--workers", "0"]}


def photo(path: Path, number: int, size: tuple[int, int]) -> None:
    """A JPEG with as much detail as a camera's: soft shapes, edges and grain, about 4 bits a pixel."""
    rng, (width, height) = np.random.default_rng(number), size
    soft = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    edges = Image.fromarray(rng.integers(0, 60, (150, 200, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
    grain = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    pixels = np.asarray(soft, np.float32) * 0.7 + np.asarray(edges, np.float32) + grain
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def trained(photos: Path, out: Path, steps: int, words: list[str]) -> dict[str, Any]:
    """Train an adapter; the share of waiting in the first epoch and from the second on."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        if main(["train", "lora", "--data", str(photos), "-o", str(out), "--steps", str(steps), *words]):
            raise SystemExit("training failed")
    [source] = json.loads((out / "found.json").read_text())["sources"]
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    seen, first, later = 0.0, [], []
    for row in rows:
        (first if seen < source["tokens"] else later).append(row)
        seen += row["rows"]
    cache = [file.stat().st_size for file in (out / "cache").rglob("*.npy")]
    return {"epochs": round(seen / source["tokens"], 2), "cache_files": len(cache), "cache_bytes": sum(cache)} | {
        name: {
            "steps": len(some), "seconds": sum(r["seconds"] for r in some),
            "share": sum(r["waited"] for r in some) / max(sum(r["seconds"] for r in some), 1e-9),
        }
        for name, some in (("first", first), ("later", later))
    }  # fmt: skip


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small photos, nothing written")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--steps", type=int, default=32)
    given = parser.parse_args()
    count, size, steps = (6, (400, 300), 3) if given.quick else (given.photos, (4000, 3000), given.steps)
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        photos.mkdir()
        for n in range(count):
            photo(photos / f"{n:03d}.jpg", n, size)
            (photos / f"{n:03d}.txt").write_text(f"photo {n}")
        held = sum(file.stat().st_size for file in photos.glob("*.jpg"))
        found = {
            name: trained(photos, Path(scratch) / f"run{n}", steps, words)
            for n, (name, words) in enumerate(FORMS.items())
        }
    rows = [
        [name, f"{one['epochs']:g}", f"{one['first']['share']:.1%} of {one['first']['seconds']:.0f} s",
         f"{one['later']['share']:.1%} of {one['later']['seconds']:.0f} s"]
        for name, one in found.items()
    ]  # fmt: skip
    share, kept = found["as it is"]["later"]["share"], found["as it is"]["cache_bytes"]
    table = f"{count} photos of {size[0]}x{size[1]}, {held / 1e6:.0f} MB of JPEG; nano, LoRA, {steps} steps.\n\n"
    table += markdown(["form", "epochs", "waiting, first epoch", "from the second on"], rows)
    table += f"\nWaiting from the second epoch on, {verdict(share, LIMIT)} ({share:.2%}). "
    table += f"The cache holds {kept / 1e6:.2f} MB.\n"
    if given.quick:
        print(table)
    else:
        write_results("photos", {"photos": count, "size": size, "jpeg_bytes": held, "forms": found}, table)
        put(PAGE, "photos", table)


if __name__ == "__main__":
    run()
