"""Training as data: a stage is one frozen value; presets are the recipes of `openlance/recipes` and of plugins.

    stage("ct-i")                                   # as the paper trains the 3B
    stage("sft", "nano")                            # the same stage in small
    read_stage(Path("mine.yaml"))                   # {base: 3b/sft, steps: 2000, mixture: {image_edit: 1}}
    override(stage("pt"), ["lr=3e-5", "mixture.t2v=10"])

A recipe is a file with `stages`, run in order. UserError with one sentence for whatever a user can get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from openlance.config.lora import Lora
from openlance.config.plugins import plugin, plugins
from openlance.config.sampling import Sampling, differing
from openlance.config.values import as_data, build, one_of, override, read_yaml, unknown, whole
from openlance.errors import UserError

CHOICES = {"schedule": ("constant", "cosine"), "optimizer": ("adamw", "muon"), "dtype": ("bfloat16", "float32", "auto")}
REQUIRED = ("name", "steps", "lr", "mixture", "pack_tokens", "max_sample_tokens")
POSITIVE = ("steps", "lr", "max_norm", "draws", "max_sample_tokens", "accumulate", "shift", "max_frames")
NOT_NEGATIVE = ("warmup", "eps", "weight_decay", "text_weight", "flow_weight", "dense_weight")
SHARES = ("drop_text", "drop_all", "ema", "lr_end")
MOST = {"draws": 1000, "max_frames": 100_000, "accumulate": 1_000_000}  # above are slips of the hand
# What a stage freezes whose generation side alone learns.
UNDERSTANDING = ("vit", "lance.embed", "lance.head", "lance.norm.und", "lance.layers.*.und")
NUMERALS = str.maketrans({"1": "i", "2": "ii", "3": "iii", "-": None, "_": None, " ": None})


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """One step of the resolution curriculum.

    Args:
        until: Share of the stage's steps at which this resolution ends.
        image: Base sizes in pixels, for the VAE and for the ViT: the aspect bucket nearest to an image has about base *
            base pixels (`media.transform`).
        video: Likewise.
    """

    until: float = 1.0
    image: tuple[int, int] = (768, 672)
    video: tuple[int, int] = (640, 616)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """That a stage learns, in one pass, what guidance gives in several (Meng et al., arXiv 2210.03142), and nothing but
    the requests of its samples is read, with `hold` also what was drawn for them ahead (`training.results`): velocities
    at states of guided trajectories of the model it starts from, or where results of a few steps belong.

    Args:
        steps: Fewest and most steps of a trajectory, where nothing is matched; where these lie differs from one to the
            next.
        shift: Least and largest shift of their times. Where the two are one, so is the shift of the result.
        progressive: Whether the teacher is what the start has distilled already, with its solver, and not the guided
            model: one pass a step in the place of two or three. Of what is matched it is the teacher that `hold` names.
        matched: Whether, in the place of learning velocities, what the few steps of the result draw moves as a whole to
            where the guided model expects results (`training.matching`), from what the start has distilled. The stage's
            `draws` and `flow_weight` are of the other requests alone.
        hold: Weight of the squared distance of matched results from where the teacher leads from the same noise; 0
            leaves it out.
        critic_lr: Learning rate of the critic, which tells where present results lie. It neither rises nor falls; for
            the rest the critic learns as the stage says.
        critic_updates: How often the critic learns in a step.
        by_role: Fields that differ by what a request holds, as `GenerationConfig.sampling_with` has them.
        num_inference_steps: With which the result is sampled.
        solver: Likewise.
    """

    steps: tuple[int, int] = (7, 10)
    shift: tuple[float, float] = (1.5, 3.0)
    progressive: bool = False
    matched: bool = False
    hold: float = 0.0
    critic_lr: float = 6e-4
    critic_updates: int = 2
    by_role: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_inference_steps: int = 4
    solver: str = "dpm++"

    def __post_init__(self) -> None:
        whole("distill.critic_updates", self.critic_updates, 1)
        if self.hold < 0:
            raise UserError(f"distill.hold is {self.hold}", expected="0 or more")
        if self.critic_lr <= 0:
            raise UserError(f"distill.critic_lr is {self.critic_lr}", expected="more than 0")
        if self.matched and self.shift[0] != self.shift[1]:
            raise UserError(
                f"distill.shift is {list(self.shift)}", expected="one shift, twice, where the steps are matched"
            )
        for name, least in (("steps", 1), ("shift", 0.001)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise UserError(f"distill.{name} is {[low, high]}", expected=f"two numbers from {least}, rising")
        Sampling(num_inference_steps=self.num_inference_steps, solver=self.solver)
        for role in self.by_role:
            self.of([role])  # says what cannot be

    @property
    def ways(self) -> list[Distillation]:
        """What holds for requests of no role in particular, and for each of those that differ."""
        return [self, *(self.of([role]) for role in self.by_role)]

    @property
    def repeats(self) -> bool:
        """Whether the few steps of the start are learned from."""
        return any(way.progressive for way in self.ways)

    @property
    def goes_on(self) -> bool:
        """Whether it begins with what the start has distilled."""
        return self.repeats or self.matches

    @property
    def matches(self) -> bool:
        """Whether some requests are matched."""
        return any(way.matched for way in self.ways)

    def of(self, roles: Iterable[str]) -> Distillation:
        """Return what holds for a request of some roles (`sequence.segment.roles_of`)."""
        own = as_data(replace(self, by_role={})) | differing(self.by_role, roles)
        return build(Distillation, own, "distill")


@dataclass(frozen=True, kw_only=True)
class Rewarding:
    """That a stage learns from what rewards say of the model's own results (paper, section 4.4). A step is a round: the
    requests of its samples are drawn several times each, scored, and learned from in one or several updates.

    Args:
        rewards: What is rewarded, with weights, as `rl.rewards.registry` reads it.
        judge: What scores the results of held-out requests, likewise; the rewards themselves by default.
        objective: A key of `rl.objectives.OBJECTIVES`.
        settings: Fields of the objective that differ from its own defaults.
        group: Results of a request.
        probes: Results that are drawn first; the others only where the rewards of these differ. 0: all at once.
        same_noise: Whether the results of a request begin with the same noise.
        updates: Of a round.
        num_inference_steps: Of a rollout.
        solver: Of its steps that are not stochastic.
        stochastic: A key of `flow.stochastic.STOCHASTIC`, for objectives that follow trajectories.
        noise: Level of these steps.
        window: A key of `flow.stochastic.WINDOWS`.
        window_size: How many steps it has.
        guided: Whether rollouts are guided, while the updates are not.
        facts: Weights of the facts of a reward, each centered alone; 1 where not named.
        center: See `rl.advantages.Advantages`.
        scale: Likewise.
        keep: Likewise.
        times: Times of an objective without trajectories: steps of their schedule, how many are skipped at its noisy
            end, among how many they are drawn, and how many.
        supervised: Weight of the usual loss on a share of the samples in every update; distilled guidance is taught
            again in its place.
        supervised_share: Of the samples of a round.
        trust: Largest share |v - v_old|^2 / |target - v_old|^2 after which the other updates of a round are left out; 0
            is none.
        patience: Rounds in a row without any group whose rewards differ, after which the run stops.
        shuffle: Shuffle rewards inside groups: a run that must not get better.
        workers: Processes that score.
        seconds: Longest time for which a reward may score a batch.
        failures: Results that may fail to be scored.
    """

    rewards: dict[str, float]
    judge: dict[str, float] = field(default_factory=dict)
    objective: str = "grpo-guard"
    settings: dict[str, float] = field(default_factory=dict)
    group: int = 16
    probes: int = 0
    same_noise: bool = False
    updates: int = 1
    num_inference_steps: int = 10
    solver: str = "euler"
    stochastic: str = "cps"
    noise: float = 0.8
    window: str = "drawn"
    window_size: int = 2
    guided: bool = False
    facts: dict[str, float] = field(default_factory=dict)
    center: str = "group"
    scale: str = "none"
    keep: int = 0
    times: tuple[int, int, int, int] = (10, 1, 4, 4)
    supervised: float = 0.0
    supervised_share: float = 0.15
    trust: float = 0.0
    patience: int = 10
    shuffle: bool = False
    workers: int = 1
    seconds: float = 60.0
    failures: int = 100

    def __post_init__(self) -> None:
        Sampling(num_inference_steps=self.num_inference_steps, solver=self.solver)
        rules = [
            ("rewards", bool(self.rewards), "a reward or more, such as {ocr: 1}"),
            ("group", self.group >= 2, "2 or more: results are compared with each other"),
            ("probes", self.probes == 0 or 2 <= self.probes < self.group, "0, or from 2 to below `group`"),
            ("updates", self.updates >= 1, "1 or more"),
            ("patience", self.patience >= 1, "1 or more"),
            ("supervised", self.supervised >= 0, "0 or more"),
            ("supervised_share", 0 < self.supervised_share <= 1, "above 0 and at most 1"),
            ("trust", self.trust >= 0, "0 or more"),
        ]
        for name, holds, expected in rules:
            if not holds:
                raise UserError(f"rl.{name} is {getattr(self, name)}", expected=expected, param=f"rl.{name}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything about a stretch of training that is not the model, the machine or the place of the data.

    Lengths: steps are updates; tokens are rows of a pack, text and visual alike. Sources of the values: the comments
    in `recipes/*.yaml`.
    """

    name: str
    scale: str = "3b"
    steps: int
    lr: float
    schedule: str = "constant"
    lr_end: float = 0.0  # where a cosine ends, as a share of lr
    warmup: int = 0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-15
    weight_decay: float = 0.0
    max_norm: float = 1.0
    ema: float = 0.9999  # decay of the averaged weights; 0 keeps none
    text_weight: float = 0.25  # of the next-token loss
    flow_weight: float = 1.0  # of the velocity loss
    dense_weight: float = 0.0  # of the auxiliary loss on the vision tower, for sources with labeled points
    dense_classes: tuple[int, ...] = ()  # how many classes each channel of these labels has
    dense_point: int = 4  # pixels between two labeled points
    shift: float = 1.0  # of the training times
    mixture: dict[str, float]  # task: weight. Ratios count samples, not tokens (paper); need not add up to anything
    source: str = ""  # where the samples of tasks come from that nobody gives data for
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)  # ... of some tasks, with the keys of a source
    draws: int = 1  # noise samples per target that share one context
    pack_tokens: tuple[int, int]  # a pack is closed once it has the first; it never has more than the second
    max_sample_tokens: int  # longer samples are left out, and counted
    accumulate: int = 1  # packs of one rank per update
    resolutions: tuple[Resolution, ...] = field(default_factory=lambda: (Resolution(),))
    # Paper: shortest and longest side of what is generated, and of what is only looked at, in pixels. They tell; what
    # is read is cut by `resolutions`.
    sides: tuple[int, int] = (480, 848)
    understood_sides: tuple[int, int] = (462, 826)
    max_frames: int = 69  # 6 seconds at 12 fps, cut to 1 + 4k (released code)
    drop_text: float = 0.0  # share of samples that lose their prompt alone
    drop_all: float = 0.0  # share of samples that lose prompt and visual conditions
    frozen: tuple[str, ...] = ()  # beginnings of parameter names, `*` stands for anything; see `freezes`
    lora: Lora | None = None  # an adapter learns in the place of what is not frozen, which stays as it is
    # Tasks of the mixture at whose samples an adapter is to leave everything as it is: prior preservation (Ruiz et al.
    # 2022, section 3.3) with what the start predicts as the target, which its own results only show.
    preserve: tuple[str, ...] = ()
    spread: tuple[float, float] = (1.0, 1.0)  # of placements, by sources that have such; at the first and the last step
    distill: Distillation | None = None  # guidance, in the place of what the samples show
    rl: Rewarding | None = None  # what rewards say, in the place of what the samples show
    checkpointing: bool = False  # layers are computed again in the backward pass instead of kept
    dtype: str = "bfloat16"  # auto: bfloat16 where the device is fast at it, else float32
    seed: int = 0
    paper_tokens: float = 0.0  # how many tokens the paper says the stage saw; 0 where it says nothing

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            one_of(name, getattr(self, name), choices)
        low, high = self.pack_tokens
        sides = [side for r in self.resolutions for base in (r.image, r.video) for side in base]
        ends = [r.until for r in self.resolutions]
        labeled = bool(self.dense_classes) and self.dense_point > 0
        rules = [
            *((name, getattr(self, name) > 0, "more than 0") for name in POSITIVE),
            *((name, getattr(self, name) >= 0, "0 or more") for name in NOT_NEGATIVE),
            *((name, 0 <= getattr(self, name) <= 1, "from 0 to 1") for name in SHARES),
            *((name, getattr(self, name) <= most, f"at most {most}") for name, most in MOST.items()),
            *((f"mixture.{task}", weight >= 0, "0 or more") for task, weight in self.mixture.items()),
            ("mixture", sum(self.mixture.values()) > 0, "weights of which at least one is above 0"),
            ("drop_text + drop_all", self.drop_text + self.drop_all <= 1, "1 or less together"),
            ("dense_classes", not self.dense_weight or labeled, "classes of each channel of labeled points"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("seed", 0 <= self.seed < 2**32, "a whole number from 0 to 2**32 - 1"),
            ("resolutions", all(0 < side <= 10_000 for side in sides), "base sizes from 1 to 10000 pixels"),
            ("resolutions", bool(ends) and ends == sorted(ends) and ends[-1] == 1, "rising `until`, the last 1"),
            ("pack_tokens", 0 < low <= high, "two lengths, the smaller one first"),
            ("max_sample_tokens", self.max_sample_tokens <= high, f"at most the pack's {high} tokens"),
        ]
        values = vars(self) | {f"mixture.{task}": weight for task, weight in self.mixture.items()}
        for name, holds, expected in rules:
            if not holds:
                found = values.get(name, "wrong")
                raise UserError(f"{name} of the stage {self.name} is {found}: it must be {expected}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: a linear warm-up, then constant or half a cosine down to
        `lr_end`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        along = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * along)))

    def resolution(self, step: int) -> Resolution:
        """Return the resolution of a step, counted from 0."""
        return next((r for r in self.resolutions if step < r.until * self.steps), self.resolutions[-1])

    def freezes(self, parameter: str) -> bool:
        """Tell if a parameter is left alone: `vit` freezes vit.*, `lance.layers.*.und` one expert of every layer."""
        from fnmatch import fnmatchcase

        return any(fnmatchcase(parameter, pattern + "*") for pattern in self.frozen)

    def halves_frozen(self, sharded: bool) -> bool:
        """Tell if matrices below adapters are kept in bfloat16 where the stage computes in it. Sharded layers hold
        weights of one kind, and what draws between steps takes them as they are."""
        alone = self.rl is None and self.distill is None and not sharded
        return alone and self.lora is not None and self.dtype != "float32"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages in order, of models of one scale.

    Args:
        file: The stages.
        prompts: What is drawn with each export while it trains.
        from_nothing: Trains what the stages stand on (tokenizer, VAE) and then the stages: (out, stages=, settings=,
            show=) -> the folder of the model.
    """

    file: Path
    prompts: tuple[str, ...] = ()
    from_nothing: Callable[..., Path] | None = None


RELEASED = {"3b": Recipe(file=Path(__file__).parents[1] / "recipes" / "3b.yaml")}


def presets() -> list[str]:
    """List the scales that have a recipe."""
    return sorted(RELEASED.keys() | plugins("recipes").keys())


def recipe_of(scale: str) -> Recipe:
    """Find the recipe of a scale; UserError if there is none."""
    found = RELEASED.get(scale) or plugin("recipes", scale)
    if found is None:
        raise UserError(unknown("recipe", scale, presets()))
    return found


@lru_cache(maxsize=8)
def recipe(scale: str) -> tuple[Stage, ...]:
    """Read the stages of a recipe in order: `recipe("nano")`, also under the name `recipe/nano`."""
    return read_recipe(recipe_of(scale.removeprefix("recipe/")).file)


def stage(name: str, scale: str = "3b") -> Stage:
    """Find a preset by its name (pt, ct-i, ct-ii, ct-iii, sft, rl; CT1 and ct_i are read too) and scale (3b, nano);
    `nano/sft` names its scale itself."""
    given, _, short = name.rpartition("/")
    return chosen(recipe(given or scale), short)


def chosen(stages: tuple[Stage, ...], name: str) -> Stage:
    """Find the stage of a name, as people write it: "CT1" and "ct_i" are "ct-i"."""
    named = {one.name.lower().translate(NUMERALS): one for one in reversed(stages)}
    if (found := named.get(name.lower().translate(NUMERALS))) is None:
        raise UserError(unknown("stage", name, [s.name for s in stages], name.lower()))
    return found


def changed(start: Stage, settings: Iterable[str]) -> Stage:
    """Change a preset by `field=value` settings (see `override`). With other steps or packs it is no longer the
    paper's, so what that says of its tokens is dropped."""
    return _own(start, override(start, settings))


def _own(start: Stage, now: Stage) -> Stage:
    same = all(getattr(now, name) == getattr(start, name) for name in ("steps", "pack_tokens", "accumulate"))
    return now if same or now.paper_tokens != start.paper_tokens else replace(now, paper_tokens=0.0)


def read_recipe(path: Path) -> tuple[Stage, ...]:
    """Read the stages of a file: all under `stages`, or the file is one stage.

    Each may begin with `base`, a preset ("3b/sft") or the name of a stage above it, whose fields it then changes; a
    mixture is replaced as a whole. Fields beside `stages` are of every stage that does not set them.

    Raises:
        UserError: If the file does not fit; it names the place.
    """
    data = read_yaml(path)
    entries = data.get("stages", [data])
    common = {key: value for key, value in data.items() if key != "stages"} if "stages" in data else {}
    if not isinstance(entries, list) or not entries:
        raise UserError(f"`stages` of {path} is {entries!r}: expected a list of stages, each with a name")
    made: list[Stage] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise UserError(f"stage {number} of {path} is {entry!r}: expected fields and values, such as name: pt")
        inherits = made and "base" in entry and "/" not in str(entry["base"])  # from one that has them already
        made.append(_resolved(dict(entry) if inherits else {**common, **entry}, tuple(made), path))
    return tuple(made)


def _resolved(entry: dict[str, Any], above: tuple[Stage, ...], path: Path) -> Stage:
    base, start = entry.pop("base", None), None
    if base is not None:
        start = chosen(above, str(base)) if above and "/" not in str(base) else stage(str(base))
        entry = as_data(start) | entry
    if missing := [name for name in REQUIRED if name not in entry]:
        raise UserError(f"a stage of {path} lacks {', '.join(missing)}: add them, or begin with `base: 3b/sft`")
    try:
        found = build(Stage, entry)
        return found if start is None or start in above else _own(start, found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_stage(path: Path, name: str | None = None) -> Stage:
    """Read one stage of a YAML or JSON file; `name` chooses among several."""
    stages = read_recipe(path)
    if name is None and len(stages) > 1:
        names = ", ".join(s.name for s in stages)
        raise UserError(f"{path} holds the stages {names}: say which of them")
    return stages[0] if name is None else chosen(stages, name)


def dump(value: Stage) -> str:
    """Write a stage as YAML that `read_stage` reads back."""
    import yaml

    text: str = yaml.safe_dump(as_data(value), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return text
