"""How a checkpoint is used when the caller says nothing: sampling, decoding, sizes and wording.

`GenerationConfig` is what a folder's `generation_config.json` says; there is no other reader of that file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from openlance.config.prompts import RELEASED_RUN, PromptStyle, style_of
from openlance.config.values import convert, known, read_json
from openlance.errors import UserError

FILE = "generation_config.json"
RENORMS = ("global", "channel", "none")
SOLVERS = ("euler", "dpm++", "unipc")

# Resolution presets of the release for what goes in, by what is made of it (released commands; questions as trained).
RELEASED_BUCKETS = {"image": "image_768res", "video": "video_480p", "text": "video_480p"}


def checked(value: Any) -> None:
    """Convert the fields of a frozen dataclass of plain numbers to their types; UserError for one that means none."""
    for name, kind in get_type_hints(type(value)).items():
        try:
            object.__setattr__(value, name, convert(kind, getattr(value, name), name))
        except ValueError as error:
            raise UserError(str(error)) from None


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
        checked(self)
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


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to answer.

    Args:
        max_new_tokens: The longest answer (released default: 256).
        temperature: 0 is greedy (released default).
        top_p: Draw among the likeliest tokens of that much probability, above 0 and at most 1.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        checked(self)
        if self.max_new_tokens < 1:
            raise UserError(
                f"{self.max_new_tokens} new tokens leave no room for an answer: use --max-new-tokens 1 or more"
            )
        if self.temperature < 0:
            raise UserError(f"a temperature of {self.temperature:g} makes no sense: use 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p:g}: it must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What a checkpoint prefers when the caller says nothing; the defaults are the release's.

    Args:
        height: Of pictures and clips that are made, in pixels.
        width: Likewise.
        num_frames: Of clips that are made.
        sampling: How it denoises.
        sampling_with: Fields of `Sampling` that differ where a request has a segment of a role, by the role's name.
        style: How its requests and samples are worded.
        tasks: What it was trained for, names of `sequence.tasks.TASKS`; empty if it does not say.
        buckets: Resolution preset of what is read, by what is made of it ("image", "video", "text"); without one an
            input keeps its size (see `media.transform`).
        history: Earlier turns that a dialogue shows it.
        batch: Pictures made together; of clips fewer, by their latent frames.
    """

    height: int = 768
    width: int = 768
    num_frames: int = 49
    sampling: Sampling = field(default_factory=Sampling)
    sampling_with: dict[str, dict[str, Any]] = field(default_factory=dict)
    style: PromptStyle = RELEASED_RUN
    tasks: tuple[str, ...] = ()
    buckets: dict[str, str] = field(default_factory=RELEASED_BUCKETS.copy)
    history: int = 0
    batch: int = 16

    def knows(self, task: str) -> bool:
        """Whether the checkpoint was trained for a task, as far as it says."""
        return not self.tasks or task in self.tasks

    def sampling_for(self, roles: Iterable[str], **settings: Any) -> Sampling:
        """How a request denoises.

        Args:
            roles: Names of the roles of its segments, in lower case.
            **settings: Fields of `Sampling` that the caller wants otherwise; None changes nothing.

        Raises:
            UserError: For a field that `Sampling` lacks, or a value that makes no sense.
        """
        unknown = sorted(settings.keys() - Sampling.__dataclass_fields__.keys())
        if unknown:
            raise UserError(f"there is no option {unknown[0]!r}: use one of {', '.join(Sampling.__dataclass_fields__)}")
        fields, there = dict[str, Any](), set(roles)
        for role, given in self.sampling_with.items():
            fields |= given if role in there else {}
        return replace(self.sampling, **fields | {k: v for k, v in settings.items() if v is not None})

    @classmethod
    def read(cls, folder: Path) -> GenerationConfig:
        """Read a checkpoint's file; without one of ours (transformers writes a file of this name too) the release's.

        Args:
            folder: Where the tokenizer of the checkpoint is.

        Raises:
            UserError: If the file is damaged or a value cannot be.
        """
        path = folder / FILE
        found = read_json(path) if path.is_file() else {}
        if "height" not in found:
            return cls()
        try:
            return cls._of(found)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is invalid: {error}; restore the file, or delete it") from error

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> GenerationConfig:
        sampling = Sampling(**known(Sampling, found.get("sampling", {})))
        differs = {role.lower(): known(Sampling, given) for role, given in found.get("sampling_with", {}).items()}
        for given in differs.values():
            replace(sampling, **given)
        hints, said = get_type_hints(cls), {"buckets": {}} | known(cls, found)
        own = said.keys() - {"sampling", "sampling_with", "style"}
        plain = {name: convert(hints[name], said[name], name) for name in said if name in own}
        style = style_of(found.get("prompt_style"), found.get("system_prompts"))
        made = cls(**plain, sampling=sampling, sampling_with=differs, style=style)
        for name in ("height", "width", "num_frames", "batch"):
            if getattr(made, name) < 1:
                raise ValueError(f"{name}={getattr(made, name)} must be positive")
        return made
