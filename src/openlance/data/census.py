"""What is in a source: how much was seen, what is used, what is left out and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NAMED = 3  # how many of the things that are left out are named, for each reason


@dataclass
class Census:
    """Counts of one source.

    Args:
        seen: Media files, pairs or rows of tables: what is used and what is left out; None where nobody can tell before
            they are read.
        used: Samples of an epoch, repeats counted; None likewise.
        left: Of what is left out, by the reason: how many, and the first of them.
        notes: What else is to be known, such as where captions come from.
    """

    seen: int | None = 0
    used: int | None = 0
    left: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave(self, reason: str, name: object, count: int = 1) -> None:
        """Count something that is left out."""
        number, names = self.left.get(reason, (0, []))
        self.left[reason] = (number + count, names if len(names) >= NAMED else [*names, str(name)])

    @property
    def lines(self) -> list[str]:
        """One line for each reason, the most frequent first."""
        ordered = sorted(self.left.items(), key=lambda item: -item[1][0])
        return [
            f"{count} left out: {reason} ({', '.join(names)}{', ...' if count > len(names) else ''})"
            for reason, (count, names) in ordered
        ]

    def as_data(self) -> dict[str, Any]:
        left = {reason: {"count": count, "first": names} for reason, (count, names) in self.left.items()}
        return {"seen": self.seen, "used": self.used, "left_out": left, "notes": self.notes}
