"""The settings of `openlance run`: as options, each under our name and under the release's, as a file with
`--defaults`, and shown with `--show-defaults`, each with where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from openlance.cli import options
from openlance.config.values import as_data, flag, from_yaml, read_text
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.config.sampling import GenerationConfig
    from openlance.sequence.tasks import TaskSpec

Resolution = Annotated[str | None, Option("--resolution", "--RESOLUTION", help="Preset for the sizes of inputs.")]
Height = Annotated[int | None, Option("--height", "--VIDEO_HEIGHT", min=1, help="Of the output, in pixels.")]
Width = Annotated[int | None, Option("--width", "--VIDEO_WIDTH", min=1, help="Of the output, in pixels.")]
Frames = Annotated[int | None, Option("--num-frames", "--NUM_FRAMES", min=1, help="Frames of an output video.")]
Steps = Annotated[
    int | None, Option("--num-inference-steps", "--VALIDATION_NUM_TIMESTEPS", min=1, help="Denoising steps.")
]
Shift = Annotated[float | None, Option("--shift", "--VALIDATION_TIMESTEP_SHIFT", help="Shift of the flow times.")]
Guidance = Annotated[
    float | None, Option("--guidance-scale", "--CFG_TEXT_SCALE", min=0, help="Strength of the prompt; 1: off.")
]
Cached = Annotated[
    str | None, Option("--kv-cache", "--USE_KVCACHE", metavar="true|false", help="Cache keys and values of the prompt.")
]
Seed = Annotated[
    int | None, Option("--seed", "--VALIDATION_DATA_SEED", min=-1, help="Seed of every entry; -1: random.")
]
Reuse = Annotated[
    float | None, Option("--step-cache", help="Relative change below which a step reuses the one before.")
]
Compiled = Annotated[bool, Option("--compile", help="Compile the model first; with CUDA graphs on a GPU.")]
NewTokens = Annotated[int | None, Option(min=1, help="Tokens of an answer at most.")]
Defaults = Annotated[Path | None, Option(help="YAML or JSON that replaces the model's, as --show-defaults prints it.")]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one run wants otherwise than its checkpoint: fields of `GenerationConfig`, and of its `Sampling`."""

    resolution: Resolution = None
    height: Height = None
    width: Width = None
    num_frames: Frames = None
    num_inference_steps: Steps = None
    shift: Shift = None
    guidance_scale: Guidance = None
    cached: Cached = None
    seed: Seed = None
    solver: options.Solver = None
    step_cache: Reuse = None
    compile: Compiled = False
    max_new_tokens: NewTokens = None
    defaults: Defaults = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by field."""
        found = options.given(**vars(self) | {"defaults": None, "compile": self.compile or None})
        return found | ({"cached": flag("--kv-cache", self.cached)} if self.cached is not None else {})

    def typed(self) -> dict[str, Any]:
        """The same in the form of a file."""
        from openlance.config.sampling import ASKED

        sampling = {name: value for name, value in self.given.items() if name not in ASKED}
        own = {name: value for name, value in self.given.items() if name in ASKED}
        return own | ({"sampling": sampling} if sampling else {})

    def filed(self) -> dict[str, Any]:
        """What the file says, in the same form. UserError if it cannot be read."""
        if self.defaults is None:
            return {}
        try:
            found = from_yaml(read_text(self.defaults))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.defaults} is neither YAML nor JSON ({error}): mend that place") from None
        if not isinstance(found, Mapping):
            raise UserError(f"{self.defaults} holds no fields: write what --show-defaults prints")
        return dict(found)

    def sampling(self) -> dict[str, Any]:
        """The fields of `Sampling` that the checkpoint does not decide."""
        return self.filed().get("sampling", {}) | self.typed().get("sampling", {})

    def layers(self, model: str) -> list[tuple[str, GenerationConfig]]:
        """(where from, what holds) of the release, the checkpoint, the file and the options, the last word last; no
        tensor is read. UserError for what cannot be."""
        from openlance.checkpoint.hub import find_model
        from openlance.config.sampling import FILE, GenerationConfig

        own = GenerationConfig.read(find_model(model).tokenizer)
        said = self.filed()
        try:
            filed = _changed(own, said)
        except UserError as error:
            raise UserError(f"{self.defaults}: {error}") from None
        last = _changed(filed, self.typed())
        return [
            ("the release", GenerationConfig()), (f"{FILE} of {model}", own), (str(self.defaults), filed),
            ("this command", last),
        ]  # fmt: skip

    def unused(self, spec: TaskSpec) -> str:
        """The options that were given and that a task has no use for."""
        from openlance.config.sampling import ASKED

        idle = [name for name in self.given if (name if name in ASKED else "sampling") not in spec.takes]
        return ", ".join(f"{name}={self.given[name]}" for name in idle)


def _changed(config: GenerationConfig, said: dict[str, Any]) -> GenerationConfig:
    from openlance.media import buckets

    if (changed := config.changed(said)).resolution is not None:
        buckets.resolution(changed.resolution)
    return changed


def shown(spec: TaskSpec, layers: list[tuple[str, GenerationConfig]]) -> Iterator[str]:
    """The lines of a YAML file of what a task uses, each with where its value comes from."""
    tables = [(where, dict(_leaves(spec, config))) for where, config in layers]
    for field, value in tables[-1][1].items():
        where = tables[0][0]
        for (_, before), (name, table) in zip(tables, tables[1:]):
            where = name if table[field] != before[field] else where
        yield f"{field}: {json.dumps(value)}".ljust(32) + f"  # {where}" if value != {} else f"{field}:"


def _leaves(spec: TaskSpec, config: GenerationConfig) -> Iterator[tuple[str, Any]]:
    from openlance.planning.lengths import placeholder
    from openlance.sequence.tasks import Views, request

    view = placeholder(1, 1, 1)
    made = request(spec, "a prompt", [Views(view, view)] if spec.reads else [], (1, 1, 1))
    sampling = as_data(config.sampling_for(segment.role.name.lower() for segment in made))
    for name in spec.takes:
        if name == "sampling":
            yield name, {}
            yield from ((f"  {field}", value) for field, value in sampling.items())
        else:
            yield name, getattr(config, name)
