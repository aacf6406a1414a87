"""What a round of rewards takes: results that are drawn, kept and learned from.

What is assumed: every group is drawn whole, also where its probes would not differ, and has as many results that are
learned from as may be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlance.config.model import ModelConfig
from openlance.config.sampling import Sampling
from openlance.config.train import Resolution, Stage
from openlance.planning.size import decoder_half, decoder_operations
from openlance.planning.workload import Load, asked, encoding, halves
from openlance.rl.advantages import Advantages
from openlance.rl.objectives import Forward
from openlance.rl.settings import objective_of, window_of
from openlance.runtime.media_encoder import DECODED
from openlance.runtime.offload import Work


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pack of requests on one device.

    Args:
        c: The model.
        requests: How many.
        group: Results of each that are drawn.
        steps: In which each is drawn.
        branches: Passes of a step, which guidance has.
        learned: Results of each that are learned from.
        asks: States of each of these.
        beside: Weights beside the new ones that are asked too, such as the old ones.
        conditions_learn: Whether conditions carry gradient.
        together: Latents that go through the model together.
        kept: States that are kept of a result: its latents, and three of each stochastic step.
        ask: The noisy rows of one result.
        context: What comes before them.
        decoding: Operations of the VAE's decoder for one result.
        encoding: Of its encoder for what is given with one request.
        pixels: Of a result.
        frame: Of one of its frames.
    """

    c: ModelConfig
    requests: float
    group: int
    steps: int
    branches: int
    learned: int
    asks: int
    beside: int
    conditions_learn: bool
    together: float
    kept: int
    ask: Load
    context: Load
    decoding: float
    encoding: float
    pixels: float
    frame: float

    @property
    def results(self) -> float:
        return self.requests * self.group

    @property
    def piece(self) -> int:
        """Results that an update runs together."""
        return max(1, int(min(self.together / (self.asks * self.ask.gen), self.requests * self.learned)))

    @property
    def update(self) -> Load:
        """What autograd keeps of a piece."""
        noisy = self.ask.times(self.piece * self.asks)
        return noisy + self.context.times(self.piece) if self.conditions_learn else noisy

    def cached(self, itemsize: int) -> float:
        """Count the bytes of keys and values of a piece's conditions, for the weights beside the new ones."""
        rows = self.piece * self.context.rows * self.beside
        return itemsize * float(Work(context=round(rows)).cache(self.c))

    def rolling(self, itemsize: int) -> float:
        """Count the bytes of drawing and decoding as many results as go together."""
        some = max(1.0, min(self.together / self.ask.gen, self.results))
        work = Work(
            rows=round(self.branches * some * self.ask.rows), context=round(self.branches * some * self.context.rows),
            pixels=round(max(self.frame, min(DECODED, some * self.frame))), moving=self.pixels > self.frame,
        )  # fmt: skip
        return float(work.bytes(self.c, itemsize))

    @property
    def held(self) -> float:
        """Count the bytes of all results until the round is over: float32 latents, and pixels for the rewards."""
        return self.results * (4 * self.kept * self.ask.gen * self.c.latent_channels + 3 * self.pixels)

    def operations(self, backward: float) -> dict[str, float]:
        """Count the operations of a round; backward: what a backward pass takes, in forward passes."""
        passes = 1 + backward + self.beside
        before = passes if self.conditions_learn else 1 + self.beside
        drawn = self.steps * self.group * self._forward(self.ask) + self._forward(self.context)
        learned = passes * self.learned * self.asks * self._forward(self.ask) + before * self._forward(self.context)
        return {
            "rollouts": self.requests * self.branches * drawn,
            "updates": self.requests * learned,
            "VAE": self.results * self.decoding + self.requests * self.encoding,
        }

    def _forward(self, load: Load) -> float:
        return decoder_operations(self.c, load.rows, load.pairs)


def round_of(stage: Stage, c: ModelConfig, at: Resolution, rows: float) -> Round:
    """Count the round of a pack of so many rows of samples, of the stage's mixture, at one resolution.

    Raises:
        UserError: If the stage's `rl` cannot be, or no sample of a task fits.
    """
    how, objective = stage.rl, objective_of(stage)
    assert how is not None
    shares = {task: weight / sum(stage.mixture.values()) for task, weight in stage.mixture.items() if weight}
    ask, context, whole = Load(), Load(), 0.0
    sums = dict.fromkeys(("decoding", "encoding", "pixels", "frame"), 0.0)
    for task, share in shares.items():
        found = asked(task, stage, c, at)
        (frames, height, width), (own, before) = found.size, halves(found.segments, c)
        told = {
            "decoding": decoder_half(c.vae).flops(c.vae.latent_grid(found.size)), "frame": float(height * width),
            "pixels": float(frames * height * width), "encoding": encoding(found.segments, c),
        }  # fmt: skip
        ask, context = ask + own.times(share), context + before.times(share)
        sums, whole = {name: value + share * told[name] for name, value in sums.items()}, whole + share * found.sample
    window = len(window_of(stage).steps(how.num_inference_steps, 0)) if objective.trajectories else 0
    group = how.group if objective.samples else 1
    selection = objective.selection
    learned = 2 * selection.keep if isinstance(selection, Advantages) else getattr(selection, "keep", 0)
    und, gen = (not stage.freezes(f"lance.layers.0.{stream}.q.weight") for stream in ("und", "gen"))
    return Round(
        c=c,
        requests=rows / whole,
        group=group,
        steps=how.num_inference_steps if objective.samples else 0,
        branches=Sampling().branches if how.guided else 1,
        learned=min(group, learned or group),
        asks=objective.times.draws if isinstance(objective, Forward) else window,
        beside=len(objective.needs),
        conditions_learn=und or (gen and context.gen > 0),
        together=float(stage.pack_tokens[1]),
        kept=1 + 3 * window,
        ask=ask,
        context=context,
        **sums,
    )
