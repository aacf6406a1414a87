"""Train nano's VAE on pictures of the procedural world.

    train_codec(CodecRecipe(), Path("runs/codec"))        # stops and goes on where it was

Two stages. In the first, encoder and decoder learn together. Then the averaged encoder is frozen, its latents are
measured, and `encoder/` is written: a backbone can start on these latents while, in the second stage, the decoder alone
goes on learning to read them, noise included. `final/` holds the result. Every step draws its pictures and its noise
from (seed, step), so a resumed run repeats an uninterrupted one.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openlance.config.model import VAEConfig
from openlance.train.codec_frames import FrameCodec
from openlance.train.muon import Muon, inner_kernels
from openlance.world.render import render
from openlance.world.scene import sample_scene

Size = tuple[int, int]


def nano_vae() -> VAEConfig:
    """The classes of Wan2.2's VAE with stride 8 and 16 channels: a 64x64 picture has 64 latent cells."""
    return VAEConfig(
        z_dim=16, dim=32, dec_dim=48, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
        mean=(0.0,) * 16, std=(1.0,) * 16,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CodecRecipe:
    """Everything that decides the outcome. Lengths in steps; sizes are (height, width) in pixels."""

    vae: VAEConfig = field(default_factory=nano_vae)
    joint_steps: int = 6000
    decoder_steps: int = 6000
    batch: int = 16
    size: Size = (64, 64)
    other_sizes: tuple[Size, ...] = ((64, 96), (96, 64), (96, 96))
    other_every: int = 8  # every so many steps one batch has one of the other sizes
    lr: float = 1e-3
    decoder_lr: float = 6e-4
    muon_scale: float = 20.0  # rate of the inner kernels, which Muon moves, over that of the rest, which AdamW moves
    final_lr: float = 0.05  # where the cosine of each stage ends, as a share of its start
    warmup: int = 100
    max_norm: float = 1.0
    ema: float = 0.998
    edge_weight: float = 4.0
    l1_weight: float = 0.2
    kl_weight: float = 5e-5
    latent_noise: float = 0.25  # a decoder meets noise of up to this many standard deviations of each channel
    seed: int = 0
    save_every: int = 1000
    compile: bool = False  # fuse the element-wise operations (needs a C++ compiler): 1.7 times faster on a CPU

    @property
    def steps(self) -> int:
        return self.joint_steps + self.decoder_steps


def pictures(rng: np.random.Generator, count: int, size: Size) -> np.ndarray:
    """Renders of scenes of all kinds, freely placed, none of them held out: uint8 (count, height, width, 3)."""
    height, width = size
    scenes = (sample_scene(rng, placement="free", aspect=width / height) for _ in range(count))
    return np.stack([render(scene, height, width) for scene in scenes])


def to_tensor(pixels_BHWC: np.ndarray) -> Tensor:
    """uint8 pixels to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x_BCHW: Tensor) -> Tensor:
    """How much of an edge each pixel is: 0 on flat ground, 1 where neighbours differ by half the range; (B, 1, H, W)."""
    padded = F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate")
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs()
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs()
    return torch.maximum(dx, dy).amax(1, keepdim=True).clamp(max=1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Decibels between pictures in [-1, 1], over the whole batch, after clamping."""
    return -10 * math.log10(max(F.mse_loss(a.clamp(-1, 1), b).item() / 4, 1e-10))


def reconstruct(codec: FrameCodec, x: Tensor, std_z: Tensor, recipe: CodecRecipe, joint: bool):
    """Encode, add noise, decode. Returns the pixels and the latents' mean and log variance, all float32."""
    with torch.set_grad_enabled(joint):
        mean, logvar = (v.float() for v in codec.encode(x))
    sigma = torch.rand(len(x), 1, 1, 1) * recipe.latent_noise * std_z[None, :, None, None]
    variance = sigma**2 + (logvar.exp() if joint else 0.0)
    z = mean + variance.sqrt() * torch.randn_like(mean)
    return codec.decode(z).float(), mean, logvar


def loss_of(x: Tensor, y: Tensor, mean: Tensor, logvar: Tensor, recipe: CodecRecipe) -> Tensor:
    weight = 1 + recipe.edge_weight * edges(x)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()
    return (weight * (y - x) ** 2).mean() + recipe.l1_weight * (y - x).abs().mean() + recipe.kl_weight * kl


class CodecRun:
    """The state of a run: weights, their average, optimiser, latent deviations, step."""

    def __init__(self, recipe: CodecRecipe, folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.step = recipe, folder, 0
        self.codec = FrameCodec(recipe.vae)
        self.average = FrameCodec(recipe.vae)
        self.average.load_state_dict(self.codec.state_dict())
        self.std_z = torch.ones(recipe.vae.z_dim)
        self.mean_z = torch.zeros(recipe.vae.z_dim)
        self.forward = torch.compile(reconstruct, dynamic=False) if recipe.compile else reconstruct
        self.optimizer = self.new_optimizer()

    @property
    def joint(self) -> bool:
        return self.step < self.recipe.joint_steps

    def learned(self) -> list[torch.nn.Parameter]:
        codec = self.codec
        return list((codec if self.joint else torch.nn.ModuleList([codec.post_quant_conv, codec.decoder])).parameters())

    def new_optimizer(self) -> torch.optim.Optimizer:
        inner = inner_kernels(self.codec)
        return Muon([
            {"params": [p for p in self.learned() if p in inner], "orthogonal": True, "lr_scale": self.recipe.muon_scale},
            {"params": [p for p in self.learned() if p not in inner]},
        ])  # fmt: skip

    def rate(self) -> float:
        """Learning rate of this step: warm-up, then a cosine, in each stage."""
        r = self.recipe
        peak, step, total = (r.lr, self.step, r.joint_steps)
        if not self.joint:
            peak, step, total = r.decoder_lr, self.step - r.joint_steps, r.decoder_steps
        low = r.final_lr if not self.joint else 0.3
        cosine = low + (1 - low) * (1 + math.cos(math.pi * step / total)) / 2
        return peak * min(1.0, (step + 1) / r.warmup) * cosine

    def train_step(self) -> float:
        """One update; returns the loss. Raises FloatingPointError when the gradient is not finite."""
        r, step = self.recipe, self.step
        rng = np.random.default_rng((r.seed, 1, step))
        torch.manual_seed(r.seed * 1_000_003 + step)
        usual = step % r.other_every != r.other_every - 1
        size = r.size if usual else r.other_sizes[step // r.other_every % len(r.other_sizes)]
        x = to_tensor(pictures(rng, r.batch if usual else r.batch // 2, size))
        with torch.autocast("cpu", torch.bfloat16):
            y, mean, logvar = (self.forward if usual else reconstruct)(self.codec, x, self.std_z, r, self.joint)
        loss = loss_of(x, y, mean, logvar, r)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned(), r.max_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"codec step {step}: gradient norm is {norm}; lower lr, now {r.lr}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.follow(mean.detach())
        self.step += 1
        return loss.item()

    def follow(self, mean: Tensor) -> None:
        """Move the averaged weights, and in the first stage the latent deviations, towards the present ones."""
        keep = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.codec.parameters()), 1 - keep)
            if self.joint:
                self.std_z.lerp_(mean.std((0, 2, 3)), 0.02 if self.step else 1.0)

    def freeze_encoder(self) -> None:
        """End the first stage: both copies get the averaged encoder, whose latents are measured and written."""
        with torch.no_grad():
            for name in ("encoder", "quant_conv"):
                getattr(self.codec, name).load_state_dict(getattr(self.average, name).state_dict())
        self.mean_z, self.std_z = latent_statistics(self.average, self.recipe)
        self.optimizer = self.new_optimizer()
        self.export("encoder")

    def export(self, name: str) -> None:
        """Write the averaged weights under diffusers' names, as `name/vae.safetensors` and `name/config.json`."""
        from safetensors.torch import save_file

        mean, std = self.mean_z.tolist(), self.std_z.tolist()
        wan = self.average.to_video(mean, std)
        with replaced(self.folder / name) as folder:
            save_file({k: v.bfloat16().contiguous() for k, v in wan.state_dict().items()}, folder / "vae.safetensors")
            settings = {"class": "AutoencoderKLWan", "arguments": {k: v for k, v in wan.config.items() if k[0] != "_"}}
            settings["vae"] = {**asdict(self.recipe.vae), "mean": mean, "std": std}
            (folder / "config.json").write_text(json.dumps(settings, indent=1))

    def save(self) -> None:
        from safetensors.torch import save_file

        with replaced(self.folder / "checkpoint") as folder:
            save_file({**_named("codec.", self.codec), **_named("average.", self.average)}, folder / "weights.safetensors")
            rest = {"step": self.step, "mean_z": self.mean_z, "std_z": self.std_z, "optimizer": self.optimizer.state_dict()}
            torch.save(rest, folder / "optimizer.pt")

    def load(self) -> None:
        from safetensors.torch import load_file

        folder = self.folder / "checkpoint"
        weights = load_file(folder / "weights.safetensors")
        for name, module in (("codec.", self.codec), ("average.", self.average)):
            module.load_state_dict({k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)})
        rest = torch.load(folder / "optimizer.pt", weights_only=True)
        self.step, self.mean_z, self.std_z = rest["step"], rest["mean_z"], rest["std_z"]
        self.optimizer = self.new_optimizer()
        self.optimizer.load_state_dict(rest["optimizer"])

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Decibels of the averaged codec on 64 fixed pictures of each size, plain and with latent noise of 0.2; and a
        sheet of pictures above their reconstructions."""
        from PIL import Image

        result: dict[str, float] = {}
        for size in (self.recipe.size, *self.recipe.other_sizes):
            x = to_tensor(pictures(np.random.default_rng((self.recipe.seed, 2)), 64, size))
            noise = torch.randn(64, self.recipe.vae.z_dim, *(s // self.recipe.vae.stride for s in size))
            with torch.autocast("cpu", torch.bfloat16):
                z = self.average.encode(x)[0].float()
                y = self.average.decode(z).float()
                noisy = self.average.decode(z + 0.2 * noise * self.std_z[None, :, None, None]).float()
            result[f"{size[0]}x{size[1]}"], result[f"{size[0]}x{size[1]}+noise"] = psnr(y, x), psnr(noisy, x)
            if size == self.recipe.size:
                Image.fromarray(sheet(x, y, noisy)).save(self.folder / f"sheet-{self.step:06d}.png")
        return result


def sheet(*rows_BCHW: Tensor, columns: int = 16) -> np.ndarray:
    """Pictures in [-1, 1] as one uint8 image: each band shows the same pictures in all versions."""
    first = [torch.cat(list(rows[i : i + columns]), 2) for i in range(0, 3 * columns, columns) for rows in rows_BCHW]
    return ((torch.cat(first, 1).clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(1, 2, 0).numpy()


def _named(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    return {prefix + k: v.contiguous() for k, v in module.state_dict().items()}


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` only when all is written."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def latent_statistics(codec: FrameCodec, recipe: CodecRecipe, batches: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel over `batches` * 64 pictures."""
    total = square = torch.zeros(recipe.vae.z_dim, dtype=torch.float64)
    for i in range(batches):
        x = to_tensor(pictures(np.random.default_rng((recipe.seed, 3, i)), 64, recipe.size))
        with torch.autocast("cpu", torch.bfloat16):
            z = codec.encode(x)[0].double()
        total, square = total + z.mean((0, 2, 3)) / batches, square + z.square().mean((0, 2, 3)) / batches
    return total.float(), (square - total**2).sqrt().float()


def train_codec(recipe: CodecRecipe, out_dir: Path, *, steps: int | None = None, resume: bool = True) -> Path:
    """Train up to `steps` (default: all of the recipe), going on from `out_dir/checkpoint` if there is one.

    Returns the folder of the result, `out_dir/final`, or of the checkpoint when `steps` ends the run earlier. Writes
    `log.jsonl` and sheets of reconstructions. Raises FloatingPointError when training diverges.
    """
    from tqdm import tqdm

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    run = CodecRun(recipe, out_dir)
    if resume and (out_dir / "checkpoint").exists():
        run.load()
    last, losses, start = min(steps or recipe.steps, recipe.steps), [], time.monotonic()
    for _ in tqdm(range(run.step, last), desc="codec", mininterval=5):
        losses.append(run.train_step())
        if run.step == recipe.joint_steps:
            run.freeze_encoder()
        if run.step % recipe.save_every == 0 or run.step == last:
            run.save()
            row = {"step": run.step, "loss": float(np.mean(losses)), "seconds": time.monotonic() - start, **run.measure()}
            with open(out_dir / "log.jsonl", "a") as log:
                log.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
            losses.clear()
    if run.step < recipe.steps:
        return out_dir / "checkpoint"
    run.export("final")
    return out_dir / "final"
