"""The published shapes on a GPU: peak memory, seconds, share of the card's own rate of matrix products.

    openlance init 3b --random -o lance-random          # 15 GB of random weights, time and memory are those of the 3B
    python benchmarks/gpu.py lance-random               # on a CUDA device; each row in a process of its own
    python benchmarks/gpu.py                            # without one: memory as `openlance plan` computes it, marked so

A machine from which no files come back prints the rows alone, `--row JSON` each; `--rows FILE --device NAME` makes the
table of such lines elsewhere.

Computed rows say nothing about time. `--any-device nano` runs the measuring code on whatever is there, with nano.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import OTHER_DEVICE, RESULTS, child, markdown, timed, verdict, write_results
from denoise import gemm_rate
from forms import operations

from openlance.config.model import ModelConfig
from openlance.flow import schedule
from openlance.planning.sampling import Wanted, plan

SHARE, STEPS = 0.5, 30


@dataclass(frozen=True, kw_only=True)
class Row:
    """A request, the budget it is made under in GB (0: whole), what its peak may be, and whether its steps are compiled
    and recorded as CUDA graphs."""

    task: str
    width: int
    height: int
    frames: int = 1
    memory: int = 0
    limit: float
    compile: bool = False

    @property
    def name(self) -> str:
        size = f"{self.width}x{self.height}" + (f"x{self.frames}" if self.frames > 1 else "")
        budget = f", --memory {self.memory}GB" if self.memory else ""
        return f"{self.task} {size}{budget}{', compiled' if self.compile else ''}"


ROWS = (
    Row(task="t2i", width=768, height=768, limit=15),
    Row(task="t2i", width=768, height=768, memory=12, limit=9),
    Row(task="t2v", width=848, height=480, frames=121, memory=24, limit=24),
)
COMPILED = (Row(task="t2i", width=768, height=768, limit=15, compile=True),)
SMALL = (Row(task="t2i", width=64, height=64, limit=1), Row(task="t2v", width=64, height=64, frames=9, limit=1))


def measured(folder: str, row: Row) -> dict[str, float]:
    """One request after one that warms up (and compiles): seconds, peak GB on the device, share of its rate."""
    import openlance

    pipe = openlance.load(folder, memory=f"{row.memory}GB" if row.memory else None)
    size: dict[str, Any] = {"height": row.height, "width": row.width, "num_inference_steps": STEPS, "seed": 0}
    size |= {"compile": True} if row.compile else {}

    def make() -> None:
        if row.frames > 1:
            pipe.generate_video("a red kite over dunes", num_frames=row.frames, **size)
        else:
            pipe.generate("a red kite over dunes", **size)

    make()
    cuda = pipe.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(make)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    done = work(pipe, row)
    return {"seconds": seconds, "GB": peak, "share": done / seconds / rate(pipe), "TFLOP": done / 1e12}


def work(pipe: Any, row: Row) -> float:
    """Operations of all steps in linear layers and attention; the codec and the prompt are left out, so that the share
    is a lower bound."""
    c, s = pipe.config, pipe.defaults.sampling
    tokens = plan(c, Wanted(task=row.task, height=row.height, width=row.width, frames=row.frames)).tokens
    noisy, keys = tokens["denoised"], tokens["denoised"] + tokens["context"]
    guided = sum(s.acts_at(float(t)) for t in schedule(STEPS, s.shift)[:-1])
    return operations(c, noisy, noisy * keys) * (STEPS + guided)


def rate(pipe: Any) -> float:
    with torch.device(pipe.device):
        return gemm_rate(pipe.config, 4096, pipe.dtype)


def computed(row: Row) -> dict[str, float]:
    """What `openlance plan` says of the published model: GB at the fullest."""
    wanted = Wanted(task=row.task, height=row.height, width=row.width, frames=row.frames)
    chosen = plan(ModelConfig(), wanted, memory=row.memory * 1e9 or None).chosen
    assert chosen is not None, row
    return {"GB": chosen[1] / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="random weights of the published shapes")
    parser.add_argument("--any-device", action="store_true", help="measure small requests without a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rows", type=Path, help="lines that --row printed")
    parser.add_argument("--device", help="where these were measured, with versions")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        row = Row(**json.loads(args.row))
        return print(json.dumps({"row": asdict(row), **measured(args.folder, row)}))
    device = args.device or (torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    if device and not args.folder and not args.rows:
        parser.error("give the folder that `openlance init 3b --random -o lance-random` wrote")
    measures = bool(device) or args.any_device
    found: dict[str, dict[str, Any]] = {}
    if args.rows:
        said = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    else:
        asked = SMALL if args.any_device else ROWS + COMPILED if measures else ROWS
        printed = partial(child, __file__, args.folder, "--row")
        said = [
            printed(json.dumps(asdict(row))) if measures else {"row": asdict(row), **computed(row)} for row in asked
        ]
    for one in said:
        row = Row(**one.pop("row"))
        found[row.name] = one | {"limit_GB": row.limit}
    rows = [
        [
            name, "measured" if measures else "computed", f"{r['GB']:.2f}", verdict(r["GB"], r["limit_GB"] + 1e-9),
            f"{r['seconds']:.2f}" if measures else "", f"{r['TFLOP'] / r['seconds']:.0f}" if measures else "",
            f"{r['share']:.2f}" if "share" in r else "",
        ]
        for name, r in found.items()
    ]  # fmt: skip
    head = f"Published shapes in bfloat16, {STEPS} steps, guidance 4. Device: {device or 'none'}. "
    head += f"{OTHER_DEVICE} " if args.rows else ""
    head += f"Share of the measured rate of matrix products wanted: {SHARE}.\n\n" if measures else (
        "Without one, memory is what `openlance plan` computes, and nothing is said of time.\n\n"
    )  # fmt: skip
    table = markdown(["request", "how", "peak GB", "bound", "s", "TFLOP/s", "share of rate"], rows)
    write_results("gpu", {"device": device, "measured": measures, "rows": found}, head + table, args.out)


if __name__ == "__main__":
    main()
