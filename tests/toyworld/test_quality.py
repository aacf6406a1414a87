"""Measures of what a cheaper setting costs: what equal, near and blurred pictures get, and paired verdicts."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openlance.cli.main import main
from openlance.errors import UserError
from toyworld.suites.quality import Comparison, Drawn, high_frequency, latent_distance, measure, prompts, psnr, ssim
from toyworld.suites.quality_command import parse_settings


@pytest.fixture
def pictures():
    """Smooth ones with edges, (3, 3, 32, 32) in [0, 1]."""
    coarse = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.interpolate(coarse, scale_factor=8, mode="nearest")


def test_equal_pictures(pictures):
    assert psnr(pictures, pictures).tolist() == [100.0] * 3
    torch.testing.assert_close(ssim(pictures, pictures), torch.ones(3, dtype=torch.float64))
    z = torch.randn(2, 1, 4, 4, 8)
    torch.testing.assert_close(latent_distance(z, z), torch.zeros(2))
    torch.testing.assert_close(latent_distance(z, 3 * z), torch.zeros(2), msg="only directions count")
    torch.testing.assert_close(latent_distance(z, -z), torch.full((2,), 4.0))


def test_psnr_is_that_of_the_books(pictures):
    shifted = pictures + 0.1
    torch.testing.assert_close(psnr(pictures, shifted), torch.full((3,), 20.0, dtype=torch.float64))


def test_ssim_falls_with_noise_and_not_with_a_little_light(pictures):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    brighter, little, much = (ssim(pictures, pictures + d) for d in (0.02, 0.05 * noise, 0.2 * noise))
    assert bool((brighter > 0.95).all() and (brighter > little).all() and (little > much).all())


def test_a_blurred_picture_has_lost_its_high_frequencies(pictures):
    blurred = F.avg_pool2d(pictures, 5, stride=1, padding=2, count_include_pad=False)
    assert bool((high_frequency(blurred) < 0.3 * high_frequency(pictures)).all())
    noisy = pictures + 0.1 * torch.randn_like(pictures)
    assert bool((high_frequency(noisy) > high_frequency(pictures)).all())


def test_verdicts_are_compared_in_pairs():
    c = Comparison(setting={"num_inference_steps": 5}, samples=8)

    def drawn(right, seconds, passes):
        pixels = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
        right = np.array(right, dtype=bool)
        return Drawn(latents=torch.ones(8, 1, 2, 2, 4), pixels=pixels, right=right, seconds=seconds, passes=passes)

    found = measure(c, drawn([1] * 6 + [0] * 2, 8.0, 60), drawn([1] * 5 + [0] * 3, 2.0, 10))
    assert found["judge"]["difference"] == -1 / 8 and found["judge"]["ci95"][0] < -1 / 8 < found["judge"]["ci95"][1]
    assert found["seconds"] == {"reference": 1.0, "setting": 0.25, "ratio": 4.0} and found["passes"]["ratio"] == 6
    same = measure(c, drawn([1] * 8, 1.0, 60), drawn([1] * 8, 1.0, 60))
    assert same["judge"]["ci95"] == [0.0, 0.0] and same["psnr"] == 100


def test_prompts_are_those_of_a_seed_whatever_their_number():
    few, many, other = (prompts(Comparison(samples=n, seed=s)) for n, s in ((3, 1), (6, 1), (3, 2)))
    assert few == many[:3] and few != other


def test_settings_of_the_line():
    assert parse_settings(["solver=dpm++", "num-inference-steps=12", "interval=[0.4, 1]", "cached=false"]) == {
        "solver": "dpm++", "num_inference_steps": 12, "interval": (0.4, 1), "cached": False,
    }  # fmt: skip
    with pytest.raises(UserError, match="NAME=VALUE"):
        parse_settings(["solver"])


def test_the_command_compares_nano_with_itself(tmp_path, capsys):
    file = tmp_path / "found.json"
    line = "bench quality --setting solver=dpm++ --setting num_inference_steps=1 --reference num_inference_steps=2"
    assert main([*line.split(), "--samples", "2", "--batch", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["passes"] == {"reference": 4.0, "setting": 2.0, "ratio": 2.0} and found["samples"] == 2
    assert "world's judge" in capsys.readouterr().out


@pytest.mark.parametrize("more, said", [
    ([], "nothing to compare"), (["--setting", "speed=9"], "'speed'"), (["--setting", "solver=magic"], "'magic'"),
])  # fmt: skip
def test_mistakes_are_one_sentence(more, said, capsys):
    assert main(["bench", "quality", *more]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
