"""What a stage's `rl` means: how its rollouts sample and explore, its objective, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from openlance.config.sampling import GenerationConfig, Sampling
from openlance.config.train import Rewarding, Stage
from openlance.config.values import build, hints, no_others, one_of
from openlance.errors import UserError
from openlance.flow import schedule
from openlance.flow.stochastic import STOCHASTIC, WINDOWS
from openlance.rl.advantages import Advantages, Best
from openlance.rl.objectives import OBJECTIVES, Forward, Objective, Times
from openlance.rl.rewards import parse_rewards
from openlance.rl.rollout import Exploring
from openlance.sequence.segment import Segments, roles_of
from openlance.sequence.tasks import spec_of


def rolling(defaults: GenerationConfig, how: Rewarding, request: Segments, distilled: bool) -> Sampling:
    """Say how a rollout samples: as the checkpoint does, but for its steps, without guidance in several passes.

    Args:
        defaults: Of the checkpoint.
        how: Of the stage.
        request: What is drawn.
        distilled: Whether guidance is distilled into what draws.
    """
    usual = replace(
        defaults.sampling_for(roles_of([request])), num_inference_steps=how.num_inference_steps, solver=how.solver,
        step_cache=0.0, compile=False, distilled=distilled,
    )  # fmt: skip
    return usual if distilled or how.guided else replace(usual, guidance_scale=1.0, image_guidance_scale=1.0)


def exploring_of(stage: Stage, sampling: Sampling, step: int) -> Exploring | None:
    """Say which steps of a round are stochastic; none where the objective does not follow trajectories.

    Raises:
        UserError: If the window does not fit the steps, or leaves what learns.
    """
    how = stage.rl
    assert how is not None
    if not OBJECTIVES[how.objective].trajectories:
        return None
    kind = STOCHASTIC[how.stochastic](noise=how.noise)
    steps = window_of(stage).steps(sampling.num_inference_steps, step)
    times = schedule(sampling.num_inference_steps, sampling.shift)[list(steps)].tolist()
    if sampling.distilled and not all(sampling.acts_at(t) for t in times):
        low = sampling.interval[0]
        raise UserError(
            f"there are stochastic steps at times {', '.join(f'{t:.2f}' for t in times)}, but distilled guidance, "
            f"which is what learns, acts above {low:g}: set a smaller window"
        )
    return Exploring(kind=kind, steps=steps)


def window_of(stage: Stage) -> Any:
    """Make the window of a stage, one of `flow.stochastic.WINDOWS`."""
    how = stage.rl
    assert how is not None
    window: Any = WINDOWS[how.window]
    fields = {"size": how.window_size, "seed": stage.seed}
    return window(**{name: value for name, value in fields.items() if name in hints(window)})


def objective_of(stage: Stage) -> Objective:
    """Make the objective of a stage. UserError for one that is unknown, or a field that it lacks."""
    how = stage.rl
    assert how is not None
    one_of("rl.objective", how.objective, OBJECTIVES)
    kind = OBJECTIVES[how.objective]
    no_others(how.settings, hints(kind))
    said: dict[str, Any] = dict(how.settings)
    if hints(kind)["selection"] is Advantages:
        said["selection"] = Advantages(weights=how.facts, center=how.center, scale=how.scale, keep=how.keep)
    elif hints(kind)["selection"] is Best:
        said["selection"] = Best(keep=max(how.keep, 1), weights=how.facts)
    if issubclass(kind, Forward):
        steps, skip, among, draws = how.times
        said["times"] = Times(steps=steps, skip=skip, among=among, draws=draws)
    return build(kind, said, "rl.settings")


def settled(stage: Stage, device: torch.device) -> Stage:
    """Take float32 for `auto` where steps are compared with those of a rollout on a CPU, whose kernels for gradients
    round bfloat16 otherwise than those without: by more than ratios may be from 1."""
    assert stage.rl is not None
    exact = stage.dtype == "auto" and device.type == "cpu" and OBJECTIVES[stage.rl.objective].trajectories
    return replace(stage, dtype="float32") if exact else stage


def check_rewarding(stage: Stage) -> None:
    """Raise a UserError for a stage that cannot learn from rewards."""
    how = stage.rl
    assert how is not None
    texts = [task for task, weight in stage.mixture.items() if weight and spec_of(task).makes == "text"]
    if texts:
        raise UserError(f"the stage {stage.name} learns from rewards of what is drawn, and {texts[0]} draws nothing")
    if not stage.freezes("vit.tower"):
        said = "rewards do not reach the vision tower, whose features are made before a round"
        raise UserError(said, fix={"frozen": ["vit", *stage.frozen]})
    if stage.lora is not None and stage.lora.dropout:
        said = "rollouts and updates have to run the same weights, so an adapter has no dropout"
        raise UserError(said, fix={"lora.dropout": 0})
    if stage.drop_text or stage.drop_all:
        raise UserError("rewards are about whole requests", fix={"drop_text": 0, "drop_all": 0})
    parse_rewards(how.rewards)
    parse_rewards(how.judge or how.rewards)
    one_of("rl.stochastic", how.stochastic, STOCHASTIC)
    one_of("rl.window", how.window, WINDOWS)
    kind = objective_of(stage)
    if kind.trajectories and how.guided:
        raise UserError(
            f"{how.objective} compares the steps of a rollout with those of the update, which is not guided: leave out "
            "rl.guided, or take an objective without trajectories, such as nft"
        )
