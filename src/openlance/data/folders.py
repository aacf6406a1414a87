"""Folders of media as people have them, and single lists: which files are used, with which words, and what is left out.

pictures/dog.png  pictures/dog.txt                         a text beside (.txt, .caption), in any letter case
pictures/metadata.jsonl                                    or .csv, .json, at any level: `data.tables`
pictures/10_sks dog/1.png                                  kohya: ten times an epoch, "sks dog" where no text is
pairs/control/1.png  pairs/target/1.png  pairs/target/1.txt     pairs, by the names of folders or ends of names
clips/videos.txt  clips/prompts.txt                        lines that belong together
"""

from __future__ import annotations

import json
import mimetypes
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from openlance.config.values import read_text
from openlance.data.census import Census
from openlance.data.columns import CHAIN, TURNS, Layout
from openlance.data.names import CAPTION, IMAGE, MADE, ORDER, SOURCE, VIDEO, words_of
from openlance.data.source import Row
from openlance.data.tables import SUFFIXES, beside, names_a_file, read_table
from openlance.errors import UserError
from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from openlance.media.image import readers, size_of

TEXTS = (".txt", ".caption")
# Folders of programs, not of people: a Mac's zip, a Synology, Jupyter's copies (hidden by its dot).
PRIVATE = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
REPEATS = re.compile(r"(\d{1,3})_(.+)")  # a year is no number of repeats
LISTS = {"videos.txt", "video.txt", "images.txt", "image.txt"}
TOLD = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt", "labels.txt")
TEXT_FOLDERS = frozenset((*CAPTION, *ORDER, "labels"))


def is_private(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's own (AppleDouble's ._ files are hidden by their dot)."""
    return name.startswith(".") or name in PRIVATE


def is_media(path: str) -> bool:
    """Whether a file is named as an image or video is, of a kind that is read or not."""
    return names_a_file(path) or (mimetypes.guess_type(path)[0] or "").startswith(("image/", "video/"))


@dataclass
class Survey:
    """Looks through a folder, or reads one list, for a layout."""

    place: Path
    layout: Layout
    census: Census = field(default_factory=Census)
    sources: Counter[str] = field(default_factory=Counter)  # of captions
    _media: list[Path] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """Return the rows in the order of their names, each as often as its folder says; fills the census.

        Raises:
            UserError: If a list is damaged, or nothing is of use.
        """
        if self.place.is_file():
            made = self._listed(self.place, read_table(self.place), must=True)
        else:
            made = list(self._from_folder())
        found = [row for row in made for row in self._repeated(row)]
        self.census.used = len(found)
        self.census.seen = len(made) + sum(count for count, _ in self.census.left.values())
        self.census.notes += [f"captions: {', '.join(f'{n} {where}' for where, n in self.sources.items())}"]
        if not found:
            raise UserError(self._nothing())
        return found

    def _nothing(self) -> str:
        pair = "name pairs by folders control and target, or " if self._is_pair else ""
        fix = f"{pair}put a text file of the same name beside each, or a metadata.jsonl with file_name and text"
        if "the file is missing" in self.census.left:
            fix = "put them there, or name the folder in which their paths begin: {path: LIST, media: FOLDER}"
        why = f" ({'; '.join(self.census.lines)})" if self.census.left else ""
        return f"{self.place} holds no captioned images or videos{why}: {fix}"

    @cached_property
    def _wanted(self) -> tuple[str, ...]:
        """The columns of media."""
        c = self.layout.columns
        return tuple(name for name in (*c.inputs, c.output) if name.endswith("_bytes"))

    @cached_property
    def _is_pair(self) -> bool:
        return len(self._wanted) > 1 and not self.layout.columns.any_input

    def _column(self, path: str | Path, role: str = "") -> str | None:
        """The column that a file fills, by what it is."""
        moves = str(path).lower().endswith(VIDEO_SUFFIXES)
        both = str(path).lower().endswith(".gif")  # which may be either
        for kind in ("video", "image") if moves else ("image",):
            if (name := f"{role}{kind}_bytes") in self._wanted and (kind == "video" or not moves or both):
                return name
        return None

    @cached_property
    def _names(self) -> dict[str, list[Path]]:
        """The media of the folder by their names, with and without a suffix."""
        found = defaultdict[str, list[Path]](list)
        for path in self._media:
            for name in {path.name, path.stem}:
                found[name].append(path)
        return found

    def _by_name(self, value: str) -> Path | None:
        """The one file of the name with which a path ends that is from another machine, or begins elsewhere."""
        found = self._names.get(re.split(r"[\\/]", value)[-1], []) if self.place.is_dir() else []
        return found[0].absolute() if len(found) == 1 else None

    # Files.

    def _walk(self) -> Iterator[Path]:
        """The files below the folder in order, linked folders too; hidden media are counted."""
        seen = set[str]()
        for top, folders, files in os.walk(self.place, followlinks=True):
            real = os.path.realpath(top)
            if real in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            for name in [name for name in folders if is_private(name)]:
                folders.remove(name)
                for below, _, hidden in os.walk(os.path.join(top, name)):
                    for one in hidden:
                        self._hide(Path(below, one))
            folders.sort()
            for name in sorted(files):
                if is_private(name):
                    self._hide(Path(top, name))
                else:
                    yield Path(top, name)

    def _hide(self, path: Path) -> None:
        if is_media(path.name):
            self.census.leave("hidden", path)

    def _from_folder(self) -> Iterator[Row]:
        files = list(self._walk())
        media = self._media = [path for path in files if is_media(path.name)]
        self._texts = _Beside(files, self.place)
        stems = {path.with_suffix("") for path in media}
        taken, rows = set[Path](), list[Row]()
        for path in files:
            suffix = path.suffix.lower()
            if suffix not in SUFFIXES or suffix == ".txt" or (suffix == ".json" and path.with_suffix("") in stems):
                continue
            made = self._from_file(path)
            taken |= {row.folder / value for row in made for value in _paths(row.values, self._wanted)}
            rows += made
        for path in files:
            if path.name.lower() in LISTS:
                texts = next((path.with_name(name) for name in TOLD if path.with_name(name).is_file()), None)
                if texts is not None:
                    made = self._listed(path, list(beside(path, texts)), must=True)
                    taken |= {row.folder / value for row in made for value in _paths(row.values, self._wanted)}
                    rows += made
            elif path.suffix.lower() == ".txt" and path.with_suffix("") not in stems and _is_list(path):
                made = self._listed(path, read_table(path), must=False)
                taken |= {row.folder / value for row in made for value in _paths(row.values, self._wanted)}
                rows += made
        yield from rows
        taken = {Path(os.path.abspath(path)) for path in taken}
        free = [path for path in media if Path(os.path.abspath(path)) not in taken]
        yield from self._pairs(free) if self._is_pair else self._singles(free)

    def _from_file(self, path: Path) -> list[Row]:
        """Rows of a list in the folder. What is none, or of another kind, is left out; metadata must fit."""
        must = path.stem.lower() in ("metadata", "captions")
        try:
            table = read_table(path)
        except UserError:
            if must or path.suffix.lower() == ".jsonl":
                raise
            return []
        return self._listed(path, table, must)

    # Lists.

    def _listed(self, path: Path, table: list[tuple[str, dict[str, Any]]], must: bool) -> list[Row]:
        fits = [one for one in table if not self.layout.missing(self._renamed(one[1]))]
        if table and not fits:
            if must:
                self.layout.check(path, list(table[0][1]))
            return []
        made = [row for place, values in table if (row := self._row(path, place, values)) is not None]
        return made

    def _renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values with `file_name` under the name of the column that it fills."""
        found = dict(values)
        for name in values:
            if words_of(name) == {"file"} and isinstance(values[name], str):
                column = self._column(values[name]) or ("image_bytes" if "." not in Path(values[name]).name else None)
                if column in self._wanted and column not in found:
                    found[str(column)] = found.pop(name)
        return found

    def _row(self, table: Path, place: str, raw: Mapping[str, Any]) -> Row | None:
        values, c = self.layout.renamed(self._renamed(raw)), self.layout.columns
        folder = table.parent
        names = _paths(values, self._wanted)
        if names:
            roots = [folder, folder / "images", folder / "videos", folder.parent, self.place]
            if self.layout.media:
                roots.insert(0, Path(self.layout.media))
            root = next((r for r in roots if _there(r / names[0])), None)
            if root is None and (alone := [self._by_name(name) for name in names]) and all(alone):
                renamed = dict(zip(names, map(str, alone)))
                for name in self._wanted:
                    values[name] = renamed.get(str(values.get(name)), values.get(name))
                root = self.place
            if root is None:
                self.census.leave("the file is missing", f"{place}: {names[0]}")
                return None
            folder = root
            for name in self._wanted:
                values[name] = _whole(values[name], folder) if name in values else None
            values = {k: v for k, v in values.items() if v is not None}
        elif not values.get(TURNS) and not values.get(CHAIN):
            self.census.leave("no image or video", place)
            return None
        text = values.get(c.text)
        if not values.get(TURNS) and c.text == "caption" and (text is None or not str(text).strip()):
            if not self.layout.caption:
                self.census.leave("no caption", place)
                return None
            self.sources["the one for all"] += 1
        else:
            self.sources[f"from {table.name}"] += 1
        if self._too_small([folder / name for name in _paths(values, self._wanted)], place):
            return None
        return Row(place, values, folder)

    # Files without a list.

    def _singles(self, media: list[Path]) -> Iterator[Row]:
        for path in media:
            column = self._column(path)
            if not self._usable(path, column):
                continue
            said = self._said(path)
            if said is not None and not self._too_small([path], path):
                yield Row(str(path), {str(column): str(path.relative_to(self.place))} | said, self.place)

    def _pairs(self, media: list[Path]) -> Iterator[Row]:
        groups = defaultdict[str, dict[str, list[Path]]](lambda: defaultdict(list))
        for path in media:
            role, key = _role(path.relative_to(self.place))
            if not role:
                self.census.leave("of no pair: neither a folder nor the end of its name says which side it is", path)
            elif self._usable(path, self._column(path, role)):
                groups[key][role].append(path)
        for key in [key for key, group in groups.items() if "output_" not in group]:
            base = re.sub(r"_\d+$", "", key)  # several sources of one target: 7_0.png, 7_1.png
            if base != key and "output_" in groups.get(base, {}):
                groups[base]["input_"] += groups.pop(key)["input_"]
        for group in groups.values():
            sources, made = group.get("input_", []), group.get("output_", [])
            if not sources or len(made) != 1:
                for path in (*sources, *made):
                    self.census.leave("its other half is missing", path)
                continue
            texts = [one for one in (*made, *sources) if self._texts.of(one) is not None]
            said = self._said(texts[0] if texts else made[0])
            if said is None or self._too_small([*sources, *made], made[0]):
                continue
            names = [str(path.relative_to(self.place)) for path in sources]
            values = {
                str(self._column(sources[0], "input_")): names[0] if len(names) == 1 else names,
                str(self._column(made[0], "output_")): str(made[0].relative_to(self.place)),
            }
            yield Row(str(made[0]), values | said, self.place)

    def _usable(self, path: Path, column: str | None) -> bool:
        suffix = path.suffix.lower()
        if suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            self.census.leave(f"unreadable kind ({suffix})", path)
        elif suffix not in VIDEO_SUFFIXES and suffix not in readers():
            more = ": pip install 'openlance[media]'" if suffix in (".heic", ".heif", ".avif") else ""
            self.census.leave(f"no reader for {suffix}{more}", path)
        elif column is None:
            what = "a video" if suffix in VIDEO_SUFFIXES and suffix != ".gif" else "an image"
            self.census.leave(f"{what}, of which {self.layout.task} has no use", path)
        else:
            return True
        return False

    def _said(self, path: Path) -> dict[str, Any] | None:
        """The words of a file, or None where it has none, which is counted."""
        c, where = self.layout.columns, "from text files"
        own = self._texts.of(path)
        if own is not None and own.suffix.lower() == ".json":
            return self._from_own_json(own, path)
        text = "" if own is None else read_text(own).strip()
        if not text and (folder := self._repeats(path)) is not None:
            text, where = folder[1], "from names of folders"
        if not text and self.layout.caption:
            text, where = self.layout.caption, "the one for all"
        if not text:
            self.census.leave("no caption" if own is None else "its caption is blank", path)
            return None
        self.sources[where] += 1
        if c.text == "caption":
            return {"caption": text}
        question, _, answer = text.rpartition("\n")
        return {"caption_q": question.strip(), "caption_a": answer.strip()}

    def _from_own_json(self, own: Path, path: Path) -> dict[str, Any] | None:
        try:
            held = json.loads(read_text(own), strict=False)
        except ValueError as error:
            raise UserError(f"{own} is not JSON ({error}): mend it, or leave it out") from error
        found = self.layout.renamed(held) if isinstance(held, dict) else {}
        words = {k: v for k, v in found.items() if k not in self._wanted and v}
        c = self.layout.columns
        if not words.keys() & {c.text, c.output, TURNS}:
            self.census.leave("no caption", path)
            return None
        self.sources["from JSON files"] += 1
        return words

    def _too_small(self, paths: list[Path], name: object) -> bool:
        least = self.layout.least
        for path in paths:
            size = size_of(path) if least > 1 and not path.name.lower().endswith(VIDEO_SUFFIXES) else None
            if size is not None and min(size) < least:
                self.census.leave(f"too small (a side below {least} pixels)", name)
                return True
        return False

    # Repeats.

    def _repeats(self, path: Path) -> tuple[int, str] | None:
        """kohya's number of repeats and words of class, of the folder that is named so."""
        for name in (*reversed(path.relative_to(self.place).parts[:-1]), self.place.name):
            if (match := REPEATS.fullmatch(name)) is not None and int(match[1]) > 0:
                return int(match[1]), match[2].strip()
        return None

    def _repeated(self, row: Row) -> Iterator[Row]:
        first = next((row.folder / name for name in _paths(row.values, self._wanted)), None)
        inside = first is not None and self.place.is_dir() and first.is_relative_to(self.place)
        times, _ = (self._repeats(first) if inside and first is not None else None) or (1, "")
        if times > 1 and (note := f"repeats: {times} times what is in {first.parent.name}") not in self.census.notes:  # type: ignore[union-attr]
            self.census.notes.append(note)
        yield row
        for number in range(2, times + 1):
            yield Row(f"{row.place} ({number} of {times})", row.values, row.folder)


class _Beside:
    """The text of each file: of the same name but for its suffix, in any letter case, beside it or in a folder of
    texts."""

    def __init__(self, files: list[Path], place: Path) -> None:
        self.place = place
        self.exact = dict[tuple[str, str], Path]()
        self.loose = dict[tuple[str, str], Path]()
        for path in files:
            if path.suffix.lower() in (*TEXTS, ".json"):
                for stem in (path.stem, Path(path.stem).stem if names_a_file(path.stem) else path.stem):
                    for key in {str(path.parent), _key(path.relative_to(place).parent)}:
                        if path.suffix.lower() != ".json" or (key, stem) not in self.exact:
                            self.exact[key, stem] = self.loose[key, stem.lower()] = path

    def of(self, path: Path) -> Path | None:
        folders = (str(path.parent), _key(path.relative_to(self.place).parent))
        for known, stem in ((self.exact, path.stem), (self.loose, path.stem.lower())):
            for folder in folders:
                if (folder, stem) in known:
                    return known[folder, stem]
        return None


def _key(folder: Path) -> str:
    """A folder without the parts that say of what kind its files are: images/a and captions/a are one."""
    kinds = IMAGE | VIDEO | TEXT_FOLDERS
    return ":" + "/".join(part for part in folder.parts if not words_of(part) <= kinds)


def _role(path: Path) -> tuple[str, str]:
    """Which side of a pair a file is ("input_", "output_", or nothing), and what both sides have in common."""
    for at, part in enumerate(path.parts[:-1]):
        words = words_of(part) - IMAGE - VIDEO
        for role, known in (("input_", SOURCE), ("output_", MADE)):
            if words and words <= known:
                return role, "/".join((*path.parts[:at], *path.parts[at + 1 : -1], path.stem))
    stem, _, end = path.stem.replace("-", "_").rpartition("_")
    for role, known in (("input_", SOURCE), ("output_", MADE)):
        if end.lower() in known and stem:
            return role, "/".join((*path.parts[:-1], stem))
    return "", ""


def _paths(values: Mapping[str, Any], columns: tuple[str, ...]) -> list[str]:
    """The paths in the columns of media."""
    found = list[str]()
    for name in (*columns, CHAIN):
        held = values.get(name)
        for one in held if isinstance(held, (list, tuple)) else [held]:
            one = one.get("path") if isinstance(one, Mapping) else one
            if isinstance(one, str) and one and not one.startswith("data:"):
                found.append(one)
    return found


def _there(path: Path) -> bool:
    return path.is_file() or _with_suffix(path) is not None


def _with_suffix(path: Path) -> Path | None:
    """The picture of a name that came without its suffix, as kohya's tables have them."""
    if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES or not path.parent.is_dir():
        return None
    known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    return next((p for s in known for p in (path.with_name(path.name + s),) if p.is_file()), None)


def _whole(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and not (folder / value).is_file() and (found := _with_suffix(folder / value)):
        return str(found.relative_to(folder)) if found.is_relative_to(folder) else str(found)
    return value


def _is_list(path: Path) -> bool:
    """Whether the first line of a text names a file that is there."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    return any(
        names_a_file(name) and (path.parent / name.strip()).is_file()
        for mark in "\t|;,"
        for name in [first.split(mark)[0]]
    )
