"""Bytes that a training step holds: what autograd keeps for the backward pass, and what stays from step to step.

Counted from the operations of `model/lance.py`, one by one; `benchmarks/memory.py` and tests hold the result against
real steps. Axes of the comments: D width, Q queries' and K keys' width, F MLP width, all per row.
"""

from __future__ import annotations

from dataclasses import dataclass

from openlance.config.model import ModelConfig
from openlance.planning.workload import Load


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes kept per channel of a row in one layer.

    Args:
        width: Of D, by stream (understanding, generation).
        queries: Of Q.
        keys: Of K, before attention.
        attended: Of one key and its value as attention reads them.
        mlp: Of F.
        weight: Of an attention weight, where they are written out.
        carried: Of D, the row between two layers, by stream.
        tower: Of the vision tower's width and MLP width, per patch.
    """

    width: tuple[int, int]
    queries: int
    keys: int
    attended: int
    mlp: int
    weight: int
    carried: tuple[int, int]
    tower: tuple[int, int]


# Two norms: their input, normalized, scaled (each D); queries: projected, normalized, rotated, mixed (each Q); keys:
# projected, normalized (each K); MLP: gate, its SiLU, up, product (each F).
KEPT = {
    "float32": Kept(width=(24, 24), queries=16, keys=8, attended=8, mlp=16, weight=4, carried=(4, 4), tower=(48, 16)),
    # float32 weights under autocast: norms read float32, and every product casts its input anew.
    "autocast": Kept(width=(26, 22), queries=10, keys=6, attended=4, mlp=8, weight=2, carried=(4, 2), tower=(40, 8)),
    # bfloat16 weights (sharded training): norms still read a float32 copy.
    "bfloat16": Kept(width=(16, 16), queries=10, keys=6, attended=4, mlp=8, weight=2, carried=(2, 2), tower=(32, 8)),
}


@dataclass(frozen=True)
class Activations:
    """Bytes of a forward pass that wait for the backward pass.

    Args:
        layers: How many.
        layer: Of one layer.
        carried: Rows between two layers.
        tables: Positions, held throughout.
        ends: After the layers.
        tower: Of a vision tower that learns.
        working: What one layer's backward makes besides.
        passes: How many of them are kept together.
    """

    layers: int
    layer: float
    carried: float
    tables: float
    ends: float
    tower: float
    working: float
    passes: int = 1

    def kept(self, checkpointing: bool) -> float:
        """Count the bytes at the end of the forward pass."""
        inner = self.layers * self.carried if checkpointing else self.tower + self.layers * self.layer
        return self.passes * (self.tables + self.ends + inner)

    def peak(self, checkpointing: bool, gradients: float) -> float:
        """Count the most bytes at once in a step, gradients among them: while these come, the activations go."""
        tables = self.passes * self.tables
        if checkpointing:  # a layer is computed again when its turn comes
            held = max(self.passes * (self.ends + self.layers * self.carried), gradients)
            held += max(self.layer, self.tower) - self.carried
        else:
            held = max(self.kept(False) - tables, gradients + max(self.layer, self.tower))
        return tables + held + self.working


def activations(
    c: ModelConfig, load: Load, precision: str, *, gpu: bool = False, tower: bool = False, passes: int = 1
) -> Activations:
    """Count the activations of one pack.

    Args:
        c: The model.
        load: What the pack holds.
        precision: A key of `KEPT`.
        gpu: Attention is fused and keeps no weights.
        tower: The vision tower learns.
        passes: How many such packs are kept together.
    """
    n, low = KEPT[precision], 4 if precision == "float32" else 2
    q, k = c.heads * c.head_dim, c.kv_heads * c.head_dim
    by_stream = n.width[0] * load.und + n.width[1] * load.gen
    layer = c.width * by_stream + load.rows * (n.queries * q + n.keys * k + n.mlp * c.mlp_width)
    layer += 4 * load.rows * (2 + c.heads + c.kv_heads)  # one number per norm
    if gpu:
        layer += load.rows * (n.attended * k + 4 * c.heads)  # and one per query of fused attention
        working = 2 * low * load.rows * (q + k)
    else:
        layer += load.keys * n.attended * k + load.squares * n.weight * c.heads
        working = 2 * low * c.heads * load.largest
    # the gradient of the product, then of its two factors, while the product goes
    working = max(working, low * max(load.und, load.gen) * 2 * (c.mlp_width + c.width))
    vocabulary = load.labels * c.vocab_size * 4
    return Activations(
        layers=c.layers,
        layer=layer,
        carried=c.width * (n.carried[0] * load.und + n.carried[1] * load.gen),
        tables=load.rows * 8 * c.head_dim + load.gen * 4 * c.width,
        ends=load.rows * (low + 4) * c.width + vocabulary,
        tower=_tower(c, load, n) if tower else 0.0,
        working=max(working, 3 * vocabulary),
        passes=passes,
    )


def _tower(c: ModelConfig, load: Load, n: Kept) -> float:
    """Kept by all blocks of the vision tower; attention is within windows, whose weights are written out."""
    v = c.vit
    patches, window = load.patches * v.spatial_merge_size**2, (v.window_size // v.patch_size) ** 2
    row = n.tower[0] * v.hidden_size + n.tower[1] * v.intermediate_size + 2 * n.weight * v.num_heads * window
    return v.depth * patches * row
