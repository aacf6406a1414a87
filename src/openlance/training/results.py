"""Results of a model as data: what it draws, with guidance, for the requests of a source, and of which noise.

`openlance encode` writes them ahead of training. Few steps that are matched are held to them
(`training.matching`), so that no pass of the guided model is done twice; what rewards refuse is left empty.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from openlance.checkpoint.formats import Files, find
from openlance.checkpoint.tensors import fingerprint
from openlance.config.sampling import GenerationConfig
from openlance.config.train import Stage
from openlance.data.encoded import EncodedSource, read_about
from openlance.data.source import Sample, marked
from openlance.errors import UserError
from openlance.inference.visual import rows_of_target
from openlance.model.precision import autocast
from openlance.rl.rewards import Drawn, RewardPool, parse_rewards
from openlance.sequence.segment import any_video, prompt_in
from openlance.sequence.tasks import spec_of
from openlance.training.distillation import emptied, guidance_of
from openlance.training.rewarded.practice import sources_of

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

DRAWN, REWARDS = "drawn", "rewards"  # what shards say of themselves: what drew, and what judged


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How targets are drawn and which of them are kept.

    Args:
        seed: Of the noise, together with the id of a sample.
        rewards: What judges results, as `rl.rewards.registry` reads it; empty keeps all.
        least: Total of the rewards from which a result is kept.
        rows: Most noisy rows that are drawn together.
        dtype: In which the model computes, as in `config.train.Stage`.
    """

    seed: int = 0
    rewards: str = ""
    least: float = 1.0
    rows: int = 4096
    dtype: str = "auto"

    def check(self, task: str) -> None:
        """Raise a UserError where there is nothing to draw, or a reward is unknown."""
        if spec_of(task).makes == "text":
            raise UserError(f"{task} makes a text, and images or videos are drawn", expected="a task that makes one")
        if self.rewards:
            parse_rewards(self.rewards)


@dataclass
class Drawer:
    """Fills the targets of samples with latents that a model draws.

    Args:
        pipe: The model.
        how: See `Drawing`.

    Raises:
        UserError: For rewards that are unknown or cannot be loaded.
    """

    pipe: LancePipeline
    how: Drawing
    pool: RewardPool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.how.rewards:
            self.pool = RewardPool(self.how.rewards, beside=False)

    def __call__(self, samples: list[Sample]) -> list[Sample]:
        """Draw a result of each.

        Args:
            samples: Of any number.

        Returns:
            The same with `seed`, up to the target, which is (T, Y, X, C), or empty where rewards refuse the result.

        Raises:
            UserError: For a request that a reward cannot score.
        """
        if self.pool is not None:
            for sample in samples:
                self.pool.check(prompt_in(sample.segments), sample.truth)
        asked = [
            replace(s, segments=emptied(s.segments), seed=zlib.crc32(f"{self.how.seed} {s.id}".encode()))
            for s in samples
        ]
        found = dict[int, Tensor | None]()
        for numbers in self._alike(asked):
            kept = self._drawn([asked[n] for n in numbers], [sources_of(samples[n].segments) for n in numbers])
            found |= dict(zip(numbers, kept, strict=True))
        return [replace(s, segments=[*s.segments[:-1], s.segments[-1].filled(found[n])]) for n, s in enumerate(asked)]

    def _alike(self, asked: list[Sample]) -> Iterator[list[int]]:
        """Numbers of requests that are guided alike, as many at once as there is room for."""
        alike = dict[str, list[int]]()
        for n, sample in enumerate(asked):
            how = guidance_of(self.pipe.defaults, sample.segments), any_video([sample.segments])
            alike.setdefault(repr(how), []).append(n)
        for numbers in alike.values():
            some, rows = list[int](), 0
            for n in numbers:
                own = rows_of_target(asked[n].segments, self.pipe.codec)
                if some and rows + own > self.how.rows:
                    yield some
                    some, rows = [], 0
                some, rows = [*some, n], rows + own
            yield some

    def _drawn(self, asked: list[Sample], given: list[tuple]) -> list[Tensor | None]:
        """What is drawn for some requests and not refused."""
        requests = [s.segments for s in asked]
        how, seeds = guidance_of(self.pipe.defaults, requests[0]), [s.seed or 0 for s in asked]
        with autocast(self.how.dtype, self.pipe.device):
            latents = self.pipe.fill_latents(requests, how, seeds)
        good = [True] * len(asked)
        if self.pool is not None:
            shown = zip(asked, self.pipe.decode_latents(latents, requests), given, strict=True)
            scores = self.pool.submit([
                Drawn(prompt=prompt_in(s.segments), media=clip, sources=sources, truth=s.truth)
                for s, clip, sources in shown
            ]).collect()  # fmt: skip
            good = [score is not None and score.total >= self.how.least - 1e-6 for score in scores]
        return [z.cpu() if right else None for z, right in zip(latents, good, strict=True)]


def artist(files: Files, clips: bool) -> str:
    """Tell what draws from anything that would draw otherwise: weights and guidance."""
    usual = GenerationConfig.read(files.tokenizer).denoising(distilled=False)
    return marked([fingerprint(files.decoder(clips)), repr((usual.sampling, usual.sampling_with))])


def check_results(sources: Mapping[str, Any], stage: Stage, model: Path) -> None:
    """Check what was drawn ahead for a stage.

    Raises:
        UserError: If another model drew it, or the stage would learn from what was refused, or in vain.
    """
    for task, source in sources.items():
        about = read_about(source.files[0]) if isinstance(source, EncodedSource) else {}
        if DRAWN not in about:
            continue
        place, distill = source.files[0].parent, stage.distill
        if distill is None and about[REWARDS]:
            said = f"{place} holds requests whose results were refused, from which the stage {stage.name} cannot learn"
            raise UserError(f"{said}: give it to a stage with distill, or draw without rewards")
        if distill is None:
            continue
        if about[DRAWN] != artist(find(model), spec_of(task).kind == "video"):
            raise UserError(
                f"{place} holds what another model, or other guidance, than {model} drew: draw anew with that"
            )
        if any(way.matched and way.progressive and way.hold for way in distill.ways):
            said = f"{place} holds results of the guided model, and with distill.progressive the start's few steps lead"
            raise UserError(said, fix={"progressive": False})
