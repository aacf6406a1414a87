"""Training takes what `openlance encode` wrote for what it would have worked out itself."""

from dataclasses import replace

import numpy as np
import torch

from openlance.model.vit import normalise
from openlance.sequence.segment import Kind
from openlance.train.batch import Preparer
from openlance.train.latents import pixels_of


def test_latents_and_features_ahead_of_time_give_the_same_losses(worker):
    learner, codec = worker.learner().eval(), worker.codec()
    learner.vit.requires_grad_(False)  # features are of use only where the tower is frozen

    def latents(values):
        return [v.flatten(0, 2) if isinstance(v, torch.Tensor) else worker.encode([v])[0] for v in values]

    def ahead(s):
        if s.kind is Kind.TEXT:
            return s
        if s.kind is Kind.PATCHES:
            return s.filled(learner.vit([normalise(pixels_of(s.value))]).reshape(*codec.patch_grid(s.size), -1))
        return s.filled(latents([s.value])[0].reshape(*codec.latent_grid(s.size), -1))

    prepare = Preparer(stage=worker.STAGE, codec=codec, encode=latents, device=torch.device("cpu"))
    plain = [worker.sample(n, np.random.default_rng(n)) for n in range(4)]
    mixed = [replace(s, segments=[ahead(x) for x in s.segments]) if n % 2 else s for n, s in enumerate(plain)]
    encoded = [replace(s, segments=[ahead(x) for x in s.segments]) for s in plain]
    with torch.no_grad():
        wanted = learner(prepare(plain, 0))
        for samples in (mixed, encoded):
            found = learner(prepare(samples, 0))
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(wanted, found, strict=True))
            assert wanted[0][1] > 0 and found[0][2] > 0


def test_latents_meet_their_noise_on_the_device_wherever_they_come_from(worker):
    """Some straight from the codec, some from a file; the rows that say what is denoised stay on the CPU."""

    def latents(values):
        return [worker.encode([v])[0].to("meta" if n % 2 else "cpu") for n, v in enumerate(values)]

    prepare = Preparer(stage=worker.STAGE, codec=worker.codec(), encode=latents, device=torch.device("meta"))
    made = prepare([worker.sample(n, np.random.default_rng(n)) for n in range(4)], 0)
    assert {x.device.type for x in (made.noise.x, made.noise.target, made.noise.times)} == {"meta"}
    rows = made.packed.rows
    assert rows.token.device.type == "cpu" and len(made.noise.times) == int(rows.is_latent.sum())
