"""nano's recipe, as `openlance train recipe/nano` finds it. Nothing heavy is imported before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openlance.config.train import Recipe

SHEET = (
    "a red circle", "a blue square", "a yellow star on a blue background", "a red circle left of a blue square",
    "a green triangle above an orange ring", "three purple circles", "four white squares", 'the text "A7"',
    "a small cyan cross on a white background", "a striped orange circle", "an outlined blue star on a grey background",
    "a red square and a green circle", "a large yellow ring at the top left", "two orange triangles",
    "a cyan star below a white cross", 'the text "NO"',
)  # fmt: skip


def from_nothing(out: Path, **how: Any) -> Path:
    """Train VAE, tokenizer and all stages; see `toyworld.nano.train_nano`."""
    from toyworld.nano import train_nano

    return train_nano(out, **how)


NANO = Recipe(file=Path(__file__).with_name("nano.yaml"), prompts=SHEET, from_nothing=from_nothing)
DISTILL = Recipe(file=Path(__file__).with_name("nano-distill.yaml"), prompts=SHEET)
DISTILL_2 = Recipe(file=Path(__file__).with_name("nano-distill-2.yaml"), prompts=SHEET)
SECOND = Recipe(file=Path(__file__).with_name("nano-2.yaml"), prompts=SHEET)
RL = Recipe(file=Path(__file__).with_name("nano-rl.yaml"), prompts=SHEET)
