"""Whether fewer passes lose anything: settings of nano against those it was shipped with, on the same requests, noise.

    python benchmarks/samplers.py run --records samplers.jsonl     # goes on where it was stopped
    python benchmarks/samplers.py table --records samplers.jsonl

A record is one block of requests of a category under one form of settings. A pass is one guidance branch of one result
through the decoder.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import markdown, paired, points, record, recorded, recorder, write_results

from openlance import load
from openlance.config.sampling import GenerationConfig, Sampling
from openlance.eval.suite import HELDOUT
from toyworld.suites.bench import SUITES, Bench

BLOCK, SEED = 20, 500  # requests of a record; the seed of block b is SEED + b
EULER = {"solver": "euler", "num_inference_steps": 10}
OLD, NEW, FEWEST = "Euler 10", "DPM++ 8, sources 5", "DPM++ 6, sources 5"


def dpm(steps: int) -> dict[str, Any]:
    return {"solver": "dpm++", "num_inference_steps": steps}


# Of each form: fields of `Sampling` for every request, and those that differ by role.
FORMS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    OLD: (EULER, {"source": EULER, "reference": EULER}),
    NEW: (dpm(8), {"source": dpm(5), "reference": dpm(8)}),
    FEWEST: (dpm(6), {"source": dpm(5), "reference": dpm(6)}),
}
# Blocks of every category in each form; the shipped one has as many as any.
PLAN: dict[str, dict[str, int]] = {
    "t2i": {NEW: 15, FEWEST: 4}, "image_edit": {NEW: 5}, "subject": {NEW: 4}, "t2v": {NEW: 3}, "i2v": {NEW: 3},
    "multi_turn": {NEW: 2}, "video_edit": {NEW: 1},
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
    done = {(r["suite"], r["category"], r["block"], r["form"]) for r in recorded(records)}
    for block in range(max(n for forms in PLAN.values() for n in forms.values())):
        for suite, forms in PLAN.items():
            wanted = [form for form, blocks in forms.items() if block < blocks and only in suite]
            for category in (c for c in SUITES[suite].categories if c != HELDOUT):
                for form in (OLD, *wanted) if wanted else ():
                    if (suite, category, block, form) in done:
                        continue
                    pipe.defaults = settled(own, form)
                    asked = Bench(tasks=(suite,), samples=BLOCK, seed=SEED + block, batch=BLOCK)
                    began = time.process_time()
                    right = [bool(o.right) for o in SUITES[suite].outcomes(pipe, category, asked)]
                    line = {"suite": suite, "category": category, "block": block, "form": form, "right": right}
                    line["cpu_seconds"] = round((time.process_time() - began) / BLOCK, 4)
                    record(records, line)


def table(model: str, records: Path, out: Path) -> None:
    own = load(model).defaults
    found = {(r["suite"], r["category"], r["block"], r["form"]): r for r in recorded(records)}
    lines, rows = [], dict[str, Any]()
    for suite, forms in PLAN.items():
        for form in forms:
            pairs = defaultdict[str, tuple[list[bool], list[bool]]](lambda: ([], []))
            seconds = list[tuple[float, float]]()
            for (s, category, block, f), line in found.items():
                old = found.get((s, category, block, OLD))
                if s == suite and f == form and old is not None:
                    for name in (suite, f"{suite} {category}"):
                        pairs[name][0].extend(old["right"])
                        pairs[name][1].extend(line["right"])
                    seconds.append((old["cpu_seconds"], line["cpu_seconds"]))
            for name, (old_right, new_right) in pairs.items():
                rows[f"{name}: {form}"] = r = paired(old_right, new_right)
                if name == suite:
                    r["cpu_seconds"] = [sum(t) / len(seconds) for t in zip(*seconds)]
                    spent = "{:.2f} for {:.2f}".format(*reversed(r["cpu_seconds"]))
                    shares = [f"{r['old']:.3f}", f"{r['new']:.3f}"]
                    lines.append([suite, form, r["n"], *shares, points(r), f"{r['p']:.3g}", spent])
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
    args = recorder(__doc__, "suites").parse_args()
    if args.what == "run":
        run(args.model, args.records, args.only)
    else:
        table(args.model, args.records, args.out)


if __name__ == "__main__":
    main()
