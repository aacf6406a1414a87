"""The plan of a request: what a task needs and nothing else, at the sizes that it has."""

import pytest

from openlance.config.model import ModelConfig, nano
from openlance.config.sampling import Sampling
from openlance.model.lance import lance_parameters
from openlance.planning.sampling import Wanted, operations, plan
from openlance.planning.size import decoder_half
from openlance.sequence.tasks import TASKS

C = ModelConfig()


def test_only_what_a_task_needs_is_loaded():
    drawn, asked, edited = (set(plan(C, Wanted(task=t)).weights) for t in ("t2i", "x2t_image", "image_edit"))
    assert {"generation expert", "VAE decoder"} <= drawn and not {"vision tower", "VAE encoder"} & drawn
    assert "vision tower" in asked and not {"generation expert", "VAE decoder", "VAE encoder"} & asked
    assert {"vision tower", "VAE encoder", "VAE decoder"} <= edited


def test_tokens_of_the_released_sizes():
    found = plan(C, Wanted(task="t2v", height=480, width=848, frames=121))
    assert found.tokens["denoised"] == 31 * 30 * 53 + 2
    assert found.cache == found.tokens["context"] * 2 * 36 * 2 * 2 * 128 * 2  # branches, layers, k and v, heads, bytes


def test_the_roomiest_placement_that_fits_is_chosen():
    budgets = [plan(C, Wanted(task="t2i"), memory).chosen for memory in (40e9, 12e9, 8e9, 1e9)]
    assert budgets[0] == plan(C, Wanted(task="t2i")).placements[0] and budgets[3] is None
    needs = [chosen[1] for chosen in budgets[:3]]
    assert needs == sorted(needs, reverse=True) and needs[1] <= 12e9 and needs[2] <= 8e9
    assert "does NOT fit" in plan(C, Wanted(task="t2i"), 1e9).verdict


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("config", [C, nano()], ids=["3b", "nano"])
def test_every_task_has_a_plan(task, config):
    found = plan(config, Wanted(task=task))
    needs = [needed for _, needed in found.placements]
    assert found.fits and needs == sorted(needs, reverse=True) and found.tokens["context"] > 0


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(task="t2x"),
        Wanted(task="t2i", frames=9),
        Wanted(task="t2i", height=100, width=768),
        Wanted(task="t2v", height=480, width=848, frames=50),
    ],
)
def test_a_request_that_cannot_be_is_refused(wanted):
    with pytest.raises(ValueError):
        plan(C, wanted)


def test_operations_follow_steps_guidance_and_size():
    def count(task="t2i", height=768, width=768, **how):
        wanted = Wanted(task=task, height=height, width=width)
        return operations(C, wanted, Sampling(guidance_scale=1.0, **how))

    one, four = count(num_inference_steps=10), count(num_inference_steps=40)
    assert 3.7 < four["linear layers"] / one["linear layers"] < 4  # the prompt is read once
    assert four["VAE"] == one["VAE"] == sum(map(decoder_half(C.vae).flops, [(1, 48, 48)]))
    guided = operations(C, Wanted(task="t2i", height=768, width=768), Sampling(interval=(0.0, 1.0)))
    alone = operations(C, Wanted(task="t2i", height=768, width=768), Sampling(guidance_scale=1.0))
    assert guided["linear layers"] == 2 * alone["linear layers"] and guided["VAE"] == alone["VAE"]
    read = count("x2t_image")
    assert read["VAE"] == 0 and read["vision tower"] > 0
    expected = 2 * sum(n for name, n in lance_parameters(C) if ".gen." in name) * 2306 * 10
    assert 1.0 <= one["linear layers"] / expected < 1.05
