"""Training of the VAE: the 2-D form is the VAE, a resumed run is the same run, a frozen encoder stays frozen."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from openlance.config.model import VAEConfig
from openlance.training.interrupt import Interrupted
from openlance.vae.autoencoder import VAE
from toyworld.vae.frames import PictureVAE
from toyworld.vae.pictures import KernelOptimizer, VAERecipe, VAERun, drive, edges, train_vae
from toyworld.vae.report import pictures, psnr, to_tensor

TINY = VAEConfig(
    z_dim=4, dim=4, dec_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
    mean=(0.0,) * 4, std=(1.0,) * 4,
)  # fmt: skip
RECIPE = VAERecipe(
    vae=TINY, joint_steps=3, decoder_steps=2, batch=2, size=(16, 24), other_sizes=((24, 16),), other_every=2,
    save_every=100, warmup=1, lr=1e-3, statistics_batches=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> PictureVAE:
    torch.manual_seed(0)
    trained = PictureVAE(TINY)
    for parameter in trained.parameters():  # nothing at zero or one, where an error could hide
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    return trained


def test_the_two_dimensional_form_is_the_vae_on_one_frame(trained):
    mean, std = torch.arange(4) / 4, 0.5 + torch.arange(4) / 4
    vae = trained.to_vae(mean, std)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        z, logvar = trained.encode(x)
        want, want_logvar = vae.encode(x[:, :, None])
        torch.testing.assert_close((z - mean[:, None, None]) / std[:, None, None], want[:, :, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logvar, want_logvar[:, :, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(trained.decode(z), vae.decode(want, clamp=False)[:, :, 0], atol=1e-4, rtol=1e-4)


def test_fresh_temporal_layers_keep_a_clip_alive(trained):
    vae = trained.to_vae(torch.zeros(4), torch.ones(4))
    clip = torch.rand(3, 9, 16, 16) * 2 - 1
    with torch.no_grad():
        z, _ = vae.encode(clip)
        assert z.shape == (4, 3, 2, 2) and z.std((0, 2, 3)).min() > 0.3 * z.std((0, 2, 3)).max()
        assert vae.decode(z).shape == clip.shape


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = train_vae(RECIPE, tmp_path / "whole")
    assert train_vae(RECIPE, tmp_path / "parts", steps=2) == tmp_path / "parts" / "checkpoint"
    parts = train_vae(RECIPE, tmp_path / "parts")
    assert (whole / "vae.safetensors").read_bytes() == (parts / "vae.safetensors").read_bytes()
    assert not list((tmp_path / "parts").glob("*.new")) + list((tmp_path / "parts").glob("*.old"))


def test_a_run_out_of_time_or_killed_between_two_renames_goes_on(tmp_path):
    assert train_vae(RECIPE, tmp_path, minutes=1e-9) == tmp_path / "checkpoint"
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    assert train_vae(RECIPE, tmp_path) == tmp_path / "final"
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 5]


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path):
    class Stopped(VAERun):
        def train_step(self):
            if self.step == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().train_step()

    with pytest.raises(Interrupted, match="stopped after step 2, all saved in"):
        drive(Stopped(RECIPE, tmp_path / "parts"))
    whole, parts = train_vae(RECIPE, tmp_path / "whole"), train_vae(RECIPE, tmp_path / "parts")
    assert (whole / "vae.safetensors").read_bytes() == (parts / "vae.safetensors").read_bytes()


def test_the_encoder_that_is_handed_out_is_the_final_one(tmp_path):
    final = train_vae(RECIPE, tmp_path)
    configs = [VAEConfig.of(json.loads((f / "vae_config.json").read_text())) for f in (tmp_path / "encoder", final)]
    assert configs[0] == configs[1] and min(configs[0].std) > 0
    early, late = (VAE.load(f / "vae.safetensors", configs[0]) for f in (tmp_path / "encoder", final))
    x = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(early.encode(x)[0], late.encode(x)[0])
        assert not torch.equal(early.decode(torch.ones(4, 1, 2, 2)), late.decode(torch.ones(4, 1, 2, 2)))


def test_every_parameter_of_a_stage_is_moved_by_exactly_one_optimizer(trained):
    wide = PictureVAE(replace(TINY, dim=32))
    optimizer = KernelOptimizer(wide, 10.0)
    rest = [p for group in optimizer.adam.param_groups for p in group["params"]]
    assert optimizer.kernels and {id(p) for p in wide.parameters()} == {id(p) for p in (*rest, *optimizer.kernels)}
    before = [p.detach().clone() for p in wide.parameters()]
    for p in wide.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step(1e-3)
    assert not any(torch.equal(a, b) for a, b in zip(before, wide.parameters(), strict=True))


def test_a_broken_step_stops_the_run(tmp_path):
    run = VAERun(RECIPE, tmp_path)
    with torch.no_grad():
        run.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="VAE step 0"):
        run.train_step()


def test_edges_are_where_colours_change_and_decibels_count_errors():
    x = torch.full((1, 3, 8, 8), -1.0)
    assert not edges(x).any()
    x[..., 4:] = 1.0
    assert (edges(x)[0, 0, 0] == torch.tensor([0, 0, 0, 1, 1, 0, 0, 0])).all()
    assert psnr(x + 0.2 * torch.where(x > 0, -1, 1), x) == pytest.approx(20.0, abs=1e-3)


def test_pictures_come_from_the_generator_alone():
    a, b = (pictures(np.random.default_rng(5), 3, (16, 24)) for _ in range(2))
    assert (a == b).all() and a.shape == (3, 16, 24, 3)
    assert to_tensor(a).min() >= -1 and to_tensor(a).max() <= 1
