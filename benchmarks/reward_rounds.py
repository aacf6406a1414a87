"""What rewards add to the wall time of a round: rounds of recipe/nano-rl with a reward, the same with a free one.

    python benchmarks/reward_rounds.py                          # on a quiet machine; about an hour on two cores
    python benchmarks/reward_rounds.py --only ocr world --tokens 2000 --blocks 1

Every run is rewarded by redness, so all of them draw the same results and learn the same from them; in the worker
process each reward scores these too, and what it says is dropped. Runs take turns, some rounds each, going on from
their checkpoints. A round is compared with the same round of the run with the free reward; the first ones of a turn
warm up.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from common import RESULTS, markdown, write_results
from reward_costs import random_clip

from openlance.checkpoint.formats import folder_of
from openlance.config.train import recipe
from openlance.training.files import Settings, read_log
from openlance.training.run import run_stage
from toyworld.batches import WorldMixture

FREE = "free"
REWARDS = (FREE, "ocr", "ocr=tesseract", "world", "world=letters", "similarity", "file")
# Every reward has something to say of texts.
TEXTS = {"path": "world", "kinds": {kind: float(kind == "text") for kind in WorldMixture().scenes}}
# What is scored by `ENTRY` too; the scores are redness.
BESIDE = """
from openlance.rl.rewards import Reward
from openlance.rl.rewards.registry import make_reward


class Beside(Reward):
    name, range = "beside", (-1.0, 1.0)

    def load(self):
        self.both = [make_reward(entry) for entry in ("redness", ENTRY)]
        for one in self.both:
            one.load()

    def __call__(self, drawn):
        return [list(one(drawn)) for one in self.both][0]
"""
FILE = """
import numpy as np


def score(prompt, image):
    return float(np.asarray(image).std() / 128)
"""


def entry_of(name: str, scratch: Path, similarity: Path | None) -> str:
    """The reward of a name, what it needs written into a folder."""
    if name == FREE:
        return "redness"
    if name == "file":
        (scratch / "mine.py").write_text(FILE, encoding="utf-8")
        return f"{scratch / 'mine.py'}:score"
    if name == "similarity":
        (scratch / "clip").mkdir(exist_ok=True)
        return f"similarity={similarity or random_clip(scratch / 'clip')}"
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=REWARDS[1:], default=list(REWARDS[1:]))
    parser.add_argument("--blocks", type=int, default=3, help="turns of each run")
    parser.add_argument("--rounds", type=int, default=3, help="of a turn, of which the first warms up")
    parser.add_argument("--tokens", type=int, help="of a pack; the recipe's own")
    parser.add_argument("--workers", type=int, default=1, help="processes that score")
    parser.add_argument("--similarity", type=Path, help="folder of a model; one with random weights in its place")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    stage, names = recipe("nano-rl")[0], [FREE, *args.only]
    assert stage.rl is not None
    packs = stage.pack_tokens if args.tokens is None else (args.tokens * 11 // 12, args.tokens)
    stage = replace(
        stage, mixture={"t2i": 1.0}, pack_tokens=packs, max_sample_tokens=min(stage.max_sample_tokens, packs[1]),
        rl=replace(stage.rl, workers=args.workers),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scratch, stages = Path(folder), {}
        for n, name in enumerate(names):
            file = scratch / f"beside{n}.py"
            file.write_text(BESIDE.replace("ENTRY", repr(entry_of(name, scratch, args.similarity))), encoding="utf-8")
            stages[name] = replace(stage, rl=replace(stage.rl, rewards={f"{file}:Beside": 1.0}))
        for block in range(args.blocks):
            for name in names if block % 2 == 0 else reversed(names):
                run = Settings(out=scratch / name, model=folder_of("nano"), data={"t2i": TEXTS})
                run_stage(replace(stages[name], steps=(block + 1) * args.rounds), run)
        logs = {name: read_log(scratch / name / "log.jsonl") for name in names}
    kept = [n for n in range(args.blocks * args.rounds) if n % args.rounds]
    free, rows, data = [logs[FREE][n] for n in kept], [], {}
    for name in names:
        own = [logs[name][n] for n in kept]
        assert all(one["results"] == other["results"] for one, other in zip(own, free)), "these are other rounds"
        added = [one["seconds"] / other["seconds"] - 1 for one, other in zip(own, free)]
        waits = [one["reward_seconds"] / one["seconds"] for one in own]
        data[name] = {
            "seconds": [one["seconds"] for one in own], "cpu_seconds": [one["cpu_seconds"] for one in own],
            "added": added, "waited": waits,
        }  # fmt: skip
        seconds, results = (statistics.median(one[key] for one in own) for key in ("seconds", "results"))
        shown = f"{statistics.median(added):+.1%} ({min(added):+.1%} to {max(added):+.1%})" if name != FREE else "-"
        rows.append([name, f"{seconds:.1f}", f"{results:.0f}", shown, f"{statistics.median(waits):.1%}"])
    head = ["reward", "seconds of a round", "results", "added to the same round", "spent in waiting"]
    said = f"Medians of {len(kept)} rounds, least and most; {args.workers} worker.\n\n{markdown(head, rows)}"
    write_results("reward_rounds", {"tokens": packs, "workers": args.workers, "runs": data}, said, args.out)


if __name__ == "__main__":
    main()
