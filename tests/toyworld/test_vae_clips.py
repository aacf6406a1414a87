"""Training of the VAE on clips: the stacked form is the VAE, pictures keep their latents, resuming is exact."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from openlance.config.model import VAEConfig
from openlance.vae.autoencoder import VAE
from toyworld.judge import analyse
from toyworld.scene import CATEGORIES
from toyworld.vae.clip_frames import ClipVAE
from toyworld.vae.clips import ClipVAERecipe, train_clip_vae
from toyworld.vae.report import pictures

TINY = VAEConfig(
    z_dim=4, dim=4, dec_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
    mean=(0.0, 0.1, 0.2, 0.3), std=(1.0, 1.1, 1.2, 1.3),
)  # fmt: skip


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    vae = VAE(TINY).eval()
    for parameter in vae.parameters():  # nothing at zero or one, where an error could hide
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    return vae


def stack(x_BCTHW):
    return x_BCTHW.transpose(1, 2).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_the_stacked_form_is_the_vae(vae, frames):
    trained, x = ClipVAE(vae), torch.rand(2, 3, frames, 16, 24) * 2 - 1
    with torch.no_grad():
        want, want_logvar = vae.wan.encode_moments(x).chunk(2, 1)
        z, logvar = trained.encode_clips(stack(x), 2)
        torch.testing.assert_close(z, stack(want), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logvar, stack(want_logvar), atol=1e-4, rtol=1e-4)
        pixels = torch.cat(list(vae.wan.decode_steps(want)), dim=2)
        torch.testing.assert_close(trained.decode_clips(z, 2), stack(pixels), atol=1e-4, rtol=1e-4)


def test_weights_go_there_and_back(vae):
    back = ClipVAE(vae).to_vae(torch.tensor(TINY.mean), torch.tensor(TINY.std))
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), vae.state_dict().values(), strict=True))


def test_what_pictures_do_not_depend_on_is_named(vae):
    trained, x = ClipVAE(vae), torch.rand(2, 3, 16, 16) * 2 - 1
    z, _ = trained.encode_clips(x, 2)
    trained.decode_clips(z, 2).sum().backward()
    silent = {name for name, p in trained.named_parameters() if p.grad is None}
    assert silent == trained.new_parameters() and any("time_conv" in name for name in silent)


RECIPE = ClipVAERecipe(
    decoder_steps=4, clips=2, frames=5, pictures_every=2, batch=2, size=(16, 16), other_sizes=((24, 16),),
    other_every=3,
    save_every=100, warmup=1, decoder_lr=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def start(vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    vae.save(folder / "vae.safetensors")
    values = asdict(vae.config)
    values["temperal_downsample"] = values.pop("temporal_downsample")
    (folder / "vae_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    return train_clip_vae(RECIPE, start, tmp_path_factory.mktemp("whole"))


def read(folder):
    return VAE.load(folder / "vae.safetensors", VAEConfig.of(json.loads((folder / "vae_config.json").read_text())))


def test_pictures_and_first_frames_keep_their_latents_and_later_ones_change(start, trained):
    clip = torch.rand(3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        before, after = (read(folder).half().float().encode(clip)[0] for folder in (start, trained))
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(start, trained, tmp_path):
    assert train_clip_vae(RECIPE, start, tmp_path, steps=2) == tmp_path / "checkpoint"
    parts = train_clip_vae(RECIPE, start, tmp_path)
    assert (trained / "vae.safetensors").read_bytes() == (parts / "vae.safetensors").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and {"16x16", "clips", "clips+noise", "first"} <= set(rows[0])


def test_a_decoder_that_learns_from_pictures_alone_leaves_latents_and_motion(start, tmp_path):
    """What it knew of clips stays: layers that see earlier frames are as they were."""
    recipe = replace(RECIPE, encoder_learns=False, pictures_every=1, kinds={"text": 6.0})
    before, after = read(start).half(), read(train_clip_vae(recipe, start, tmp_path)).half()
    changed = {n for n, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[n])}
    assert changed and all(name.startswith(("wan.decoder.", "wan.post_quant_conv.")) for name in changed)
    assert not any("time_conv" in name for name in changed)
    for name in changed:
        value = after.state_dict()[name]
        if value.ndim == 5:  # of a kernel that sees two frames before the present one
            assert torch.equal(value[:, :, :-1], before.state_dict()[name][:, :, :-1]), name


def test_pictures_come_in_the_kinds_that_are_asked_for():
    def things(kinds):
        images = pictures(np.random.default_rng(0), 30, (64, 64), kinds)
        return {len(analyse(image).objects) for image in images}

    none = dict.fromkeys((*CATEGORIES, "mixed"), 0.0)
    assert things(none | {"single": 1.0}) == {1} and things(none | {"count": 1.0}) == {2, 3, 4}
    assert {1, 2, 3} <= things({})
