"""How well an image fits its prompt by a model of images and texts (CLIP, SigLIP and their kind).

    similarity=FOLDER                    # a model of transformers, or of open_clip (open_clip_config.json), on disk

Nothing is downloaded: `hf download openai/clip-vit-base-patch32 --local-dir clip` fetches one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlance.errors import UserError
from openlance.rl.rewards.reward import Drawn, Reward

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MORE = " and" * 8  # words behind a prompt that change nothing where it is cut


@dataclass(frozen=True)
class Tower:
    """A model in two functions.

    Args:
        tokens: Of texts, cut to what the model reads, int64 (N, length).
        embed: Unit vectors of images and of tokens, (N, D) each.
    """

    tokens: Callable[[list[str]], Tensor]
    embed: Callable[[list[Image], Tensor], tuple[Tensor, Tensor]]


class Similarity(Reward):
    """Scores by the cosine of the angle between an image and its prompt; of a video, the mean over its first, middle
    and last frame."""

    name = "similarity"
    range = (-1.0, 1.0)
    cost = "0.25 s an image for ViT-B/32 on one busy core, more for larger ones; the model's memory in every worker"
    exploits = (
        "words of the prompt written into the image, bold colors and many copies of what is named; counts, places "
        "and who has which property hardly matter to such models"
    )
    takes = "the folder of a model"

    def check(self, prompt: str, truth: Any = None) -> None:
        with_more, alone = self._tower.tokens([prompt + MORE, prompt])
        if with_more.equal(alone):
            raise UserError(
                f"the prompt {prompt[:80]!r} is longer than the {len(alone)} tokens that the model of the reward "
                "similarity reads: shorten it, or take another model"
            )

    def load(self) -> None:
        self._tower  # noqa: B018  made at the first use

    def __call__(self, drawn: Sequence[Drawn]) -> list[float]:
        import torch
        from PIL import Image

        tower, found = self._tower, list[float]()
        with torch.inference_mode():
            for one in drawn:
                stills = [Image.fromarray(still) for still in one.stills()]
                images, text = tower.embed(stills, tower.tokens([one.prompt]))
                found.append(float((images @ text[0]).mean().clamp(-1, 1)))
        return found

    @cached_property
    def _tower(self) -> Tower:
        folder = Path(self.argument).expanduser()
        if not self.argument or not folder.is_dir():
            raise UserError(
                f"the reward similarity has no model: {self.argument or 'nothing'} is no folder; write "
                "similarity=FOLDER of a CLIP or SigLIP model on this disk (nothing is downloaded)"
            )
        try:
            return of_open_clip(folder) if (folder / "open_clip_config.json").is_file() else of_transformers(folder)
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(
                f"the model in {folder} cannot compare images with texts ({said}): give the folder of a CLIP or SigLIP "
                "model"
            ) from error


def of_transformers(folder: Path) -> Tower:
    """Open a model that was saved by transformers."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    length = model.config.text_config.max_position_embeddings
    pixels = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def tokens(texts: list[str]) -> Tensor:
        # To full length: what SigLIP was trained with; CLIP looks at nothing behind the end of a text.
        return words(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids

    def embed(images: list[Image], ids: Tensor) -> tuple[Tensor, Tensor]:
        found = model(input_ids=ids, pixel_values=pixels(images, return_tensors="pt").pixel_values)
        return _unit(found.image_embeds), _unit(found.text_embeds)

    return Tower(tokens, embed)


def of_open_clip(folder: Path) -> Tower:
    """Open a model that open_clip saved, `open_clip_config.json` beside its weights."""
    try:
        import open_clip
    except ImportError as missing:
        raise UserError(f"the model in {folder} needs the package open_clip: pip install open_clip_torch") from missing
    import torch

    name = f"local-dir:{folder}"
    model, pixels = open_clip.create_model_from_pretrained(name)
    words = open_clip.get_tokenizer(name)
    model.eval()

    def embed(images: list[Image], ids: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.stack([pixels(image) for image in images])
        return _unit(model.encode_image(seen)), _unit(model.encode_text(ids))

    return Tower(words, embed)


def _unit(vectors_ND: Tensor) -> Tensor:
    return vectors_ND / vectors_ND.norm(dim=-1, keepdim=True).clamp_min(1e-12)
