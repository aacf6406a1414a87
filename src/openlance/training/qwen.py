"""Lance from Qwen2.5-VL: both experts begin as copies of its decoder, the tower is its tower (paper, section 3).

What Qwen2.5-VL does not have stays fresh: q/k norms (ones), the time embedding and the connectors of the latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from openlance.checkpoint.names import our_name
from openlance.checkpoint.tensors import TensorSource, load_into, open_tensors
from openlance.errors import UserError
from openlance.training.learner import Learner

VISION = ("model.visual.", "visual.")  # in memory of transformers 5, in the published files
TEXT = ("model.language_model.", "model.")
FRESH = (".q_norm.", ".k_norm.", "time.", "latent_in.", "latent_out.")


def read_qwen(folder: Path) -> TensorSource:
    """The tensors of a Hugging Face folder of Qwen2.5-VL."""
    return open_tensors(folder)


def fill_from_qwen(learner: Learner, source: TensorSource | Mapping[str, Tensor]) -> None:
    """Copy a state dict of Qwen2_5_VLForConditionalGeneration into a fresh learner.

    Tied output embeddings, which files leave out, are taken from the input. UserError naming what is missing or
    misshapen; the learner is then as it was.
    """
    tensors = source if isinstance(source, TensorSource) else TensorSource.of(source)
    decoder, tower = {}, {}
    for name in tensors.shapes:
        vision = next((name.removeprefix(p) for p in VISION if name.startswith(p)), None)
        text = next((name.removeprefix(p) for p in TEXT if name.startswith(p)), name)
        if vision is not None:
            tower[vision] = name
        elif (ours := our_name(f"language_model.{'' if text.startswith('lm_head') else 'model.'}{text}")) is not None:
            decoder[ours] = name
    if "embed.weight" not in decoder or not tower:
        raise UserError(f"{tensors.origin} is not a Qwen2.5-VL: give the folder of its safetensors files with --init")
    decoder.setdefault("head.weight", decoder["embed.weight"])
    decoder |= {n.replace("und", "gen"): t for n, t in decoder.items() if ".und." in n}
    own = learner.lance.state_dict()
    kept = {n: t for n, t in own.items() if any(part in f".{n}" or n.startswith(part) for part in FRESH)}
    values = {n: tensors.read(t) for n, t in decoder.items()} | kept
    load_into(learner.vit.tower, {n: tensors.read(t) for n, t in tower.items()})
    load_into(learner.lance, values)
