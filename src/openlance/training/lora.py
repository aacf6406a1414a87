"""The stage of a fine-tune on captioned pictures with low-rank adapters."""

from __future__ import annotations

from pathlib import Path

from openlance.checkpoint.formats import find
from openlance.config.sampling import GenerationConfig
from openlance.config.train import Resolution, Stage

TRAINED = 4.0  # the released training shift, for a checkpoint that says nothing of its own


def lora_stage(model: Path, *, steps: int, lr: float, seed: int = 0) -> Stage:
    """Adapters want a higher rate than whole matrices, and few samples per update; several noise levels of a picture
    share its context, since pictures are few. Sizes and shift are those that the model draws with."""
    files = find(model)
    usual = GenerationConfig.read(files.tokenizer)
    side = round((usual.height * usual.width) ** 0.5)
    tokens = (side // files.config.vae.stride) ** 2
    draws = 4
    longest = draws * 2 * tokens + 400
    return Stage(
        name="lora",
        scale="nano",
        steps=steps,
        lr=lr,
        schedule="cosine",
        lr_end=0.1,
        warmup=min(10, steps),
        eps=1e-8,
        ema=0.0,
        draws=draws,
        shift=TRAINED if usual == GenerationConfig() else usual.sampling.shift,
        text_weight=0.0,
        mixture={"t2i": 1.0},
        drop_text=0.1,
        pack_tokens=(2 * longest, 3 * longest),
        max_sample_tokens=longest,
        resolutions=(Resolution(image=(side, side), video=(side, side)),),
        dtype="float32",
        seed=seed,
    )
