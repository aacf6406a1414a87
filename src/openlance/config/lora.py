"""What a low-rank adapter is (Hu et al., 2021, arXiv 2106.09685); `model.lora` trains and merges them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from openlance.errors import UserError

# The matrices of the experts: what adapters change and what is quantized.
TARGETS = r"layers\.\d+\.(und|gen)\.(q|k|v|o|gate|up|down)"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What is trained in place of the weights.

    Args:
        rank: Of the update of each matrix.
        alpha: alpha / rank is its scale; the rank by default.
        dropout: Share of what goes into the updates that is left out while training.
        targets: A pattern that whole names of modules match, or ends of names with commas between them, such as "q,v"
            or "gen.q".
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: str = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.scale <= 0:
            raise UserError(f"rank={self.rank}, alpha={self.alpha}: both must be above 0, for example 16 and 16")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout:g} must be from 0 to below 1, for example 0.05")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"targets={self.targets!r} is no pattern ({error}): write for example 'q,v'") from error

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def pattern(self) -> str:
        """The pattern of `targets`."""
        if re.fullmatch(r"[\w.]+( *, *[\w.]+)*", self.targets) is None:
            return self.targets
        ends = "|".join(re.escape(end.strip()) for end in self.targets.split(","))
        return rf"(.*\.)?({ends})"
