"""A request of the release with everything that runs on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from openlance.compat.verify.checks import Checks
from openlance.compat.verify.parts import Parts
from openlance.sequence.pack import Pack
from openlance.sequence.segment import Kind, Role, Rows, Segments


@dataclass
class Case:
    """One request in model space, packed."""

    checks: Checks
    parts: Parts
    segments: Segments
    packed: Pack

    @property
    def rows(self) -> Rows:
        return self.packed.rows

    @property
    def asked(self) -> Segments:
        """The request as it is put: with an empty answer."""
        return [replace(s, value=None) if s.role is Role.TARGET and s.kind is Kind.TEXT else s for s in self.segments]
