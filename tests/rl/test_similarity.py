"""The similarity of images and texts is that of the model on disk, for models of transformers and of open_clip; what is
missing is named, and nothing is downloaded."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.rl.rewards import Drawn, RewardPool
from openlance.rl.rewards.similarity import Similarity

SIDE, LENGTH = 32, 24
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LOOK = SMALL | {"image_size": SIDE, "patch_size": 8}
SIZE = {"height": SIDE, "width": SIDE}


def words(folder):
    """A tokenizer of single letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = words(folder)
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    if request.param == "clip":
        CLIPModel(CLIPConfig(text_config=text, vision_config=LOOK, projection_dim=16)).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIZE).save_pretrained(folder)
    else:
        text |= {"projection_size": 32}
        SiglipModel(SiglipConfig(text_config=text, vision_config=LOOK)).save_pretrained(folder)
        SiglipImageProcessor(size=SIZE).save_pretrained(folder)
    return folder


def drawn(*prompts, frames=1):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(prompts), frames, 40, 48, 3), dtype=np.uint8)
    return [Drawn(prompt=prompt, media=Clip(one)) for prompt, one in zip(prompts, pixels)]


def test_it_is_the_cosine_that_the_model_itself_gives(folder):
    results = drawn("a cat", "two dogs on a bench", "sea")
    similarity = Similarity(str(folder))
    similarity.load()
    scores = similarity(results)
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(
        [one.prompt for one in results], padding="max_length", max_length=LENGTH, return_tensors="pt"
    )
    images = AutoImageProcessor.from_pretrained(folder)([one.images()[0] for one in results], return_tensors="pt")
    with torch.inference_mode():
        said = model(input_ids=inputs.input_ids, pixel_values=images.pixel_values)
    expected = torch.cosine_similarity(said.image_embeds, said.text_embeds)
    assert scores == pytest.approx(expected.tolist(), abs=1e-5) and len(set(scores)) == 3


def test_of_a_clip_three_frames_are_compared(folder):
    similarity = Similarity(str(folder))
    similarity.load()
    (clip,) = drawn("a cat", frames=5)
    alone = [Drawn(prompt="a cat", media=Clip(clip.media.pixels[at : at + 1])) for at in (0, 2, 4)]
    assert similarity([clip])[0] == pytest.approx(np.mean(similarity(alone)), abs=1e-6)


def test_a_prompt_that_the_model_would_cut_is_refused(folder):
    similarity = Similarity(str(folder))
    similarity.check("a" * (LENGTH - 4))
    with pytest.raises(UserError, match=f"longer than the {LENGTH} tokens"):
        similarity.check("a" * LENGTH)


@pytest.mark.parametrize("said", ["similarity", "similarity=nowhere", "similarity=openai/clip-vit-base-patch32"])
def test_a_model_that_is_not_on_disk_is_named_and_not_downloaded(said):
    with pytest.raises(UserError, match="has no model.*nothing is downloaded"):
        RewardPool(said)


def test_a_folder_that_holds_no_such_model_is_named(tmp_path, folder):
    with pytest.raises(UserError, match="cannot compare images with texts"):
        Similarity(str(tmp_path)).load()
    for file in folder.iterdir():
        if not file.name.startswith("vocab") and file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="cannot compare images with texts"):
        Similarity(str(tmp_path)).load()


def test_models_of_open_clip(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16, "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }  # fmt: skip
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    mean = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": mean}))
    results = drawn("a cat", "two dogs")
    similarity = Similarity(str(tmp_path))
    similarity.load()
    _, pixels = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([one.prompt for one in results])
    with torch.inference_mode():
        images = model.encode_image(torch.stack([pixels(one.images()[0]) for one in results]))
        expected = torch.cosine_similarity(images, model.encode_text(tokens))
    assert similarity(results) == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(UserError, match="longer than"):
        similarity.check("a cat " * 20)
