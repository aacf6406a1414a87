"""What belongs together by its name: a text and what it is of, the two sides of a pair.

texts = Beside(files, place); texts.of(place / "images/1.png")     # captions/1.txt
role_of(Path("control/1.png"))                                      # ("input_", "1")
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from openlance.data.names import CAPTION, IMAGE, MADE, ORDER, SOURCE, VIDEO, words_of
from openlance.data.tables import names_a_file

TEXTS = (".txt", ".caption")
TEXT_FOLDERS = frozenset((*CAPTION, *ORDER, "labels"))


class Beside:
    """The text of each file: of the same name but for its suffix, in any letter case, beside it or in a folder of
    texts."""

    def __init__(self, files: list[Path], place: Path) -> None:
        self.place = place
        self.exact = dict[tuple[str, str], Path]()
        self.loose = dict[tuple[str, str], Path]()
        self.files = [path for path in files if path.suffix.lower() in TEXTS]
        self.used = set[Path]()
        for path in files:
            if path.suffix.lower() in (*TEXTS, ".json"):
                for stem in (path.stem, Path(path.stem).stem if names_a_file(path.stem) else path.stem):
                    stem = composed(stem)
                    for key in {str(path.parent), key_of(path.relative_to(place).parent)}:
                        if path.suffix.lower() != ".json" or (key, stem) not in self.exact:
                            self.exact[key, stem] = self.loose[key, stem.lower()] = path

    def of(self, path: Path) -> Path | None:
        return self._first((str(path.parent), key_of(path.relative_to(self.place).parent)), [composed(path.stem)])

    def of_pair(self, key: str) -> Path | None:
        """The text of what both sides have in common: captions/1.txt, 1.txt of 1_before.png, or 1/prompt.txt."""
        folder, _, stem = key.rpartition("/")
        return self._first([key_of(Path(folder))], [stem]) or self._first([key_of(Path(key))], ORDER)

    def _first(self, folders: Sequence[str], stems: Sequence[str]) -> Path | None:
        for known, exact in ((self.exact, True), (self.loose, False)):
            for folder, stem in product(folders, stems):
                if (found := known.get((folder, stem if exact else stem.lower()))) is not None:
                    self.used.add(found)
                    return found
        return None


def key_of(folder: Path) -> str:
    """A folder without the parts that say of what kind its files are: images/a and captions/a are one."""
    kinds = IMAGE | VIDEO | TEXT_FOLDERS
    return ":" + "/".join(part for part in folder.parts if not words_of(part) <= kinds)


def role_of(path: Path) -> tuple[str, str]:
    """Which side of a pair a file is ("input_", "output_", or nothing), and what both sides have in common."""
    for at, part in enumerate(path.parts[:-1]):
        words = words_of(part) - IMAGE - VIDEO
        for role, known in (("input_", SOURCE), ("output_", MADE)):
            if words and words <= known:
                return role, "/".join((*path.parts[:at], *path.parts[at + 1 : -1], path.stem))
    stem, _, end = path.stem.replace("-", "_").rpartition("_")
    for role, known in (("input_", SOURCE), ("output_", MADE)):
        if end.lower() in known and (stem or len(path.parts) > 1):  # 1_before.png, or 1/before.png
            return role, "/".join((*path.parts[:-1], *filter(None, [stem])))
    folders = [part for part in path.parts[:-1] if not words_of(part) <= IMAGE | VIDEO]
    return "", "/".join((*folders, path.stem))


def last_part(path: str) -> str:
    """The last part of a path of any system."""
    return composed(re.split(r"[\\/]", path)[-1])


def composed(name: str) -> str:
    """A name with its accents as letters have them; a Mac takes them apart."""
    return unicodedata.normalize("NFC", name)
