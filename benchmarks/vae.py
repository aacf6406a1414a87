"""What a VAE costs: true images and videos of nano's world, encoded, decoded and judged, with the decoder of one
checkpoint and with another's on the same latents.

    python benchmarks/vae.py --model nano --other runs/vae/final --samples 400
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, markdown, paired, points, write_results
from tqdm import tqdm

from openlance.checkpoint.formats import folder_of
from openlance.config.model import VAEConfig
from openlance.config.values import read_json
from openlance.media.clip import Clip
from openlance.rl.rewards.reward import Drawn
from openlance.vae.autoencoder import VAE
from toyworld.judge import nothing_else
from toyworld.judge_edits import psnr
from toyworld.motion import render_clip
from toyworld.render import render
from toyworld.reward import READERS, facts_of
from toyworld.scene import Scene, sample_scene
from toyworld.suites.bench import SUITES, Bench
from toyworld.suites.clips import filmings
from toyworld.suites.edits import edits
from toyworld.suites.images import Drawing, drawings
from toyworld.words import caption

SEED, SIZE = 900, (64, 64)
Case = tuple[str, Any, np.ndarray, tuple[Clip, ...]]  # what it is, the request, its true result (T, H, W, 3), sources


def cases(samples: int) -> Iterator[Case]:
    """True results of the benchmark's requests, so many of each kind; texts by their length."""
    for category in ("single", "color", "two", "attribute", "position", "count"):
        for one in drawings(category, Bench(tasks=("t2i",), samples=samples, seed=SEED)):
            yield f"image, {category}", one, _still(one.scene), ()
    yield from texts(samples)
    for category in SUITES["image_edit"].categories:
        for edit in edits(category, Bench(tasks=("image_edit",), samples=max(samples // 4, 1), seed=SEED)):
            before, after = edit.pictures(*SIZE)
            yield "edit", edit, after[None], (Clip(before[None]),)
    for category in ("one", "two"):
        for film in filmings(category, Bench(tasks=("t2v",), samples=max(samples // 8, 1), seed=SEED)):
            yield f"video, {category}", film, render_clip(film.clip, *SIZE), ()


def texts(samples: int) -> Iterator[Case]:
    """Texts of one to four letters; the benchmark's own have three at most."""
    rng, done = np.random.default_rng(SEED), dict.fromkeys((1, 2, 3, 4), 0)
    while min(done.values()) < samples:
        scene = sample_scene(rng, category="text")
        assert scene.text is not None
        length = len(scene.text.string)
        if done[length] < samples:
            done[length] += 1
            prompt, facts = caption(scene, rng)
            said = Drawing(prompt=prompt, facts=nothing_else(facts), scene=scene)
            yield f"text of {length}", said, _still(scene), ()


def _still(scene: Scene) -> np.ndarray:
    return render(scene, *SIZE)[None]


def opened(folder: str) -> VAE:
    root = folder_of(folder)
    return VAE.load(root / "vae.safetensors", VAEConfig.of(read_json(root / "vae_config.json")))


@torch.inference_mode()
def decoded(coder: VAE, decoders: dict[str, VAE], pixels: np.ndarray) -> dict[str, np.ndarray]:
    """A clip, uint8 (T, H, W, 3), through the encoder of one and every decoder."""
    z, _ = coder.encode(torch.from_numpy(pixels).permute(3, 0, 1, 2).float() / 127.5 - 1)
    frames = {name: vae.decode(z).permute(1, 2, 3, 0) for name, vae in decoders.items()}
    return {name: ((x + 1) * 127.5).round().byte().numpy() for name, x in frames.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--other", required=True, help="a folder with the other vae.safetensors and vae_config.json")
    parser.add_argument(
        "--samples", type=int, default=400, help="of each kind of image; of an edit a quarter, of a video an eighth"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", default="", help="what the result is called beside its date")
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoders = {"model": opened(args.model), "other": opened(args.other)}
    verdicts = defaultdict[str, dict[str, list[bool]]](lambda: {name: [] for name in decoders})
    levels = defaultdict[str, dict[str, list[float]]](lambda: {name: [] for name in decoders})
    for what, request, true, sources in tqdm(cases(args.samples), desc="true images and videos"):
        for name, pixels in decoded(decoders["model"], decoders, true).items():
            drawn = Drawn(prompt="", media=Clip(pixels), sources=sources, truth=request)
            verdicts[what][name].append(bool(facts_of(request, drawn, READERS[""])["right"]))
            for kind, some in (("", slice(0, None, 4)), (", between", [t for t in range(len(true)) if t % 4])):
                if len(true[some]):
                    levels[what + kind][name].append(psnr(pixels[some], true[some]))
    rows = {what: paired(*both.values()) for what, both in verdicts.items()}
    level = {what: {name: float(np.mean(v)) for name, v in both.items()} for what, both in levels.items()}
    lines = list[list[Any]]()
    for what, means in level.items():
        told = [f"{means[name]:.1f}" for name in decoders]
        r = rows.get(what)
        right = [r["n"], f"{r['old']:.3f}", f"{r['new']:.3f}", points(r)] if r else ["", "", "", ""]
        lines.append([what, *right, *told])
    columns = ["what", "n", "model: right", "other", "points (95 %)", "model: dB", "other"]
    head = f"Decoders of {args.model} (model) and {args.other} on the same latents, 64x64, videos of 9 frames. "
    head += "Right by the judge of `bench world`, texts by OCR. dB: PSNR, of videos over the frames that latents show "
    head += "and, below, those between.\n\n"
    write_results("vae", {"rows": rows, "psnr": level}, head + markdown(columns, lines), args.out, args.part)


if __name__ == "__main__":
    main()
