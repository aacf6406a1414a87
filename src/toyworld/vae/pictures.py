"""Train nano's VAE on pictures of the procedural world.

    train_vae(VAERecipe(), Path("runs/vae"))        # stops and goes on where it was

Two stages. In the first, encoder and decoder learn together. Then the averaged encoder is frozen, its latents are
measured, and `encoder/` is written: a backbone can start on these latents while, in the second stage, the decoder alone
goes on learning to read them, noise included. `final/` holds the result. Every step draws its pictures and its noise
from (seed, step), so a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from openlance.config.model import VAEConfig, nano_vae
from openlance.model.precision import autocast
from openlance.training.checkpoint import disk
from openlance.training.interrupt import Interrupted, stoppable
from toyworld.vae.frames import PictureVAE
from toyworld.vae.report import latent_statistics, measure, pictures, put_back, replaced, to_tensor

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class VAERecipe:
    """Everything that decides the outcome. Lengths in steps; sizes are (height, width) in pixels.

    The rates matter: at three times as much, training on the smallest networks goes to and fro below 19 dB.
    """

    vae: VAEConfig = field(default_factory=nano_vae)
    joint_steps: int = 3600
    decoder_steps: int = 5000
    batch: int = 16
    size: Size = (64, 64)
    other_sizes: tuple[Size, ...] = ((64, 96), (96, 64), (96, 96))
    other_every: int = 8  # every so many steps one half batch has one of the other sizes
    kinds: dict[str, float] = field(default_factory=dict)  # weights of the categories of pictures that are not 1
    lr: float = 4e-4
    decoder_lr: float = 3e-4
    muon_scale: float = 10.0  # rate of the inner kernels, which Muon moves, over that of the rest, which AdamW moves
    joint_end: float = 0.3  # where the cosine of the first stage ends, as a share of its start
    decoder_end: float = 0.05
    warmup: int = 100
    max_norm: float = 1.0
    ema: float = 0.998
    edge_weight: float = 4.0
    l1_weight: float = 0.2
    kl_weight: float = 5e-5
    latent_noise: float = 0.25  # the decoder meets noise of up to this many standard deviations of each channel
    statistics_batches: int = 64  # of 64 pictures each, from which the latents' mean and deviation are taken
    seed: int = 0
    save_every: int = 300
    compile: bool = False  # fuse the element-wise operations (needs a C++ compiler): 1.7 times faster on a CPU

    @property
    def steps(self) -> int:
        return self.joint_steps + self.decoder_steps


def edges(x_BCHW: Tensor) -> Tensor:
    """How much of an edge each pixel is: 0 on flat ground, 1 where its neighbours differ by half the range or more;
    (B, 1, H, W)."""
    padded = nn.functional.pad(x_BCHW, (1, 1, 1, 1), mode="replicate")
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs()
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs()
    return torch.maximum(dx, dy).amax(1, keepdim=True).clamp(max=1)


def loss_of(x_BCHW: Tensor, y_BCHW: Tensor, mean: Tensor, logvar: Tensor, recipe: VAERecipe) -> Tensor:
    """Squared error that counts edges more, absolute error, and a little of the usual Gaussian prior."""
    weight, error = 1 + recipe.edge_weight * edges(x_BCHW), y_BCHW - x_BCHW
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()
    return (weight * error**2).mean() + recipe.l1_weight * error.abs().mean() + recipe.kl_weight * kl


def reconstruct(vae: PictureVAE, x_BCHW: Tensor, std_C: Tensor, noise: float, joint: bool) -> tuple[Tensor, ...]:
    """Encode, disturb, decode: pixels, mean and log-variance of the latents, all float32.

    A decoder that has only met exact latents turns the small errors of a flow model into visible ones.
    """
    with torch.set_grad_enabled(joint):
        mean, logvar = (v.float() for v in vae.encode(x_BCHW))
    sigma = torch.rand(len(x_BCHW), 1, 1, 1) * noise * std_C[None, :, None, None]
    variance = sigma**2 + (logvar.exp() if joint else 0.0)
    z = mean + variance.sqrt() * torch.randn_like(mean)
    return vae.decode(z).float(), mean, logvar


class KernelOptimizer:
    """torch's Muon for the inner 3x3 kernels, which it sees as matrices (out, in * 9); AdamW for everything else."""

    def __init__(self, module: nn.Module, muon_scale: float, least_channels: int = 32) -> None:
        small = (p for p in module.parameters() if p.shape[2:] == (3, 3))
        self.kernels = [p for p in small if min(p.shape[:2]) >= least_channels]
        inner = {id(w) for w in self.kernels}
        rest = [p for p in module.parameters() if id(p) not in inner]
        # Views of the kernels' memory: (out, 3, 3, in) is how a channels-last kernel lies there.
        self.matrices = [nn.Parameter(self._matrix(w.detach())) for w in self.kernels]
        self.scale, self.adam = muon_scale, torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
        self.parts: list[torch.optim.Optimizer] = [self.adam]
        if self.matrices:
            self.parts.append(torch.optim.Muon(self.matrices, lr=0.0, weight_decay=0.0, momentum=0.95))

    @staticmethod
    def _matrix(kernel: Tensor) -> Tensor:
        return kernel.permute(0, 2, 3, 1).flatten(1)

    def step(self, lr: float) -> None:
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            assert matrix.data_ptr() == kernel.data_ptr(), "a kernel is not stored channels-last"
            matrix.grad = None if kernel.grad is None else self._matrix(kernel.grad)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr if part is self.adam else lr * self.scale
            part.step()

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class VAERun:
    """The state of a run: weights, their average, optimiser, mean and deviation of the latent channels, step."""

    reconstruct = staticmethod(reconstruct)

    def __init__(self, recipe: VAERecipe, folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.step = recipe, folder, 0
        self.vae, self.average = PictureVAE(recipe.vae), PictureVAE(recipe.vae)
        self.average.load_state_dict(self.vae.state_dict())
        self.mean_C, self.std_C = torch.zeros(recipe.vae.z_dim), torch.ones(recipe.vae.z_dim)
        self.forward = torch.compile(self.reconstruct, dynamic=False) if recipe.compile else self.reconstruct
        self.optimizer = self._new_optimizer()

    @property
    def joint(self) -> bool:
        return self.step < self.recipe.joint_steps

    def _learned(self) -> nn.Module:
        return self.vae if self.joint else nn.ModuleList([self.vae.post_quant_conv, self.vae.decoder])

    def _new_optimizer(self) -> KernelOptimizer:
        return KernelOptimizer(self._learned(), self.recipe.muon_scale)

    def rate(self) -> float:
        """Learning rate of this step: a warm-up, then a cosine, in each stage."""
        r = self.recipe
        step, steps, peak, end = self.step, r.joint_steps, r.lr, r.joint_end
        if not self.joint:
            step, steps, peak, end = self.step - r.joint_steps, r.decoder_steps, r.decoder_lr, r.decoder_end
        cosine = end + (1 - end) * (1 + math.cos(math.pi * step / steps)) / 2
        return peak * min(1.0, (step + 1) / r.warmup) * cosine

    def batch(self) -> tuple[Tensor, bool]:
        """The pictures of this step, and whether they are of the usual size."""
        r, turn = self.recipe, self.step // self.recipe.other_every
        usual = not r.other_sizes or self.step % r.other_every != r.other_every - 1
        size = r.size if usual else r.other_sizes[turn % len(r.other_sizes)]
        rng = np.random.default_rng((r.seed, 1, self.step))
        return to_tensor(pictures(rng, r.batch if usual else max(r.batch // 2, 1), size, r.kinds)), usual

    def train_step(self) -> float:
        """One update; returns the loss. FloatingPointError when the gradient is not finite."""
        r = self.recipe
        x, usual = self.batch()
        torch.manual_seed(r.seed * 1_000_003 + self.step)
        forward = self.forward if usual else self.reconstruct  # rare sizes are not worth compiling
        with autocast("auto"):
            y, mean, logvar = forward(self.vae, x, self.std_C, r.latent_noise, self.joint)
        loss = loss_of(x, y, mean, logvar, r)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._learned().parameters(), r.max_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"VAE step {self.step}: the gradient norm is {norm}; lower lr, now {r.lr}")
        self.optimizer.step(self.rate())
        self.vae.zero_grad()
        self._follow(mean.detach())
        self.step += 1
        if self.step == r.joint_steps:
            self._freeze_encoder()
        return loss.item()

    @torch.no_grad()
    def _follow(self, mean: Tensor) -> None:
        """Move the averaged weights, and in the first stage the latents' deviation, towards the present ones."""
        keep = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.vae.parameters()), 1 - keep)
        if self.joint:
            self.std_C.lerp_(mean.std((0, 2, 3)), 0.02 if self.step else 1.0)

    def _freeze_encoder(self) -> None:
        """End the first stage: the averaged encoder becomes the encoder; its latents are measured and it is written."""
        for name in ("encoder", "quant_conv"):
            getattr(self.vae, name).load_state_dict(getattr(self.average, name).state_dict())
        r = self.recipe
        self.mean_C, self.std_C = latent_statistics(self.average, r.size, r.seed, r.statistics_batches)
        self.optimizer = self._new_optimizer()
        self.export("encoder")

    def export(self, name: str) -> Path:
        """Write the averaged weights in half precision, under the released names, and their vae_config.json."""
        with replaced(self.folder / name) as folder:
            vae = self.average.to_vae(self.mean_C, self.std_C)
            vae.half().save(folder / "vae.safetensors")
            values = asdict(vae.config)
            values["temperal_downsample"] = values.pop("temporal_downsample")  # spelled so in the release
            (folder / "vae_config.json").write_text(json.dumps(values, indent=1))
        return self.folder / name

    def save(self) -> None:
        from safetensors.torch import save_file

        both = nn.ModuleDict({"vae": self.vae, "average": self.average})
        rest = {"step": self.step, "mean": self.mean_C, "std": self.std_C, "optimizer": self.optimizer.state_dict()}
        with replaced(self.folder / "checkpoint") as folder:
            save_file({k: v.contiguous() for k, v in both.state_dict().items()}, folder / "weights.safetensors")
            torch.save(rest, folder / "optimizer.pt")

    def load(self) -> None:
        from safetensors.torch import load_file

        folder = self.folder / "checkpoint"
        both = nn.ModuleDict({"vae": self.vae, "average": self.average})
        both.load_state_dict(load_file(folder / "weights.safetensors"))
        rest = torch.load(folder / "optimizer.pt", weights_only=True)
        self.step, self.mean_C, self.std_C = rest["step"], rest["mean"], rest["std"]
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(rest["optimizer"])

    def levels(self) -> dict[str, float]:
        """Decibels of the averaged weights; writes a sheet of reconstructions."""
        return measure(self.average, self.std_C, (self.recipe.size, *self.recipe.other_sizes), self.folder, self.step)

    def report(self, losses: Iterable[float], seconds: float) -> None:
        """Add a line to log.jsonl and a sheet of reconstructions."""
        row = {"step": self.step, "loss": float(np.mean(list(losses))), "seconds": seconds, **self.levels()}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")


def train_vae(
    recipe: VAERecipe, out_dir: Path, *, steps: int | None = None, resume: bool = True, minutes: float = float("inf")
) -> Path:
    """Train up to `steps` (default: all of the recipe's) or for so many minutes, going on from `out_dir/checkpoint` if
    there is one.

    Returns the folder of the result, `out_dir/final`, or of the checkpoint when steps or minutes end the run earlier.
    FloatingPointError when training diverges, UserError when the disk is full, Interrupted after Ctrl-C or SIGTERM:
    everything is saved then.
    """
    return drive(VAERun(recipe, out_dir), steps, resume, minutes)


def drive(run: VAERun, steps: int | None = None, resume: bool = True, minutes: float = float("inf")) -> Path:
    """Train a run as `train_vae` does."""
    from tqdm import tqdm

    recipe, folder = run.recipe, run.folder
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        put_back(folder / "checkpoint")
        if resume and (folder / "checkpoint").exists():
            run.load()
        last, losses, start = min(steps or recipe.steps, recipe.steps), list[float](), time.monotonic()
        with stoppable() as heard:
            for _ in tqdm(range(run.step, last), desc="VAE", mininterval=5):
                losses.append(run.train_step())
                over = time.monotonic() - start > 60 * minutes or any(heard.of_each)
                if run.step % recipe.save_every == 0 or run.step == last or over:
                    run.save()
                    run.report(losses, time.monotonic() - start)
                    losses.clear()
                if over:
                    break
            for number in heard.at:
                raise Interrupted(folder, run.step, number)
        return run.export("final") if run.step == recipe.steps else folder / "checkpoint"
