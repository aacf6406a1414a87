"""What a caller has to do with the steps of a call: the noise before them, callbacks between them, an early end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any, TypeAlias

from torch import Tensor

from openlance.config import values
from openlance.errors import UserError
from openlance.vae.lazy import channels_first, channels_last

Grid: TypeAlias = tuple[int, int, int]
TENSORS = ("latents",)  # what a callback may see and change


class Run:
    """A call in progress, known to the thread that makes it alone: `stopped` in the middle of it ends it early."""

    def __init__(self) -> None:
        self.stopped = False
        self._before: Token | None = None

    def __enter__(self) -> Run:
        self._before = RUN.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._before is not None
        RUN.reset(self._before)


RUN: ContextVar[Run | None] = ContextVar("RUN", default=None)


def starting_noise(latents: Any, grids: Sequence[Grid], channels: int) -> list[Tensor]:
    """(N, C) of each result from (B, C, T, Y, X). UserError if it is of another kind or shape."""
    if len(set(grids)) > 1:
        raise UserError("latents need results of one size: give inputs of one size, or height and width")
    shape = (len(grids), channels, *grids[0])
    expected = f"expected a tensor of floating-point numbers of the shape {shape}"
    if not isinstance(latents, Tensor):
        raise UserError(f"latents is {values.brief(latents)}: {expected}")
    if latents.shape != shape or not latents.is_floating_point():
        raise UserError(f"latents is a tensor of {latents.dtype} of the shape {tuple(latents.shape)}: {expected}")
    if not latents.isfinite().all():
        raise UserError(f"latents has infinities or NaN in it: {expected}, such as torch.randn gives")
    return list(channels_last(latents).flatten(1, 3).float())


def check_tensors(names: Any) -> tuple[str, ...]:
    """The names of what a callback wants to see. UserError if there is no such thing."""
    found = TENSORS if names is None else names
    if not isinstance(found, (list, tuple)) or not all(isinstance(n, str) and n in TENSORS for n in found):
        raise UserError(f"callback_on_step_end_tensor_inputs is {values.brief(names)}: use {list(TENSORS)}")
    return tuple(found)


def step_end(
    callback: Callable[[Any, int, float, dict[str, Tensor]], Any],
    pipe: Any,
    names: Sequence[str],
    grids: Sequence[Grid],
) -> Callable[[int, float, Tensor], Tensor | None]:
    """diffusers' callback as the sampler's: packed rows to latents of equal size, and back."""
    if len(set(grids)) > 1:
        raise UserError("callback_on_step_end needs results of one size: give inputs of one size")

    def after_step(step: int, t: float, x: Tensor) -> Tensor | None:
        latents = channels_first(x.reshape(len(grids), *grids[0], -1))
        changed = changed_latents(callback(pipe, step, t, dict.fromkeys(names, latents)), latents)
        return None if changed is None else channels_last(changed).reshape(x.shape)

    return after_step


def changed_latents(answer: Any, latents: Tensor) -> Tensor | None:
    """What a callback wants in the place of the latents; None for nothing. UserError if it is of another kind."""
    if answer is None:
        return None
    expected = 'expected None, or {"latents": ...} with a tensor of the shape ' + f"{tuple(latents.shape)}"
    if not isinstance(answer, Mapping):
        raise UserError(f"callback_on_step_end gave {values.brief(answer)} back: {expected}")
    changed = answer.get("latents")
    if changed is not None and not (isinstance(changed, Tensor) and changed.shape == latents.shape):
        what = f"a tensor of the shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else values.brief(changed)
        raise UserError(f"callback_on_step_end gave {what} back as latents: {expected}")
    return changed
