"""The settings of `openlance run`: as options, each under our name and under the release's, as a file with
`--defaults`, and shown with `--show-defaults`, each with where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlance.cli import options
from openlance.config.values import as_data, flag, from_yaml, read_text
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.config.sampling import GenerationConfig
    from openlance.sequence.tasks import TaskSpec

Resolution = Annotated[str | None, typer.Option("--resolution", "--RESOLUTION", help="Preset for what is read.")]
Height = Annotated[int | None, typer.Option("--height", "--VIDEO_HEIGHT", help="Pixels of what is made.")]
Width = Annotated[int | None, typer.Option("--width", "--VIDEO_WIDTH", help="Pixels of what is made.")]
Frames = Annotated[int | None, typer.Option("--num-frames", "--NUM_FRAMES", help="Of a video that is made.")]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", "--VALIDATION_NUM_TIMESTEPS", help="Steps.")]
Shift = Annotated[float | None, typer.Option("--shift", "--VALIDATION_TIMESTEP_SHIFT", help="Of the times.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", "--CFG_TEXT_SCALE", help="1 is none.")]
Cached = Annotated[
    str | None,
    typer.Option("--kv-cache", "--USE_KVCACHE", metavar="true|false", help="Keep what the conditions contribute."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", "--VALIDATION_DATA_SEED", help="Of the noise of every entry; -1 draws one.")
]
Solver = Annotated[str | None, typer.Option("--solver", help="euler, dpm++ or unipc.")]
Reuse = Annotated[float | None, typer.Option("--step-cache", help="Share of change below which a step is reused.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Fuse the steps first; with CUDA graphs on a GPU.")]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")]
Defaults = Annotated[
    Path | None, typer.Option("--defaults", help="YAML or JSON in the place of the model's: what --show-defaults says.")
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one run wants otherwise than its checkpoint."""

    resolution: Resolution = None
    height: Height = None
    width: Width = None
    num_frames: Frames = None
    num_inference_steps: Steps = None
    shift: Shift = None
    guidance_scale: Guidance = None
    kv_cache: Cached = None
    seed: Seed = None
    solver: Solver = None
    step_cache: Reuse = None
    compile: Compiled = False
    max_new_tokens: NewTokens = None
    defaults: Defaults = None

    def check(self) -> None:
        """UserError for a number out of range."""
        for option, value, least, most in (
            ("--num-frames", self.num_frames, 1, options.LONGEST), ("--height", self.height, 1, options.LARGEST_SIDE),
            ("--width", self.width, 1, options.LARGEST_SIDE), ("--seed", self.seed, -1, options.LARGEST_SEED),
            ("--num-inference-steps", self.num_inference_steps, 1, options.MOST_STEPS),
            ("--max-new-tokens", self.max_new_tokens, 1, options.MOST_TOKENS),
        ):  # fmt: skip
            options.at_least(option, value, least, most)
        options.check_guidance(self.guidance_scale)

    def typed(self) -> dict[str, Any]:
        """The options that were given, as fields of `config.sampling.ASKED`."""
        cached = None if self.kv_cache is None else flag("--kv-cache", self.kv_cache)
        sampling = options.given(
            num_inference_steps=self.num_inference_steps, shift=self.shift, guidance_scale=self.guidance_scale,
            cached=cached, solver=self.solver, step_cache=self.step_cache, compile=self.compile or None,
        )  # fmt: skip
        return options.given(
            num_frames=self.num_frames, height=self.height, width=self.width, resolution=self.resolution,
            sampling=sampling or None, seed=self.seed, max_new_tokens=self.max_new_tokens,
        )  # fmt: skip

    def filed(self) -> dict[str, Any]:
        """What the file says, in the same fields. UserError if it cannot be read."""
        if self.defaults is None:
            return {}
        text = read_text(self.defaults)
        try:
            found = from_yaml(text)
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
        from openlance.checkpoint.formats import find_model
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

    def unused(self, spec: TaskSpec) -> list[str]:
        """The options that were given and that a task has no use for."""
        from openlance.config.sampling import ASKED

        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "defaults"}
        given = [name for name, value in values.items() if value is not None and value is not False]
        idle = [name for name in given if (name if name in ASKED else "sampling") not in spec.takes]
        return [f"--{name.replace('_', '-')}" for name in idle]


def _changed(config: GenerationConfig, said: dict[str, Any]) -> GenerationConfig:
    from openlance.media import transform

    if (changed := config.changed(said)).resolution is not None:
        transform.resolution(changed.resolution)
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
    from openlance.planning.workload import placeholder
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
