"""What the official benchmarks take on a GPU, as planned: operations of every result, from the sizes and steps of the
paper, over a device's peak and a utilization. Nothing is run and nothing is measured.

    python benchmarks/cost.py --docs      # the table goes into docs/evaluation.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import markdown, put

from openlance.config.model import ModelConfig
from openlance.config.sampling import Sampling
from openlance.eval import mvbench
from openlance.eval.benchmarks import BENCHMARKS, Benchmark
from openlance.eval.vbench import PROMPTS, SAMPLES, SAMPLES_FLICKERING
from openlance.planning.hardware import parse_devices
from openlance.planning.sampling import Wanted, operations

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
DEVICES, UTILIZATION = ("A100-80GB", "H100-80GB"), 0.4
TASKS = {
    "geneval": "t2i",
    "dpg": "t2i",
    "gedit": "image_edit",
    "imgedit": "image_edit",
    "vbench": "t2v",
    "mvbench": "x2t_video",
}
WATCHED = (mvbench.FRAMES, 224, 224)  # frames, height and width of MVBench
EDITED = (1, 768, 768)  # about the area that sources are brought to
VIDEOS = SAMPLES * PROMPTS + (SAMPLES_FLICKERING - SAMPLES) * 75


def results(name: str, one: Benchmark) -> int:
    """How many a benchmark has; VBench counts a video once for each of its dimensions."""
    return VIDEOS if name == "vbench" else sum(one.rules.WHOLE.values())


def asked(one: Benchmark) -> tuple[int, int, int]:
    """Frames, height and width."""
    return one.size or (EDITED if one.steps else WATCHED)


def one_result(name: str, one: Benchmark) -> float:
    """Operations of one."""
    frames, height, width = asked(one)
    wanted = Wanted(task=TASKS[name], frames=frames, height=height, width=width)
    sampling = Sampling(num_inference_steps=one.steps or 1, shift=one.shift)
    return sum(operations(ModelConfig(), wanted, sampling).values())


def table() -> str:
    devices = [parse_devices(name)[1] for name in DEVICES]
    rows = []
    for name, one in BENCHMARKS.items():
        count, each = results(name, one), one_result(name, one)
        hours = [count * each / (device.tflops * 1e12 * UTILIZATION) / 3600 for device in devices]
        frames, height, width = asked(one)
        size = f"{width}x{height}" + (f"x{frames}" if frames > 1 else "")
        steps = str(one.steps or "")
        rows.append([one.title, f"{count:,}", size, steps, f"{each / 1e12:,.0f}", *(f"{hour:.3g}" for hour in hours)])
    head = ["", "results", "size", "steps", "TFLOP each", *(f"hours on one {device.name}" for device in devices)]
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="write it into docs/evaluation.md")
    args = parser.parse_args()
    print(table())
    if args.docs:
        put(PAGE, "cost", table())


if __name__ == "__main__":
    main()
