"""nano from nothing: tokenizer, vision tower and backbone, trained together on the procedural world.

    openlance train nano -o runs/nano            # codec first, then the backbone; run it again to resume
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openlance.config.model import EXACT, ModelConfig, VAEConfig, ViTConfig
from openlance.data.world import WorldMixture, world_batch
from openlance.flow import draw_times
from openlance.model.grids import SequenceCodec
from openlance.model.lance import Lance
from openlance.model.vit import ViT, normalise
from openlance.sequence.pack import Pack, pack
from openlance.sequence.rows import LATENTS, PATCHES
from openlance.text.tokenizer import Tokenizer
from openlance.train.objective import Losses, Weights, noised, objective
from openlance.train.optim import Ema, MuonAdamW, learning_rate
from openlance.world.labels import CHANNELS, POINT


def nano(vae: VAEConfig, vocab_size: int) -> ModelConfig:
    """The classes of the 3B with small numbers; 64x64 pictures are 8x8 latent and 4x4 ViT tokens."""
    return ModelConfig(
        vocab_size=vocab_size,
        width=256,
        layers=6,
        heads=8,
        kv_heads=4,
        head_dim=32,
        mlp_width=768,
        rope_theta=1e4,
        rope_sections=(4, 6, 6),
        latent_channels=vae.z_dim,
        time_features=128,
        vit=ViTConfig(
            depth=4, hidden_size=192, intermediate_size=512, num_heads=6, patch_size=8, window_size=64,
            fullatt_block_indexes=(0, 1, 2, 3), out_hidden_size=256,
        ),  # fmt: skip
        vae=vae,
        faithful=EXACT,
    )


@dataclass(frozen=True, kw_only=True)
class NanoRecipe:
    """Every number of the backbone's training. Steps with `drawn=0` train questions only, before the codec is ready."""

    seed: int = 0
    steps: int = 4000
    lr: float = 2e-3
    warmup: int = 60
    decay: float = 0.35  # share of the steps over which the rate falls
    betas: tuple[float, float] = (0.9, 0.97)
    max_norm: float = 1.0
    ema: float = 0.998
    draws: int = 4  # noise levels of one target per context
    shift: float = 1.5
    weights: Weights = field(default_factory=lambda: Weights(text=0.5, flow=1.0))
    dense: float = 0.3  # weight of the vision tower's auxiliary loss
    mixture: WorldMixture = field(default_factory=WorldMixture)
    widen: tuple[float, float] = (0.0, 0.5)  # share of the steps over which placement widens to free


class DenseHead(nn.Module):
    """Auxiliary head: what stands at each point of a ViT cell. Trained with the tower, not shipped."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.points = (stride // POINT) ** 2
        self.out = nn.Linear(width, self.points * sum(CHANNELS))

    def forward(self, cells_MD: Tensor, labels: list[np.ndarray], side: int) -> Tensor:
        target = torch.cat([_cut(torch.from_numpy(label), side) for label in labels])  # (M, points, channels)
        logits = self.out(cells_MD).float().unflatten(-1, (self.points, sum(CHANNELS)))
        losses = [
            F.cross_entropy(part.flatten(0, 1), target[..., n].flatten())
            for n, part in enumerate(logits.split(CHANNELS, dim=-1))
        ]
        return torch.stack(losses).sum()


def _cut(label_CYX: Tensor, side: int) -> Tensor:
    c, y, x = label_CYX.shape
    cut = label_CYX.reshape(c, y // side, side, x // side, side).permute(1, 3, 2, 4, 0)
    return cut.reshape(-1, side * side, c)


@dataclass
class Parts:
    """All modules that train together, under one name space."""

    lance: Lance
    vit: ViT
    dense: DenseHead

    def module(self) -> nn.Module:
        return nn.ModuleDict({"lance": self.lance, "vit": self.vit, "dense": self.dense})


def fresh(config: ModelConfig, seed: int) -> Parts:
    """Initial weights. Embeddings have unit deviation: much smaller ones drown in the first attention (measured)."""
    torch.manual_seed(seed)
    lance = Lance(config)
    for name, p in lance.named_parameters():
        if name.endswith("norm.weight") or p.ndim == 1:
            continue
        nn.init.normal_(p, std=p.shape[1] ** -0.5)
    nn.init.normal_(lance.embed.weight, std=1.0)
    for layer in lance.layers:
        for expert in (layer.und, layer.gen):
            for last in (expert.o, expert.down):
                nn.init.normal_(last.weight, std=last.in_features**-0.5 / (2 * config.layers) ** 0.5)
    nn.init.normal_(lance.head.weight, std=0.02)
    nn.init.zeros_(lance.latent_out.weight)
    for module in lance.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    vit = ViT(config.vit)
    return Parts(lance, vit, DenseHead(config.width, config.vit.stride))


def fuse() -> None:
    """Compile the element-wise parts of a layer: 1.7 times faster steps on a CPU. Needs a C++ compiler."""
    from openlance.model.layers import Expert


    Expert.project = torch.compile(Expert.project, dynamic=True)  # type: ignore[method-assign]
    Expert.finish = torch.compile(Expert.finish, dynamic=True)  # type: ignore[method-assign]


def see(pack_: Pack, vit: ViT) -> tuple[Tensor | None, dict[int, Tensor]]:
    """ViT features of all PATCHES rows in row order; a picture that several documents share runs once."""
    wanted = [v.segment.value for v in pack_.visuals if v.kind == PATCHES]
    if not wanted:
        return None, {}
    clips = {id(clip): clip for clip in wanted}
    cells = vit([normalise(torch.from_numpy(clip.pixels)) for clip in clips.values()])
    sizes = {id(v.segment.value): v.rows[1] - v.rows[0] for v in pack_.visuals if v.kind == PATCHES}
    by_clip = dict(zip(clips, cells.split([sizes[key] for key in clips]), strict=True))
    return torch.cat([by_clip[id(clip)] for clip in wanted]), by_clip


class NanoRun:
    """State of a run and its step; everything that a resume needs is in `state`."""

    def __init__(self, recipe: NanoRecipe, config: ModelConfig, tokenizer: Tokenizer, encode=None) -> None:
        self.recipe, self.config = recipe, config
        self.codec = SequenceCodec(tokenizer, config)
        self.vocabulary = len(tokenizer)
        self.encode = encode  # clips -> latents (list of (T, Y, X, C)), or None while only questions are trained
        self.parts = fresh(config, recipe.seed)
        self.module = self.parts.module()
        self.optimizer = MuonAdamW(self.module.named_parameters(), recipe.lr, recipe.betas)
        self.ema = Ema(self.module, recipe.ema)
        self.step = 0

    def spread(self) -> float:
        start, end = (share * self.recipe.steps for share in self.recipe.widen)
        return float(np.clip((self.step - start) / max(end - start, 1), 0, 1))

    def prepare(self) -> tuple[Pack, dict[int, np.ndarray]]:
        m = self.recipe.mixture
        widest = m.spread[0] + (m.spread[1] - m.spread[0]) * (0.25 + 0.75 * self.spread())
        mixture = WorldMixture(**{**vars(m), "spread": (m.spread[0], widest)})
        batch = world_batch(mixture, self.recipe.seed, self.step)
        return pack(batch.samples, self.codec, self.config.position, self.recipe.draws), batch.labels

    def losses(self, pack_: Pack, labels: dict[int, np.ndarray]) -> tuple[Losses, Tensor]:
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
        noise = None
        clips = [v.segment.value for v in pack_.visuals if v.kind == LATENTS]
        if clips:
            clean = self.encode(clips)
            times = draw_times(int(pack_.rows.target.max()) + 1, self.recipe.shift, generator)
            noise = noised(pack_, clean, times, torch.randn(clean.shape, generator=generator))
        layout = self.parts.lance.layout(pack_.rows)
        patches, by_clip = see(pack_, self.parts.vit)
        losses = objective(self.parts.lance, layout, noise, patches, self.vocabulary)
        dense = torch.zeros(())
        if by_clip:
            side = self.config.vit.stride // POINT
            dense = self.parts.dense(torch.cat(list(by_clip.values())), [labels[key] for key in by_clip], side)
        return losses, dense

    def train_step(self) -> dict[str, float]:
        r = self.recipe
        rate = learning_rate(self.step, r.steps, r.lr, r.warmup, r.decay)
        self.optimizer.set_rate(rate)
        pack_, labels = self.prepare()
        with torch.autocast("cpu", torch.bfloat16):
            losses, dense = self.losses(pack_, labels)
        total = losses.total(r.weights) + r.dense * dense
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), r.max_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {self.step}: the gradient norm is {norm}; replay it with this seed and step")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.module)
        self.step += 1
        return {
            "text": losses.text.item(), "flow": losses.flow.item(), "dense": dense.item(), "norm": norm.item(),
            "lr": rate, "rows": len(pack_),
        }  # fmt: skip

    def save(self, path: Path) -> None:
        state = {
            "step": self.step, "model": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.values, "ema_count": self.ema.count,
        }  # fmt: skip
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step, self.ema.count = state["step"], state["ema_count"]
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.values = state["ema"]


def export(nano_run: NanoRun, folder: Path, averaged: bool = True) -> None:
    """Write the decoder, the vision tower and the tokenizer as a checkpoint folder in half precision; the codec's
    weights come from its own training."""
    from openlance.model.folder import write_config
    from openlance.model.names import released_name
    from openlance.model.weights import write_tensors

    values = nano_run.ema.values if averaged else dict(nano_run.module.named_parameters())
    values = {n: v.detach().half() for n, v in values.items()}
    write_config(folder, nano_run.config)
    lance = {n.removeprefix("lance."): v for n, v in values.items() if n.startswith("lance.")}
    write_tensors(folder / "model.safetensors", {released_name(n): v for n, v in lance.items()})
    prefix = "vit.tower."
    write_tensors(
        folder / "vit.safetensors", {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
    )
    nano_run.codec.tokenizer.backend.save(str(folder / "tokenizer.json"))


def run(nano_run: NanoRun, folder: Path, minutes: float = 1e9, save_every: float = 120.0) -> None:
    """Train until the recipe's last step or for some minutes, saving as it goes; continues what `folder` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "state.pt", folder / "log.jsonl"
    if checkpoint.is_file():
        nano_run.load(checkpoint)
    began = saved = time.monotonic()
    while nano_run.step < nano_run.recipe.steps and time.monotonic() - began < 60 * minutes:
        cpu = time.process_time()
        row = nano_run.train_step()
        row |= {"step": nano_run.step, "cpu_seconds": time.process_time() - cpu}
        with log.open("a") as file:
            file.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
        if time.monotonic() - saved > save_every:
            nano_run.save(checkpoint)
            saved = time.monotonic()
    nano_run.save(checkpoint)
