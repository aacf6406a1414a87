"""Classifier-free guidance: combine the velocities of branches that saw fewer conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_type_hints

import torch
from torch import Tensor

from openlance.config.values import convert
from openlance.errors import UserError
from openlance.sample.solvers import SOLVERS

RENORMS = ("global", "channel", "none")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to denoise. Defaults: the released script (30 steps, shift 3.5, guidance 4 where 0.4 < t <= 1).

    Args:
        num_inference_steps: one evaluation per branch each, whatever the solver.
        guidance_scale: 1 is off; the prompt against no prompt.
        image_guidance_scale: 1 is off; visual conditions against none (the release has it, but it crashes there).
        shift: see `flow.shift_times`.
        interval: guidance acts where lo < t <= hi, t after the shift.
        renorm: "global" limits the guided velocity to the norm of the conditional one over a whole target, "channel"
            per token, "none" not at all; `renorm_min` is the least factor.
        cached: keep what the conditions contribute instead of running the whole sequence at every step.
        solver: "euler" as released, "dpm++" or "unipc" of second order, which need fewer steps (`docs/speed.md`).
        step_cache: a velocity that is expected to change by a smaller share than this is used again; 0 is off.
        compile: run the experts through torch.compile, for which the first picture waits; CUDA graphs on a GPU.
    """

    num_inference_steps: int = 30
    guidance_scale: float = 4.0
    image_guidance_scale: float = 1.0
    shift: float = 3.5
    interval: tuple[float, float] = (0.4, 1.0)
    renorm: str = "global"
    renorm_min: float = 0.0
    cached: bool = True
    solver: str = "euler"
    step_cache: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Sampling).items():
            try:
                object.__setattr__(self, name, convert(kind, getattr(self, name), name))
            except ValueError as error:
                raise UserError(str(error)) from None
        if self.num_inference_steps < 1:
            raise UserError(
                f"{self.num_inference_steps} steps cannot draw anything: use --num-inference-steps 1 or more"
            )
        if self.renorm not in RENORMS:
            raise UserError(f"renorm {self.renorm!r} is unknown: use one of {', '.join(RENORMS)}")
        if (scale := min(self.guidance_scale, self.image_guidance_scale)) < 0:
            raise UserError(f"a guidance scale of {scale} makes no sense: use 1 (off) or more")
        if self.shift <= 0:
            raise UserError(f"a time shift of {self.shift} makes no sense: use a positive number such as 3.5")
        if self.solver not in SOLVERS:
            raise UserError(f"the solver {self.solver!r} is unknown: use one of {', '.join(SOLVERS)}")
        if not 0 <= self.step_cache < 1:
            raise UserError(f"a step cache of {self.step_cache} makes no sense: use 0 (off) or a share such as 0.05")

    @property
    def branches(self) -> int:
        """How many forms of a request run side by side: as it is, without its words, without pictures as well."""
        return 1 + (self.guidance_scale > 1) + (self.image_guidance_scale > 1)

    def acts_at(self, t: float) -> bool:
        return self.interval[0] < t <= self.interval[1]


def guide(text: Tensor, no_text: Tensor | None, nothing: Tensor | None, s: Sampling) -> Tensor:
    """v = v_u + g_i (v_i - v_u) + g_t (v - v_i), where v_i dropped the prompt and v_u the visual conditions too.

    All (N, C). Without `nothing` this is the released rule v_i + g_t (v - v_i)."""
    guided = text
    if no_text is not None:
        guided = no_text + s.guidance_scale * (text - no_text)
    if nothing is not None:
        below = no_text if no_text is not None else text
        guided = guided + (s.image_guidance_scale - 1) * (below - nothing)
    return guided


def renormalise(guided: Tensor, conditional: Tensor, counted: Tensor, s: Sampling) -> Tensor:
    """Shrink a guided velocity (N, C) to the conditional norm; `counted` rows enter the global norm (released code)."""
    if s.renorm == "none":
        return guided
    if s.renorm == "channel":
        have, want = guided.norm(dim=-1, keepdim=True), conditional.norm(dim=-1, keepdim=True)
    else:
        have, want = guided[counted].norm(), conditional[counted].norm()
    return guided * torch.clamp(want / (have + 1e-8), min=s.renorm_min, max=1.0)
