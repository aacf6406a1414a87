"""The settings of the page: boxes with plain names, empty where the checkpoint decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from openlance.config.sampling import SOLVERS, GenerationConfig
from openlance.inference.lance_pipeline import LancePipeline
from openlance.inference.regions import NONE
from openlance.media.region import typed
from openlance.sequence import tasks
from openlance.sequence.segment import roles_of
from openlance.sequence.tasks import TaskSpec
from openlance.serve.studio.calls import ANSWER

SOURCE = "source"  # what is edited
# By the name of the field: what the page calls it, and the field of `TaskSpec.takes` that it belongs to, or SOURCE.
FIELDS = {
    "seed": ("Seed", "seed"),
    "num_inference_steps": ("Steps", "sampling"),
    "guidance_scale": ("Guidance", "sampling"),
    "image_guidance_scale": ("Image guidance", "sampling"),
    "width": ("Width", "width"),
    "height": ("Height", "height"),
    "num_frames": ("Frames", "num_frames"),
    "max_new_tokens": ("Longest answer", "max_new_tokens"),
    "temperature": ("Temperature", "max_new_tokens"),
    "shift": ("Shift", "sampling"),
    "solver": ("Solver", "sampling"),
    "distilled": ("Few passes", "sampling"),
    "negative_prompt": ("Not this", "sampling"),
    "check": ("Draws at most", "sampling"),
    "think": ("Describe first", "sampling"),
    "region": ("Only here", SOURCE),
}
# Those below the others.
MORE = ("image_guidance_scale", "temperature", "shift", "solver", "distilled", "negative_prompt", "think")
COMPARED = ("num_inference_steps", "guidance_scale", "image_guidance_scale", "shift", "solver", "negative_prompt")
USUAL = "usual"
WORDS = ("negative_prompt", "solver")  # the rest are numbers, regions and choices
CHOICES: dict[str, list[Any]] = {
    "solver": list(SOLVERS), "think": [("yes", True)], "distilled": [("yes", True), ("no", False)],
}  # fmt: skip
# What only some checkpoints can, by the field of `GenerationConfig` that says so.
LEARNED = {"think": "thinks", "distilled": "distilled"}


def boxes(names: list[str] | tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    """One box for each name."""
    return {name: _box(name, f"{prefix}{FIELDS[name][0]}") for name in names}


def _box(name: str, label: str) -> Any:
    if name in CHOICES:
        choices, there = [(USUAL, ""), *CHOICES[name]], name not in LEARNED
        return gr.Dropdown(choices, value="", label=label, min_width=120, visible=there)
    return gr.Textbox(label=label, placeholder=USUAL, min_width=90, max_lines=1)


def usual(pipe: LancePipeline, spec: TaskSpec) -> dict[str, Any]:
    """What the checkpoint takes for a task where a box is empty."""
    d: GenerationConfig = pipe.defaults
    sampling = d.sampling_for(roles_of([tasks.outline(spec)]))
    plain = {"height": d.height, "width": d.width, "num_frames": d.num_frames, "max_new_tokens": ANSWER}
    named = {name: getattr(sampling, name) for name in FIELDS if hasattr(sampling, name)}
    words = {"seed": "random", "negative_prompt": "nothing", "region": d.region.get(spec.kind, NONE)}
    return plain | named | words | {"temperature": 0, "check": 1, "think": ""}


def fits(name: str, spec: TaskSpec) -> bool:
    """Whether a task has a use for a field."""
    group = FIELDS[name][1]
    return spec.template is tasks.edit if group == SOURCE else group in spec.takes


def fitted(pipe: LancePipeline, spec: TaskSpec, shown: Mapping[str, Any]) -> dict[Any, Any]:
    """Updates that show the boxes a task has a use for, with what an empty one means."""
    found, values = {}, usual(pipe, spec)
    for name, box in shown.items():
        value = values[name]
        plain = f"{value:g}" if isinstance(value, float) else f"{value}"
        more = {} if name in CHOICES else {"placeholder": plain}
        there = fits(name, spec) and (name not in LEARNED or bool(getattr(pipe.defaults, LEARNED[name])))
        found[box] = gr.update(visible=there, **more)
    return found


def settings(said: Mapping[str, Any], spec: TaskSpec) -> dict[str, Any]:
    """What was written into boxes, by name, as settings of a call of this task."""
    given = {name: value for name, value in said.items() if fits(name, spec) and value not in (None, "")}
    return {name: value if name in WORDS else _read(name, value) for name, value in given.items()}


def _read(name: str, text: Any) -> Any:
    """A number where there is one; anything else stays as it is, for the server to say what is wrong with it."""
    if name == "region":
        return typed(text)
    if not isinstance(text, str):
        return text
    text = text.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def written(call_settings: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[Any, Any]:
    """Updates that write settings into boxes, and empty the others."""
    found = {name: call_settings.get(name, "") for name in shown}
    if isinstance(found.get("region"), (list, tuple)):
        found["region"] = ", ".join(f"{number:g}" for number in found["region"])
    return {box: found[name] if name in CHOICES else str(found[name]) for name, box in shown.items()}
