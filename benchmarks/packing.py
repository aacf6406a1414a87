"""Packed training against a plain padded-batch loop, memory of a packed step, and how long a step waits for data.

    python benchmarks/packing.py                 # nano's CT-III mixture on the procedural world
    python benchmarks/packing.py --quick         # a small run of everything, to see that it works

Packed: one pack per step, as `openlance train` does it. Padded: the same samples, model and losses in batches of
`--batch`, every sample filled up to the longest of its batch and attention under one dense (L, L) mask per sample.
Tokens are useful when they are not filling; time is forward, backward and update, in turns. Preparing a batch (the
codec, noise) costs both the same and is left out; the padded form's layout is left out too, in its favour.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from common import RESULTS, markdown, timed, verdict, write_results
from measured import PeakMemory

from openlance.checkpoint.hub import folder_of
from openlance.config.train import Stage, stage
from openlance.data.open import open_source
from openlance.data.source import Reading, Sample
from openlance.data.stream import Stream
from openlance.model.attention import Group, Plan
from openlance.model.lance import Lance, Layout
from openlance.runtime.media_encoder import TOGETHER, MediaEncoder
from openlance.sequence.rows import NO_LABEL, Rows, visible
from openlance.sequence.rows import TEXT as TEXT_KIND
from openlance.training.batch import Batch, Preparer
from openlance.training.start import Base, open_base
from openlance.training.trainer import Trainer

FASTER, WAITING, FULL, LINEAR = 2.5, 0.05, 0.95, 1.25
MEMORY = (1, 4, 16)  # packs of 2048 tokens


def filled(rows: Rows) -> Rows:
    """Every document filled up to the longest with text that nobody learns from and that comes last."""
    docs = [rows.at((rows.doc == doc).nonzero()[:, 0]) for doc in rows.doc.unique()]
    longest, parts = max(len(doc) for doc in docs), list[Rows]()
    for doc in docs:
        more = longest - len(doc)
        last = doc.at(torch.full((more,), len(doc) - 1))
        none = torch.full((more,), -1)
        parts += [doc, replace(
            last, index=len(doc) + torch.arange(more), kind=torch.full((more,), TEXT_KIND), cell=none, target=none,
            label=torch.full((more,), NO_LABEL), full=none == 0, noisy=none == 0, denoise=none == 0,
        )]  # fmt: skip
    return Rows.concat(parts)


def padded_layout(lance: Lance, rows: Rows) -> Layout:
    """All documents as one batch under their dense masks."""
    layout = lance.layout(filled(rows))
    by_doc = [(layout.rows.doc == doc).nonzero()[:, 0] for doc in layout.rows.doc.unique()]
    own = torch.stack(by_doc)
    mask = visible(layout.rows.at(own[:, :, None]), layout.rows.at(own[:, None, :]))[:, None]
    return replace(layout, plan=Plan((Group(own, own, mask),), torch.argsort(own.flatten())))


class Loop:
    """A model in training and the batches of one form."""

    def __init__(self, base: Base, chosen: Stage) -> None:
        self.run = Trainer(chosen, base.learner)
        encode = MediaEncoder(lambda _: base.learner.vit, lambda: base.vae, together=TOGETHER)
        self.prepare = Preparer(stage=chosen, codec=base.codec, encode=encode, device=self.run.processes.device)

    def packed(self, samples: list[Sample], number: int) -> float:
        """Seconds of a step on one pack."""
        return timed(partial(self.run.update, [self.prepare(samples, number)]))

    def padded(self, samples: list[Sample], number: int, size: int) -> tuple[float, int]:
        """Seconds of as many steps as the samples need, and their rows with filling."""
        seconds, rows, lance = 0.0, 0, self.run.learner.lance
        for at in range(0, len(samples), size):
            batch: Batch = self.prepare(samples[at : at + size], number)
            layout = padded_layout(lance, batch.packed.rows)
            rows += len(layout.rows)
            lance.layout = lambda _, held=layout: held  # type: ignore[assignment, method-assign]
            try:
                seconds += timed(partial(self.run.update, [batch]))
            finally:
                del lance.layout
        return seconds, rows


def opened(chosen: Stage, base: Base, workers: int = 0) -> Stream:
    sources = {task: open_source("world", task) for task in chosen.mixture}
    return Stream(sources, chosen, base.codec, style=base.style, reading=Reading(workers=workers))


def compare(chosen: Stage, base: Base, packs: int, sizes: list[int]) -> dict[str, Any]:
    """Useful tokens per second of both forms on the same samples, in turns."""
    loop, spent, rows = Loop(base, chosen), dict.fromkeys(["packed", *sizes], 0.0), dict.fromkeys(sizes, 0)
    with opened(chosen, base) as stream:
        loop.packed(next(stream), 0)  # warms up
        useful = -stream.tokens
        for number in range(1, packs + 1):
            samples = next(stream)
            spent["packed"] += loop.packed(samples, number)
            for size in sizes:
                seconds, count = loop.padded(samples, number, size)
                spent[size] += seconds
                rows[size] += count
        useful += stream.tokens
    best = min(sizes, key=spent.__getitem__)
    return {
        "packs": packs, "tokens": useful, "packed_per_second": useful / spent["packed"],
        "padded_per_second": {str(size): useful / spent[size] for size in sizes}, "best_batch": best,
        "filling": {str(size): 1 - useful / rows[size] for size in sizes}, "ratio": spent[best] / spent["packed"],
    }  # fmt: skip


def waiting(chosen: Stage, base: Base, steps: int, workers: int) -> dict[str, float]:
    """Share of the wall time of training steps that waits for data, and how full the packs are."""
    loop = Loop(base, chosen)
    with opened(chosen, base, workers) as stream:
        for number in range(2):  # the look-ahead fills once
            loop.packed(next(stream), number)
        began, blocked = time.perf_counter(), 0.0
        for number in range(steps):
            asked = time.perf_counter()
            samples = next(stream)
            blocked += time.perf_counter() - asked
            loop.packed(samples, number)
        wall = time.perf_counter() - began
        efficiency = stream.report()["efficiency"]
        return {
            "steps": steps, "workers": workers, "seconds": wall, "share": blocked / wall, "efficiency": efficiency,
        }  # fmt: skip


def memory(base: Base, tokens: int, counts: tuple[int, ...]) -> list[tuple[int, float]]:
    """(tokens, MB that the tensors of a step take at most) of ever more packs of so many tokens in one step."""
    chosen = sized(tokens)
    loop, found = Loop(base, chosen), []
    with opened(chosen, base) as stream:
        packs = list(itertools.islice(stream, counts[-1]))
    for count in counts:
        batch = loop.prepare([sample for pack in packs[:count] for sample in pack], 0)
        with PeakMemory() as held:
            loop.run.update([batch])
        found.append((len(batch.packed), held.peak / 2**20))
    return found


def sized(tokens: int | None) -> Stage:
    """nano's CT-III, with packs of so many tokens."""
    chosen = stage("ct-iii", "nano")
    if tokens is None:
        return chosen
    longest = min(tokens, chosen.max_sample_tokens)
    return replace(chosen, pack_tokens=(int(0.9 * tokens), tokens), max_sample_tokens=longest)


def table(data: dict[str, Any]) -> str:
    c, w, m = data["compare"], data["waiting"], data["memory"]
    rows = [["packed", f"{c['packed_per_second']:.0f}", f"{1 - w['efficiency']:.1%}"]]
    for size, rate in c["padded_per_second"].items():
        rows.append([f"padded, batches of {size}", f"{rate:.0f}", f"{c['filling'][size]:.1%}"])
    text = markdown(["form", "useful tokens per second", "filling"], rows)
    text += f"\nPacked against the better padded form: {c['ratio']:.2f} times, {verdict(c['ratio'], FASTER, True)}. "
    text += f"Packing efficiency {w['efficiency']:.3f}, {verdict(w['efficiency'], FULL, True)}.\n\n"
    text += markdown(
        ["tokens of a step", "MB", "MB per 1000 tokens"], [[n, f"{b:.0f}", f"{1000 * b / n:.1f}"] for n, b in m]
    )
    text += (
        f"\nWhat a further token takes at the end against before: {data['growth']:.2f}, "
        f"{verdict(data['growth'], LINEAR)}.\n\n"
    )
    text += f"Waiting for data with {w['workers']} worker: {w['share']:.1%} of {w['seconds']:.0f} s, "
    return text + f"{verdict(w['share'], WAITING)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=3, help="packs of the comparison, after one that warms up")
    parser.add_argument("--steps", type=int, default=8, help="steps of the measurement of waiting")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 8], help="samples of a padded batch")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small packs, one of everything")
    options = parser.parse_args()
    chosen = sized(2048 if options.quick else None)
    base = open_base(folder_of("nano"), chosen, "fresh")
    packs, steps = (1, 1) if options.quick else (options.packs, options.steps)
    data: dict[str, Any] = {"compare": compare(chosen, base, packs, options.batch)}
    data["waiting"] = waiting(chosen, base, steps, options.workers)
    data["memory"] = memory(base, 2048, (1, 2, 3) if options.quick else MEMORY)
    (t0, m0), (t1, m1), (t2, m2) = data["memory"]
    data["growth"] = (m2 - m1) / (t2 - t1) / ((m1 - m0) / (t1 - t0))
    write_results("packing", data, table(data), RESULTS if not options.quick else RESULTS / "quick")


if __name__ == "__main__":
    main()
