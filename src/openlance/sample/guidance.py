"""Classifier-free guidance: combine the velocities of branches that saw fewer conditions."""

from __future__ import annotations

import torch
from torch import Tensor

from openlance.config.sampling import Sampling


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
