"""What rewards add to the wall time of a round: rounds of recipe/nano-rl with each reward, and with a free one.

    python benchmarks/reward_rounds.py                          # on a quiet machine; about an hour on two cores
    python benchmarks/reward_rounds.py --only ocr world=letters --tokens 1000 --cycles 7

One run, whose rounds take turns: all are rewarded by redness, and in the worker process a reward scores the same
results too; what it says is dropped. So a machine that slows down slows all of them. A round is compared with the free
one of its turn, per result; the first turn warms up.
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
# Scores are redness; in a round, whose number is that of the lines of the log, one of `ENTRIES` scores beside it.
BESIDE = """
from pathlib import Path

from openlance.rl.rewards import Reward
from openlance.rl.rewards.registry import make_reward


class Beside(Reward):
    name, range = "beside", (-1.0, 1.0)

    def load(self):
        self.each = [make_reward(entry) for entry in ENTRIES]
        for one in self.each:
            one.load()

    def __call__(self, drawn):
        log = Path(LOG)
        number = len(log.read_text().splitlines()) if log.is_file() else 0
        list(self.each[number % len(self.each)](drawn))
        return self.each[0](drawn)
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
    parser.add_argument("--cycles", type=int, default=7, help="turns, of which the first warms up")
    parser.add_argument("--tokens", type=int, help="of a pack; the recipe's own")
    parser.add_argument("--workers", type=int, help="processes that score; the recipe's own")
    parser.add_argument("--similarity", type=Path, help="folder of a model; one with random weights in its place")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    stage, names = recipe("nano-rl")[0], [FREE, *args.only]
    assert stage.rl is not None
    packs = stage.pack_tokens if args.tokens is None else (args.tokens * 11 // 12, args.tokens)
    how = replace(stage.rl, workers=args.workers or stage.rl.workers)
    stage = replace(
        stage, mixture={"t2i": 1.0}, pack_tokens=packs, max_sample_tokens=min(stage.max_sample_tokens, packs[1]),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        entries = [entry_of(name, scratch, args.similarity) for name in names]
        file, out = scratch / "beside.py", scratch / "run"
        said = BESIDE.replace("ENTRIES", repr(entries)).replace("LOG", repr(str(out / "log.jsonl")))
        file.write_text(said, encoding="utf-8")
        stage = replace(stage, steps=args.cycles * len(names), rl=replace(how, rewards={f"{file}:Beside": 1.0}))
        run_stage(stage, Settings(out=out, model=folder_of("nano"), data={"t2i": TEXTS}))
        log = read_log(out / "log.jsonl")[len(names) :]
    free, rows, data = log[:: len(names)], [], {}
    for n, name in enumerate(names):
        own = log[n :: len(names)]
        each, usual = ([one["seconds"] / one["results"] for one in some] for some in (own, free))
        added = [one / other - 1 for one, other in zip(each, usual, strict=True)]
        waits = [one["reward_seconds"] / one["seconds"] for one in own]
        data[name] = {key: [one[key] for one in own] for key in ("seconds", "cpu_seconds", "results")}
        data[name] |= {"added": added, "waited": waits}
        seconds, results = (statistics.median(one[key] for one in own) for key in ("seconds", "results"))
        shown = f"{statistics.median(added):+.1%} ({min(added):+.1%} to {max(added):+.1%})" if name != FREE else "-"
        rows.append([name, f"{seconds:.1f}", f"{results:.0f}", shown, f"{statistics.median(waits):.1%}"])
    head = ["reward", "seconds of a round", "results", "added to a round", "spent in waiting"]
    said = f"Medians of {len(free)} rounds of each, least and most; workers: {how.workers}.\n\n{markdown(head, rows)}"
    write_results("reward_rounds", {"tokens": packs, "workers": how.workers, "runs": data}, said, args.out)


if __name__ == "__main__":
    main()
