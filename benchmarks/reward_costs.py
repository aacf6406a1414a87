"""What rewards cost: milliseconds of one core for a result, beside drawing it.

    python benchmarks/reward_costs.py --docs       # and the table of docs/howto/rewards.md
    python benchmarks/reward_costs.py --similarity models/clip

Results are right ones of the world, so what a reward does not call right is its mistake: images of 64x64, some with a
text, edits, videos of 9 frames; texts again eight times as large. Without --similarity a ViT-B/32 with random weights
takes its place, which takes as long. Times are CPU time of this process on one thread, the middle of some runs over all
results; drawing is nano's, as rollouts of recipe/nano-rl do it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, markdown, put, write_results

from openlance.config.train import recipe
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.rl.rewards import Drawn
from openlance.rl.rewards.registry import make_reward
from toyworld.edits import sample_edit
from toyworld.motion import render_clip
from toyworld.render import render
from toyworld.suites.asked import Asked
from toyworld.suites.clips import filmings
from toyworld.suites.images import drawings

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "rewards.md"
SIDE, LARGE, FRAMES = 64, 8, 9
# What each reward is asked about; the others say nothing of it, or the same.
ASKED = {
    "redness": ("images", "large images", "videos"),
    "world": ("images", "texts", "edits", "videos"),
    "world=letters": ("texts",),
    "ocr": ("texts", "large texts"),
    "ocr=tesseract": ("texts", "large texts"),
    "similarity": ("images", "large images"),
}


def results(count: int) -> dict[str, list[Drawn]]:
    """Right results of the world by their kind."""
    rng, asked = np.random.default_rng(0), Asked(samples=count, seed=0)
    found: dict[str, list[Drawn]] = {}

    def still(pixels: np.ndarray) -> Clip:
        return Clip(pixels[None])

    for name, category in (("images", "two"), ("texts", "text")):
        truths = list(drawings(category, asked))[:count]
        found[name] = [Drawn(prompt=t.prompt, media=still(render(t.scene, SIDE, SIDE)), truth=t) for t in truths]
        large = [np.kron(one.media.pixels[0], np.ones((LARGE, LARGE, 1), np.uint8)) for one in found[name]]
        found[f"large {name}"] = [Drawn(prompt=t.prompt, media=still(big), truth=t) for t, big in zip(truths, large)]
    found["edits"] = []
    for _ in range(count):
        truth = sample_edit(rng)
        before, after = map(still, truth.pictures(SIDE, SIDE))
        found["edits"].append(Drawn(prompt=truth.instruction, media=after, sources=(before,), truth=truth))
    films = [truth for truth, _ in zip(filmings("one", asked), range(count))]
    found["videos"] = [Drawn(prompt=t.prompt, media=Clip(render_clip(t.clip, SIDE, SIDE)), truth=t) for t in films]
    return found


def milliseconds(run: Callable[[], Any], each: int, repeat: int) -> dict[str, float]:
    """CPU time of one of `each` results, least, middle and largest of some runs after one that warms up."""
    run()
    times = []
    for _ in range(repeat):
        began = time.process_time()
        run()
        times.append(1000 * (time.process_time() - began) / each)
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def right(told: Sequence[Any]) -> float | None:
    """Share of results that a reward calls right; None for one that only says how much."""
    named = [name for name in ("right", "exact") if isinstance(told[0], Mapping) and name in told[0]]
    return statistics.mean(float(one[named[0]]) for one in told) if named else None


def rollouts() -> dict[str, Any]:
    """How recipe/nano-rl draws."""
    rl = recipe("nano-rl")[0].rl
    assert rl is not None
    return {"num_inference_steps": rl.num_inference_steps, "solver": rl.solver, "guidance_scale": 1.0, "seed": 0}


def drawing(prompts: Sequence[str], repeat: int) -> dict[str, dict[str, float]]:
    """What a result of a rollout costs, decoded: an image, and a video."""
    import openlance

    pipe, some, how = openlance.load("nano"), list(prompts), rollouts()
    return {
        "images": milliseconds(lambda: pipe.generate(some, **how), len(some), repeat),
        "videos": milliseconds(lambda: pipe.generate_video(some, num_frames=FRAMES, **how), len(some), repeat),
    }


def random_clip(folder: Path) -> Path:
    """A ViT-B/32 of OpenAI's sizes with random weights."""
    import json

    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: n for n, piece in enumerate(pieces)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=int, default=16, help="of each kind")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=ASKED, default=list(ASKED))
    parser.add_argument("--similarity", type=Path, help="folder of a model; one with random weights in its place")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/howto/rewards.md")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    seen, rows, data = results(args.results), [], {}
    drawn = drawing([one.prompt for one in seen["images"]], args.repeat)
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only:
            argument = args.similarity or random_clip(Path(scratch)) if name == "similarity" else None
            try:
                reward = make_reward(f"{name}={argument}" if argument else name)
                reward.load()
            except UserError as error:
                print(f"{name} is left out: {error}")
                continue
            for kind in ASKED[name]:
                some = seen[kind]
                found = milliseconds(lambda: list(reward(some)), len(some), args.repeat)  # noqa: B023
                height, width = some[0].media.pixels.shape[1:3]
                like = None if kind.startswith("large") else drawn["videos" if kind == "videos" else "images"]["median"]
                sure = right(reward(some))
                data[f"{name}, {kind}"] = found | {
                    "results": len(some), "height": height, "width": width, "right": sure,
                }  # fmt: skip
                share = f"{found['median'] / like:.1%}" if like else "-"
                took = f"{found['median']:.{0 if found['median'] >= 10 else 2}f}"
                said = "-" if sure is None else f"{sure:.3f}"
                rows.append([f"`{name}`", kind, f"{width}x{height}", took, share, said])
    table = markdown(["reward", "results", "size", "ms for one", "share of drawing it", "found right"], rows)
    each = {kind: f"{told['median']:.0f} ms" for kind, told in drawn.items()}
    said = f"One core. nano draws an image of {SIDE}x{SIDE} in {each['images']}, a video of {FRAMES} frames in "
    steps = rollouts()["num_inference_steps"]
    said += f"{each['videos']} ({steps} steps, no guidance, decoded; {args.results} together). Results are right "
    said += f"ones.\n\n{table}"
    write_results("reward_costs", {"drawing": drawn, "rewards": data}, said, args.out)
    if args.docs:
        put(PAGE, "costs", said)


if __name__ == "__main__":
    main()
