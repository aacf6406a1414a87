"""Comparing: every comparison becomes one row of the table, and one that cannot be made is a row that fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openlance.compat.verify.files import GoldenFile

# Recommended for float32 in the golden format's description.
UNIT, DEEP, CODEC, LATENT, LOSS, GRADIENT = 1e-5, 1e-4, 2e-4, 1e-3, 1e-4, 1e-3
EXACT = 0.0

# What a computation on foreign data may raise: such a case fails, the others go on.
FAULTS = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AssertionError, AttributeError, StopIteration)

# Facts that describe a run rather than state a result.
DESCRIPTION = {
    "about", "case", "cases", "dataset_args", "distances_rel_l2", "dtype", "dtypes", "extra", "frame_sampler", "gen",
    "input", "inputs_from", "kv_vs_nocache", "loss_weights", "max_num_tokens", "name", "proof_uncond", "samples",
    "seed", "task", "tensors", "timestep_shift", "und_kv_min_top2_gap", "und_kv_top2_gaps",
    "und_nocache_min_top2_gap", "unrounded_und_kv_min_top2_gap", "unrounded_und_kv_top2_gaps", "vae_layout",
    "variants", "visual_gen",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison. error: largest difference, or the number of entries that differ where it must be exact."""

    case: str
    quantity: str
    error: float
    tolerance: float
    relative: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # not for NaN


class Checks:
    """The comparisons of one file. What the file does not hold is not compared."""

    def __init__(self, file: GoldenFile, on_row: Callable[[Row], None] | None = None) -> None:
        self.file, self.rows, self.on_row = file, list[Row](), on_row

    def add(self, quantity: str, error: float, tolerance: float, relative: bool = False, note: str = "") -> None:
        row = Row(self.file.name, quantity, float(error), tolerance, relative, note)
        self.rows.append(row)
        if self.on_row is not None:
            self.on_row(row)

    def same(self, name: str, ours: Any, note: str = "") -> None:
        """A tensor that must be equal, whatever its integer type."""
        if name not in self.file:
            return
        want, have = self.file.take(name), torch.as_tensor(ours)
        if want.shape != have.shape:
            self.add(name, math.inf, EXACT, note=f"shape {tuple(have.shape)}, not {tuple(want.shape)}")
        else:
            self.add(name, int((want.double() != have.double()).sum()), EXACT, note=note)

    def near(self, name: str, ours: Tensor, tolerance: float, note: str = "") -> None:
        """A tensor whose largest absolute difference stays within the tolerance."""
        self._distance(name, ours, tolerance, lambda want, have: (want - have).abs().max(), False, note)

    def near_relative(self, name: str, ours: Tensor, tolerance: float) -> None:
        """Every entry relative to itself, or to the mean size of all where it is smaller."""

        def distance(want: Tensor, have: Tensor) -> Tensor:
            return ((want - have).abs() / want.abs().clamp(min=float(want.abs().mean()) + 1e-30)).max()

        self._distance(name, ours, tolerance, distance, True)

    def near_norm(self, name: str, ours: Tensor, tolerance: float, floor: float = 0.0) -> None:
        """The length of the difference relative to that of the wanted tensor, or to `floor` where that is larger."""
        self._distance(
            name, ours, tolerance, lambda want, have: (want - have).norm() / max(float(want.norm()), floor, 1e-30), True
        )

    def _distance(
        self,
        name: str,
        ours: Tensor,
        tolerance: float,
        distance: Callable[[Tensor, Tensor], Tensor],
        relative: bool,
        note: str = "",
    ) -> None:
        if name not in self.file:
            return
        want, have = self.file.take(name).double(), ours.detach().double()
        if want.shape != have.shape:
            self.add(name, math.inf, tolerance, relative, f"shape {tuple(have.shape)}, not {tuple(want.shape)}")
        elif not want.numel():
            self.add(name, 0.0, tolerance, relative, "empty")
        else:
            self.add(name, float(distance(want, have)), tolerance, relative, note)

    def fact(self, key: str, ours: Any) -> None:
        """A fact of the JSON that must be equal."""
        if key in self.file.facts:
            want = self.file.fact(key)
            note = "" if want == ours else f"{_short(ours)}, not {_short(want)}"
            self.add(key, float(want != ours), EXACT, note=note)

    def number(self, key: str, ours: float, tolerance: float) -> None:
        """A number of the JSON, relative."""
        if key in self.file.facts:
            want = self.file.fact(key)
            self.add(key, abs(ours - want) / max(abs(want), 1e-30), tolerance, True)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A part of the work; if it breaks down, that is a row that fails, and the other parts go on."""
        try:
            yield
        except FAULTS as error:
            self.add(what, math.inf, EXACT, note=f"cannot be computed: {type(error).__name__}: {_short(error)}")

    def close(self) -> None:
        """A file of which nothing was compared fails, and so does one that lacks what its JSON promises."""
        if not self.rows:
            self.add("contents", math.inf, EXACT, note="nothing in it is known")
        absent = self.file.absent()
        if absent:
            self.add("tensors", len(absent), EXACT, note=f"the file lacks {', '.join(absent[:5])}")

    def uncovered(self) -> list[str]:
        """Entries that nothing looked at: reported, never counted."""
        facts = [key for key in self.file.facts if key not in DESCRIPTION and not key.startswith("note")]
        return sorted({*self.file.names(), *facts} - self.file.seen)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."
