"""A training run: its modules, its step, and everything that a resume needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from openlance.config.model import ModelConfig
from openlance.data.world import world_batch
from openlance.flow import draw_times
from openlance.media.clip import Clip
from openlance.media.files import atomic_path
from openlance.model.grids import SequenceCodec
from openlance.model.lance import Lance
from openlance.model.vit import ViT, normalise
from openlance.sequence.pack import Pack, pack
from openlance.sequence.rows import LATENTS, PATCHES
from openlance.text.tokenizer import Tokenizer
from openlance.train.dense import DenseHead
from openlance.train.objective import Losses, noised, objective
from openlance.train.optim import Ema, MuonAdamW
from openlance.train.parallel import Team
from openlance.train.recipe import Recipe

Encode = Callable[[list[Clip]], Tensor]  # clips -> (N, C) latents, clip after clip


class TrainingDiverged(RuntimeError):
    """A gradient that is not finite: the run stops, nothing of the step is kept."""


def fresh(config: ModelConfig, seed: int) -> nn.ModuleDict:
    """All modules that train together, with initial weights. Embeddings have unit deviation: much smaller ones drown
    in the first attention (measured); layers that end a residual branch start small."""
    torch.manual_seed(seed)
    lance = Lance(config)
    for name, p in lance.named_parameters():
        if p.ndim == 2:
            last = name.endswith((".o.weight", ".down.weight"))
            nn.init.normal_(p, std=p.shape[1] ** -0.5 / ((2 * config.layers) ** 0.5 if last else 1.0))
        elif name.endswith(".bias"):
            nn.init.zeros_(p)
    nn.init.normal_(lance.embed.weight, std=1.0)
    nn.init.normal_(lance.head.weight, std=0.02)
    nn.init.zeros_(lance.latent_out.weight)
    vit = ViT(config.vit)
    return nn.ModuleDict({"lance": lance, "vit": vit, "dense": DenseHead(config.width, config.vit.stride)})


def see(packed: Pack, vit: nn.Module) -> tuple[Tensor | None, dict[int, Tensor]]:
    """ViT features of all PATCHES rows in row order, and per clip; a picture that several documents share runs once."""
    wanted = [v for v in packed.visuals if v.kind == PATCHES]
    if not wanted:
        return None, {}
    clips = {id(v.segment.value): v.segment.value for v in wanted}
    sizes = {id(v.segment.value): v.rows[1] - v.rows[0] for v in wanted}
    cells = vit([normalise(torch.from_numpy(clip.pixels)) for clip in clips.values()])
    by_clip = dict(zip(clips, cells.split([sizes[key] for key in clips]), strict=True))
    return torch.cat([by_clip[id(v.segment.value)] for v in wanted]), by_clip


def fuse() -> None:
    """Compile the element-wise parts of a layer: 1.7 times faster steps on a CPU. Needs a C++ compiler."""
    from openlance.model.layers import Expert

    Expert.project = torch.compile(Expert.project, dynamic=True)  # type: ignore[method-assign]
    Expert.finish = torch.compile(Expert.finish, dynamic=True)  # type: ignore[method-assign]


class Run:
    """One run. `step` counts over all phases of the recipe; the data of a step is a function of (seed, step, process),
    and the mixture of a phase is what one process draws."""

    def __init__(
        self,
        recipe: Recipe,
        config: ModelConfig,
        tokenizer: Tokenizer,
        encode: Encode,
        device: str = "cpu",
        team: Team | None = None,
    ) -> None:
        self.team = team or Team()
        self.recipe, self.config, self.encode, self.device = recipe, config, encode, torch.device(device)
        self.codec, self.vocabulary = SequenceCodec(tokenizer, config), len(tokenizer)
        self.module = fresh(config, recipe.seed).to(self.device)
        self.optimizer = MuonAdamW(self.module.named_parameters(), recipe.phases[0].lr, recipe.betas)
        self.ema = Ema(self.module, recipe.ema)
        self.step = 0

    @property
    def draw(self) -> int:
        """The number of this process's draw: different for every step and process."""
        return self.step * self.team.size + self.team.rank

    def batch(self) -> tuple[Pack, dict[int, np.ndarray]]:
        phase, step = self.recipe.phase(self.step)
        batch = world_batch(phase.at(step), self.recipe.seed, self.draw)
        return pack(batch.samples, self.codec, self.config.position, self.recipe.draws), batch.labels

    def losses(self, packed: Pack, labels: dict[int, np.ndarray]) -> tuple[Losses, Tensor]:
        """The objective of a pack and the auxiliary loss; noise and times are functions of (seed, step)."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.draw)
        noise, clips = None, [v.segment.value for v in packed.visuals if v.kind == LATENTS]
        if clips:
            clean = self.encode(clips).to(self.device)
            times = draw_times(int(packed.rows.target.max()) + 1, self.recipe.shift, generator)
            drawn = torch.randn(clean.shape, generator=generator)
            noise = noised(packed, clean, times.to(self.device), drawn.to(self.device))
        lance: Lance = self.module["lance"]  # type: ignore[assignment]
        patches, by_clip = see(packed, self.module["vit"])
        losses = objective(lance, lance.layout(packed.rows), noise, patches, self.vocabulary)
        dense = losses.text.new_zeros(())
        if by_clip:
            dense = self.module["dense"](torch.cat(list(by_clip.values())), [labels[key] for key in by_clip])
        return losses, dense

    def train_step(self) -> dict[str, float]:
        """One update. Raises TrainingDiverged when the gradient is not finite."""
        r = self.recipe
        phase, step = r.phase(self.step)
        rate = phase.rate(step)
        packed, labels = self.batch()
        with torch.autocast(self.device.type, torch.bfloat16):
            losses, dense = self.losses(packed, labels)
        (losses.total(r.weights) + r.dense * dense).backward()
        self.team.average_gradients(self.module)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), r.max_norm)
        if not torch.isfinite(norm):
            raise TrainingDiverged(f"step {self.step}: the gradient norm is {norm}; lower lr, now {rate:g}, and resume")
        self.optimizer.set_rate(rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.module)
        self.step += 1
        values = {"text": losses.text, "flow": losses.flow, "dense": dense, "norm": norm}
        return {k: float(v.detach()) for k, v in values.items()} | {"lr": rate, "rows": len(packed)}

    def save(self, path: Path) -> None:
        """Write everything that a resume needs; a kill leaves the previous file whole."""
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "step": self.step, "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
                    "ema": self.ema.values, "ema_count": self.ema.count,
                },
                temporary,
            )  # fmt: skip

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.step, self.ema.count = state["step"], state["ema_count"]
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.values = state["ema"]

    def export(self, folder: Path) -> None:
        """The averaged decoder and vision tower, with the tokenizer, as a checkpoint folder in half precision."""
        from openlance.model.folder import write_config
        from openlance.model.names import released_name
        from openlance.model.weights import write_tensors

        values = {n: v.half() for n, v in self.ema.values.items()}
        write_config(folder, self.config)
        lance, vit = (
            {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
            for prefix in ("lance.", "vit.tower.")
        )
        write_tensors(folder / "model.safetensors", {released_name(n): v for n, v in lance.items()})
        write_tensors(folder / "vit.safetensors", vit)
        with atomic_path(folder / "tokenizer.json") as path:
            self.codec.tokenizer.backend.save(str(path))
