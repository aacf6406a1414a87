"""How a checkpoint is used when the caller says nothing: sampling, decoding, sizes, and how requests are worded.

A wording is a value that a checkpoint names, and that training, sampling and every other caller read, so that what a
model is asked for is worded as what it was trained on. `GenerationConfig` is what a folder's `generation_config.json`
says; there is no other reader of that file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openlance.config import values
from openlance.config.values import checked, convert, hints, known, within
from openlance.errors import UserError

# Prompts that name the kind of an element of the request; the others name the kind of what is made or read.
LISTED = ("edit", "subject")
# What the user lists last: media come first, then what to do with them (released examples).
USUALLY_LAST = "text"


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """The task prior in front of a request, and the quirks with which it is put together.

    Texts are the released ones (released code; paper, appendix). In them `{m}` becomes "image" or "video"; an empty
    text leaves the turn out.

    Args:
        image: For images from words.
        video: For videos from words, and from images that they begin or end with.
        edit: For images and videos that are changed.
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
        text: str = getattr(self, field)
        return text.format(m=word)


EXACT = PromptStyle()
RELEASED_RUN = replace(EXACT, names_last=True, strips=False)
# Training makes images with the prompt of videos (dataset_x2v_interleave.py), the sampler with one of their own.
RELEASED_TRAINING = replace(EXACT, image=EXACT.video)
STYLES = {"exact": EXACT, "released_run": RELEASED_RUN, "released_training": RELEASED_TRAINING}
# For a model trained without task priors: the system turn is left out and the segments alone say what to do.
NO_PRIOR = replace(EXACT, image="", video="", edit="", subject="", question="", captions=("",))


def style_of(name: str | None, texts: Mapping[str, Any] | None = None) -> PromptStyle:
    """Find a style by the name that a checkpoint gives.

    Args:
        name: A key of `STYLES`. None: "exact", or "released_run" where there are no texts either.
        texts: Fields that differ from those of the style.

    Raises:
        UserError: If there is no such style, or a text is none.
    """
    chosen = name if name is not None else "exact" if texts else "released_run"
    values.one_of("prompt_style", chosen, STYLES)
    kinds = hints(PromptStyle)
    said = {k: convert(kinds[k], v, f"system_prompts.{k}") for k, v in (texts or {}).items() if k in kinds}
    if not said.get("captions", EXACT.captions):
        raise UserError("system_prompts.captions is empty: expected at least one text, which may be blank")
    return replace(STYLES[chosen], **said)


FILE = "generation_config.json"
DISTILLED = "distilled.safetensors"  # beside it: the generation side that takes the place of guidance
# What can be asked for at most: above are slips of the hand, which would fill the memory or never end.
LARGEST_SEED = 2**64 - 1  # what torch's generators accept
LARGEST_SIDE = 8192  # pixels; the largest released preset draws 1168
LONGEST = 10_000  # frames; the released model makes 121
MOST_RESULTS = 10_000  # of one prompt
MOST_DRAWS = 100  # of one result that is checked; 4 is usual
MOST_STEPS = 10_000  # of denoising; the release takes 30
MOST_TOKENS = 100_000  # of an answer; the release takes 256
STRONGEST = 1000  # guidance, and shift of the times
REGIONS = ("auto", "none")  # of an edit, in the place of a region
RENORMS = ("global", "channel", "none")
SOLVERS = ("euler", "dpm++", "unipc")
WORDS_ALONE = "words"
# What guidance can be distilled for, as people call it: requests of words alone, and those with one of these roles.
DISTILLED_FOR = {
    WORDS_ALONE: "images from words", "source": "edits", "reference": "given subjects", "region": "regions of edits",
    "video": "videos", "history": "dialogues",
}  # fmt: skip
BAKED = ("guidance_scale", "image_guidance_scale", "interval", "renorm", "renorm_min")  # what distilling settles
# Fields of `Sampling` and `Decoding`: the least, the most (None: no end), and what an error adds. `step_cache` stays
# below its most and `top_p` above its least.
RANGES: dict[str, tuple[float, float | None, str]] = {
    "num_inference_steps": (1, MOST_STEPS, ""),
    "guidance_scale": (0, STRONGEST, "; 1 is off, 4 is usual"),
    "image_guidance_scale": (0, STRONGEST, "; 1 is off, 4 is usual"),
    "shift": (1 / STRONGEST, STRONGEST, "; 3.5 is usual"),
    "renorm_min": (0, 1, ""),
    "strength": (0, 1, "; 1 is from noise alone, 0.8 is usual"),
    "step_cache": (0, 1, "; 0 is off, 0.05 is usual"),
    "max_new_tokens": (1, MOST_TOKENS, ""),
    "temperature": (0, None, "; 0 is greedy"),
    "top_p": (0, 1, "; 1 is off, 0.9 is usual"),
    "top_k": (0, MOST_TOKENS, ""),
    "repetition_penalty": (1 / STRONGEST, STRONGEST, "; 1 is off, 1.1 is usual"),
}
CHOICES = {"renorm": RENORMS, "solver": SOLVERS}


def differing(by_role: Mapping[str, Mapping[str, Any]], roles: Iterable[str]) -> dict[str, Any]:
    """Gather the fields that differ for a request of some roles; those of a later role hold."""
    there = set(roles)
    return {name: value for role, given in by_role.items() if role in there for name, value in given.items()}


def _checked(value: Any) -> None:
    """Convert the fields of a `Sampling` or `Decoding`; UserError for one that means none, or is out of its range."""
    checked(value)
    for name in hints(value.__class__):
        if name in RANGES:
            within(name, getattr(value, name), *RANGES[name])
        elif name in CHOICES:
            values.one_of(name, getattr(value, name), CHOICES[name])


# Resolution presets of the release for what goes in, by what is made of it (released commands; questions as trained).
RELEASED_BUCKETS = {"image": "image_768res", "video": "video_480p", "text": "video_480p"}


# What may be asked of a single run in the place of what the checkpoint's file says: fields of `GenerationConfig`.
ASKED = ("num_frames", "height", "width", "resolution", "sampling", "seed", "max_new_tokens")


def later_seed(seed: int, k: int) -> int:
    """Return the seed of result number k; after the largest comes 0."""
    return (seed + k) % (LARGEST_SEED + 1)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to denoise. Defaults: the released script (30 steps, shift 3.5, guidance 4 where 0.4 < t <= 1).

    Args:
        num_inference_steps: One evaluation per branch each, whatever the solver.
        guidance_scale: The prompt against no prompt; 1 is off.
        image_guidance_scale: Visual conditions against none (the release has it, but it crashes there); 1 is off.
        shift: How much of the steps noisy times get, see `flow.shift_times`; 1 is even.
        interval: Guidance acts where lo < t <= hi, t after the shift.
        renorm: "global" limits the guided velocity to the norm of the conditional one over a whole target, "channel"
            per token, "none" not at all.
        renorm_min: The least factor of that, from 0 to 1.
        cached: Keep what the conditions contribute instead of running the whole sequence at every step.
        solver: "euler" as released, "dpm++" or "unipc" of second order, which need fewer steps (`docs/howto/speed.md`).
        step_cache: A velocity that is expected to change by a smaller share than this is used again, below 1; 0: off.
        compile: Run the experts through torch.compile, for which the first image waits; CUDA graphs on a GPU.
        strength: Share of the steps that run, from the source of an edit with that much noise in it; 1: from noise
            alone. The number of steps is diffusers'.
        distilled: Where guidance acts, take one pass of weights that learned what guidance of these scales gives, which
            the checkpoint has to have (`training.distillation`).

    Raises:
        UserError: If a value means none, or is out of its range.
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
    strength: float = 1.0
    distilled: bool = False

    def __post_init__(self) -> None:
        _checked(self)
        if self.step_cache == 1:
            raise UserError("step_cache is 1", expected="0 (off) or a share below 1, such as 0.05", param="step_cache")
        if self.strength == 0:
            raise UserError("strength is 0", expected="above 0 and at most 1, such as 0.8", param="strength")
        if self.distilled and not self.cached:
            raise UserError("distilled guidance leaves conditions to the other weights: it needs cached=True")
        if self.interval[0] > self.interval[1]:
            low, high = self.interval
            said = f"interval ({low:g}, {high:g}) ends before it begins: write the lower time first"
            raise UserError(said, param="interval")

    @property
    def branches(self) -> int:
        """How many forms of a request run side by side: as it is, without its prompt, without images too."""
        if self.distilled:
            return 1
        return 1 + (self.guidance_scale > 1) + (self.image_guidance_scale > 1)

    @property
    def steps(self) -> int:
        """How many steps run (diffusers' rule for `strength`)."""
        total = self.num_inference_steps
        return total - int(max(total - total * self.strength, 0))

    def leads_away(self, negatives: Iterable[str]) -> None:
        """Raise a UserError for negative prompts, empty where there is none, that guidance cannot lead away from."""
        if self.distilled and any(negatives):
            said = "a negative prompt leads nowhere where guidance is distilled"
            raise UserError(said, expected="none, or to guide in several passes", fix={"distilled": False})

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

    Raises:
        UserError: If a value means none, or is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _checked(self)
        if self.top_p == 0:
            raise UserError("top_p is 0", expected="a share above 0, such as 0.9", param="top_p")
        if "" in self.stop:
            said = "stop has an empty text in it, which every answer holds: leave that one out"
            raise UserError(said, param="stop")


def undistilled(said: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a `generation_config.json` what is of distilled guidance, for weights that go without it."""
    kept = {name: value for name, value in said.items() if name not in ("distilled", "distillation")}
    if isinstance(kept.get("sampling"), Mapping):
        kept["sampling"] = {name: value for name, value in kept["sampling"].items() if name != "distilled"}
    return kept


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What a checkpoint prefers when the caller says nothing; the defaults are the release's.

    Args:
        height: Of images and videos that are made, in pixels.
        width: Likewise.
        num_frames: Of videos that are made.
        sampling: How it denoises.
        sampling_with: Fields of `Sampling` that differ where a request has a segment of a role, by the role's name, or
            by "region" where only a part of the target may change, or by "video"; later ones before earlier ones.
        distilled: Fields of `Sampling` that differ with distilled guidance, by the role that it was taught for, and by
            `WORDS_ALONE` where a request has none of `DISTILLED_FOR`; empty where it was not distilled.
        style: How its requests and samples are worded.
        tasks: What it was trained for, names of `sequence.tasks.TASKS`; empty if it does not say.
        buckets: Resolution preset of what is read, by what is made of it ("image", "video", "text"); without one an
            input keeps its size (see `media.transform`).
        history: Earlier turns that a dialogue shows it.
        thinks: Whether it was trained to describe a result before it draws it (`think=True`).
        batch: Images made together; of videos fewer, by their latent frames.
        resolution: Resolution preset of a run over an input file (`compat`), for what is read; None: `buckets` decide.
        seed: Of such a run, the same for every entry; -1 draws one. Elsewhere a seed is drawn where none is given.
        max_new_tokens: Of an answer in such a run.
        region: Where edits may change their source if nobody says, by what is made ("image", "video"): "auto", what the
            model finds; without one or "none" everywhere.
        examples: Words that it was trained for, by the name of the task, for people to begin with.
        distillation: Fields of `config.train.Distillation` with which guidance was distilled; empty where none was, or
            with the defaults.
    """

    height: int = 768
    width: int = 768
    num_frames: int = 49
    sampling: Sampling = field(default_factory=Sampling)
    sampling_with: dict[str, dict[str, Any]] = field(default_factory=dict)
    distilled: dict[str, dict[str, Any]] = field(default_factory=dict)
    style: PromptStyle = RELEASED_RUN
    tasks: tuple[str, ...] = ()
    buckets: dict[str, str] = field(default_factory=RELEASED_BUCKETS.copy)
    history: int = 0
    thinks: bool = False
    batch: int = 16
    resolution: str | None = RELEASED_BUCKETS["video"]
    seed: int = 42
    max_new_tokens: int = 256
    region: dict[str, str] = field(default_factory=dict)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for made, word in self.region.items():
            values.one_of(f"region.{made}", word, REGIONS)
        for name in ("height", "width", "num_frames", "batch", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be positive")
        values.whole("seed", self.seed, -1, LARGEST_SEED)

    def knows(self, task: str) -> bool:
        """Say whether the checkpoint was trained for a task, as far as it says."""
        return not self.tasks or task in self.tasks

    def denoising(self, **settings: Any) -> GenerationConfig:
        """Copy it with these fields of `Sampling` for every request that does not say otherwise."""
        kept, few = (
            {role: {k: v for k, v in given.items() if k not in settings} for role, given in by_role.items()}
            for by_role in (self.sampling_with, self.distilled)
        )
        return replace(self, sampling=replace(self.sampling, **settings), sampling_with=kept, distilled=few)

    def changed(self, said: Mapping[str, Any]) -> GenerationConfig:
        """The same with what a caller says otherwise.

        Args:
            said: Fields of `ASKED`, in the form of the file; those of `sampling` hold for every request.

        Raises:
            UserError: For another field, or a value that cannot be.
        """
        kinds, sampling = hints(GenerationConfig), said.get("sampling", {})
        try:
            values.build(Sampling, sampling, "sampling")
            for name in said:
                if name not in ASKED:
                    raise ValueError(values.unknown("field", str(name), ASKED))
            plain = {name: convert(kinds[name], value, name) for name, value in said.items() if name != "sampling"}
        except ValueError as error:
            raise UserError(str(error)) from None
        return replace(self, **plain).denoising(**sampling)

    def sampling_for(self, roles: Iterable[str], **settings: Any) -> Sampling:
        """Choose how a request denoises.

        Args:
            roles: See `sequence.segment.roles_of`.
            **settings: Fields of `Sampling` that the caller wants otherwise; None changes nothing.

        Raises:
            UserError: For a field that `Sampling` lacks, a value that makes no sense, or guidance other than what was
                distilled, or what it was not distilled for.
        """
        values.no_others(settings, Sampling.__dataclass_fields__)
        roles, asked = set(roles), {k: v for k, v in settings.items() if v is not None}
        there = roles.intersection(DISTILLED_FOR) or {WORDS_ALONE}
        untaught = sorted(there.difference(self.distilled))
        if asked.get("distilled") and self.distilled and untaught:
            said = f"guidance is not distilled into this checkpoint for {DISTILLED_FOR[untaught[-1]]}"
            taught = ", ".join(DISTILLED_FOR[name] for name in self.distilled)
            raise UserError(said, expected=taught, fix={"distilled": False}, param="distilled")
        few = asked.get("distilled", self.sampling.distilled) and not untaught
        differs = differing(self.sampling_with, roles) | (differing(self.distilled, there) if few else {})
        usual = replace(self.sampling, **differs | {"distilled": bool(few)})
        found = replace(usual, **asked)
        other = [name for name in BAKED if getattr(found, name) != getattr(usual, name)]
        if usual.distilled and found.distilled and other:
            name = other[0]
            said = f"{name} is {getattr(found, name)}, but {getattr(usual, name)} is distilled into this checkpoint"
            raise UserError(
                said, fix={"distilled": False}, expected="no other, or to guide in several passes", param=name
            )
        return found

    @classmethod
    def read(cls, folder: Path, *, few: bool) -> GenerationConfig:
        """Read a checkpoint's file; without one of ours (transformers writes a file of this name too) the release's.

        Args:
            folder: Where the tokenizer of the checkpoint is.
            few: Whether the checkpoint has distilled guidance; what the file says of it holds only then.

        Raises:
            UserError: If the file is damaged or a value cannot be.
        """
        path = folder / FILE
        found = values.read_json(path) if path.is_file() else {}
        if "height" not in found:
            return cls()
        try:
            usual = cls._of(found)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is invalid: {error}; restore the file, or delete it") from error
        if few:
            return usual
        return replace(usual, sampling=replace(usual.sampling, distilled=False), distilled={}, distillation={})

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> GenerationConfig:
        sampling = Sampling(**known(Sampling, found.get("sampling", {})))
        differs = {role.lower(): known(Sampling, given) for role, given in found.get("sampling_with", {}).items()}
        few = {role.lower(): known(Sampling, given) for role, given in found.get("distilled", {}).items()}
        for given in (*differs.values(), *few.values()):
            replace(sampling, **given)
        preset = cls.resolution if found.get("buckets") else None
        style = style_of(found.get("prompt_style"), found.get("system_prompts"))
        said = {"buckets": {}, "resolution": preset} | known(cls, found)
        said |= {"sampling": sampling, "sampling_with": {}, "distilled": {}, "style": style}
        plain = {name: convert(kind, said[name], name) for name, kind in hints(cls).items() if name in said}
        return cls(**plain | {"sampling_with": differs, "distilled": few})
