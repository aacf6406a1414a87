"""Parts of a pipeline under the names at which people look for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openlance.config import values
from openlance.errors import UserError

if TYPE_CHECKING:
    pass

# What diffusers calls our solvers.
SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": "euler", "DPMSolverMultistepScheduler": "dpm++",
    "UniPCMultistepScheduler": "unipc",
}  # fmt: skip
# Where accelerate would put parts on several devices, which is not needed here: the usual device, within `memory`.
USUAL_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Scheduler:
    """What is at `pipe.scheduler`: how a pipeline denoises where a call does not say. solver, shift: of `Sampling`."""

    solver: str
    shift: float

    @property
    def config(self) -> dict[str, Any]:
        """What diffusers' schedulers read, for `from_config`."""
        return {
            "_class_name": next(name for name, solver in SCHEDULERS.items() if solver == self.solver),
            "shift": self.shift, "flow_shift": self.shift, "use_flow_sigmas": True,
            "prediction_type": "flow_prediction", "num_train_timesteps": 1000,
        }  # fmt: skip


def solver_settings(value: Any) -> dict[str, Any]:
    """The fields of `Sampling` that a scheduler means: a name of ours or of diffusers, a `Scheduler`, or an object or
    class of diffusers, whose shift counts where it is one of flows. UserError for anything else."""
    if isinstance(value, Scheduler):
        return {"solver": value.solver, "shift": value.shift}
    name = value if isinstance(value, str) else (value if isinstance(value, type) else type(value)).__name__
    solver = SCHEDULERS.get(name, name if name in SCHEDULERS.values() else None)
    if solver is None:
        raise UserError(f"the scheduler is {values.brief(value)}: use one of {', '.join(SCHEDULERS)}, or its name")
    config = getattr(value, "config", None)
    config = config if isinstance(config, Mapping) else {}
    shift = config.get("shift") if solver == "euler" else config.get("use_flow_sigmas") and config.get("flow_shift")
    return {"solver": solver} | ({"shift": shift} if shift else {})


def device_in(device_map: Any) -> Any:
    """The device that a map of accelerate names, None for the usual one. UserError for a map over several."""
    if isinstance(device_map, str) and device_map in USUAL_MAPS:
        return None
    if not isinstance(device_map, Mapping):
        return device_map
    places = list({str(place): place for place in device_map.values()}.values())
    if len(places) != 1:
        raise UserError(f"device_map is {values.brief(device_map)}: a model here is on one device, so name one")
    return places[0]
