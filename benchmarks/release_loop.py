"""A whole picture with our engine against a plain rebuilding of the release's cached loop: seconds and peak memory.

    python benchmarks/release_loop.py                 # 300M config, 256x256: about ten minutes on two cores, 4 GB
    python benchmarks/release_loop.py --quick         # a small model: does it run?

The rebuilding does what the released sampler does, in its order: prefixes of both guidance branches cached once, then
at each step one branch after the other; both experts write into rows of zeros by index, keys and values are joined to
the cache and repeated for every query head, rotary tables and times are worked out at every step. Same weights,
threads, noise and guidance; the final latents are compared. Each row runs in a process of its own, in turns; settings
with fewer passes are measured for what they lose by `quality.py`. Memory is the peak of the process, where the C
library gives large blocks back at once: left alone it keeps more or less of them from run to run (up to 90 MB here).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, child, markdown, timed, verdict, write_results
from forms import CONFIG_300M, QUICK, Words, draw_request
from torch import Tensor

from openlance.config.sampling import Sampling
from openlance.flow import schedule
from openlance.inference.visual import branch_out, denoise, target_noise
from openlance.model.attention import rotary_table, rotate
from openlance.model.lance import Expert, Lance, latent_table
from openlance.sequence.segment import Rows

FASTER = 1.5
# glibc: blocks from 4 MB are mapped one by one, and the heap is cut where it ends with 8 MB free.
RETURNS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 22), "MALLOC_TRIM_THRESHOLD_": str(1 << 23)}
RELEASE = "release's loop, Euler, 30 steps"
OURS: dict[str, dict[str, Any]] = {
    "ours, Euler, 30 steps": {},
    "ours, DPM++ 2M, 12 steps": {"solver": "dpm++", "num_inference_steps": 12},
}


class Rebuilt:
    """One branch of the released sampler over the weights of a model."""

    def __init__(self, model: Lance, rows: Rows) -> None:
        self.model, self.config = model, model.config
        before = rows.index < rows.index[rows.noisy].min()
        prefix, self.rows = (rows.at(which.nonzero()[:, 0]) for which in (before, rows.noisy))
        self.cache: list[tuple[Tensor, Tensor]] = []
        _, self.cache = self.run(prefix, model.embed(prefix.token), causal=True)

    def velocity(self, x_NC: Tensor, t: float) -> Tensor:
        """Of the target's latents at a state."""
        rows, model = self.rows, self.model
        hidden = torch.zeros(len(rows), self.config.width)
        hidden[~rows.is_latent] = model.embed(rows.token[~rows.is_latent])
        table = latent_table(rows.cell[rows.is_latent], self.config.width, self.config.position.max_latent_side)
        hidden[rows.is_latent] = model.latent_in(x_NC) + model.time(torch.full((len(x_NC),), t)) + table
        hidden, _ = self.run(rows, hidden, causal=False)
        return model.latent_out(model.norm["gen"](hidden[rows.is_latent]))

    def run(self, rows: Rows, hidden: Tensor, causal: bool) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """All layers over some rows after the cache."""
        c, made = self.config, []
        cos, sin = rotary_table(rows.position, c)
        for n, layer in enumerate(self.model.layers):
            q, k, v = (torch.zeros(len(rows), heads, c.head_dim) for heads in (c.heads, c.kv_heads, c.kv_heads))
            streams = [(e, i) for e, i in zip((layer.und, layer.gen), (~rows.is_latent, rows.is_latent)) if i.any()]
            for expert, i in streams:
                q[i], k[i], v[i] = project(expert, hidden[i], cos[i], sin[i])
            made.append((k, v))
            if self.cache:
                k, v = (torch.cat([old, new]) for old, new in zip(self.cache[n], (k, v)))
            k, v = (x.repeat_interleave(c.heads // c.kv_heads, dim=1) for x in (k, v))
            mixed = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=causal)
            mixed, after = mixed[0].transpose(0, 1).flatten(1), torch.zeros_like(hidden)
            for expert, i in streams:
                x = hidden[i] + expert.o(mixed[i])
                h = expert.mlp_norm(x)
                after[i] = x + expert.down(F.silu(expert.gate(h)) * expert.up(h))
            hidden = after
        return hidden, made


def project(expert: Expert, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = expert.attention_norm(x)
    q, k, v = (f(h).unflatten(-1, (-1, expert.head_dim)) for f in (expert.q, expert.k, expert.v))
    return rotate(expert.q_norm(q), cos, sin), rotate(expert.k_norm(k), cos, sin), v


@torch.inference_mode()
def rebuilt(model: Lance, codec: Any, request: list, s: Sampling, noise: Tensor) -> Tensor:
    """Final latents (N, C) of the released sampler."""
    branches = branch_out(model, codec, [request], s)
    rows = branches.pack.rows
    some, none = (Rebuilt(model, rows.at((rows.doc == doc).nonzero()[:, 0])) for doc in range(2))
    x, times = noise.clone(), schedule(s.num_inference_steps, s.shift)
    for t, t_next in zip(times[:-1].tolist(), times[1:].tolist()):
        v = plain = some.velocity(x, t)
        if s.acts_at(t):
            without = none.velocity(x, t)
            v = without + s.guidance_scale * (plain - without)
            v = v * min(1.0, float(plain.norm() / (v.norm() + 1e-8)))
        x = x - v * (t - t_next)
    return x


def work(form: str, size: int, quick: bool, out: Path) -> None:
    """One picture in this process: its latents into a file, seconds and peak memory as a line of JSON."""
    torch.manual_seed(0)
    config = QUICK if quick else CONFIG_300M
    with torch.no_grad():
        model = Lance(config).eval()
        torch.nn.init.normal_(model.latent_out.weight, std=config.width**-0.5)
    codec, request = Words(config), draw_request(size)
    s = Sampling(**OURS.get(form, {}))
    visuals = branch_out(model, codec, [request], s).pack.visuals[:1]
    noise, found = target_noise(visuals, config.latent_channels, 0), list[Tensor]()

    def draw() -> None:
        if form == RELEASE:
            found.append(rebuilt(model, codec, request, s, noise))
        else:
            (made,) = denoise(model, codec, [request], s, noise=[noise])
            found.append(made.flatten(0, 2))

    seconds = timed(draw)
    torch.save(found[0], out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "GB": peak}))


def measure(form: str, size: int, quick: bool, out: Path) -> dict[str, float]:
    quickly = ["--quick"] if quick else []
    return child(__file__, "--form", form, "--size", size, "--latents", out, *quickly, **RETURNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small config, to see that everything runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    parser.add_argument("--latents", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        return work(args.form, args.size, args.quick, args.latents)
    forms = [RELEASE, *OURS]
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{n}.pt" for n in range(len(forms))]
        runs = [[measure(f, args.size, args.quick, out) for f, out in zip(forms, files)] for _ in range(args.repeat)]
        latents = [torch.load(file, weights_only=True) for file in files]
    torch.testing.assert_close(latents[1], latents[0], rtol=0, atol=2e-3)
    found = {
        form: {
            "seconds": statistics.median(turn[n]["seconds"] for turn in runs),
            "GB": max(turn[n]["GB"] for turn in runs),
            "faster": statistics.median(turn[0]["seconds"] / turn[n]["seconds"] for turn in runs),
            "difference": float((latents[n] - latents[0]).abs().max()),
        }
        for n, form in enumerate(forms)
    }
    rows = [
        [form, f"{r['seconds']:.1f}", f"{r['faster']:.2f}", f"{r['GB']:.2f}", f"{r['difference']:.2g}"]
        for form, r in found.items()
    ]
    base, settled = found[RELEASE], found["ours, DPM++ 2M, 12 steps"]
    text = f"Text to image {args.size}x{args.size}, guidance 4 where t > 0.4, medians of {args.repeat}.\n\n"
    columns = ["", "s", "times faster", "peak GB of the process", "largest difference of latents"]
    text += markdown(columns, rows)
    text += f"\nWith DPM++ and 12 steps {verdict(settled['faster'], FASTER, True)}. Memory against the release's loop "
    text += f"{verdict(max(found[form]['GB'] for form in OURS) / base['GB'], 1.005)}.\n"
    write_results("release_loop", {"size": args.size, "rows": found}, text, args.out)


if __name__ == "__main__":
    main()
