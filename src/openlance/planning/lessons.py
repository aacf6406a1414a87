"""What a step of a stage that distils guidance takes, beside what learns: the teacher's passes, a critic, results.

What is assumed: times at which guidance acts are those of the mean number of steps at the mean shift, and what results
are held to is drawn in every step; where it was drawn ahead (`training.results`) that costs nothing.
"""

from __future__ import annotations

from collections import defaultdict

from openlance.config.model import ModelConfig
from openlance.config.sampling import GenerationConfig, Sampling
from openlance.config.train import Distillation, Resolution, Stage
from openlance.flow import schedule
from openlance.planning.size import decoder_operations
from openlance.planning.workload import Halves, halves
from openlance.training.distillation import check_guided

LEARNED = 3  # a forward pass, and twice that backward
HELD = "held to"


def lesson_operations(
    stage: Stage, c: ModelConfig, at: Resolution, rows: float, usual: GenerationConfig
) -> dict[str, float]:
    """Count the operations of the decoder and the VAE for a pack.

    Args:
        stage: With `distill`.
        c: The model.
        at: The resolution.
        rows: Of the samples of the pack.
        usual: How the start samples.

    Returns:
        By what they are for.

    Raises:
        UserError: If no sample of a task fits, or one makes a text.
    """
    assert stage.distill is not None
    check_guided(stage)
    total, work, whole = sum(stage.mixture.values()), defaultdict[str, float](float), 0.0
    for task, weight in stage.mixture.items():
        if not weight:
            continue
        one = halves(task, stage, c, at)
        way = stage.distill.of(one.roles)
        found = _matched(one, way, c, usual) if way.matched else _taught(one, way, c, usual, stage.draws)
        for name, value in (found | {"VAE": one.given}).items():
            work[name] += value * weight / total
        whole += one.sample * weight / total
    return {name: value * rows / whole for name, value in work.items()}


def _taught(one: Halves, way: Distillation, c: ModelConfig, usual: GenerationConfig, draws: int) -> dict[str, float]:
    """States of a trajectory of the teacher, as long as guidance acts; some of them are learned."""
    noisy, context = _forward(one, c)
    teacher = usual.denoising(distilled=way.progressive).sampling_for(one.roles)
    shift = (way.shift[0] * way.shift[1]) ** 0.5
    acting = sum(_acting(teacher, n, shift) for n in way.steps) / 2
    return {
        "teacher": teacher.branches * (context + acting * noisy),
        "lessons": context + LEARNED * draws * noisy,
    }  # fmt: skip


def _matched(one: Halves, way: Distillation, c: ModelConfig, usual: GenerationConfig) -> dict[str, float]:
    """Results of a few steps with their gradient, where two scores expect them, and what the critic learns of them."""
    noisy, context = _forward(one, c)
    guided = usual.denoising(distilled=False).sampling_for(one.roles)
    found = {
        "few steps": guided.branches * context + LEARNED * way.num_inference_steps * noisy,
        "scores": (guided.branches + 1) * noisy,
        "critic": LEARNED * way.critic_updates * noisy,
    }
    if way.hold:
        lead = usual.denoising(distilled=way.progressive).sampling_for(one.roles)
        acting = _acting(lead, lead.num_inference_steps, lead.shift)
        passes = lead.num_inference_steps + (lead.branches - 1) * acting
        found[HELD] = lead.branches * context + passes * noisy
    return found


def _forward(one: Halves, c: ModelConfig) -> tuple[float, float]:
    """Operations of a pass of the noisy rows, and of one of what comes before them."""
    noisy, context = (decoder_operations(c, load.rows, load.pairs) for load in (one.ask, one.context))
    return noisy, context


def _acting(how: Sampling, steps: int, shift: float) -> int:
    """Count the steps at which guidance acts."""
    return sum(how.acts_at(t) for t in schedule(steps, shift)[:-1].tolist())
