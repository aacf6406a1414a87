"""Eight prompts in one batch against one prompt, and against the same pictures made alone.

    python benchmarks/batch.py                   # nano; random weights of its form where nano is not there

The guidance branches of all prompts run together. Times are wall times of whole calls in turns, text to pixels; the
pictures of the batch and of eight single calls with the same seeds are compared before they are rounded to bytes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path

import torch
from common import PROMPTS, RESULTS, checkpoint, markdown, spread, timed, verdict, write_results
from denoise import gemm_rate
from forms import operations
from torch import Tensor

from openlance import LancePipeline, load
from openlance.flow import schedule
from openlance.inference.visual import denoise

LIMIT, EQUAL = 4.0, 1e-4


@torch.inference_mode()
def pictures(pipe: LancePipeline, prompts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Latents (B, T, Y, X, C) and pixels (B, 3, H, W) in [-1, 1] of some prompts in one batch."""
    from openlance.vae.frames import channels_first

    requests = [pipe.front.request("t2i", prompt) for prompt in prompts]
    latents = torch.stack(
        denoise(pipe.lance("und", "gen"), pipe.codec, requests, pipe.defaults.sampling, seeds=list(seeds))
    )
    return latents, pipe.vae().decode(channels_first(latents))[:, :, 0]


def differences(pipe: LancePipeline, seeds: list[int]) -> dict[str, float]:
    """Largest difference of a picture of the batch from the one made alone, in latents and in pixels of [-1, 1]."""
    together = pictures(pipe, PROMPTS, seeds)
    alone = [pictures(pipe, [prompt], [seed]) for prompt, seed in zip(PROMPTS, seeds)]
    parts = [torch.cat(part) for part in zip(*alone)]
    return {name: float((a - b).abs().max()) for name, a, b in zip(("latents", "pixels"), together, parts)}


def measure(pipe: LancePipeline, repeat: int) -> dict[str, list[float]]:
    def one() -> None:
        pipe.generate(PROMPTS[0], seed=7)

    def eight() -> None:
        pipe.generate(PROMPTS, seed=7)

    one(), eight()
    times: dict[str, list[float]] = {"one": [], "eight": []}
    for _ in range(repeat):
        times["one"].append(timed(one))
        times["eight"].append(timed(eight))
    return times


def products(pipe: LancePipeline) -> float:
    """Seconds that the products of the eight targets alone take at the machine's own rate: linear layers and
    attention among themselves, in the branches that each step runs. No batch can be faster in this precision."""
    c, s, size = pipe.config, pipe.defaults.sampling, (1, pipe.defaults.height, pipe.defaults.width)
    cells = math.prod(pipe.codec.latent_grid(size))
    times = schedule(s.num_inference_steps, s.shift)[:-1].tolist()
    passes = len(PROMPTS) * sum(s.branches if s.acts_at(t) else 1 for t in times)
    return passes * operations(c, cells, cells**2) / gemm_rate(c, s.branches * len(PROMPTS) * cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--model", default="nano", help='a shipped model, a folder, or "random"')
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, what = checkpoint(args.model, Path(scratch))
        pipe = load(folder)
        times = measure(pipe, args.repeat)
        apart = differences(pipe, list(range(7, 7 + len(PROMPTS))))
        floor = products(pipe)
    ratio = statistics.median(times["eight"]) / statistics.median(times["one"])
    rows = [
        ["one prompt, s", f"{statistics.median(times['one']):.3f}", ""],
        ["eight prompts, s", f"{statistics.median(times['eight']):.3f}", ""],
        ["eight / one", f"{ratio:.2f}", verdict(ratio, LIMIT)],
        ["matrix products of eight at the machine's rate, s", f"{floor:.3f}", ""],
        ["these / one prompt", f"{floor / statistics.median(times['one']):.2f}", ""],
        ["eight alone / eight together", f"{8 / ratio:.2f}", ""],
        ["largest difference of latents", f"{apart['latents']:.1e}", verdict(apart["latents"], EQUAL)],
        ["largest difference of pixels in [-1, 1]", f"{apart['pixels']:.1e}", verdict(apart["pixels"], EQUAL)],
    ]
    s = pipe.defaults.sampling
    head = f"Model: {what}; {s.num_inference_steps} steps, guidance {s.guidance_scale:g}. Medians of {args.repeat}.\n\n"
    data = {"model": what, "seconds": {k: spread(v) for k, v in times.items()}, "ratio": ratio, "difference": apart}
    data["products_s"] = floor
    write_results("batch", data, head + markdown(["", "measured", "wanted"], rows), args.out)


if __name__ == "__main__":
    main()
