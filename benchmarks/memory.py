"""Memory of training steps as `openlance plan` counts it, against what real steps hold.

python benchmarks/memory.py             # a few minutes; --quick: the smallest case alone
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import common
import torch
from measured import PeakMemory

from openlance.config.model import ModelConfig
from openlance.config.presets import nano
from openlance.data.front import NO_SIZE
from openlance.planning.lengths import placeholder, ruler
from openlance.planning.memory import activations
from openlance.planning.workload import Load, load_of
from openlance.sequence.pack import document, pack
from openlance.sequence.tasks import NO_PRIOR, Views, request
from openlance.training.batch import Batch
from openlance.training.learner import fresh
from openlance.training.objective import noised
from openlance.training.parallel import recompute

DRAWS = 2
WIDER = replace(
    nano(), width=512, heads=8, kv_heads=2, head_dim=64, rope_sections=(8, 12, 12), mlp_width=2048, layers=8
)
WIDER = replace(WIDER, vit=replace(WIDER.vit, out_hidden_size=512))
# name, model, does the vision tower learn, dtype, checkpointing, repeats of the samples
CASES = (
    ("nano", nano(), True, "float32", False, 1),
    ("nano", nano(), True, "bfloat16", False, 1),
    ("nano", nano(), False, "float32", True, 1),
    ("nano, three times the pack", nano(), True, "bfloat16", False, 3),
    ("width 512, 8 layers", WIDER, False, "bfloat16", False, 1),
    ("width 512, 8 layers", WIDER, False, "bfloat16", True, 1),
)


def samples(repeats: int) -> list:
    found = []
    for _ in range(repeats):
        picture, other, clip = placeholder(1, 64, 64), placeholder(1, 64, 64), placeholder(9, 64, 64)
        found += [
            request("t2i", "a red circle left of a blue square", [], (1, 64, 64), picture, NO_PRIOR),
            request("image_edit", "make it blue", [Views(picture, picture)], (1, 64, 64), other, NO_PRIOR),
            request("t2v", "a ring moves to the left", [], (9, 64, 64), clip, NO_PRIOR),
            request("x2t_video", "what moves?", [Views(clip, clip)], NO_SIZE, "a ring", NO_PRIOR),
            request("x2t_image", "what is this?", [Views(other, other)], NO_SIZE, "a red circle", NO_PRIOR),
        ]
    return found


def batch_of(config: ModelConfig, wanted: list) -> Batch:
    """A real batch with random latents and black pictures."""
    made = pack(wanted, ruler(config), config.position, DRAWS)
    latents = torch.randn(int(made.rows.is_latent.sum()), config.latent_channels)
    noise = noised(made, latents, torch.rand(int(made.rows.target.max()) + 1), torch.randn_like(latents))
    looks = [v for v in made.visuals if v.segment.kind.name == "PATCHES"]
    clips, shown = [v.segment.value for v in looks], list(range(len(looks)))
    return Batch(packed=made, ids=[], noise=noise, clips=clips, shown=shown, labels={}, counts=torch.zeros(3))


def measure(config: ModelConfig, tower: bool, dtype: str, checkpointing: bool, repeats: int) -> dict[str, float]:
    """Bytes at the end of the forward pass and at the peak, measured and counted."""
    wanted, low = samples(repeats), dtype == "bfloat16"
    learner = fresh(config, config.vocab_size, 0)
    learner.vit.requires_grad_(tower)
    if checkpointing:
        recompute(learner)
    batch = batch_of(config, wanted)
    with PeakMemory() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            sums, _ = learner(batch)
        after = memory.now
        (sums[0] / 10 + sums[1] / 1000).backward()
    learned = sum(p.numel() for p in learner.parameters() if p.grad is not None)
    load = sum((load_of(*document(s, ruler(config), config.position, DRAWS), config) for s in wanted), Load())
    counted = activations(config, load, "autocast" if low else "float32", tower=tower)
    copies = 2 * learned if low and not checkpointing else 0  # autocast keeps a bfloat16 copy of every weight
    return {
        "tokens": len(batch.packed), "after": after, "after_counted": counted.kept(checkpointing) + copies,
        "peak": memory.peak, "peak_counted": counted.peak(checkpointing, 4 * learned) + copies,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the first case, nothing written")
    options = parser.parse_args()
    rows, worst = [], 0.0
    for name, config, tower, dtype, checkpointing, repeats in CASES[:1] if options.quick else CASES:
        found = measure(config, tower, dtype, checkpointing, repeats)
        errors = [found[f"{key}_counted"] / found[key] - 1 for key in ("after", "peak")]
        worst = max(worst, *map(abs, errors))
        sizes = [f"{found[key] / 2**20:.0f}" for key in ("after", "after_counted", "peak", "peak_counted")]
        told = f"{name}{'' if tower else ', tower frozen'}{', checkpointing' if checkpointing else ''}"
        rows.append([told, dtype, found["tokens"], *sizes, *(f"{e:+.1%}" for e in errors)])
        print(rows[-1], flush=True)
    heads = [
        "step",
        "dtype",
        "tokens",
        "after forward, MiB",
        "counted",
        "peak, MiB",
        "counted",
        "error",
        "error of peak",
    ]
    table = common.markdown(heads, rows) + f"\nLargest error {common.verdict(worst, 0.15)}.\n"
    if not options.quick:
        common.write_results("memory", {"rows": rows, "worst": worst}, table)


if __name__ == "__main__":
    main()
