"""Training takes what `openlance encode` wrote for what it would have worked out itself."""

from dataclasses import replace

import numpy as np
import torch

from openlance.training.batch import Preparer


def test_latents_and_features_ahead_of_time_give_the_same_losses(worker):
    learner, codec = worker.learner().eval(), worker.codec()
    learner.vit.requires_grad_(False)  # features are of use only where the tower is frozen

    encoder = worker.encoder(learner.vit)

    def ahead(sample):
        return replace(sample, segments=encoder([sample.segments], targets=True)[0])

    prepare = Preparer(stage=worker.STAGE, codec=codec, encode=encoder, device=torch.device("cpu"))
    plain = [worker.sample(n, np.random.default_rng(n)) for n in range(4)]
    mixed = [ahead(s) if n % 2 else s for n, s in enumerate(plain)]
    encoded = [ahead(s) for s in plain]
    with torch.no_grad():
        wanted = learner(prepare(plain, 0))
        for samples in (mixed, encoded):
            found = learner(prepare(samples, 0))
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(wanted, found, strict=True))
            assert wanted[0][1] > 0 and found[0][2] > 0


def test_latents_meet_their_noise_on_the_device_wherever_they_come_from(worker):
    """Some straight from the VAE, some from a file; the rows that say what is denoised stay on the CPU."""

    def spread(samples, targets):
        [found] = worker.encoder()(samples, targets=targets)
        return [[s.filled(s.value.to("meta" if n % 2 else "cpu")) for n, s in enumerate(found)]]

    prepare = Preparer(stage=worker.STAGE, codec=worker.codec(), encode=spread, device=torch.device("meta"))
    made = prepare([worker.sample(n, np.random.default_rng(n)) for n in range(4)], 0)
    assert {x.device.type for x in (made.noise.x, made.noise.target, made.noise.times)} == {"meta"}
    rows = made.packed.rows
    assert rows.token.device.type == "cpu" and len(made.noise.times) == int(rows.is_latent.sum())
