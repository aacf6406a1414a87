"""Second-order steps of the flow, as pure functions of the clean latents that a velocity implies.

Along x = (1 - t) clean + t noise a step whose clean latents stay the same is exact, and is the Euler step. The solvers
of DPM-Solver++ (Lu et al., 2022, arXiv 2211.01095, algorithm 2) and UniPC (Zhao et al., 2023, arXiv 2302.04867, B(h) =
exp(h) - 1) let the clean latents change linearly in the log ratio of signal to noise, lambda = log((1 - t) / t). Both
are written here with alpha = 1 - t and sigma = t, where their factor -alpha (exp(-h) - 1) becomes 1 - t_next / t.
"""

from __future__ import annotations

import math

from torch import Tensor


def log_ratio(t: float) -> float:
    """lambda(t), from -inf at t = 1 (noise) to inf at t = 0 (clean)."""
    if t <= 0:
        return math.inf
    return math.log((1 - t) / t) if t < 1 else -math.inf


def clean_of(x: Tensor, velocity: Tensor, t: float) -> Tensor:
    """The clean latents to which a velocity (noise - clean) at a state points."""
    return x - t * velocity


def straight(x: Tensor, clean: Tensor, t: float, t_next: float) -> Tensor:
    """The step with constant clean latents: first order, equal to Euler's."""
    return clean + (t_next / t) * (x - clean)


def extrapolated(clean: Tensor, before: Tensor, t_before: float, t: float, t_next: float) -> Tensor:
    """The clean latents half-way on, from those at two times (DPM-Solver++ 2M, and the predictor of UniPC)."""
    h, h_before = log_ratio(t_next) - log_ratio(t), log_ratio(t) - log_ratio(t_before)
    if math.isinf(h) or math.isinf(h_before):
        return clean  # at an end of the flow there is no finite step to extrapolate over: first order
    return clean + (clean - before) * (h / (2 * h_before))


def corrector_weights(h: float, h_before: float | None) -> tuple[float, float]:
    """Weights of the earlier and of the newest difference in UniPC's corrector, for a step h after a step h_before.

    Without a finite earlier step it is the corrector of order one."""
    if math.isinf(h) or h_before is None or math.isinf(h_before):
        return 0.0, 0.5
    phi = math.expm1(-h)
    first = -phi / h - 1
    b1, b2 = first / phi, 2 * (-first / h - 0.5) / phi
    earlier = (b1 - b2) / (1 + h_before / h)
    return earlier, b1 - earlier
