"""The golden training packs give the released losses and gradients through the trainer's own objective."""

from dataclasses import replace
from pathlib import Path

import pytest

from lance_parity import training
from lance_parity.checks import LOSS, Checks
from lance_parity.files import open_folder
from lance_parity.parts import Parts
from openlance.config.train import Stage
from openlance.data.source import Sample
from openlance.runtime.distributed import Distributed
from openlance.runtime.media_encoder import MediaEncoder
from openlance.training.batch import Preparer
from openlance.training.learner import Learner
from openlance.training.trainer import Trainer

GOLDEN = Path(__file__).parents[1] / "golden"
FULL = Path(__file__).parents[3] / "shared" / "golden"  # all packs at full precision, where they are to be had


@pytest.mark.parametrize("folder", [GOLDEN, *([FULL] if FULL.is_dir() else [])], ids=lambda p: p.parent.name)
def test_golden_packs_have_the_released_losses_and_gradients_in_the_trainer(folder):
    with open_folder(folder) as golden:
        parts = Parts(golden.weights, golden.tokenizer)
        packs = [file for file in golden.files if "samples" in file.facts]
        assert packs
        for file in packs:
            checks = Checks(file)
            weights = file.get("loss_weights", {})
            learner = Learner(parts.lance, parts.components.vit(), len(parts.tokenizer))
            run = Trainer(stage(weights), learner, Distributed())
            found, _ = run.backward([batch(checks, parts, run)])
            total = float((run.weights * found).sum())
            ours = {"loss": total, "mse_mean": float(found[1]), "ce_mean": float(found[0])}
            checks.table({name: (lambda ours, name=name: ours[name], LOSS) for name in ours}, ours)
            training.check_gradients(checks, training.gradients(parts.lance))
            run.optimizer.zero_grad()
            assert [row for row in checks.rows if not row.passed] == []
            assert {"loss", "grad_norm"} <= {row.quantity for row in checks.rows}


def stage(weights):
    return Stage(
        name="golden", steps=1, lr=1e-4, text_weight=weights.get("ce_weight", 0.25), frozen=("vit",), ema=0.0,
        flow_weight=weights.get("mse_weight", 1.0), mixture={"t2i": 1}, pack_tokens=(1, 100_000),
        max_sample_tokens=100_000, dtype="float32",
    )  # fmt: skip


def batch(checks, parts, run):
    """The recorded pack as the trainer makes it, with the recorded noise in place of its own."""
    golden = training.read_batch(checks, parts)
    prepare = Preparer(stage=run.stage, codec=parts.codec, encode=MediaEncoder(None, None), device=run.processes.device)
    made = prepare([Sample(segments, str(n)) for n, segments in enumerate(golden.samples)], 0)
    assert made.packed.rows.token.tolist() == golden.packed.rows.token.tolist()
    counts = prepare._counts(golden.packed, {})
    return replace(made, packed=golden.packed, noise=golden.noise, counts=counts)
