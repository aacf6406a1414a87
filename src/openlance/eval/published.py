"""Rows that papers print, and whether their totals follow from their sub-scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from openlance.eval import vbench

# How far a total may be from what follows: half a unit of the last printed digit, for the total and for what it is of.
SLACK = {"geneval": 0.01, "dpg": 0.01, "gedit": 0.01, "imgedit": 0.01, "vbench": 0.01, "mvbench": 0.1}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row as it is printed.

    Args:
        benchmark: Its name.
        model: Whose row it is.
        values: Sub-scores by name, in the units of the table; empty where they are not kept here.
        totals: What is printed beside them.
        source: Where.
        follows: Totals of sub-scores that are not kept here.
    """

    benchmark: str
    model: str
    values: Mapping[str, float]
    totals: Mapping[str, float]
    source: str
    follows: Mapping[str, float] = field(default_factory=dict)

    @property
    def recomputed(self) -> dict[str, float]:
        """The totals that follow from the sub-scores by the official formula; DPG's cannot follow from them, and the
        mean stands in its place."""
        if self.follows:
            return dict(self.follows)
        if self.benchmark == "vbench":
            return vbench.totals({name: value / 100 for name, value in self.values.items()})
        return {"total": math.fsum(self.values.values()) / len(self.values)}

    @property
    def differences(self) -> dict[str, tuple[float, float]]:
        """Totals that do not follow: what is printed, and what was recomputed."""
        pairs = {name: (printed, self.recomputed[name]) for name, printed in self.totals.items()}
        slack = SLACK[self.benchmark] + 1e-9
        return {name: pair for name, pair in pairs.items() if abs(pair[0] - pair[1]) > slack}


@cache
def published() -> tuple[Published, ...]:
    """All rows that are known here."""
    import yaml

    data = yaml.safe_load(files("openlance").joinpath("assets/eval/published.yaml").read_text(encoding="utf-8"))
    return tuple(
        Published(
            benchmark=name, totals=row["totals"], source=row["source"], model=row["model"],
            values=dict(zip(table["columns"], row["values"], strict=True)) if "values" in row else {},
            follows=row.get("follows", {}),
        )
        for name, table in data.items()
        for row in table["rows"]
    )  # fmt: skip
