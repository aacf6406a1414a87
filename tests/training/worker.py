"""A tiny run of the real classes, for the tests beside it, on one process or on each of two at once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from openlance.config.model import NO_QUIRKS, ModelConfig, VAEConfig, ViTConfig
from openlance.config.sampling import PromptStyle
from openlance.config.train import Stage
from openlance.data.source import Sample
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.runtime.distributed import Distributed
from openlance.runtime.media_encoder import MediaEncoder
from openlance.sequence import tasks
from openlance.sequence.segment import Kind
from openlance.text.tokenizer import SequenceCodec, Tokenizer, train_tokenizer
from openlance.training.batch import Preparer
from openlance.training.learner import Learner, fresh
from openlance.training.parallel import full
from openlance.training.trainer import Trainer
from toyworld.labels import CHANNELS

TEXTS = ("a red circle left of a blue square", "how many stars are there?", "three of them.", "make it yellow", "ring")
CONFIG = ModelConfig(
    vocab_size=320, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=48, rope_theta=1e4,
    rope_sections=(2, 3, 3), latent_channels=3, time_features=16, quirks=NO_QUIRKS,
    vit=ViTConfig(depth=1, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=4, window_size=16,
                  fullatt_block_indexes=(0,), out_hidden_size=32),
    vae=VAEConfig(z_dim=3, dim_mult=(1, 1), temporal_downsample=(True,), mean=(0.0,) * 3, std=(1.0,) * 3),
)  # fmt: skip
STAGE = Stage(
    name="tiny", steps=20, lr=3e-3, warmup=3, eps=1e-8, ema=0.9, text_weight=0.5, dense_weight=0.3,
    dense_classes=(43, 9, 4), draws=2, shift=2.0,
    mixture={"t2i": 1}, pack_tokens=(1, 10_000), max_sample_tokens=10_000, dtype="float32", seed=3,
)  # fmt: skip
STYLE = PromptStyle(image="Draw.", video="Animate.", edit="Edit.", subject="Place.", question="Look.")


def codec() -> SequenceCodec:
    return SequenceCodec(Tokenizer(train_tokenizer(list(TEXTS) * 4, CONFIG.vocab_size)), CONFIG)


class MeanColor:
    """A VAE of three channels: the mean color of each cell of 4 pixels, in the first of every two frames."""

    config, device, dtype = CONFIG.vae, torch.device("cpu"), torch.float32

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        return pixels[..., ::2, :, :].unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).mean((-1, -3)), None


def encoder(vit=None) -> MediaEncoder:
    return MediaEncoder(lambda _: vit, MeanColor)


def clip(rng: np.random.Generator, frames: int = 1) -> Clip:
    return Clip(rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8))


def sample(number: int, rng: np.random.Generator) -> Sample:
    """One of every family in turn; questions carry labels."""
    one, other, text = clip(rng), clip(rng), str(rng.choice(TEXTS[:2]))
    made = (
        tasks.request("t2i", text, [], (1, 16, 16), one, STYLE),
        tasks.request("x2t_image", text, [tasks.Views(one, one)], (1, 1, 1), str(rng.choice(TEXTS)), STYLE),
        tasks.request("image_edit", text, [tasks.Views(one, one)], (1, 16, 16), other, STYLE),
        tasks.request("i2v", text, [tasks.Views(one, one)], (3, 16, 16), clip(rng, 3), STYLE),
    )[number % 4]
    seen = made[-1].kind is Kind.TEXT
    labels = np.stack([rng.integers(0, n, (4, 4)) for n in CHANNELS]) if seen else None
    return Sample(made, f"sample {number}", labels)


class Packs:
    """Pack n of rank r of R is pack n * R + r of the run: one to three samples, so ranks differ in what they hold."""

    def __init__(self, rank: int = 0, size: int = 1, spoil: int | None = None) -> None:
        self.rank, self.size, self.taken, self.spoil = rank, size, 0, spoil

    def __next__(self) -> list[Sample]:
        number, self.taken = self.taken * self.size + self.rank, self.taken + 1
        rng = np.random.default_rng((7, number))
        found = [sample(number * 3 + k, rng) for k in range(1 + number % 3)]
        return [replace(s, id=f"spoilt {s.id}") if number == self.spoil else s for s in found]

    def state_dict(self) -> dict:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict) -> None:
        self.taken = state["taken"]


def learner(seed: int = 0) -> Learner:
    return fresh(CONFIG, len(codec().tokenizer), seed, (43, 9, 4))


def preparer(stage: Stage, processes: Distributed) -> Preparer:
    return Preparer(stage=stage, codec=codec(), encode=encoder(), device=processes.device, complete=processes.sharded)


def trained(
    processes: Distributed, stage: Stage, steps: int, model: Learner | None = None
) -> tuple[list[dict], Trainer]:
    """Losses of the first steps, and the run after them."""
    run, packs = Trainer(stage, model or learner(), processes), Packs(processes.rank, processes.size)
    prepare, rows = preparer(stage, processes), []
    for _ in range(steps):
        batches = [prepare(next(packs), number) for number in run.numbers()]
        rows.append(run.update(batches).values)
    return rows, run


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    both = {n: p.detach() for n, p in run.learner.named_parameters()} | {
        f"ema {n}": v for n, v in run.ema.values.items()
    }
    return {name: full(value).clone() for name, value in both.items()}


def every(out: Path) -> None:
    """What one of two processes finds, into `out`."""
    from safetensors.torch import save_file

    processes, found = Distributed.join(), {}
    for name, steps, shard, stage in (
        ("plain", 6, 1, STAGE),
        ("sharded", 4, 2, STAGE),
        ("recomputed", 2, 2, replace(STAGE, checkpointing=True, optimizer="muon", accumulate=2)),
    ):
        rows, run = trained(replace(processes, shard=shard), stage, steps)
        found[name] = rows
        whole = weights(run)
        if processes.leads:
            save_file(whole, out / f"{name}.safetensors")
    try:
        processes.same({"stage": {"lr": 0.1 * (1 + processes.rank), "name": "tiny"}})
    except UserError as error:
        found["disagree"] = str(error)
    (out / f"rank{processes.rank}.json").write_text(json.dumps(found))
