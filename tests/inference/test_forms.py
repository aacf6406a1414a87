"""A checkpoint is the same in every form, from a folder or from the hub's cache, and a bad folder is one sentence."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import openlance
from openlance import load
from openlance.checkpoint.formats import CLIPS, IMAGES, TOWER, check_hashes, find
from openlance.checkpoint.tensors import read_tensors
from openlance.checkpoint.writer import write_tensors
from openlance.config.sampling import DISTILLED, FILE
from openlance.errors import UserError
from openlance.media.files import write_json
from openlance.model.vit import to_patches
from openlance.runtime.conversion import FORMS, gather, random_checkpoint, write
from openlance.runtime.inspection import inspect, needs

PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


@pytest.fixture(scope="module")
def forms(checkpoint, tmp_path_factory):
    """The checkpoint in every form, its decoder in two shards."""
    root = tmp_path_factory.mktemp("forms")
    for form in FORMS:
        write(root / form, gather(find(checkpoint.folder)), form, shards=2, show=False)
    return root


@pytest.fixture
def tree(forms, tmp_path):
    """A copy of the released tree that a test may damage."""
    return shutil.copytree(forms / "released", tmp_path / "downloads")


def outputs(pipe) -> tuple:
    drawn = pipe.generate("a ring", seed=1, num_inference_steps=1)[0]
    return drawn.tobytes(), pipe.ask(PICTURE, "what is it?", max_new_tokens=4)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_model(forms, form, pipe, tmp_path):
    found = find(forms / form)
    assert found.form == form and found.config == pipe.config and not found.missing()
    assert outputs(load(forms / form)) == outputs(pipe)
    assert inspect(forms / form).complete
    write(tmp_path / "back", gather(found), show=False)
    for name in ("model", "vit", "vae"):
        mine, theirs = (read_tensors(root / f"{name}.safetensors") for root in (tmp_path / "back", pipe.folder))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in theirs)


def test_diffusers_and_transformers_read_their_own_parts(forms, pipe):
    from diffusers import AutoencoderKLWan
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    vae = AutoencoderKLWan.from_pretrained(forms / "diffusers" / "vae").eval()
    latents = torch.randn(1, pipe.config.latent_channels, 1, 4, 4)
    assert torch.allclose(vae.decode(latents).sample[0], pipe.vae().decode(latents[0]), atol=1e-5)
    tower = Qwen2_5_VisionTransformerPretrainedModel.from_pretrained(forms / "diffusers" / "vision_tower")
    assert all(torch.equal(p, dict(tower.named_parameters())[n]) for n, p in pipe.vit().tower.named_parameters())
    (height, width), side = (3, 5), pipe.config.vit.stride  # cells, in windows that the frame cuts off
    clips = [torch.randn(3, frames, height * side, width * side) for frames in (1, 4)]
    patches, grids = zip(*(to_patches(clip, pipe.config.vit) for clip in clips))
    with torch.no_grad():
        given = tower.eval()(torch.cat(patches), grid_thw=torch.tensor(grids)).pooler_output
        torch.testing.assert_close(pipe.vit()(clips), given, rtol=0, atol=1e-5)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(forms / "diffusers" / "tokenizer")
    assert tokenizer("a red circle")["input_ids"] == pipe.tokenizer.ids("a red circle")


def test_pictures_and_clips_have_each_their_own_checkpoint(tree, pipe):
    shutil.copytree(tree / IMAGES, tree / CLIPS)
    (tree / CLIPS / "model-00001-of-00002.safetensors").unlink()
    assert load(tree / IMAGES).config == load(tree).config == pipe.config
    both = load(tree)
    assert outputs(both) == outputs(pipe)
    with pytest.raises(UserError, match=f"missing: {CLIPS}/model-00001.*openlance download -o"):
        both.generate_video("a ring moves", num_frames=3, seed=0)
    assert [part.name for part in inspect(tree).parts if part.fault] == ["decoder for clips"]


def test_the_released_codec_is_a_pickle_and_refused_before_anything_is_drawn(tree, pipe):
    (tree / "Wan2.2_VAE.safetensors").unlink()
    report = inspect(tree)
    assert report.complete and "allow_pickle" in report.parts[-1].note
    refused = load(tree)
    with pytest.raises(UserError, match="Wan2.2_VAE.pth is a pickle.*allow_pickle=True"):
        refused.generate("a ring")
    assert "lance" not in refused.parts._held, "the decoder was not even read"
    assert outputs(load(tree, allow_pickle=True)) == outputs(pipe)
    assert inspect(tree, allow_pickle=True).parts[-1].tensors


def test_a_tower_inside_the_decoders_file_is_the_one_that_counts(checkpoint, tmp_path):
    inside = checkpoint.copy(tmp_path / "inside")
    tower = read_tensors(inside.folder / "vit.safetensors")
    (inside.folder / "vit.safetensors").unlink()
    table = {"latent_pos_embed.pos_embed": torch.zeros(4, 4)}
    inside.edit("model.safetensors", lambda t: t | table | {f"vit_model.{n}": v for n, v in tower.items()})
    assert outputs(inside.load()) == outputs(checkpoint.load())
    assert inspect(inside.folder).complete


def test_the_output_of_a_trainer_takes_what_it_lacks_from_beside_or_from_a_base(tree, checkpoint, tmp_path, pipe):
    run = tmp_path / "run" / "checkpoints"
    for step in ("0000100", "0000200"):
        shutil.copytree(tree / IMAGES, run / step)
    shutil.rmtree(tree / IMAGES)
    assert find(tmp_path / "run").root == run / "0000200"
    assert outputs(load(run / "0000200")) == outputs(pipe), "the tree stands above"
    shutil.rmtree(tree)
    with pytest.raises(UserError, match="incomplete .*vit.safetensors"):
        load(run / "0000200").ask(PICTURE, "what?")
    assert outputs(load(run / "0000200", base=checkpoint.folder)) == outputs(pipe)


def test_float32_and_bfloat16_files_fill_either(checkpoint, tmp_path, pipe):
    write(tmp_path / "half", gather(find(checkpoint.folder), torch.bfloat16), show=False)
    half = load(tmp_path / "half", dtype=torch.bfloat16)
    assert outputs(half) == outputs(checkpoint.load(dtype=torch.bfloat16))
    assert {p.dtype for p in load(tmp_path / "half").lance("und").parameters()} == {torch.float32}


# The hub's cache.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache, empty; offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "hub"


def published(folder, hub):
    """A folder as the repository owner/model, as huggingface_hub lays it out: its snapshot."""
    repo, commit = hub / "models--owner--model", "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    for file in (p for p in folder.rglob("*") if p.is_file()):
        data = file.read_bytes()
        blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        link = repo / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return repo / "snapshots" / commit


@pytest.fixture
def cached(forms, hub):
    """The released tree in the cache."""
    return published(forms / "released", hub)


def test_a_repository_runs_from_the_cache_without_a_network(cached, pipe):
    assert outputs(openlance.load("owner/model")) == outputs(pipe)


def test_what_the_cache_lacks_is_named_with_the_command_that_gets_it(cached):
    (cached / TOWER / "vit.safetensors").unlink()
    with pytest.raises(UserError, match="openlance download owner/model"):
        openlance.load("owner/model").ask(PICTURE, "what?")
    assert openlance.load("owner/model").generate("a ring", num_inference_steps=1)
    with pytest.raises(UserError, match="not on this machine.*openlance download owner/other"):
        openlance.load("owner/other")


def test_few_steps_of_a_repository_are_fetched_when_they_are_taken(hub, monkeypatch, tmp_path, capsys):
    import huggingface_hub

    nano, calls = openlance.load("nano"), []
    few = published(nano.folder, hub) / DISTILLED
    target = few.readlink()
    few.unlink()
    pipe = openlance.load("owner/model")
    assert pipe.defaults == nano.defaults and pipe.defaults.distilled
    with pytest.raises(UserError, match="is not here: run `openlance download owner/model`.*distilled=False"):
        pipe.generate("a red circle", seed=1, distilled=True)
    assert "distilled" not in gather(pipe.parts.files).tensors
    said = capsys.readouterr().err
    assert f"{DISTILLED} is left out" in said and "run `openlance download owner/model` first" in said

    def snapshot_download(repo, **how):
        calls.append(how["allow_patterns"])
        few.symlink_to(target)
        return str(few.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    image, same = (p.generate("a red circle", seed=1, distilled=True)[0].convert("RGB") for p in (pipe, nano))
    assert image.tobytes() == same.tobytes() and calls == [["distilled*"]]
    few.unlink()
    openlance.load("owner/model").save_pretrained(tmp_path / "saved")
    before, after = (read_tensors(folder / DISTILLED) for folder in (nano.folder, tmp_path / "saved"))
    assert len(calls) == 2 and all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("how", [{"form": "released"}, {"form": "diffusers"}, {"quantize": "int8"}], ids=str)
def test_what_goes_without_few_steps_claims_none(how, hub, tmp_path, capsys):
    """Not in a repository either, where weights could come later."""
    few, form = tmp_path / "few", how.pop("form", "openlance")
    shutil.copytree(openlance.load("nano").folder, few)
    told = json.loads((few / FILE).read_text())
    write_json(few / FILE, told | {"sampling": told["sampling"] | {"distilled": True}})
    write(tmp_path / "out", gather(find(few), **how), form, show=False)
    assert f"{DISTILLED} is left out" in capsys.readouterr().err
    published(tmp_path / "out", hub)
    image = openlance.load("owner/model").generate("a red circle", seed=1, num_inference_steps=2)[0]
    assert image.size == (64, 64)


def test_settings_of_a_later_version_are_no_reason_not_to_convert(tmp_path):
    few = Path(shutil.copytree(openlance.load("nano").folder, tmp_path / "later"))
    told = json.loads((few / FILE).read_text())
    for sampling in (told["sampling"] | {"solver": "newer"}, None):
        write_json(few / FILE, told | {"sampling": sampling})
        assert inspect(few).complete
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write(tmp_path / "out", gather(find(few)), "released", show=False)
        assert "distilled" not in json.loads((tmp_path / "out" / IMAGES / FILE).read_text())


def test_a_file_that_is_not_what_the_hub_has_is_refused(cached):
    link = cached / TOWER / "vit.safetensors"
    assert check_hashes(link) == 1
    write_tensors(link.resolve(), {n: t + 1 for n, t in read_tensors(link).items()})
    with pytest.raises(UserError, match="vit.safetensors is not what the hub has.*openlance download"):
        openlance.load("owner/model").ask(PICTURE, "what?")
    assert "not what the hub has" in next(p.fault for p in inspect(cached).parts if p.name == "vit")


def test_hashes_beside_a_downloaded_folder_count_too(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tree / TOWER / "vit.safetensors"
    note = tree / ".cache" / "huggingface" / "download" / TOWER / "vit.safetensors.metadata"
    note.parent.mkdir(parents=True)
    for digest, good in ((hashlib.sha256(file.read_bytes()).hexdigest(), True), ("ab" * 32, False)):
        note.write_text(f"{'0' * 40}\n{digest}\n1.0\n")
        assert inspect(tree).complete is good


# Bad folders.


@pytest.mark.parametrize("lost", [f"{IMAGES}/model-00002-of-00002.safetensors", f"{TOWER}/vit.safetensors"])
def test_a_half_downloaded_tree_names_what_is_missing_and_the_command(tree, lost):
    (tree / lost).unlink()
    with pytest.raises(UserError, match=f"incomplete.*missing: {lost}.*openlance download -o {tree}") as error:
        load(tree).ask(PICTURE, "what?")
    assert "\n" not in str(error.value)
    report = inspect(tree)
    assert not report.complete and [os.path.relpath(p, tree) for p in report.missing] == [lost]
    assert f"openlance download -o {tree}" in report.remedy


def test_a_cut_or_misshapen_shard_is_named(tree):
    shard = tree / IMAGES / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-9])
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is not a readable"):
        load(tree).generate("a ring")
    shard.write_bytes(data)
    tensors = read_tensors(shard)
    name = next(n for n, t in tensors.items() if t.ndim == 2)
    write_tensors(shard, tensors | {name: torch.zeros(3, 5)})
    with pytest.raises(UserError, match="wrong shape"):
        load(tree).generate("a ring")
    assert "wrong shape" in inspect(tree).parts[0].fault


def test_models_of_two_kinds_do_not_mix(tree, forms):
    config = json.loads((tree / TOWER / "config.json").read_text())
    (tree / TOWER / "config.json").write_text(json.dumps(config | {"out_hidden_size": 8}))
    with pytest.raises(UserError, match="mixes models of different kinds"):
        load(tree)
    (tree / TOWER / "config.json").write_text(json.dumps(config))
    shutil.copytree(tree / IMAGES, tree / CLIPS)
    llm = json.loads((tree / CLIPS / "llm_config.json").read_text())
    (tree / CLIPS / "llm_config.json").write_text(json.dumps(llm | {"num_hidden_layers": 1}))
    with pytest.raises(UserError, match=f"different kinds: {IMAGES} and {CLIPS}"):
        load(tree)


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint: it lacks llm_config.json.*openlance download"):
        load(tmp_path)
    with pytest.raises(UserError, match="nothing at"):
        inspect(tmp_path / "none")


def test_writing_leaves_nothing_half_done(checkpoint, tmp_path, spoiled):
    spoiled.edit("model.safetensors", lambda t: {n: v * torch.nan for n, v in t.items()})
    with pytest.raises(UserError, match="not finite"):
        write(tmp_path / "out", gather(find(spoiled.folder)), show=False)
    assert [p.name for p in tmp_path.iterdir()] == [spoiled.folder.name]
    huge = replace(find(checkpoint.folder).config, vocab_size=10**12)
    with pytest.raises(UserError, match="out needs .* GB and its disk has"):
        write(tmp_path / "out", random_checkpoint(huge, torch.float32, beside=checkpoint.folder, parts=["decoder"]))
    with pytest.raises(UserError, match="there already"):
        write(spoiled.folder, gather(find(checkpoint.folder)))


def test_random_weights_load_strictly_and_a_seed_means_the_same(checkpoint, tmp_path):
    config = find(checkpoint.folder).config
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made = random_checkpoint(config, torch.bfloat16, beside=checkpoint.folder, seed=seed)
        write(tmp_path / name, made, shards=3, show=False)
    pictures = [outputs(load(tmp_path / name)) for name in "abc"]
    assert pictures[0] == pictures[1] != pictures[2]


def test_what_a_task_needs_is_read_from_its_template():
    assert needs("t2i") == {"decoder", "vae"}
    assert needs("x2t_video") == {"decoder", "vit"}
    assert needs("video_edit") == {"decoder", "vit", "vae"}
