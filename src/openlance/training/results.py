"""Results of a model as data: what it draws, with guidance, for the requests of a source, and of which noise.

`openlance encode` writes them ahead of training. Few steps that are matched are held to them
(`training.matching`), so that no pass of the guided model is done twice; what rewards refuse is left empty.
"""

from __future__ import annotations

import math
import weakref
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from openlance.checkpoint.formats import Files, find
from openlance.checkpoint.tensors import fingerprint
from openlance.config.sampling import Sampling
from openlance.config.train import Stage
from openlance.config.values import as_data
from openlance.data.encoded import EncodedSource, read_about
from openlance.data.front import Fit
from openlance.data.source import Sample, digest, marked
from openlance.errors import UserError
from openlance.model.precision import autocast
from openlance.rl.objectives import OBJECTIVES
from openlance.rl.rewards import Drawn, RewardPool, Weighted, parse_rewards
from openlance.rl.rollout import batches
from openlance.sequence.segment import prompt_in, roles_of
from openlance.sequence.tasks import spec_of
from openlance.training.distillation import emptied, guidance_of
from openlance.training.rewarded.practice import sources_of

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

BY, REWARDS = "drawn by", "rewards"  # what shards say of themselves: the model's hash, and what judged


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """How targets are drawn and which of them are kept.

    Args:
        seed: Of the noise, together with the id of a sample.
        rewards: What judges results, as `rl.rewards.registry` reads it; empty keeps all.
        threshold: Total of the rewards from which a result is kept.
        rows: Most noisy rows that are drawn together.
        dtype: In which the model computes, as in `config.train.Stage`.
    """

    seed: int = 0
    rewards: str = ""
    threshold: float = 1.0
    rows: int = 4096
    dtype: str = "auto"

    def check(self, task: str) -> None:
        """Raise a UserError where there is nothing to draw, or a reward is unknown."""
        if spec_of(task).makes == "text":
            raise UserError(f"{task} makes a text, and images or videos are drawn", expected="a task that makes one")
        if not math.isfinite(self.threshold):
            raise UserError(f"threshold is {self.threshold}", expected="a number")
        _judges(self.rewards)

    def refuses(self, sample: Sample) -> str:
        """Say why the results of a request cannot be judged; nothing where they can."""
        judges = _judges(self.rewards)
        try:
            for one in judges:
                one.reward.check(prompt_in(sample.segments), sample.truth)
        except UserError as error:
            return str(error)
        return ""

    @property
    def content(self) -> str:
        """Hash the files of rewards that a user wrote."""
        files = [one.said.rpartition(":")[0] for one in _judges(self.rewards)]
        return marked(digest(Path(file).expanduser()) for file in files if file.endswith(".py"))


@lru_cache(maxsize=1)  # files of a user are run once in a process, not for every row
def _judges(rewards: str) -> tuple[Weighted, ...]:
    return parse_rewards(rewards) if rewards else ()


@dataclass
class Drawer:
    """Fills the targets of samples with latents that a model draws.

    Args:
        pipe: The model.
        settings: How.

    Raises:
        UserError: For rewards that are unknown or cannot be loaded.
    """

    pipe: LancePipeline
    settings: ResultSettings
    pool: RewardPool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.settings.rewards:
            self.pool = RewardPool(self.settings.rewards, beside=False, failures=0)
            weakref.finalize(self, self.pool.close)

    def __call__(self, samples: Iterable[Sample]) -> list[Sample]:
        """Draw a result of each.

        Args:
            samples: Of any number; what their targets show is not kept.

        Returns:
            The same with `seed`, up to the target, which is (T, Y, X, C), or empty where rewards refuse the result.

        Raises:
            UserError: If a reward fails.
        """
        own = self.settings.seed
        asked = [
            replace(s, segments=emptied(s.segments), seed=zlib.crc32(f"{own} {s.id}".encode("utf-8", "replace")))
            for s in samples
        ]
        found = dict[int, Tensor | None]()
        requests = [s.segments for s in asked]
        alike = batches(
            requests, self.pipe.codec, self.settings.rows, lambda r: (guidance_of(self.pipe.defaults, r), r[-1].size)
        )
        for (sampling, _), numbers in alike:
            found |= dict(zip(numbers, self._drawn([asked[n] for n in numbers], sampling), strict=True))
        return [replace(s, segments=[*s.segments[:-1], s.segments[-1].filled(found[n])]) for n, s in enumerate(asked)]

    def _drawn(self, asked: list[Sample], sampling: Sampling) -> list[Tensor | None]:
        """What is drawn for requests of one size and not refused."""
        requests, seeds = [s.segments for s in asked], [s.seed or 0 for s in asked]
        with autocast(self.settings.dtype, self.pipe.device):
            latents = self.pipe.fill_latents(requests, sampling, seeds)
        good = [True] * len(asked)
        if self.pool is not None:
            shown = zip(asked, self.pipe.decode_latents(latents, requests), strict=True)
            scores = self.pool.submit([
                Drawn(prompt=prompt_in(s.segments), media=clip, sources=sources_of(s.segments), truth=s.truth)
                for s, clip in shown
            ]).collect()  # fmt: skip
            good = [score.total >= self.settings.threshold - 1e-6 for score in scores if score is not None]
        return [z.cpu() if right else None for z, right in zip(latents, good, strict=True)]


def drawn_by(files: Files, clips: bool) -> str:
    """Hash what decides on the results of a model: the decoder's weights, and how it samples with guidance."""
    usual = files.defaults.denoising(distilled=False)
    plain = as_data(Sampling())
    own = {name: value for name, value in as_data(usual.sampling).items() if value != plain[name]}
    return marked([fingerprint(files.decoder(clips)), repr((own, usual.sampling_with))])


def check_results(sources: Mapping[str, Any], stage: Stage, model: Path) -> None:
    """Check what was drawn ahead for a stage.

    Raises:
        UserError: If it would learn from what was refused, or be held to what another model drew or other steps lead.
    """
    for task, source in sources.items():
        about = read_about(source.files[0]) if isinstance(source, EncodedSource) else {}
        if BY not in about:
            continue
        place, distill = source.files[0].parent, stage.distill
        if _learns_targets(stage, model) and any(read_about(file).get("refused") for file in source.files):
            said = f"{place} has requests without a result, since rewards refused it"
            raise UserError(f"{said}: the stage {stage.name} cannot learn from them, one with distill can")
        first = next((row for file in source.files for row in source.rows(file)), None)
        if distill is None or first is None:
            continue
        way = distill.of(roles_of([emptied(source.sample(first, Fit(), np.random.default_rng()).segments)]))
        if not (way.matched and way.hold):
            continue
        if about[BY] != drawn_by(find(model), spec_of(task).kind == "video"):
            said = f"{place} holds what another model, or other guidance, than {model} drew"
            raise UserError(f"{said}: draw anew with that model")
        if way.progressive:
            said = f"{place} holds results of the guided model, and with distill.progressive the start's few steps lead"
            raise UserError(said, fix={"progressive": False})


def _learns_targets(stage: Stage, model: Path) -> bool:
    """Whether a stage learns from what its samples show."""
    if stage.rl is None:
        return stage.distill is None
    few = find(model).defaults.sampling.distilled  # is taught again in the place of the samples
    return not OBJECTIVES[stage.rl.objective].samples or stage.rl.supervised > 0 and not few
