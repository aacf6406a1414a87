"""Bearer keys."""

from __future__ import annotations

import hmac
from collections.abc import Sequence


def opens(authorization: str, keys: Sequence[str]) -> bool:
    """Say whether an Authorization header has one of the keys; each is compared, so that the time tells nothing."""
    scheme, _, said = authorization.partition(" ")
    return known(said.strip(), keys) and scheme.lower() == "bearer"


def known(said: str, keys: Sequence[str]) -> bool:
    """Say whether this is one of the keys, likewise."""
    same = [hmac.compare_digest(said.encode(), key.encode()) for key in keys]
    return any(same)
