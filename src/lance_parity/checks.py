"""Comparing: every comparison becomes one row, and one that cannot be made is a row that fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lance_parity.files import GoldenFile

# What a computation on foreign data may raise: such a case fails, the others go on.
FAULTS = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AssertionError, AttributeError, StopIteration)

# Facts that describe a run rather than state a result, and that nothing needs to know.
DESCRIPTION = {
    "about", "case", "cases", "distances_rel_l2", "dtype", "dtypes", "extra", "gen", "inputs_from", "kv_vs_nocache",
    "name", "proof_uncond", "seed", "target_modality", "task", "tensors", "timestep_shift", "und_kv_min_top2_gap",
    "und_nocache_min_top2_gap", "unrounded_und_kv_min_top2_gap", "vae_layout", "variants", "visual_gen",
}  # fmt: skip


# How far two tensors of one shape are apart.


def differing(want: Tensor, have: Tensor) -> Tensor:
    """Count the entries that differ."""
    return (want != have).sum()


def largest(want: Tensor, have: Tensor) -> Tensor:
    """Measure the largest absolute difference."""
    return (want - have).abs().max()


def sizes(want: Tensor) -> Tensor:
    """Give the size of every entry, or the mean size of all where it is smaller: sums that come out near zero keep the
    errors of what was added."""
    return want.abs().clamp(min=float(want.abs().mean()) + 1e-30)


def entrywise(want: Tensor, have: Tensor) -> Tensor:
    """Measure the largest difference relative to the size of its entry."""
    return ((want - have).abs() / sizes(want)).max()


def in_ulps(want: Tensor, have: Tensor) -> Tensor:
    """Measure the largest difference in units of the last place of bfloat16, which has 8 significant bits."""
    return ((want - have).abs() / torch.exp2(sizes(want).log2().floor() - 7)).max()


def length(want: Tensor, have: Tensor) -> Tensor:
    """Measure the length of the difference relative to that of the wanted tensor."""
    return (want - have).norm() / want.norm().clamp(min=1e-30)


def average(want: Tensor, have: Tensor) -> Tensor:
    """Measure the average absolute difference."""
    return (want - have).abs().mean()


class Measure(NamedTuple):
    """How a quantity is compared: what may be at most how much, and how that reads in the table."""

    tolerance: float
    distance: Callable[[Tensor, Tensor], Tensor] = largest
    relative: bool = False
    note: str = ""


# Recommended for float32 in the golden format's description.
EXACT = Measure(0.0, differing)
UNIT, DEEP, VAE, LATENT = Measure(1e-5), Measure(1e-4), Measure(2e-4), Measure(1e-3)
LOSS, GRADIENT = Measure(1e-4, entrywise, True), Measure(1e-3, entrywise, True)
ULP = Measure(1.0, in_ulps, note="units in the last place")


def apart(tolerance: float) -> Measure:
    """Allow what kernels in half precision may be apart."""
    return Measure(tolerance, length, relative=True)


# Of each quantity, by the pattern of its names (`GoldenFile.matching`): how ours is made of the thing under test and of
# what the pattern's fields stand for, and how it is compared.
Table = dict[str, tuple[Callable[..., Any], Measure]]


class Row(NamedTuple):
    """One comparison. error: largest difference, or the number of entries that differ where it must be exact."""

    case: str
    quantity: str
    error: float
    tolerance: float
    relative: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance, which what is not a number never is."""
        return self.error <= self.tolerance


class Checks:
    """The comparisons of one file. What the file does not hold is not compared."""

    def __init__(self, file: GoldenFile, on_row: Callable[[Row], None] | None = None) -> None:
        self.file, self.rows, self.on_row = file, list[Row](), on_row

    def add(self, quantity: str, error: float, measure: Measure = EXACT, note: str = "") -> None:
        """Add a comparison that was made elsewhere."""
        row = Row(self.file.name, quantity, float(error), measure.tolerance, measure.relative, note or measure.note)
        self.rows.append(row)
        if self.on_row is not None:
            self.on_row(row)

    def table(self, table: Table, subject: Any) -> None:
        """Compare everything in the file that a table knows, each for itself."""
        for pattern, (ours, measure) in table.items():
            for name, found in self.file.matching(pattern):
                with self.part(name):
                    self.compare(name, ours(subject, **found), measure)

    def compare(self, name: str, ours: Any, measure: Measure, note: str = "") -> None:
        """Compare a tensor or a fact of the file.

        Args:
            name: In the file.
            ours: A tensor or what becomes one; for a text or a list in the JSON, its equal.
            measure: How far it may be away.
            note: What is to be said about ours.
        """
        want = self.file.take(name)
        if isinstance(want, str | list):
            error = float(want != ours)
            note = f"{_short(ours)}, not {_short(want)}" if error else note
        else:
            want, have = (torch.as_tensor(x).detach().to(torch.float64) for x in (want, ours))
            error = math.inf
            if want.shape != have.shape:
                note = f"shape {tuple(have.shape)}, not {tuple(want.shape)}"
            else:
                error = float(measure.distance(want, have)) if want.numel() else 0.0
        self.add(name, error, measure, note)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A part of the work; if it breaks down, that is a row that fails, and the other parts go on."""
        try:
            yield
        except FAULTS as error:
            self.add(what, math.inf, note=f"cannot be computed: {type(error).__name__}: {_short(error)}")

    def close(self) -> None:
        """A file of which nothing was compared fails, and so does one that lacks what its JSON promises."""
        if not self.rows:
            self.add("contents", math.inf, note="nothing in it is known")
        absent = self.file.absent()
        if absent:
            self.add("tensors", len(absent), note=f"the file lacks {', '.join(absent[:5])}")

    def uncovered(self) -> list[str]:
        """Entries that nothing looked at: reported, never counted."""
        left = set(self.file.names()) - self.file.seen - DESCRIPTION
        return sorted(name for name in left if not name.startswith("note"))


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."
