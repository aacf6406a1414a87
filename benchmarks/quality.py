"""What fewer and cheaper steps cost and save: every setting against Euler's method with 30 steps, on the same seeds.

    python benchmarks/quality.py --samples 200 --docs   # nano, 64x64; the table goes into docs/howto/speed.md
    python benchmarks/quality.py --size 96x96 --samples 64

The reference is drawn once. `openlance bench quality` compares one setting in the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import RESULTS, markdown, put, write_results

from openlance import load
from openlance.runtime.quantization import RECIPES
from toyworld.suites.quality import Comparison, Drawn, draw, measure

DPM = {"solver": "dpm++", "num_inference_steps": 12}
SETTINGS: dict[str, dict[str, Any]] = {
    "Euler, 10 steps": {"num_inference_steps": 10},
    "Euler, 30 steps, guidance above t = 0.5": {"interval": (0.5, 1.0)},
    "DPM++ 2M, 12 steps": DPM,
    "UniPC, 12 steps": {"solver": "unipc", "num_inference_steps": 12},
    "Euler, 30 steps, step cache 0.05": {"step_cache": 0.05},
    "Euler, 30 steps, step cache 0.1": {"step_cache": 0.1},
    "DPM++ 2M, 12 steps, step cache 0.1": {**DPM, "step_cache": 0.1},
    "DPM++ 2M, 10 steps, step cache 0.05": {**DPM, "num_inference_steps": 10, "step_cache": 0.05},
    "DPM++ 2M, 10 steps": {**DPM, "num_inference_steps": 10},
    "DPM++ 2M, 10 steps, guidance above t = 0.5": {**DPM, "num_inference_steps": 10, "interval": (0.5, 1.0)},
    "DPM++ 2M, 8 steps": {**DPM, "num_inference_steps": 8},
    "DPM++ 2M, 8 steps, step cache 0.05": {**DPM, "num_inference_steps": 8, "step_cache": 0.05},
    "Euler, 30 steps, compiled": {"compile": True},
}

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "speed.md"
STORED = "Euler, 30 steps, experts in {}"


def row(name: str, found: dict[str, Any]) -> list[str]:
    judge = found["judge"]
    low, high = (100 * x for x in judge["ci95"])
    return [
        name,
        f"{found['psnr']:.1f}",
        f"{found['ssim']:.4f}",
        f"{found['latent_distance']:.4f}",
        f"{found['high_frequency']:.3f}",
        f"{100 * judge['setting']:.1f}",
        f"{100 * judge['difference']:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{found['passes']['setting']:.1f}",
        f"{found['seconds']['setting']:.3f}",
        f"{found['seconds']['ratio']:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="a shipped model or a folder")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="64x64", help="WIDTHxHEIGHT")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the table into docs/howto/speed.md as well")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    pipe = load(args.model)

    def comparison(setting: dict[str, Any]) -> Comparison:
        return Comparison(
            setting=setting, samples=args.samples, seed=args.seed, height=height, width=width, batch=args.batch
        )

    base = comparison({})
    exact: Drawn = draw(pipe, base, base.reference)
    results = {"Euler, 30 steps (reference)": measure(base, exact, exact)}
    for name, setting in SETTINGS.items():
        if args.only in name:
            made = draw(pipe, base, {**base.reference, **setting})
            results[name] = measure(comparison(setting), exact, made)
            print(" | ".join(row(name, results[name])), flush=True)
    for kind in RECIPES:
        if args.only in (name := STORED.format(kind)):
            pipe = load(args.model)
            pipe.quantize(kind)
            results[name] = measure(base, exact, draw(pipe, base, base.reference))
    columns = ["setting", "PSNR, dB", "SSIM", "latents", "high freq.", "right, %", "points (95 %)", "passes"]
    columns += ["s", "times faster"]
    rows = [row(name, found) for name, found in results.items()]
    head = f"{args.model}, {args.size}, {args.samples} prompts in batches of {args.batch}, seed {args.seed}. "
    head += "Right: the world's judge, with the paired difference to the reference. "
    head += "Latents: see `toyworld/suites/quality.py`.\n\n"
    data = {"model": args.model, "size": args.size, "samples": args.samples, "rows": results}
    write_results("quality", data, head + markdown(columns, rows), args.out)
    if args.docs:
        put(PAGE, "quality", head + markdown(columns, rows))


if __name__ == "__main__":
    main()
