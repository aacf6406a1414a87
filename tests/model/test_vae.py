"""The VAE: the released numbers, causality, single frames in two dimensions, names both ways, halves."""

import json
from pathlib import Path

import pytest
import torch

from openlance.checkpoint.formats import released_names
from openlance.config.model import VAEConfig
from openlance.errors import UserError
from openlance.runtime.components import LazyVAE
from openlance.vae.autoencoder import VAE, sample
from openlance.vae.frames import FrameVAE, channels_first, channels_last, denormalized, to_signed, to_uint8

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden vectors are not here")
TINY = VAEConfig(
    z_dim=6,
    dim=4,
    dec_dim=6,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    mean=tuple(i / 10 for i in range(6)),
    std=tuple(0.5 + i / 5 for i in range(6)),
)


@pytest.fixture(scope="module")
def tiny() -> VAE:
    torch.manual_seed(0)
    vae = VAE(TINY)
    for name, parameter in vae.named_parameters():  # biases and norms that matter
        if not name.endswith("weight"):
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    return vae.eval()


@pytest.fixture(scope="module")
def tiny_file(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    tiny.save(path)
    return path


@pytest.fixture(scope="module")
def released() -> VAE:
    config = VAEConfig.of(json.loads((GOLDEN / "weights" / "vae_config.json").read_text()))
    return VAE.load(GOLDEN / "weights" / "vae.safetensors", config)


@golden
@torch.no_grad()
def test_latents_and_pictures_equal_the_released_ones(released):
    from safetensors.torch import load_file

    vectors = load_file(GOLDEN / "modules.safetensors")
    torch.testing.assert_close(released.mean_C111.flatten(), vectors["vae.mean"])
    torch.testing.assert_close(released.std_C111.flatten(), vectors["vae.std"])
    for name in ("image64", "video5", "video9"):
        v = {key.removeprefix(f"vae.{name}."): value for key, value in vectors.items() if name in key}
        mean, logvar = released.encode(v["pixels"])
        close = {"rtol": 0, "atol": 2e-4}
        torch.testing.assert_close(mean, v["mu_normalised"], **close)
        torch.testing.assert_close(logvar, v["logvar"], **close)
        latent = channels_last(sample(mean, logvar, v["eps"]))
        torch.testing.assert_close(latent, v["latent_sampled_thwc"], **close)
        torch.testing.assert_close(released.decode(v["mu_normalised"]), v["recon_from_mu"], **close)
        if "recon_from_sample" in v:
            pixels = released.decode(channels_first(v["latent_sampled_thwc"]))
            torch.testing.assert_close(pixels, v["recon_from_sample"], **close)


@golden
@pytest.mark.parametrize("path", sorted((GOLDEN / "cases").glob("case_*edit*.safetensors")), ids=lambda p: p.stem)
@torch.no_grad()
def test_conditions_of_the_cases_are_encoded_as_released(released, path):
    from safetensors.torch import load_file

    tensors = load_file(path)
    mean, logvar = released.encode(to_signed(tensors["in.media0.vae_u8"]))
    latent = sample(channels_last(mean), channels_last(logvar), tensors["cond.eps0"])
    torch.testing.assert_close(latent, tensors["cond.latent0"], rtol=0, atol=2e-4)


@golden
def test_weights_are_saved_under_the_names_and_with_the_values_they_came_with(released, tmp_path):
    from safetensors.torch import load_file

    released.save(tmp_path / "vae.safetensors")
    before, after = load_file(GOLDEN / "weights" / "vae.safetensors"), load_file(tmp_path / "vae.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_the_past_never_depends_on_the_future(tiny):
    clip = torch.rand(3, 9, 16, 24) * 2 - 1
    mean, _ = tiny.encode(clip)
    assert mean.shape == (6, *TINY.latent_grid((9, 16, 24))) == (6, 3, 2, 3)
    torch.testing.assert_close(tiny.encode(clip[:, :5])[0], mean[:, :2], rtol=0, atol=1e-5)
    torch.testing.assert_close(tiny.encode(clip[:, :1])[0], mean[:, :1], rtol=0, atol=1e-5)
    pixels = tiny.decode(mean)
    assert pixels.shape == clip.shape
    torch.testing.assert_close(tiny.decode(mean[:, :1]), pixels[:, :1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_batch_equals_its_clips_one_by_one(tiny):
    clips = torch.rand(2, 3, 5, 16, 16) * 2 - 1
    means, logvars = tiny.encode(clips)
    for clip, mean, logvar in zip(clips, means, logvars, strict=True):
        torch.testing.assert_close(tiny.encode(clip), (mean, logvar), rtol=0, atol=1e-5)
    torch.testing.assert_close(tiny.decode(means)[1], tiny.decode(means[1]), rtol=0, atol=1e-5)


def as_diffusers(vae: VAE):
    """diffusers' own class, run by its own code, with the same weights."""
    from diffusers import AutoencoderKLWan

    c = vae.config
    plain = AutoencoderKLWan(
        base_dim=c.dim,
        decoder_base_dim=c.dec_dim,
        z_dim=c.z_dim,
        dim_mult=list(c.dim_mult),
        num_res_blocks=c.num_res_blocks,
        temperal_downsample=list(c.temporal_downsample),
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=c.stride,
    )
    plain.load_state_dict(vae.wan.state_dict())
    return plain.eval()


@pytest.mark.parametrize("frames", [1, 9])
def test_values_and_gradients_equal_those_of_diffusers(tiny, frames):
    plain, pixels = as_diffusers(tiny), torch.rand(2, 3, frames, 16, 24) * 2 - 1
    mean, logvar = tiny.encode(pixels)
    posterior = plain.encode(pixels).latent_dist
    torch.testing.assert_close(mean * tiny.std_C111 + tiny.mean_C111, posterior.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(logvar, posterior.logvar, rtol=0, atol=1e-5)
    ours, theirs = tiny.decode(mean), plain.decode(posterior.mean).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for (name, mine), other in zip(tiny.wan.named_parameters(), plain.parameters(), strict=False):
        other = plain.get_parameter(name)
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    tiny.zero_grad()


@torch.no_grad()
def test_the_vae_for_images_equals_the_one_for_videos(tiny, tiny_file):
    frames = FrameVAE.load(tiny_file, TINY)
    x = torch.rand(3, 3, 1, 16, 24) * 2 - 1
    torch.testing.assert_close(frames.encode(x), tiny.encode(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(frames.encode(x[0]), tiny.encode(x[0]), rtol=0, atol=1e-5)
    z = torch.randn(3, 6, 1, 2, 3)
    torch.testing.assert_close(frames.decode(z, clamp=False), tiny.decode(z, clamp=False), rtol=0, atol=1e-5)
    torch.testing.assert_close(frames.decode(z[0]), tiny.decode(z[0]), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="one latent frame"):
        frames.decode(torch.randn(6, 2, 2, 3))
    with pytest.raises(ValueError, match="one latent frame"):
        frames.encode(torch.randn(3, 5, 16, 16))


@torch.no_grad()
def test_a_vae_loads_only_what_it_is_asked_for(tiny, tiny_file):
    lazy = LazyVAE(tiny_file, TINY)
    z = torch.randn(6, 1, 2, 2)
    torch.testing.assert_close(lazy.decode(z), tiny.decode(z), rtol=0, atol=1e-5)
    assert {(part, type(half)) for (part, _), half in lazy._halves.items()} == {("decoder", FrameVAE)}
    picture = torch.rand(2, 3, 1, 16, 16)
    torch.testing.assert_close(lazy.encode(picture), tiny.encode(picture), rtol=0, atol=1e-5)
    assert set(lazy._halves) == {("decoder", True), ("encoder", True)}
    clip = torch.rand(3, 5, 16, 16)
    torch.testing.assert_close(lazy.encode(clip), tiny.encode(clip), rtol=0, atol=1e-5)
    torch.testing.assert_close(lazy.decode(z.expand(-1, 2, -1, -1)), tiny.decode(z.expand(-1, 2, -1, -1)))
    assert {(half.parts, type(half)) for half in lazy._halves.values()} == {
        ((part,), kind) for part in ("encoder", "decoder") for kind in (FrameVAE, VAE)
    }


def test_halves_hold_no_weights_of_the_other_half(tiny, tiny_file):
    halves = [VAE.load(tiny_file, TINY, parts=(part,)) for part in ("encoder", "decoder")]
    names = [set(half.released_state()) for half in halves]
    assert not names[0] & names[1] and names[0] | names[1] == set(tiny.released_state())
    with pytest.raises(ValueError, match="without its decoder"):
        halves[0].decode(torch.randn(6, 1, 2, 2))
    with pytest.raises(ValueError, match="encoder"):
        VAE(TINY, parts=("middle",))


def test_names_are_one_to_one(tiny):
    names = released_names(TINY)
    ours = list(tiny.wan.state_dict())
    assert [names.to_ours(names.to_released(name)) for name in ours] == ours
    assert len(set(names.ours.values())) == len(names.ours)


def test_latents_start_near_what_the_layers_promise():
    """A fresh VAE is trainable: finite, neither dead nor exploding."""
    torch.manual_seed(1)
    pixels = VAE(TINY).decode(torch.randn(6, 1, 4, 4), clamp=False)
    assert torch.isfinite(pixels).all() and 1e-3 < pixels.std() < 10


def test_pixels_survive_the_trip_to_signed_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(to_uint8(to_signed(pixels)), pixels)
    assert to_uint8(torch.tensor([-2.0, 2.0, 0.0]).view(3, 1, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_latents_get_their_deviation_back_as_released_in_half_precision_and_as_ever_in_float32():
    mean, std = (torch.linspace(low, high, 48).view(-1, 1, 1, 1) for low, high in ((-0.3, 0.5), (0.35, 1.7)))
    z = torch.randn(48, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(denormalized(z, mean, std), z * std + mean)
    z, mean, std = (x.bfloat16() for x in (z, mean, std))
    scale = [mean, 1.0 / std]  # as the release keeps them (vae2_2.py)
    assert torch.equal(denormalized(z, mean, std), z / scale[1] + scale[0])
    assert not torch.equal(denormalized(z, mean, std), z * std + mean)


def test_clips_that_do_not_fit_name_the_nearest_sizes(tiny):
    for frames, hint in ((2, "1 or 5"), (8, "5 or 9"), (0, "use 1 frames")):
        with pytest.raises(UserError, match=hint):
            TINY.check((frames, 16, 16))
    with pytest.raises(UserError, match="16x16 or 16x24"):
        tiny.encode(torch.zeros(3, 1, 20, 16))


def test_a_file_that_does_not_fit_is_refused(tiny, tmp_path):
    from openlance.checkpoint.writer import write_tensors

    state = tiny.released_state()
    write_tensors(tmp_path / "less.safetensors", {n: t for n, t in state.items() if n != "conv1.bias"})
    write_tensors(tmp_path / "more.safetensors", state | {"encoder.extra.weight": torch.zeros(1)})
    for name, hint in (("less", "missing: .*quant_conv.bias"), ("more", "unexpected: encoder.extra.weight")):
        with pytest.raises(UserError, match=hint):
            VAE.load(tmp_path / f"{name}.safetensors", TINY)
    torch.save(state, tmp_path / "vae.pth")
    with pytest.raises(UserError, match="allow_pickle=True"):
        VAE.load(tmp_path / "vae.pth", TINY)
    loaded = VAE.load(tmp_path / "vae.pth", TINY, allow_pickle=True).released_state()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
