"""How a checkpoint is used when the caller says nothing: sampling, decoding, sizes, and how requests are worded.

A wording is a value that a checkpoint names, and that training, sampling and every other caller read, so that what a
model is asked for is worded as what it was trained on. `GenerationConfig` is what a folder's `generation_config.json`
says; there is no other reader of that file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from openlance.config.values import brief, build, convert, known, no_others, read_json, unknown, whole
from openlance.errors import UserError

# Prompts that name the kind of an element of the request; the others name the kind of what is made or read.
LISTED = ("edit", "subject")
# What the user lists last: media come first, then what to do with them (released examples).
USUALLY_LAST = "text"


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """The task prior in front of a request, and the habits with which it is put together.

    Texts are the released ones (released code; paper, appendix). In them `{m}` becomes "image" or "video"; an empty
    text leaves the turn out.

    Args:
        image: For pictures drawn from words.
        video: For clips drawn from words, and from pictures that they begin or end with.
        edit: For pictures and clips that are changed.
        subject: For given subjects in a new scene.
        question: For questions.
        captions: For descriptions; the release draws one of them.
        names_last: `{m}` of `edit` and `subject` is the kind of the last listed element, even "text", instead of the
            kind of what is made (released sampler: validation_dataset.py).
        strips: Prompts lose the blanks around them (released training readers; the released sampler keeps them).
    """

    image: str = (
        "Describe the {m} by detailing the color, quantity, text, shape, size, texture, spatial relationships of the"
        " objects and background:"
    )
    video: str = (
        "Describe the {m} by detailing the color, quantity, visible text, shape, size, texture, spatial relationships"
        " and motion/camera movements of the objects and background:"
    )
    edit: str = (
        "Describe the key features of the input {m} (color, shape, size, texture, objects, background), then explain"
        " how the user’s text instruction should alter or modify the {m}. Generate a new {m} that meets the user’s"
        " requirements while maintaining consistency with the original input where appropriate."
    )
    subject: str = (
        "Describe the key features of the input image (color, shape, size, texture, objects, background, style), then"
        " incorporate the user’s text description to generate a new {m} that satisfies the user’s requirements while"
        " preserving the essential identity and object or style information from the reference input."
    )
    question: str = "View the {m} attentively and provide a suitable answer to the posed question."
    captions: tuple[str, ...] = (
        "Generate a detailed and accurate description of the {m}, including all the key moments and visual details.",
        "Write an in-depth depiction of the {m}, covering all its aspects.",
        "Write an exhaustive depiction of the given {m}, capturing its essence and key moments.",
        "Describe the key features of the input {m}, including color, shape, size, texture, objects, background.",
    )
    names_last: bool = False
    strips: bool = True

    def prior(self, field: str, kind: str, last: str = USUALLY_LAST) -> str:
        """Word the task prior of a request.

        Args:
            field: A text of this style: "image", "video", "edit", "subject" or "question".
            kind: "image" or "video", of what is made, or read where a text is made.
            last: Kind of the element that the user listed last: "text", "image" or "video".
        """
        word = last if self.names_last and field in LISTED else kind
        return getattr(self, field).format(m=word)


EXACT = PromptStyle()
RELEASED_RUN = replace(EXACT, names_last=True, strips=False)
# Training draws pictures with the prompt of clips (dataset_x2v_interleave.py), the sampler with one of their own.
RELEASED_TRAINING = replace(EXACT, image=EXACT.video)
STYLES = {"exact": EXACT, "released_run": RELEASED_RUN, "released_training": RELEASED_TRAINING}
# For a model trained without task priors: the system turn is left out and the segments alone say what to do.
NO_PRIOR = replace(EXACT, image="", video="", edit="", subject="", question="", captions=("",))


def style_of(name: str | None, texts: Mapping[str, Any] | None = None) -> PromptStyle:
    """Find a style by the name that a checkpoint gives.

    Args:
        name: A key of `STYLES`. None: "exact", or "released_run" where there are no texts either.
        texts: Texts and habits that differ from those of the style, by field.

    Raises:
        ValueError: If there is no such style, or a text is none.
    """
    chosen = name if name is not None else "exact" if texts else "released_run"
    if chosen not in STYLES:
        raise ValueError(f"prompt_style is {chosen!r}: expected one of {', '.join(STYLES)}")
    hints = get_type_hints(PromptStyle)
    said = {k: convert(hints[k], v, f"system_prompts.{k}") for k, v in (texts or {}).items() if k in hints}
    if not said.get("captions", EXACT.captions):
        raise ValueError("system_prompts.captions is empty: expected at least one text, which may be blank")
    return replace(STYLES[chosen], **said)


FILE = "generation_config.json"
# What can be asked for at most: above are slips of the hand, which would fill the memory or never end.
LARGEST_SEED = 2**64 - 1  # what torch's generators accept
LARGEST_SIDE = 8192  # pixels; the largest released preset draws 1168
LONGEST = 10_000  # frames; the released model makes 121
MOST_RESULTS = 10_000  # of one prompt
MOST_STEPS = 10_000  # of denoising; the release takes 30
MOST_TOKENS = 100_000  # of an answer; the release takes 256
STRONGEST = 1000.0  # guidance, and shift of the times
RENORMS = ("global", "channel", "none")
SOLVERS = ("euler", "dpm++", "unipc")

# Resolution presets of the release for what goes in, by what is made of it (released commands; questions as trained).
RELEASED_BUCKETS = {"image": "image_768res", "video": "video_480p", "text": "video_480p"}


# What may be asked of a single run in the place of what the checkpoint's file says: fields of `GenerationConfig`.
ASKED = ("num_frames", "height", "width", "resolution", "sampling", "seed", "max_new_tokens")


def later_seed(seed: int, k: int) -> int:
    """The seed of result number k; after the largest comes 0."""
    return (seed + k) % (LARGEST_SEED + 1)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def checked(value: Any) -> None:
    """Convert the fields of a frozen dataclass of plain numbers to their types; UserError for one that means none."""
    for name, kind in _hints(value.__class__).items():
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
            steps = brief(self.num_inference_steps)
            raise UserError(f"{steps} steps cannot draw anything: use --num-inference-steps 1 or more")
        whole("num_inference_steps", self.num_inference_steps, 1, MOST_STEPS)
        if self.renorm not in RENORMS:
            raise UserError(f"renorm {brief(self.renorm)} is unknown: use one of {', '.join(RENORMS)}")
        if (scale := min(self.guidance_scale, self.image_guidance_scale)) < 0:
            raise UserError(f"a guidance scale of {scale} makes no sense: use 1 (off) or more")
        if (scale := max(self.guidance_scale, self.image_guidance_scale)) > STRONGEST:
            raise UserError(f"a guidance scale of {scale:g} makes no sense: use {STRONGEST:g} or less, for example 3")
        if not 1 / STRONGEST <= self.shift <= STRONGEST:
            raise UserError(f"a time shift of {self.shift:g} makes no sense: use a positive number such as 3.5")
        if self.interval[0] > self.interval[1]:
            low, high = self.interval
            raise UserError(f"interval ({low:g}, {high:g}) ends before it begins: write the lower time first")
        if not 0 <= self.renorm_min <= 1:
            raise UserError(f"renorm_min is {self.renorm_min:g}: it is a factor from 0 to 1")
        if self.solver not in SOLVERS:
            raise UserError(f"the solver {brief(self.solver)} is unknown: use one of {', '.join(SOLVERS)}")
        if not 0 <= self.step_cache < 1:
            raise UserError(f"a step cache of {self.step_cache:g} makes no sense: use 0 (off) or a share such as 0.05")

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
        top_k: Draw among so many of the likeliest tokens; 0 is all.
        repetition_penalty: Above 1, tokens of the request and of the answer so far become less likely, also where the
            likeliest is taken (transformers' rule); 1 is off.
        stop: Texts that end an answer, which is cut before them.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked(self)
        if self.max_new_tokens < 1:
            tokens = brief(self.max_new_tokens)
            raise UserError(f"{tokens} new tokens leave no room for an answer: use --max-new-tokens 1 or more")
        whole("max_new_tokens", self.max_new_tokens, 1, MOST_TOKENS)
        if self.temperature < 0:
            raise UserError(f"a temperature of {self.temperature:g} makes no sense: use 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p:g}: it must be above 0 and at most 1")
        whole("top_k", self.top_k, 0, MOST_TOKENS)
        if not 1 / STRONGEST <= self.repetition_penalty <= STRONGEST:
            raise UserError(f"repetition_penalty is {self.repetition_penalty:g}: use 1 (off) or a little more, as 1.1")
        if "" in self.stop:
            raise UserError("stop has an empty text in it, which every answer holds: leave that one out")


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
        resolution: Resolution preset of a run over an input file (`compat`), for what is read; None: `buckets` decide.
        seed: Of such a run, the same for every entry; -1 draws one. Elsewhere a seed is drawn where none is given.
        max_new_tokens: Of an answer in such a run.
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
    resolution: str | None = RELEASED_BUCKETS["video"]
    seed: int = 42
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames", "batch", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be positive")
        whole("seed", self.seed, -1, LARGEST_SEED)

    def knows(self, task: str) -> bool:
        """Whether the checkpoint was trained for a task, as far as it says."""
        return not self.tasks or task in self.tasks

    def denoising(self, **settings: Any) -> GenerationConfig:
        """The same with these fields of `Sampling` for every request that does not say otherwise."""
        roles = self.sampling_with.items()
        kept = {role: {k: v for k, v in given.items() if k not in settings} for role, given in roles}
        return replace(self, sampling=replace(self.sampling, **settings), sampling_with=kept)

    def changed(self, said: Mapping[str, Any]) -> GenerationConfig:
        """The same with what a caller says otherwise.

        Args:
            said: Fields of `ASKED`, in the form of the file; those of `sampling` hold for every request.

        Raises:
            UserError: For another field, or a value that cannot be.
        """
        hints, sampling = get_type_hints(GenerationConfig), said.get("sampling", {})
        try:
            build(Sampling, sampling, "sampling")
            for name in said:
                if name not in ASKED:
                    raise ValueError(unknown("field", str(name), ASKED))
            plain = {name: convert(hints[name], value, name) for name, value in said.items() if name != "sampling"}
        except ValueError as error:
            raise UserError(str(error)) from None
        return replace(self, **plain).denoising(**sampling)

    def sampling_for(self, roles: Iterable[str], **settings: Any) -> Sampling:
        """How a request denoises.

        Args:
            roles: Names of the roles of its segments, in lower case.
            **settings: Fields of `Sampling` that the caller wants otherwise; None changes nothing.

        Raises:
            UserError: For a field that `Sampling` lacks, or a value that makes no sense.
        """
        no_others(settings, Sampling.__dataclass_fields__)
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
        preset = cls.resolution if found.get("buckets") else None
        hints, said = get_type_hints(cls), {"buckets": {}, "resolution": preset} | known(cls, found)
        own = said.keys() - {"sampling", "sampling_with", "style"}
        plain = {name: convert(hints[name], said[name], name) for name in said if name in own}
        style = style_of(found.get("prompt_style"), found.get("system_prompts"))
        return cls(**plain, sampling=sampling, sampling_with=differs, style=style)
