"""What a step of a stage that distils guidance takes: the teacher's passes, what learns of them, a critic.

What is assumed: times at which guidance acts are those at the mean shift; a start that has distilled nothing yet will
draw in as many steps as a stage leaves by default; and what results are held to is drawn in every step (where it was
drawn ahead, `training.results`, that costs nothing).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from openlance.config.model import ModelConfig
from openlance.config.sampling import GenerationConfig, Sampling
from openlance.config.train import Distillation, Resolution, Stage
from openlance.flow import schedule
from openlance.inference.visual import forms
from openlance.planning.size import decoder_operations
from openlance.planning.workload import Asked, Load, asked, encoding, halves

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
    work = defaultdict[str, float](float)
    for count, way, one in _lessons(stage, c, at, rows):
        found = _matched(one, way, c, usual) if way.matched else _taught(one, way, c, usual, stage.draws)
        for name, value in (found | {"VAE": encoding(one.segments, c)}).items():
            work[name] += count * value
    return dict(work)


def lesson_loads(stage: Stage, c: ModelConfig, at: Resolution, rows: float) -> list[tuple[Load, int]]:
    """List what autograd keeps of a pack, one after the other: all states of what is taught, and of each way to match
    all passes to its results. What comes before noisy rows has no gradient.

    Args:
        stage: With `distill`.
        c: The model.
        at: The resolution.
        rows: Of the samples of the pack.

    Returns:
        What each pass keeps, and how many are kept together.

    Raises:
        UserError: If no sample of a task fits, or one makes a text.
    """
    taught = Load()
    for count, way, one in _lessons(stage, c, at, rows):
        if not way.matched:
            taught += halves(one.segments, c)[0].times(count * stage.draws)
    matched = [(load, way.num_inference_steps) for way, load in _results(stage, c, at, rows)]
    return [(load, passes) for load, passes in ((taught, 1), *matched) if load.rows]


def critic_loads(stage: Stage, c: ModelConfig, at: Resolution, rows: float) -> list[Load]:
    """List what autograd keeps while the critic learns of a pack's results, one after the other: a pass of those of
    each way to match. UserError as above."""
    return [load for _, load in _results(stage, c, at, rows)]


def _results(stage: Stage, c: ModelConfig, at: Resolution, rows: float) -> list[tuple[Distillation, Load]]:
    """What a pass of the results of a pack keeps, by how they are matched: those of one way go together."""
    found = list[tuple[Distillation, Load]]()
    for count, way, one in _lessons(stage, c, at, rows):
        if way.matched:
            more = halves(one.segments, c)[0].times(count)
            before = sum((load for own, load in found if own == way), Load())
            found = [*((own, load) for own, load in found if own != way), (way, before + more)]
    return found


def _lessons(stage: Stage, c: ModelConfig, at: Resolution, rows: float) -> Iterator[tuple[float, Distillation, Asked]]:
    """Yield how many requests of each task a pack has, how they are learned from, and one of them."""
    assert stage.distill is not None
    found = [(weight, asked(task, stage, c, at)) for task, weight in stage.mixture.items() if weight]
    whole = sum(weight * one.sample for weight, one in found)
    for weight, one in found:
        yield weight * rows / whole, stage.distill.of(one.roles), one


@dataclass(frozen=True)
class Passes:
    """Operations of one request with some guidance.

    Args:
        context: Of what comes before the noisy rows, in all forms of the request.
        all: Of a pass of the noisy rows, in all forms.
        one: Of one in the request as it is.
    """

    context: float
    all: float
    one: float

    @classmethod
    def of(cls, one: Asked, how: Sampling, c: ModelConfig) -> Passes:
        documents, _, _ = forms([one.segments], how, [""])
        parts = [halves(segments, c) for segments in documents]
        noisy, context = ([decoder_operations(c, load.rows, load.pairs) for load in some] for some in zip(*parts))
        return cls(sum(context), sum(noisy), noisy[0])


def _taught(one: Asked, way: Distillation, c: ModelConfig, usual: GenerationConfig, draws: int) -> dict[str, float]:
    """States of a trajectory of the teacher, as long as guidance acts; some of them are learned."""
    teacher = _teacher(way, usual, one)
    drawn, own = Passes.of(one, teacher, c), Passes.of(one, replace(teacher, distilled=True), c)
    acting = sum(_acting(teacher, n, (way.shift[0] * way.shift[1]) ** 0.5) for n in way.steps) / 2
    return {"teacher": drawn.context + acting * drawn.all, "lessons": own.context + LEARNED * draws * own.one}


def _matched(one: Asked, way: Distillation, c: ModelConfig, usual: GenerationConfig) -> dict[str, float]:
    """Results of a few steps with their gradient, where two scores expect them, and what the critic learns of them."""
    guided = Passes.of(one, usual.denoising(distilled=False).sampling_for(one.roles), c)
    found = {
        "few steps": guided.context + LEARNED * way.num_inference_steps * guided.one,
        "scores": guided.all + guided.one,
        "critic": LEARNED * way.critic_updates * guided.one,
    }
    if way.hold:
        lead = _teacher(way, usual, one)
        drawn, acting = Passes.of(one, lead, c), _acting(lead, lead.num_inference_steps, lead.shift)
        found[HELD] = drawn.context + acting * drawn.all + (lead.num_inference_steps - acting) * drawn.one
    return found


def _teacher(way: Distillation, usual: GenerationConfig, one: Asked) -> Sampling:
    """How the teacher draws: the guided model, or the start's few steps."""
    found = usual.denoising(distilled=way.progressive).sampling_for(one.roles)
    if way.progressive and not found.distilled:
        return replace(found, distilled=True, num_inference_steps=Distillation().num_inference_steps)
    return found


def _acting(how: Sampling, steps: int, shift: float) -> int:
    """Count the steps at which guidance acts."""
    return sum(how.acts_at(t) for t in schedule(steps, shift)[:-1].tolist())
