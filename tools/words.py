"""Keep to the field's words: `python tools/words.py` (a part of `make lint`) exits with 1 where another one is left.

Looks at the prose of README and docs, outside of code, and at docstrings and messages of the package, the help of every
command among them. A rule is a pattern and what to write instead.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Pattern, without letter case: what to write.
RULES = {
    r"holes?": "an empty target",
    r"crews?": "a distributed context, or processes",
    r"guests?|visits": "auxiliary components, offload, streamed",
    r"few bits": "quantization, quantized",
    r"habits?": "quirks",
    r"faithful": "the quirks of the release",
    r"(?<!video )codec of (?:clips|the model|latents)|the codec's": "the VAE",
    r"company of": "a dummy sample",
    r"noise draws?": "noise samples",
    r"(?:image|picture|clip|value|frame|step|number)s? (?:is|are) none": "{name} must be at least 1, got 0",
    r"needs? no leave": "are always allowed",
    r"values that cannot be": "{path} is invalid: {field}={value} must be ...",
    r"told by (?:their |its )?content": "detected from the content",
    r"answered by one sentence|answer with one sentence": "exits with code 2 and a one-line message",
    r"hours of work": "before training starts",
    r"pictures?": "image",
    r"clips?": "video",
    r"slips? of the hand": "a mistake",
    # American spelling, as torch and transformers have it.
    r"colou?rise\w*|\w*colour\w*": "color",
    r"(?:quant|normal|initial|recogn|optim|general|token|summar|organ|serial|util)is(?:e[sdr]?|ing|ation)": "-ize",
    r"neighbour\w*|behaviour\w*|favour\w*|honour\w*": "-or",
    r"centres?|centred|metres?": "-er",
    r"labelled|labelling|modelling|travelled|travelling": "one l",
    # The machinery of a project is not what a reader came for.
    r"obviously|simply|of course": "nothing",
}  # fmt: skip
PATTERNS = {re.compile(rf"(?<![\w/`_.-])(?:{rule})(?![\w`_/-])", re.IGNORECASE): use for rule, use in RULES.items()}
SENTENCE = re.compile(r"[a-z] [a-z].*[.:,]")
# What has to be kept as it is: names of nano's edits, an option's second spelling, the model CLIP, the class Clip.
KEPT = re.compile(r"\brecolour\b|--\w+|\b\w+=|--quantise|\bCLIP\b|\bClip\b(?=[ ,.;)])|\bclip\.\w+")
CODE = re.compile(r"^(`{3,}).*?^\1|^(?: {4,}|\t).*?$|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)|\"[^\"\n]{1,80}\"", re.M | re.S)


def prose(path: Path) -> str:
    """A page without its code, names and quotations, line by line as it is."""
    return CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), path.read_text("utf-8"))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings and messages of a file: strings that are sentences."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SENTENCE.search(node.value):
            yield node.lineno, CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), node.value)


def found(path: Path) -> Iterator[str]:
    """What is to be changed in a file."""
    parts = texts(path) if path.suffix == ".py" else [(1, prose(path))]
    for first, text in parts:
        text = KEPT.sub(lambda m: " " * len(m[0]), text)
        for pattern, use in PATTERNS.items():
            for match in pattern.finditer(text):
                line = first + text.count("\n", 0, match.start())
                yield f"{path.relative_to(ROOT).as_posix()}:{line}: {match[0]!r}: write {use}"


def files() -> list[Path]:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")]
    pages += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "integrations").rglob("*.md"))
    return pages + sorted((ROOT / "src" / "openlance").rglob("*.py"))


def main() -> int:
    wrong = [line for path in files() for line in found(path)]
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
