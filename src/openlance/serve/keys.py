"""Bearer keys."""

from __future__ import annotations

import hmac
from collections.abc import Sequence


def opens(authorization: str, keys: Sequence[str]) -> bool:
    """Say whether an Authorization header has one of the keys; each is compared, so that the time tells nothing."""
    scheme, _, said = authorization.partition(" ")
    same = [hmac.compare_digest(said.strip().encode(), key.encode()) for key in keys]
    return scheme.lower() == "bearer" and any(same)
