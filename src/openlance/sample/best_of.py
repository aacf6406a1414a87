"""Best of several: which of the results drawn for one request its words explain best, as the model itself sees it.

A flow model is a classifier too ("diffusion classifiers", arXiv 2303.16203 and 2303.15233): with noise put on a result,
words that fit it predict the velocity better than no words do. What an edit gets wrong is mostly which thing was meant,
and that is settled near noise, so it is asked there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from openlance.flow import add_noise, velocity_target

TIMES = (0.9, 0.95)

# States (N, C), times (N,) and a number of guidance branches -> velocities (N, C) of each, see `Denoiser`.
Velocities = Callable[[Tensor, Tensor, int], list[Tensor]]


def seeds_of(seed: int | torch.Generator, count: int) -> list[int | torch.Generator]:
    """Seeds of the results to choose from: the request's own, then such as follow from it."""
    if isinstance(seed, torch.Generator):
        return [seed] * count
    return [seed, *(int(n) for n in np.random.SeedSequence(seed % 2**64).generate_state(count - 1))]


@torch.inference_mode()
def choose(velocities: Velocities, results: list[Tensor], moves: list[Tensor], count: int) -> list[int]:
    """Of every `count` results in a row, the number of the best.

    results: (N, C) clean latents each; moves: (N,) which of their rows are not given. The noise is the same for all
    results of a request, and for it alone, so that a batch changes nothing. Branch 1 has to be the one without words.
    """
    scores, sizes = torch.zeros(len(results)), [len(x) for x in results]
    for number, t in enumerate(TIMES):
        noise = [_noise(x, number) for x in results]
        states = [add_noise(x, e, torch.where(m, t, 0.0)) for x, e, m in zip(results, noise, moves, strict=True)]
        times = torch.cat([torch.where(m, t, 0.0) for m in moves])
        with_words, without = (v.split(sizes) for v in velocities(torch.cat(states), times, 2))
        for k, (x, e, m) in enumerate(zip(results, noise, moves, strict=True)):
            target = velocity_target(x, e)[m]
            losses = [(v[k][m] - target).square().mean() for v in (with_words, without)]
            scores[k] += float((losses[0] / losses[1]).log())
    return [first + int(scores[first : first + count].argmin()) for first in range(0, len(results), count)]


def _noise(x_NC: Tensor, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(x_NC.shape, generator=generator).to(x_NC)
