"""Hugging Face's `datasets`, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openlance.data.census import Census
from openlance.data.columns import Layout
from openlance.data.front import Fit
from openlance.data.source import Row, Sample, shuffled
from openlance.data.tabular import stamp_of
from openlance.errors import UserError


@dataclass(frozen=True)
class HubSource:
    """Rows of one split of a dataset of Hugging Face's `datasets`, streamed; a part is one of its shards.

    Args:
        name: On the hub, or a folder that `datasets.load_dataset` understands.
        layout: How rows are read.
        split: Which rows.
        config: Which of its configurations, for a dataset that has several.
    """

    name: str
    layout: Layout
    split: str = "train"
    config: str | None = None
    light = False

    @cached_property
    def data(self) -> Any:
        """The streaming dataset, its media undecoded. UserError if it cannot be opened or has other columns."""
        try:
            import datasets
        except ImportError as error:
            raise UserError("reading Hugging Face datasets needs their package: pip install datasets") from error
        try:
            data = datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
        except (OSError, ValueError) as error:  # ValueError also covers the package's own errors of configuration
            raise UserError(self._fault(str(error))) from error
        self.layout.check(self, data.column_names or list(next(iter(data), {})))
        kinds = (datasets.Image, getattr(datasets, "Video", datasets.Image))
        for column, feature in (data.features or {}).items():
            if isinstance(feature, kinds):
                data = data.cast_column(column, type(feature)(decode=False))
        return data

    def _fault(self, said: str) -> str:
        """What to do about an error of the package."""
        held = re.search(r"(?:available configs|Available): *\[(.*?)\]", said, re.DOTALL)
        if held is not None and "onfig" in said:
            known = re.findall(r"'([^']*)'", held[1])
            which = f"has no configuration {self.config}, but" if self.config else "has the configurations"
            choice = f"{{path: 'hf:{self.name}', config: {known[0] if known else 'NAME'}}}"
            return f"the dataset {self.name!r} {which} {', '.join(known)}: choose one, such as {choice}"
        first = said.strip().split("\n")[0][:200]
        return f"the dataset {self.name!r} cannot be opened ({first}): check its name and split"

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[int]:
        return shuffled(range(self.data.num_shards), rng)

    def rows(self, part: int) -> Iterator[Row]:
        shard = self.data.shard(num_shards=self.data.num_shards, index=part)
        for number, values in enumerate(shard):
            yield Row(f"{self}, shard {part}, row {number}", values, Path(self.layout.media))

    def stamp(self, part: int) -> str:
        return stamp_of(self.rows(part))

    @cached_property
    def census(self) -> Census:
        split = (self.data.info.splits or {}).get(self.split)
        count = split.num_examples if split is not None and split.num_examples else None
        return Census(seen=count, used=count)

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        return self.layout.sample(row, fit, rng)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "data"}  # workers only decode

    def __str__(self) -> str:
        return f"hf:{self.name}:{self.split}" + (f" ({self.config})" if self.config else "")
