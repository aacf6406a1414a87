"""Groups of rollouts in one batch, their conditions run once, against the same results drawn one by one.

    python benchmarks/rollouts.py                # nano; a distilled folder with --model

Images from words and edits of the world, as a round of rewards draws them: no guidance, four steps. Both ways take
turns, the least wall time counts, and the results of both are compared.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from common import RESULTS, markdown, timed, write_results

from openlance import load
from openlance.config.train import recipe
from openlance.data.front import Fit
from openlance.inference.lance_pipeline import LancePipeline
from openlance.rl.results import Result
from openlance.rl.rollout import Policy, roll
from openlance.rl.settings import rolling
from openlance.sequence.segment import Segments
from openlance.training.distillation import emptied
from toyworld.source import open_world

STEPS, WANTED = 4, 3.0


def requests_of(pipe: LancePipeline, task: str, count: int) -> list[Segments]:
    """Requests of the world, their media as tensors."""
    source, fit = open_world(task).drawn(count, 5), Fit(front=pipe.front, sides=(64, 64))
    rows = [row for part in source.parts(0, None) for row in source.rows(part)]
    return pipe.media([emptied(source.sample(row, fit, None).segments) for row in rows])  # type: ignore[arg-type]


@torch.inference_mode()
def measure(pipe: LancePipeline, task: str, count: int, group: int, repeat: int) -> dict[str, float]:
    requests = requests_of(pipe, task, count)
    distilled = pipe.defaults.sampling.distilled
    rounds = recipe("nano-rl")[0].rl
    assert rounds is not None
    how = rolling(pipe.defaults, replace(rounds, num_inference_steps=STEPS), requests[0], distilled)
    lance = pipe.lance("und", "gen")
    policy = Policy(lance=pipe.parts.distilled(), conditions=lance) if distilled else Policy(lance=lance)
    every = [(request, n * group + k) for n, request in enumerate(requests) for k in range(group)]

    def together() -> list[Result]:
        return roll(policy, pipe.codec, [r for r, _ in every], how, [seed for _, seed in every])

    def alone() -> list[Result]:
        return [one for r, seed in every for one in roll(policy, pipe.codec, [r], how, [seed])]

    pairs = zip(together(), alone(), strict=True)
    apart = max(float((one.clean - other.clean).abs().max()) for one, other in pairs)
    times = [(timed(together), timed(alone)) for _ in range(repeat)]
    batch, single = (min(own) for own in zip(*times))
    return {"results": len(every), "together": len(every) / batch, "alone": len(every) / single, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--requests", type=int, default=8, help="prompts of a batch")
    parser.add_argument("--group", type=int, default=8, help="results of each")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    pipe, rows, found = load(args.model), [], {}
    for task in ("t2i", "image_edit"):
        found[task] = r = measure(pipe, task, args.requests, args.group, args.repeat)
        faster = r["together"] / r["alone"]
        verdict = "yes" if faster >= WANTED else "no"
        rows.append([
            task, f"{r['together']:.1f}", f"{r['alone']:.1f}", f"{faster:.2f}",
            f"{WANTED:g} times as many: {verdict}", f"{r['apart']:.1e}",
        ])  # fmt: skip
    said = f"{args.requests} requests of {args.group} results, {STEPS} steps without guidance. "
    said += "Results a second, decoding not among them.\n\n"
    head = ["task", "together", "one by one", "ratio", "wanted", "largest difference of latents"]
    write_results("rollouts", {"rows": found}, said + markdown(head, rows), args.out)


if __name__ == "__main__":
    main()
