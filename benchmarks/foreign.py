"""Prompts that were written by hand, not by the world, and a judge that shares no code with the world's.

    python benchmarks/foreign.py --seeds 2
    python benchmarks/foreign.py --edits      # which region the model finds for edits in foreign words

The judge finds shapes with OpenCV: what stands out from the border's colour, its outline, convex hull and holes, the
nearest of the world's colours. How often it is right on true pictures, others than it was made with, is measured beside
it. A picture is right if it has the named things, as many as said, nothing else, in the relation and on the background
that were asked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import foreign_edits
import numpy as np
import regions
from common import RESULTS, markdown, write_results

from openlance import load
from openlance.eval.suite import row
from openlance.inference.lance_pipeline import LancePipeline
from toyworld.render import render
from toyworld.scene import sample_scene

COLORS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 220), "yellow": (240, 220, 50),
    "purple": (150, 60, 190), "orange": (245, 140, 30), "cyan": (60, 200, 220), "white": (245, 245, 245),
    "black": (10, 10, 10), "grey": (128, 128, 128), "brown": (110, 70, 40),
}  # fmt: skip
SCALE = 8  # pictures are enlarged before outlines are taken
LIMIT = 0.80
TRUE_SEED = 2026  # of the true pictures; the rules for stars and crosses were found on those of seeds 0 and 1

# Prompt; what must be seen, in words; relation of the first named thing to the second; background.
PROMPTS: list[tuple[str, str, str, str]] = [
    ("red circle", "red circle", "", ""),
    ("one green star", "green star", "", ""),
    ("just an orange triangle", "orange triangle", "", ""),
    ("I would like a yellow cross", "yellow cross", "", ""),
    ("please paint a blue square", "blue square", "", ""),
    ("an image with a single purple ring", "purple ring", "", ""),
    ("a white star, nothing more", "white star", "", ""),
    ("show me a cyan circle", "cyan circle", "", ""),
    ("a cross that is red", "red cross", "", ""),
    ("there is a green triangle", "green triangle", "", ""),
    ("a square, yellow", "yellow square", "", ""),
    ("an orange ring", "orange ring", "", ""),
    ("a purple circle", "purple circle", "", ""),
    ("white square", "white square", "", ""),
    ("a red circle plus a blue square", "red circle, blue square", "", ""),
    ("one green star, one yellow circle", "green star, yellow circle", "", ""),
    ("a white cross together with a red triangle", "white cross, red triangle", "", ""),
    ("both a purple square and an orange circle", "purple square, orange circle", "", ""),
    ("a blue ring and also a yellow star", "blue ring, yellow star", "", ""),
    ("a cyan triangle and a red square", "cyan triangle, red square", "", ""),
    ("a green cross and a white circle", "green cross, white circle", "", ""),
    ("an orange star and a blue triangle", "orange star, blue triangle", "", ""),
    ("a yellow ring and a purple cross", "yellow ring, purple cross", "", ""),
    ("red star, green square", "red star, green square", "", ""),
    ("a red circle to the left of a blue square", "red circle, blue square", "left of", ""),
    ("the green star is right of the yellow circle", "green star, yellow circle", "right of", ""),
    ("a white cross above a red triangle", "white cross, red triangle", "above", ""),
    ("put a purple square below an orange circle", "purple square, orange circle", "below", ""),
    ("a blue ring left of a yellow star", "blue ring, yellow star", "left of", ""),
    ("a cyan triangle is above a red square", "cyan triangle, red square", "above", ""),
    ("a green cross, and to the right of it a white circle", "green cross, white circle", "left of", ""),
    ("an orange star below a blue triangle", "orange star, blue triangle", "below", ""),
    ("a yellow square right of a purple circle", "yellow square, purple circle", "right of", ""),
    ("a red ring above a green circle", "red ring, green circle", "above", ""),
    ("2 red circles", "red circle, red circle", "", ""),
    ("exactly three blue squares", "blue square, blue square, blue square", "", ""),
    ("four yellow stars please", "yellow star, yellow star, yellow star, yellow star", "", ""),
    ("a pair of green triangles", "green triangle, green triangle", "", ""),
    ("three white crosses", "white cross, white cross, white cross", "", ""),
    ("I want two purple rings", "purple ring, purple ring", "", ""),
    ("four orange circles", "orange circle, orange circle, orange circle, orange circle", "", ""),
    ("just two cyan stars", "cyan star, cyan star", "", ""),
    ("a red circle on a white background", "red circle", "", "white"),
    ("a blue star on grey", "blue star", "", "grey"),
    ("a yellow cross, the background is brown", "yellow cross", "", "brown"),
    ("green square, white background", "green square", "", "white"),
    ("a purple triangle on a grey background", "purple triangle", "", "grey"),
    ("an orange ring on a blue background", "orange ring", "", "blue"),
]  # fmt: skip


@dataclass(frozen=True)
class Found:
    name: str  # "red circle"
    x: float
    y: float


def nearest(color: np.ndarray) -> str:
    return min(COLORS, key=lambda name: float(((np.array(COLORS[name], float) - color) ** 2).sum()))


def look(pixels: np.ndarray) -> tuple[str, list[Found]]:
    """The background and the things of a picture, uint8 (H, W, 3)."""
    height, width = pixels.shape[:2]
    large = cv2.resize(pixels, (width * SCALE, height * SCALE), interpolation=cv2.INTER_CUBIC)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(float)
    ground = np.median(border, axis=0)
    apart = np.linalg.norm(large.astype(float) - ground, axis=-1)
    mask = (apart > 60).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((SCALE, SCALE), np.uint8))
    outlines, nested = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    things = []
    for n, outline in enumerate(outlines):
        if nested[0][n][3] >= 0 or cv2.contourArea(outline) < 0.006 * mask.size:
            continue
        alone = cv2.drawContours(np.zeros_like(mask), outlines, n, 1, cv2.FILLED)
        inside = cv2.erode(alone & mask, np.ones((SCALE, SCALE), np.uint8)).astype(bool)
        if not inside.any():
            continue
        (x, y), _ = cv2.minEnclosingCircle(outline)
        hole = 1 - float((alone & mask).sum()) / float(alone.sum())
        things.append(Found(f"{nearest(np.median(large[inside], axis=0))} {shape(outline, hole)}", x, y))
    return nearest(ground), things


def shape(outline: np.ndarray, hole: float) -> str:
    """One of six, by holes, the hull and what fills it."""
    if hole > 0.1:
        return "ring"
    area, hull = cv2.contourArea(outline), cv2.convexHull(outline)
    triangle, _ = cv2.minEnclosingTriangle(outline)
    if area / cv2.contourArea(hull) < 0.85:
        return "star" if arms(outline, 5) > arms(outline, 4) else "cross"
    if area / triangle > 0.8:
        return "triangle"
    _, sides, _ = cv2.minAreaRect(outline)
    return "square" if area / (sides[0] * sides[1]) > 0.88 else "circle"


def arms(outline: np.ndarray, count: int) -> float:
    """How strongly the distance from the middle repeats so many times on the way around."""
    m = cv2.moments(outline)
    x, y = (outline[:, 0] - [m["m10"] / m["m00"], m["m01"] / m["m00"]]).T
    return abs(np.mean(np.hypot(x, y) * np.exp(1j * count * np.arctan2(y, x))))


def is_right(pixels: np.ndarray, wanted: str, relation: str, background: str) -> bool:
    ground, things = look(pixels)
    names = wanted.split(", ")
    if Counter(t.name for t in things) != Counter(names) or background not in ("", ground):
        return False
    if not relation:
        return True
    a, b = (next(t for t in things if t.name == name) for name in names)
    along = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    return along[relation] > 0


def on_true_pictures(count: int, side: int) -> list[bool]:
    """Whether the judge sees exactly what is there, on scenes of plain things."""
    rng, found = np.random.default_rng(TRUE_SEED), []
    while len(found) < count:
        scene = sample_scene(rng, placement="free", category=("color", "two", "count")[len(found) % 3])
        if scene.text is None and all(o.fill == "solid" for o in scene.objects):
            ground, things = look(render(scene, side, side))
            seen = Counter(t.name for t in things)
            found.append(ground == scene.background and seen == Counter(f"{o.color} {o.shape}" for o in scene.objects))
    return found


def report_edits(pipe: LancePipeline, args: argparse.Namespace) -> None:
    """Tables of what the model finds, and every edit where it is not what is meant."""
    lines = [line | {"here": bool(line["thing"])} for line in foreign_edits.found(pipe)]
    where = regions.locating(lines)
    right = [regions.found_right(line) if line["here"] else regions.is_plain(line) for line in lines]
    wrong = [[x["instruction"], x["thing"] or "the whole", x["region"]] for x, good in zip(lines, right) if not good]
    text = f"{len(lines)} edits written by hand, {args.model}.\n\n{regions.told(where)}\n"
    text += markdown(["found otherwise", "meant", "found"], wrong)
    write_results("foreign", {"locating": where, "lines": lines}, text, args.out, "edits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, help="a folder for what was drawn, wrong ones named so")
    parser.add_argument("--edits", action="store_true", help="regions of edits (benchmarks/foreign_edits.py) instead")
    args = parser.parse_args()
    pipe = load(args.model)
    if args.edits:
        return report_edits(pipe, args)
    kinds = {"one": [], "several": [], "relation": [], "background": []}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        images = pipe.generate([prompt for prompt, *_ in PROMPTS], seed=seed)
        for n, (image, (_, wanted, relation, background)) in enumerate(zip(images, PROMPTS, strict=True)):
            right = is_right(np.asarray(image.convert("RGB")), wanted, relation, background)
            kind = "relation" if relation else "background" if background else "several" if ", " in wanted else "one"
            kinds[kind].append(right)
            if args.pictures:
                args.pictures.mkdir(parents=True, exist_ok=True)
                image.save(args.pictures / f"{seed}-{n:02d}-{'right' if right else 'wrong'}.png")
    everything = [r for found in kinds.values() for r in found]
    true = on_true_pictures(300, pipe.defaults.height)
    scores = {name: row(sum(found), len(found)) for name, found in (kinds | {"all": everything}).items()}
    scores["judge"] = row(sum(true), len(true))
    names = {"one": "one thing", "several": "several things", "relation": "relations", "background": "backgrounds",
             "all": "all prompts", "judge": "the judge itself, on true pictures"}  # fmt: skip
    rows = [
        [names[k], f"{v['mean']:.2f} ({v['ci95'][0]:.2f} to {v['ci95'][1]:.2f})", str(v["n"]),
         f"at least {LIMIT:.2f}: {'yes' if v['mean'] >= LIMIT else 'NO'}" if k == "all" else ""]
        for k, v in scores.items()
    ]  # fmt: skip
    head = f"{len(PROMPTS)} prompts, {args.seeds} seeds from {args.first_seed}, {args.model}.\n\n"
    table = head + markdown(["", "right", "n", "wanted"], rows)
    write_results("foreign", {"scores": scores, "seeds": args.seeds, "first_seed": args.first_seed}, table, args.out)


if __name__ == "__main__":
    main()
