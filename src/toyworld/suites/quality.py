"""What a cheaper way to draw costs: any setting against the exact one, on the same prompts and seeds.

    found = compare(openlance.load("nano"), Comparison(setting={"solver": "dpm++", "num_inference_steps": 12}))
    found["psnr"], found["judge"]["difference"], found["seconds"]["ratio"]

The prompts are of the procedural world, so that its judge can say whether a picture still shows what was asked for;
prompts for texts are left out, since what a reader of letters makes of them says little about a sampler.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openlance.config.sampling import later_seed
from openlance.errors import UserError
from openlance.eval.estimate import Z95
from openlance.inference.engine import Engine
from openlance.sequence import tasks
from toyworld.facts import Fact
from toyworld.judge import is_right, nothing_else
from toyworld.scene import sample_scene
from toyworld.vocabulary import CATEGORIES
from toyworld.words import caption

# Nothing is left out: the released sampler's steps, and guidance at each of them.
REFERENCE = {"solver": "euler", "num_inference_steps": 30, "step_cache": 0.0, "interval": (0.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared. setting, reference: fields of `Sampling` that replace the model's own; the setting starts from
    the reference. samples: pictures; height, width: pixels; placement as in `sample_scene`."""

    setting: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=lambda: dict(REFERENCE))
    samples: int = 64
    seed: int = 0
    height: int = 64
    width: int = 64
    batch: int = 16
    placement: str | float = "free"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1 or self.seed < 0:
            raise UserError(
                f"samples={self.samples}, batch={self.batch} and seed={self.seed} are out of range: they must be at "
                "least 1, 1 and 0, for example --samples 64 --seed 0"
            )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures of one setting: latents (n, T, Y, X, C), pixels uint8 (n, H, W, 3), verdicts, seconds of all, and how
    often a picture went through the model (a step with two guidance branches counts two)."""

    latents: Tensor
    pixels: Tensor
    right: np.ndarray
    seconds: float
    passes: float


def compare(pipe: Engine, c: Comparison, on_batch: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Draw every prompt with the reference and with the setting; on_batch(n) is called after n pictures of either."""
    return measure(c, draw(pipe, c, c.reference, on_batch), draw(pipe, c, {**c.reference, **c.setting}, on_batch))


def prompts(c: Comparison) -> list[tuple[str, tuple[Fact, ...]]]:
    """Prompts with what must hold in their pictures; always the same for a seed."""
    rng, found = np.random.default_rng([c.seed, 20231]), list[tuple[str, tuple[Fact, ...]]]()
    for category in cycle([name for name in CATEGORIES if name != "text"]):
        if len(found) == c.samples:
            return found
        scene = sample_scene(rng, placement=c.placement, category=category, aspect=c.width / c.height)
        words, facts = caption(scene, rng)
        found.append((words, nothing_else(facts)))
    raise AssertionError


@torch.inference_mode()
def draw(
    pipe: Engine, c: Comparison, settings: Mapping[str, Any], on_batch: Callable[[int], None] | None = None
) -> Drawn:
    """All pictures of a setting; picture k has seed `seed` + k, whatever the setting."""
    sampling, wanted = pipe.sampling(**settings), prompts(c)
    task = tasks.the_task(tasks.text_to_visual, "image")
    requests = [pipe.front.request(task, words, asked=(1, c.height, c.width)) for words, _ in wanted]
    seeds: list[int | torch.Generator] = [later_seed(c.seed, k) for k in range(len(requests))]
    latents, pixels, seconds, rows = list[Tensor](), list[Tensor](), 0.0, list[int]()

    def some(part: slice) -> tuple[Tensor, Tensor]:
        made = pipe.fill_latents(requests[part], sampling, seeds[part], on_pass=rows.append)
        clips = pipe.decode_latents(made)
        return torch.stack(made).cpu(), torch.stack([torch.from_numpy(clip.pixels[0]) for clip in clips])

    some(slice(0, min(c.batch, len(requests))))  # loads, compiles and warms up; not timed
    rows.clear()
    for at in range(0, len(requests), c.batch):
        began = time.perf_counter()
        z, p = some(slice(at, at + c.batch))
        seconds += time.perf_counter() - began
        latents.append(z)
        pixels.append(p)
        if on_batch is not None:
            on_batch(len(p))
    shown, every = torch.cat(pixels), torch.cat(latents)
    passes = sum(rows) / every[..., 0].numel()
    right = np.array([is_right(p.numpy(), facts) for p, (_, facts) in zip(shown, wanted, strict=True)])
    return Drawn(latents=every, pixels=shown, right=right, seconds=seconds, passes=passes)


def measure(c: Comparison, exact: Drawn, other: Drawn) -> dict[str, Any]:
    """Means over pictures; the judge's difference with a paired 95 % interval, since both drew the same prompts."""
    a, b = (d.pixels.permute(0, 3, 1, 2).double() / 255 for d in (exact, other))
    n, gained, lost = c.samples, int((other.right & ~exact.right).sum()), int((exact.right & ~other.right).sum())
    difference = (gained - lost) / n
    half = Z95 * math.sqrt(max((gained + lost) / n - difference**2, 0.0) / n)
    return {
        "setting": dict(c.setting),
        "reference": dict(c.reference),
        "samples": n,
        "seed": c.seed,
        "psnr": float(psnr(a, b).mean()),
        "ssim": float(ssim(a, b).mean()),
        "latent_distance": float(latent_distance(exact.latents, other.latents).mean()),
        "high_frequency": float(high_frequency(b).sum() / high_frequency(a).sum().clamp(min=1e-12)),
        "judge": {
            "reference": float(exact.right.mean()),
            "setting": float(other.right.mean()),
            "difference": difference,
            "ci95": [difference - half, difference + half],
        },
        "seconds": {
            "reference": exact.seconds / n,
            "setting": other.seconds / n,
            "ratio": exact.seconds / other.seconds,
        },
        "passes": {"reference": exact.passes, "setting": other.passes, "ratio": exact.passes / other.passes},
    }


# Measures of pairs; pictures (n, 3, H, W) in [0, 1].


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(n,) peak signal-to-noise ratio in dB; equal pictures count as 100 dB, so that means stay finite."""
    error = (a - b).square().mean(dim=(1, 2, 3))
    return torch.where(error > 1e-10, -10 * torch.log10(error.clamp(min=1e-10)), 100.0)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(n,) structural similarity: Gaussian window of 11 pixels, sigma 1.5, mean of the channels (Wang et al. 2004)."""
    side = min(11, a.shape[-1] | 1, a.shape[-2] | 1)
    line = torch.exp(-((torch.arange(side, dtype=a.dtype) - side // 2) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, side, side)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window, padding=0, groups=3)

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return found.mean(dim=(1, 2, 3))


def latent_distance(a: Tensor, b: Tensor) -> Tensor:
    """(n,) mean over cells of the squared distance of unit latent vectors, 0 to 4: LPIPS with the VAE as network."""
    return (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1).flatten(1).mean(1)


def high_frequency(x: Tensor) -> Tensor:
    """(n,) energy of the grey picture above half the highest frequency: what a blurred picture has lost."""
    grey = x.mean(dim=1)
    spectrum = torch.fft.rfft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs().square()
    fy, fx = torch.fft.fftfreq(x.shape[-2]).abs(), torch.fft.rfftfreq(x.shape[-1])
    return spectrum[:, torch.maximum(fy[:, None], fx[None, :]) > 0.25].sum(1)
