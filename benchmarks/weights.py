"""Other weights against those of a model, on the same requests and noise: what is right, and how varied it is.

    python benchmarks/weights.py run --other few=runs/few/model --records few.jsonl     # goes on where it was stopped
    python benchmarks/weights.py table --other few=runs/few/model --records few.jsonl

--other may stand several times. A record is one block of requests of a category for one of the models. Varied: of many
images for one prompt that names no color and no place, the entropies of the thing's color and of the pixel column and
row of its middle, in bits; an image in which no thing is seen counts as one more of each.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown, paired, points, record, recorded, recorder, write_results
from samplers import passes

from openlance import load
from openlance.checkpoint.formats import find, folder_of
from openlance.eval.suite import HELDOUT
from openlance.inference.lance_pipeline import LancePipeline
from toyworld.judge import analyse
from toyworld.scene import sample_scene
from toyworld.suites.bench import SUITES, Bench
from toyworld.suites.world_command import learned
from toyworld.words import caption

BLOCK, SEED = 20, 700  # requests of a record; the seed of block b is SEED + b
# Blocks of every category.
PLAN = {
    "t2i": 58, "image_edit": 20, "varied": 40, "subject": 10, "vqa": 3, "t2v": 5, "i2v": 5, "video_edit": 2,
    "multi_turn": 7, "image_inpaint": 3, "video_vqa": 4, "vqa.reasoning": 4, "subject_video": 5, "multi_turn_video": 3,
    "outpaint": 5, "extend": 5,
}  # fmt: skip
IMAGES = 24  # of one prompt; as many prompts as blocks


def judged(pipe: LancePipeline, suite: str, category: str, block: int) -> dict[str, Any]:
    asked = Bench(tasks=(suite,), samples=BLOCK, seed=SEED + block, batch=BLOCK)
    found = list(SUITES[suite].outcomes(pipe, category, asked))
    return {"right": [bool(o.right) for o in found], "second": [o.second for o in found]}


def varied(pipe: LancePipeline, block: int) -> dict[str, Any]:
    rng = np.random.default_rng([SEED, block])
    prompt, _ = caption(sample_scene(rng, placement="free", category="single"), rng)
    images = pipe.generate([prompt] * IMAGES, height=64, width=64, seed=SEED + 1000 * block)
    seen = [max(analyse(np.asarray(i.convert("RGB"))).objects, key=lambda o: o.r, default=None) for i in images]
    told = [("none", "none", "none") if o is None else (o.color, round(64 * o.x), round(64 * o.y)) for o in seen]
    return {"prompt": prompt, "bits": [entropy(list(values)) for values in zip(*told, strict=True)]}


def entropy(values: list[Any]) -> float:
    shares = np.array(list(Counter(values).values())) / len(values)
    return float(-(shares * np.log2(shares)).sum())


def run(models: dict[str, str], records: Path, only: str) -> None:
    done = {(r["suite"], r["category"], r["block"], r["name"]) for r in recorded(records)}
    pipes = {name: load(folder) for name, folder in models.items()}
    asked = tuple(name for name in PLAN if name in SUITES)
    for pipe in pipes.values():  # what one of them has not learned is asked of neither
        asked = learned(asked, pipe.defaults, True)
    for block in range(max(PLAN.values())):
        for suite in (name for name in (*asked, "varied") if block < PLAN[name] and only in name):
            some = [c for c in SUITES[suite].categories if c != HELDOUT] if suite in SUITES else [""]
            for category, (name, pipe) in ((category, pair) for category in some for pair in pipes.items()):
                if (suite, category, block, name) in done:
                    continue
                began = time.process_time()
                line = judged(pipe, suite, category, block) if suite in SUITES else varied(pipe, block)
                line["cpu_seconds"] = (time.process_time() - began) / (BLOCK if suite in SUITES else IMAGES)
                record(records, {"suite": suite, "category": category, "block": block, "name": name, **line})


def table(models: dict[str, str], records: Path, out: Path, part: str, note: str = "") -> None:
    found = {(r["suite"], r["category"], r["block"], r["name"]): r for r in recorded(records)}
    used = {name: passed(folder) for name, folder in models.items()}
    (one, *others), rows, text = models, dict[str, Any](), ""
    for other in others:
        pairs = [
            (r, found[(*key[:3], other)]) for key, r in found.items() if key[3] == one and (*key[:3], other) in found
        ]
        rows[other], lines = compared(pairs)
        title = f"## {other}: {used[other][0]} passes from words, {used[other][1]} with a source\n\n"
        text += title + markdown(["what", "n", one, other, "points (95 %)", "p", "CPU s", "its"], lines)
        if "varied" in rows[other]:
            r = rows[other]["varied"]
            low, high = r["ci95"]
            text += f"\n{r['n']} prompts of {IMAGES} images: {r['model']:.3f} bits, {r['other']:.3f} of {other}, "
            text += f"ratio {r['ratio']:.3f} ({low:.3f} to {high:.3f}).\n"
        text += "\n"
    head = f"Free placement, blocks of {BLOCK} from seed {SEED}, settings of the folders. Passes of {one}: "
    head += f"{used[one][0]} from words, {used[one][1]} with a source. CPU seconds with the judge's. {note}".strip()
    found_all = {"models": models, "passes": used, "rows": rows}
    write_results("weights", found_all, f"{head}\n\n{text}", out, part)


def compared(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[dict[str, Any], list[list[Any]]]:
    """(What was found by suite and category, the lines of its table) for pairs of records of the same requests."""
    sides = defaultdict[str, tuple[list[bool], list[bool]]](lambda: ([], []))
    seconds, bits = defaultdict[str, list[tuple[float, float]]](list), list[tuple[float, float]]()
    for one, other in pairs:
        if "cpu_seconds" in one and "cpu_seconds" in other:  # a GPU's records have none
            seconds[one["suite"]].append((one["cpu_seconds"], other["cpu_seconds"]))
        if one["suite"] not in SUITES:
            bits.append((float(np.mean(one["bits"])), float(np.mean(other["bits"]))))
            continue
        verdicts = {"": list(zip(one["right"], other["right"], strict=True))}
        verdicts[", second judge"] = [p for p in zip(one["second"], other["second"], strict=True) if None not in p]
        for judge, both in verdicts.items():
            for name in (one["suite"], f"{one['suite']} {one['category']}") if both else ():
                for side, values in zip(sides[name + judge], zip(*both, strict=True), strict=True):
                    side.extend(values)
    lines, rows = list[list[Any]](), dict[str, Any]()
    for name in sorted(sides, key=lambda name: (list(PLAN).index(name.split(",")[0].split(" ")[0]), name)):
        rows[name] = r = paired(*sides[name])
        spent = [f"{np.mean(own):.3f}" for own in zip(*seconds[name], strict=True)] if name in seconds else ["", ""]
        lines.append([name, r["n"], f"{r['old']:.3f}", f"{r['new']:.3f}", points(r), f"{r['p']:.3g}", *spent])
    if bits:
        rows["varied"] = spread(np.array(bits))
    return rows, lines


def passed(model: str) -> list[int]:
    """Passes of one result from words, and of one with a source; distilled guidance takes one a step."""
    usual = find(folder_of(model)).defaults
    return [passes(usual.sampling_for(roles)) for roles in ([], ["source"])]


def spread(bits: np.ndarray) -> dict[str, Any]:
    """Means of both, and their ratio with the interval of 2,000 bootstraps over prompts."""
    rng, (one, other) = np.random.default_rng(0), bits.mean(0)
    drawn = bits[rng.integers(len(bits), size=(2000, len(bits)))].mean(1)
    low, high = np.quantile(drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
    return {"n": len(bits), "images": IMAGES, "model": one, "other": other, "ratio": other / one, "ci95": [low, high]}


def main() -> None:
    parser = recorder(__doc__, "suites")
    parser.add_argument(
        "--other", required=True, action="append", metavar="NAME=FOLDER", help="other weights; again for more"
    )
    parser.add_argument("--part", default="", help="what the result is called beside its date")
    parser.add_argument("--note", default="", help="what else there is to say of the records, a sentence")
    args = parser.parse_args()
    models = {"model": args.model, **dict(other.split("=", 1) for other in args.other)}
    if args.what == "run":
        run(models, args.records, args.only)
    else:
        table(models, args.records, args.out, args.part, args.note)


if __name__ == "__main__":
    main()
