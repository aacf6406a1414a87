"""A whole training step of the 300M config: its share of the machine's own rate of matrix products.

    python benchmarks/step.py               # some minutes; --quick: a tiny model, nothing written
    python benchmarks/step.py --dtypes float32                   # where a processor only imitates bfloat16

Forward, backward, gradient norm and AdamW on one pack of pictures to draw, edits and questions, with latents and
features that were encoded before (`openlance encode`), as a stage with a frozen vision tower trains. Operations are
those that `openlance plan` counts: products of the forward pass, twice as many for the backward pass, nothing for norms
and the optimiser. The rate is that of the layer's own products, measured before and after.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from common import markdown, seconds, spread, timed, verdict, write_results
from denoise import gemm_rate
from forms import CONFIG_300M, QUICK, Words

from openlance.config.model import ModelConfig, nano
from openlance.config.sampling import RELEASED_TRAINING
from openlance.config.train import Stage
from openlance.planning.training import flops, trainable
from openlance.planning.workload import Load, load_of, placeholder
from openlance.sequence.pack import document, pack
from openlance.sequence.segment import Kind, Segments
from openlance.sequence.tasks import Views, request
from openlance.training.batch import Batch
from openlance.training.learner import fresh
from openlance.training.objective import noised
from openlance.training.trainer import Trainer

SHARE = 0.5
DTYPES = ("float32", "bfloat16")
WORDS = " ".join(["a"] * 60)


def stage(dtype: str, tokens: int) -> Stage:
    return Stage(
        name="step", steps=10, lr=1e-5, optimizer="adamw", ema=0.0, frozen=("vit",), mixture={"t2i": 1}, dtype=dtype,
        pack_tokens=(tokens, 2 * tokens), max_sample_tokens=tokens,
    )  # fmt: skip


def samples(side: int) -> list[Segments]:
    """At 256 pixels about 4,000 tokens."""
    seen, kept = placeholder(1, side * 7 // 8, side * 7 // 8), placeholder(1, side, side)
    size, style = (1, side, side), RELEASED_TRAINING
    drawn = [request("t2i", WORDS, [], size, placeholder(*size), style) for _ in range(6)]
    shown = Views(seen, kept)
    edited = [request("image_edit", WORDS, [shown], size, placeholder(*size), style) for _ in range(2)]
    return drawn + edited + [request("x2t_image", WORDS, [shown], size, WORDS, style) for _ in range(4)]


def batch_of(config: ModelConfig, wanted: list[Segments]) -> Batch:
    made = pack(wanted, Words(config), config.position, 1)
    latents = torch.randn(int(made.rows.is_latent.sum()), config.latent_channels)
    noise = noised(made, latents, torch.rand(int(made.rows.target.max()) + 1), torch.randn_like(latents))
    looks = [v for v in made.visuals if v.segment.kind is Kind.PATCHES]
    features = [torch.randn(*v.grid, config.width) for v in looks]
    counts = torch.tensor([int((made.rows.label >= 0).sum()), int(made.rows.denoise.sum()), 0], dtype=torch.float64)
    names = [f"sample {n}" for n in range(len(wanted))]
    shown = list(range(len(looks)))
    return Batch(packed=made, ids=names, noise=noise, clips=features, shown=shown, labels={}, counts=counts)


def measure(config: ModelConfig, side: int, dtype: str, repeat: int) -> dict[str, float]:
    wanted = samples(side)
    load = sum((load_of(*document(s, Words(config), config.position, 1), config) for s in wanted), Load())
    plan = stage(dtype, int(load.rows))
    work = flops(config, replace(load, patches=0.0, vae=0.0), trainable(config, plan))
    rate = [gemm_rate(config, int(load.rows), getattr(torch, dtype))]
    run = Trainer(plan, fresh(config, config.vocab_size, 0))
    batch = batch_of(config, wanted)
    seconds(lambda: run.update([batch]), 1)  # warms up: moments are made
    times = [timed(lambda: run.update([batch])) for _ in range(repeat)]
    rate.append(gemm_rate(config, int(load.rows), getattr(torch, dtype)))
    reached = sum(work.values()) / min(times)
    return {
        "tokens": load.rows, "parameters": sum(p.numel() for p in run.learner.lance.parameters()),
        "seconds": spread(times), "operations": work, "rate": max(rate), "reached": reached,
        "share": reached / max(rate), "tokens_per_second": load.rows / min(times),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, nothing written")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    args = parser.parse_args()
    whole, side = (QUICK, 64) if args.quick else (CONFIG_300M, 256)
    tower = replace(nano().vit, out_hidden_size=whole.width)  # never run: its features are given
    config = replace(whole, vit=tower)
    found, rows = {}, []
    for dtype in args.dtypes:
        found[dtype] = measure(config, side, dtype, args.repeat)
        f = found[dtype]
        rows.append([
            dtype, f"{f['tokens']:.0f}", f"{f['seconds']['median']:.2f}", f"{f['tokens_per_second']:.0f}",
            f"{f['reached'] / 1e9:.0f}", f"{f['rate'] / 1e9:.0f}", f"{f['share']:.2f}",
        ])  # fmt: skip
        print(rows[-1], flush=True)
    heads = ["dtype", "tokens", "s a step", "tokens a second", "GFLOP/s", "machine's GFLOP/s", "share"]
    first = args.dtypes[0]
    table = f"{found[first]['parameters'] / 1e6:.0f}M parameters, two experts of which a token meets one.\n\n"
    table += markdown(heads, rows) + f"\nShare in {first} {verdict(found[first]['share'], SHARE, at_least=True)}.\n"
    if not args.quick:
        write_results("step", {"steps": found}, table)


if __name__ == "__main__":
    main()
