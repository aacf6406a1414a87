"""Two reports of `lance_parity.report` beside each other: the same weights, and the same results from them?"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openlance.checkpoint.tensors import first
from openlance.errors import UserError
from openlance.media.image import read_image

# Levels of 255 by which two thumbnails of one picture may differ on average: other kernels and dtypes round otherwise.
TOLERANCE = 4.0


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    said: str
    passed: bool = True


def differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[Row]:
    """Hold a report against an earlier one, or one of another machine.

    Tensors have to be equal in name, type, shape and hash, answers word by word, pictures and clips within `TOLERANCE`
    as their thumbnails show. What one of the two lacks is told, and fails unless it was left out for want of time.

    Raises:
        UserError: If one is damaged.
    """
    try:
        return [*_parts(new, old), *_results(new, old)]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"a report is damaged ({error!r}): write it again with the newest openlance") from error


def _parts(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Row]:
    for name in dict.fromkeys([*new["parts"], *old["parts"]]):
        one, other = (report["parts"].get(name, {}).get("tensors", {}) for report in (new, old))
        only = {"gone": other.keys() - one.keys(), "new": one.keys() - other.keys()}
        # A report that ran out of time has no hash behind type and shape.
        both = {t: list(zip(one[t].split(), other[t].split())) for t in one.keys() & other.keys()}
        only["different"] = {tensor for tensor, pairs in both.items() if any(a != b for a, b in pairs)}
        said = "; ".join(f"{len(names)} {what}: {first(sorted(names), 3)}" for what, names in only.items() if names)
        hashed = sum(len(pairs) > 2 for pairs in both.values())
        yield Row(f"weights of {name}", said or f"{len(both)} tensors equal, {hashed} of them by hash", not said)


def _results(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Row]:
    for name in dict.fromkeys([*new["results"], *old["results"]]):
        lacking = [which for which, report in (("new", new), ("old", old)) if name not in report["results"]]
        if lacking:
            late = all(name in (new if which == "new" else old)["left_out"] for which in lacking)
            yield Row(name, f"not in the {lacking[0]} one" + ", which had no time for it" * late, late)
            continue
        one, other = new["results"][name], old["results"][name]
        yield Row(name, *(_words(one, other) if "answer" in one else _pixels(one, other)))


def _words(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, bool]:
    if one["answer"] == other["answer"] and one["about"] == other["about"]:
        return "equal", True
    return f"{one['answer']!r}, and it was {other['answer']!r}", False


def _pixels(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, bool]:
    if one["pixels"] == other["pixels"]:
        return "equal, pixel by pixel", True
    small = [read_image(base64.b64decode(r["thumbnail"], validate=True)).pixels.astype(float) for r in (one, other)]
    if small[0].shape != small[1].shape:
        return "of another size", False
    off = float(np.abs(small[0] - small[1]).mean())
    return f"{off:.2f} levels of 255 apart on average", off <= TOLERANCE
