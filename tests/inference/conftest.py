"""A whole checkpoint folder of a few hundred kilobytes: every file of a released one, with random weights."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch

from openlance.checkpoint.formats import released_name, write_config
from openlance.checkpoint.tensors import read_tensors
from openlance.checkpoint.writer import write_tensors
from openlance.config.model import ModelConfig
from openlance.inference.lance_pipeline import LancePipeline
from openlance.model.vit import ViT
from openlance.vae.autoencoder import VAE


def small(config: ModelConfig) -> ModelConfig:
    """The tiny configuration with a tower and a codec of a few channels."""
    vit = replace(config.vit, hidden_size=16, intermediate_size=24, num_heads=2)
    vae = replace(config.vae, dim=8, dec_dim=8, num_res_blocks=1)
    return replace(config, vit=vit, vae=vae)


def noise(module: torch.nn.Module) -> None:
    for p in module.parameters():
        p.data = torch.randn(p.shape) * p[0].numel() ** -0.5 if p.ndim > 1 else 1 + 0.2 * torch.randn(p.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and copies of it in which something is wrong."""

    folder: Path

    def load(self, **options) -> LancePipeline:
        return LancePipeline(self.folder, **options)

    def copy(self, to: Path, without: str = "") -> "Checkpoint":
        return Checkpoint(shutil.copytree(self.folder, to, ignore=shutil.ignore_patterns(without)))

    def edit(self, file: str, change) -> None:
        """Rewrite a weight file as change(its tensors)."""
        path = self.folder / file
        write_tensors(path, change(read_tensors(path)))


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint")
    config = small(tiny.model.config)
    torch.manual_seed(0)
    vit, vae = ViT(config.vit), VAE(config.vae)
    noise(vit)
    noise(vae)
    write_config(folder, config)
    lance = tiny.model.state_dict()
    write_tensors(folder / "model.safetensors", {released_name(name): value for name, value in lance.items()})
    write_tensors(folder / "vit.safetensors", vit.tower.state_dict())
    vae.save(folder / "vae.safetensors")
    tiny.codec.tokenizer.backend.save(str(folder / "tokenizer.json"))
    prompts = asdict(replace(tiny.style, captions=("Describe.",)))
    sampling = {"num_inference_steps": 2}
    defaults = {"height": 16, "width": 16, "num_frames": 5, "sampling": sampling, "system_prompts": prompts}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return Checkpoint(folder)


@pytest.fixture(scope="session")
def pipe(checkpoint) -> LancePipeline:
    return checkpoint.load()


@pytest.fixture
def spoiled(checkpoint, tmp_path) -> Checkpoint:
    """A copy that a test may damage."""
    return checkpoint.copy(tmp_path / "spoiled")
