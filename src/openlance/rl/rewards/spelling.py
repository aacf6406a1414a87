"""Which text a prompt asks for, and how near what was read comes to it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import permutations

from openlance.errors import UserError

# Pairs of quotation marks. Single ones are no quotation: they are apostrophes as well.
QUOTES = (('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"), ("「", "」"), ("『", "』"))
_QUOTED = re.compile("|".join(f"{a}([^{a}{b}]*){b}" for a, b in QUOTES))
_BECOMES = re.compile(r"\s*(?:to|into)\s*", re.IGNORECASE)
_REPLACED = re.compile(r"\s*(?:with|by|for)\s*", re.IGNORECASE)
_REPLACE = re.compile(r"\b(?:replac|swap|exchang|substitut|chang)\w*[^\w]*(?:[\w]+\s+){0,3}$", re.IGNORECASE)
MOST_ORDERED = 4  # texts up to which every order of them is tried


def quoted(prompt: str) -> tuple[str, ...]:
    """Return the texts that a prompt puts between quotes, in its order; of `change "A" to "B"` the B alone, and of
    `replace "A" with "B"`, but both of `a cover of "A" by "B"`."""
    found = list(_QUOTED.finditer(prompt))
    texts = [plain(match[match.lastindex or 0]) for match in found]
    gone = {
        n for n, (a, b) in enumerate(zip(found, found[1:]))
        if _BECOMES.fullmatch(between := prompt[a.end() : b.start()])
        or (_REPLACED.fullmatch(between) and _REPLACE.search(prompt[: a.start()]))
    }  # fmt: skip
    return tuple(text for n, text in enumerate(texts) if text and n not in gone)


def wanted(prompt: str) -> tuple[str, ...]:
    """Return the texts that a prompt asks for. UserError if it has none between quotes."""
    found = quoted(prompt)
    if not found:
        raise UserError(
            f"the prompt {prompt[:80]!r} has no text between quotes: the reward ocr needs what is to be read there, "
            'such as a sign that says "OPEN"'
        )
    return found


def plain(text: str) -> str:
    """Return a text with usual letters for full-width and joined ones, and single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def closeness(read: str, target: str) -> float:
    """Compare a whole reading with a text: 1 - edit distance / length of the text, at least 0.

    What was read beyond the text counts as errors, so that writing more never helps (the rule of Flow-GRPO's code, by
    which a text that contains the target is right, invites just that).
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as missing:
        raise UserError("comparing texts needs the package rapidfuzz: pip install 'openlance[rl]'") from missing
    return max(0.0, 1 - Levenshtein.distance(read, target) / max(len(target), 1))


def best_order(lines: Sequence[str], texts: Sequence[str]) -> tuple[float, bool]:
    """Compare what was read, line by line, with the texts that were asked for, in whatever order these stand.

    Returns:
        Closeness without regard to capitals, and whether all is exactly as asked.
    """
    read = plain(" ".join(lines))
    orders = permutations(texts) if len(texts) <= MOST_ORDERED else (tuple(texts),)
    targets = [" ".join(order) for order in orders]
    return max(closeness(read.casefold(), target.casefold()) for target in targets), read in targets
