"""Whether fewer passes lose anything: settings of nano against those it was shipped with, on the same requests, noise.

    python benchmarks/samplers.py run --records samplers.jsonl     # goes on where it was stopped
    python benchmarks/samplers.py table --records samplers.jsonl

A record is one block of requests of a category under one form of settings. A pass is one guidance branch of one result
through the decoder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import RESULTS, markdown, write_results

from openlance import load
from openlance.config.sampling import GenerationConfig, Sampling
from openlance.eval.estimate import Z95
from openlance.eval.suite import HELDOUT
from toyworld.suites.bench import SUITES, Bench

BLOCK, SEED = 20, 500  # requests of a record; the seed of block b is SEED + b
EULER = {"solver": "euler", "num_inference_steps": 10}
OLD, NEW = "Euler 10", "DPM++ 6, sources 5"


def dpm(steps: int) -> dict[str, Any]:
    return {"solver": "dpm++", "num_inference_steps": steps}


# Of each form: fields of `Sampling` for every request, and those that differ by role.
FORMS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    OLD: (EULER, {"source": EULER, "reference": EULER}),
    NEW: (dpm(6), {"source": dpm(5), "reference": dpm(6)}),
}
# Blocks of every category, and the forms that are told apart there.
PLAN: dict[str, tuple[int, tuple[str, ...]]] = {
    "t2i": (15, (OLD, NEW)), "image_edit": (5, (OLD, NEW)), "subject": (4, (OLD, NEW)), "t2v": (3, (OLD, NEW)),
    "i2v": (3, (OLD, NEW)), "multi_turn": (2, (OLD, NEW)), "video_edit": (1, (OLD, NEW)),
}  # fmt: skip


def settled(defaults: GenerationConfig, form: str) -> GenerationConfig:
    same, by_role = FORMS[form]
    with_ = {role: defaults.sampling_with.get(role, {}) | said for role, said in by_role.items()}
    return replace(defaults, sampling=replace(defaults.sampling, **same), sampling_with=with_)


def passes(sampling: Sampling) -> int:
    """Passes of one result; nano guides where `interval` says."""
    from openlance.flow import schedule

    times = schedule(sampling.num_inference_steps, sampling.shift)[:-1]
    return sum(sampling.branches if sampling.acts_at(float(t)) else 1 for t in times)


def run(model: str, records: Path, only: str) -> None:
    pipe = load(model)
    own = pipe.defaults
    records.touch()
    done = {(r["suite"], r["category"], r["block"], r["form"]) for r in read(records)}
    for block in range(max(n for n, _ in PLAN.values())):
        for suite, (blocks, forms) in PLAN.items():
            if block >= blocks or only not in suite:
                continue
            for category in (c for c in SUITES[suite].categories if c != HELDOUT):
                for form in forms:
                    if (suite, category, block, form) in done:
                        continue
                    pipe.defaults = settled(own, form)
                    asked = Bench(tasks=(suite,), samples=BLOCK, seed=SEED + block, batch=BLOCK)
                    began = time.process_time()
                    right = [bool(o.right) for o in SUITES[suite].outcomes(pipe, category, asked)]
                    record = {"suite": suite, "category": category, "block": block, "form": form, "right": right}
                    record["cpu_seconds"] = round((time.process_time() - began) / BLOCK, 4)
                    with records.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")


def read(records: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]


def paired(old: list[bool], new: list[bool]) -> dict[str, Any]:
    """Difference in points with its paired 95 % interval, and McNemar's exact p."""
    n, gained = len(old), sum(b and not a for a, b in zip(old, new, strict=True))
    lost = sum(a and not b for a, b in zip(old, new, strict=True))
    difference, discordant = (gained - lost) / n, gained + lost
    half = Z95 * math.sqrt(max(discordant / n - difference**2, 0.0) / n)
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1)) / 2**discordant
    return {
        "n": n, "old": sum(old) / n, "new": sum(new) / n, "gained": gained, "lost": lost, "difference": difference,
        "ci95": [difference - half, difference + half], "p": min(1.0, 2 * tail),
    }  # fmt: skip


def table(model: str, records: Path, out: Path) -> None:
    own = load(model).defaults
    found = {(r["suite"], r["category"], r["block"], r["form"]): r for r in read(records)}
    lines, rows = [], dict[str, Any]()
    for suite, (_, forms) in PLAN.items():
        for form in forms[1:]:
            pairs = defaultdict[str, tuple[list[bool], list[bool]]](lambda: ([], []))
            seconds = list[tuple[float, float]]()
            for (s, category, block, f), record in found.items():
                old = found.get((s, category, block, OLD))
                if s == suite and f == form and old is not None:
                    for name in (suite, f"{suite} {category}"):
                        pairs[name][0].extend(old["right"])
                        pairs[name][1].extend(record["right"])
                    seconds.append((old["cpu_seconds"], record["cpu_seconds"]))
            for name, (old_right, new_right) in pairs.items():
                rows[f"{name}: {form}"] = r = paired(old_right, new_right)
                low, high = (100 * x for x in r["ci95"])
                if name == suite:
                    r["cpu_seconds"] = [sum(t) / len(seconds) for t in zip(*seconds)]
                    spent = "{:.2f} for {:.2f}".format(*reversed(r["cpu_seconds"]))
                    points = f"{100 * r['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
                    lines.append([suite, form, r["n"], f"{r['old']:.3f}", f"{r['new']:.3f}", points, f"{r['p']:.3g}"])
                    lines[-1].append(spent)
    used = {form: {"": passes(settled(own, form).sampling)} for form in FORMS}
    for form, each in used.items():
        each |= {role: passes(settled(own, form).sampling_for([role])) for role in FORMS[form][1]}
    said = "; ".join(
        f"{form}: {each['']} from words, {each['source']} with a source, {each['reference']} with given objects"
        for form, each in used.items()
    )
    head = f"{model}, free placement, blocks of {BLOCK} from seed {SEED}; paired with {OLD}. Passes of {said}. "
    head += "CPU seconds with the judge's.\n\n"
    columns = ["suite", "settings", "n", "shipped", "fewer", "points (95 %)", "p", "CPU s"]
    write_results("samplers", {"model": model, "passes": used, "rows": rows}, head + markdown(columns, lines), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--records", type=Path, required=True, help="a .jsonl file, which grows")
    parser.add_argument("--only", default="", help="suites whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "run":
        run(args.model, args.records, args.only)
    else:
        table(args.model, args.records, args.out)


if __name__ == "__main__":
    main()
