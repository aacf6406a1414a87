"""Denoising with kept conditions against the plain form, its share of the machine's matrix products, cost by length.

    python benchmarks/denoise.py                 # everything: about 15 minutes on two cores, 6 GB
    python benchmarks/denoise.py --quick         # a small model and small pictures: does it run?

The 300M config is four of the released 3B's 36 layers at its widths (width 2048, 16 heads and 2 key heads of 128, MLP
11008): 308 million parameters per stream, random. Steps have both guidance branches unless the table says otherwise.
Forms are timed in turns, so that a change of the machine's load meets all of them; a ratio is one of medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, checkpoint, markdown, seconds, spread, timed, verdict, write_results
from forms import CONFIG_300M, GUIDED, PROMPT, QUICK, Stepper, Words, draw_request, edit_request, parameters

from openlance.config.model import ModelConfig
from openlance.config.sampling import Sampling
from openlance.model.attention import attend
from openlance.model.lance import Lance

SPEEDUP, SHARE = 2.2, 0.6  # what image editing must reach


def gemm_rate(c: ModelConfig, rows: int, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of the products of one layer, each shape as often as a layer has it."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes = [(c.width, q), (q, c.width), *2 * [(c.width, kv)], *2 * [(c.width, c.mlp_width)], (c.mlp_width, c.width)]
    work = duration = 0.0
    for inputs, outputs in shapes:
        x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        duration += seconds(lambda x=x, weight=weight: F.linear(x, weight), 2)
        work += 2.0 * rows * inputs * outputs
    return work / duration


def compare(name: str, model: Lance, codec: Any, request: list, s: Sampling, repeat: int, dense: bool) -> dict:
    """Seconds per step of the forms of one request, in turns."""
    forms = {"cached": (True, False), "plain": (False, False)} | ({"dense": (False, True)} if dense else {})
    steppers = {form: Stepper(model, codec, request, s, *how) for form, how in forms.items()}
    times: dict[str, list[float]] = {form: [] for form in forms}
    results = {form: stepper.step() for form, stepper in steppers.items()}  # warms up
    for _ in range(repeat):
        for form, stepper in steppers.items():
            times[form].append(timed(stepper.step))
    for form in forms:
        torch.testing.assert_close(results[form], results["cached"], rtol=0, atol=1e-3)
    middle = {form: statistics.median(t) for form, t in times.items()}
    found = {
        "case": name,
        "tokens": max(steppers["cached"].branches.pack.lengths),
        "target": steppers["cached"].target,
        "prefill_s": steppers["cached"].prefill,
        "work": {form: stepper.work() for form, stepper in steppers.items()},
        "seconds": {form: spread(t) for form, t in times.items()},
        "speedup": middle["plain"] / middle["cached"],
    }
    print(f"{name}: {found['seconds']}", flush=True)
    return found


def share(found: dict, rate: float) -> float:
    """What the cached step reaches of a rate."""
    work = found["work"]["cached"]
    return (work["linear"] + work["attention"]) / found["seconds"]["cached"]["median"] / rate


def by_length(c: ModelConfig, sides: list[int], repeat: int) -> list[dict]:
    """Seconds per step and layer of one target without guidance, whole and attention alone."""
    one = Lance(ModelConfig(**{**vars(c), "layers": 1})).eval()
    rows = []
    for side in sides:
        stepper = Stepper(one, Words(c), draw_request(side), Sampling(guidance_scale=1.0), cached=True)
        plan = stepper.layout.plan
        queries = len(stepper.layout.rows)
        keys = int(max(g.key.max() for g in plan.groups)) + 1
        shapes = [(queries, c.heads), (keys, c.kv_heads), (keys, c.kv_heads)]
        qkv = [torch.randn(n, heads, c.head_dim) for n, heads in shapes]
        with torch.inference_mode():
            attention = seconds(lambda qkv=qkv, plan=plan: attend(*qkv, plan), repeat)
        whole = seconds(stepper.step, repeat)
        rows.append({"tokens": stepper.target, "step_s": whole, "attention_s": attention})
        print(rows[-1], flush=True)
    return rows


def overtakes(rows: list[dict]) -> tuple[float, bool]:
    """Tokens from which attention takes half of a step, and whether that lies beyond what was measured.

    Attention per token grows with the tokens, the rest does not; so their ratio is a line through the longest rows."""
    ratio = [r["attention_s"] / max(r["step_s"] - r["attention_s"], 1e-9) for r in rows]
    for (a, b), (low, high) in zip(zip(rows, rows[1:]), zip(ratio, ratio[1:])):
        if low < 1 <= high:
            return a["tokens"] + (b["tokens"] - a["tokens"]) * (1 - low) / (high - low), False
    return rows[-1]["tokens"] / ratio[-1], True


def cases(args: argparse.Namespace) -> tuple[list[dict], dict[str, float]]:
    """Timings of all cases, and the machine's rate measured before and after those of the 300M config."""
    c, side = (QUICK, 256) if args.quick else (CONFIG_300M, 768)
    model, codec = Lance(c).eval(), Words(c)
    rows = 2 * (side // c.vae.stride) ** 2
    rates = [gemm_rate(c, rows)]
    found = [
        compare(f"edit {side}x{side}", model, codec, edit_request(side), GUIDED, args.repeat, dense=True),
        compare(f"text to image {side}x{side}", model, codec, draw_request(side), GUIDED, args.repeat, dense=False),
    ]
    rates.append(gemm_rate(c, rows))
    machine = {"fp32": statistics.mean(rates)}
    bf16 = gemm_rate(c, rows, torch.bfloat16)
    if bf16 > 1.5 * machine["fp32"]:  # only where the machine has it in hardware
        machine["bf16"] = bf16
        model = model.to(torch.bfloat16)
        found.append(compare_bf16(f"edit {side}x{side} in bfloat16", model, codec, edit_request(side), args.repeat))
    del model
    with tempfile.TemporaryDirectory() as scratch:
        found.append(nano_case(args.model, Path(scratch), 10 * args.repeat))
    return found, machine


def compare_bf16(name: str, model: Lance, codec: Any, request: list, repeat: int) -> dict:
    """The cached form alone: half precision is beside the point of the comparison."""
    stepper = Stepper(model, codec, request, GUIDED, cached=True)
    stepper.step()
    times = spread([timed(stepper.step) for _ in range(repeat)])
    print(f"{name}: {times}", flush=True)
    return {
        "case": name, "tokens": max(stepper.branches.pack.lengths), "target": stepper.target,
        "prefill_s": stepper.prefill, "work": {"cached": stepper.work()}, "seconds": {"cached": times},
    }  # fmt: skip


def nano_case(model: str, scratch: Path, repeat: int) -> dict:
    from openlance import load

    folder, what = checkpoint(model, scratch)
    pipe = load(folder)
    request = pipe.front.request("t2i", "a red circle left of a blue square")
    name = f"text to image {pipe.defaults.width}x{pipe.defaults.height}, {what}"
    return compare(name, pipe.lance("und", "gen"), pipe.codec, request, GUIDED, repeat, dense=False)


def report(found: list[dict], rates: dict[str, float], lengths: list[dict], c: ModelConfig) -> str:
    def ms(case: dict, form: str) -> str:
        return f"{1e3 * case['seconds'][form]['median']:.4g}" if form in case["seconds"] else ""

    def of_rate(case: dict) -> str:
        kind = "bf16" if "bfloat16" in case["case"] else "fp32"
        return f"{share(case, rates[kind]):.2f}" if case["target"] > 100 else ""

    rows = [
        [
            case["case"], case["tokens"], case["target"], ms(case, "cached"), ms(case, "plain"), ms(case, "dense"),
            f"{case['speedup']:.2f}" if "speedup" in case else "", of_rate(case),
        ]
        for case in found
    ]  # fmt: skip
    columns = [
        "case",
        "tokens",
        "of them target",
        "cached ms",
        "plain ms",
        "dense mask ms",
        "speed-up",
        "share of rate",
    ]
    text = f"Config: {parameters(c) / 1e6:.0f}M parameters per stream ({c.layers} layers, width {c.width}), random; "
    text += f"prompt of {len(PROMPT.split())} words. Times are medians per step with both guidance branches.\n\n"
    text += markdown(columns, rows)
    text += f"\nSpeed-up of editing {verdict(found[0]['speedup'], SPEEDUP, True)}. "
    text += f"Share of the fp32 rate {verdict(share(found[0], rates['fp32']), SHARE, True)}. Measured rates of matrix "
    text += "products: " + ", ".join(f"{kind} {rate / 1e9:.0f} GFLOP/s" for kind, rate in rates.items()) + ".\n"
    text += "\n## Cost of a step by length (one layer, no guidance)\n\n"
    text += markdown(
        ["target tokens", "step ms", "attention ms", "share of attention", "µs per token"],
        [
            [
                r["tokens"], f"{1e3 * r['step_s']:.4g}", f"{1e3 * r['attention_s']:.4g}",
                f"{r['attention_s'] / r['step_s']:.2f}", f"{1e6 * r['step_s'] / r['tokens']:.4g}",
            ]
            for r in lengths
        ],
    )  # fmt: skip
    at, beyond = overtakes(lengths)
    return text + f"\nAttention overtakes the rest at about {at:.0f} tokens{' (extrapolated)' if beyond else ''}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small config, to see that everything runs")
    parser.add_argument("--repeat", type=int, default=3, help="timed steps per form")
    parser.add_argument("--model", default="nano", help='the small model beside the random ones; "random" for its form')
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.manual_seed(0)
    c = QUICK if args.quick else CONFIG_300M
    found, rates = cases(args)
    sides = [256, 512] if args.quick else [256, 512, 768, 1024, 1536, 2048]  # 256 to 16384 tokens
    lengths = by_length(c, sides, 1 if args.quick else 2)
    data = {"cases": found, "rates": rates, "lengths": lengths, "overtakes": overtakes(lengths)[0]}
    data |= {"speedup": found[0]["speedup"], "share": share(found[0], rates["fp32"])}
    write_results("denoise", data, report(found, rates, lengths, c), args.out)


if __name__ == "__main__":
    main()
