"""Where a model is and in what numbers it computes, by the names that people give them."""

from __future__ import annotations

from typing import Any

import torch

from openlance.config.values import NUMBER_TYPES, brief
from openlance.errors import UserError


def device_of(name: torch.device | str | int | None) -> torch.device:
    """A device by its name, by default a GPU where there is one. UserError if it does not exist here."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if isinstance(name, bool) or not isinstance(name, (str, int, torch.device)):
            raise TypeError("expected a name such as cpu or cuda")
        device = torch.device(name)
        if device.type == "meta":
            raise TypeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        said = str(error).partition("\n")[0][:120] or type(error).__name__
        raise UserError(f"the device {brief(name)} cannot be used ({said}): use cpu, or leave it out") from None
    return device


def dtype_of(value: Any) -> torch.dtype | None:
    """A type of number by its name, or of torch or numpy; None for None and "auto", which are the model's own.

    Raises:
        UserError: If it is none in which a model computes.
    """
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    name = value if isinstance(value, (str, torch.dtype)) else getattr(value, "__name__", getattr(value, "name", None))
    short = str(name).removeprefix("torch.")
    if name is None or short not in NUMBER_TYPES:
        raise UserError(f"{brief(value)} is no type of number to compute in: use float32, bfloat16 or float16")
    return getattr(torch, NUMBER_TYPES[short])
