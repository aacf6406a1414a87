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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from openlance.config.values import LONGEST_SHOWN, read_text
from openlance.data.beside import Beside, composed, last_part, role_of
from openlance.data.census import NAMED, Census
from openlance.data.columns import CHAIN, TURNS, Layout, holds, media_of, told
from openlance.data.names import words_of
from openlance.data.source import Row, is_file
from openlance.data.tables import SUFFIXES, beside, entry, names_a_file, read_table
from openlance.errors import UserError
from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from openlance.media.image import readers, size_of

# Folders of programs, not of people: a Mac's zip, a Synology, Jupyter's copies (hidden by its dot).
PRIVATE = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
REPEATS = re.compile(r"(\d{1,3})_(.+)")  # a year is no number of repeats
LISTS = {"videos.txt", "video.txt", "images.txt", "image.txt"}
TOLD = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt", "labels.txt")
PACKED = (".zip", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")


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
    _taken: set[str] = field(default_factory=set)  # files that lists name
    _named: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # paths of lists by their last part
    _columns: dict[str, None] = field(default_factory=dict)  # that lists have
    _idle: list[str] = field(default_factory=list)  # lists of which nothing came, and why
    _texts: Beside = field(default_factory=lambda: Beside([], Path()))

    def rows(self) -> list[Row]:
        """Return the rows in the order of their names, each as often as its folder says; fills the census.

        Raises:
            UserError: If a list is damaged, or nothing is of use.
        """
        if self.place.is_file():
            made = self._listed(self.place, read_table(self.place), must=True)
        else:
            made = list(self._from_folder())
        if lost := [theirs for _, theirs in self.layout.names if theirs not in self._columns]:
            held = f"they have {', '.join(self._columns)}" if self._columns else "there is none"
            raise UserError(f"columns names {lost[0]}, which no list of {self.place} has: {held}")
        found = [row for row in made for row in self._repeated(row)]
        self.census.used = len(found)
        self.census.seen = len(made) + sum(count for count, _ in self.census.left.values())
        self.census.notes += [f"captions: {', '.join(f'{n} {where}' for where, n in self.sources.items())}"]
        self.census.notes += self._unused()
        if not found:
            raise UserError(self._nothing())
        return found

    def _nothing(self) -> str:
        pair = "name pairs by folders control and target, or " if self._is_pair else ""
        fix = f"{pair}put a text file of the same name beside each, or a metadata.jsonl with file_name and text"
        if "the file is missing" in self.census.left:
            fix = "put them there, or name the folder in which their paths begin: {path: LIST, media: FOLDER}"
        lines = [*self.census.lines, *self._unused()]
        why = f" ({'; '.join(lines)})" if lines else ""
        return f"{self.place} holds no captioned images or videos{why}: {fix}"

    def _unused(self) -> list[str]:
        """Lists and texts that nothing came of."""
        found = [f"lists of no use: {len(self._idle)} ({'; '.join(self._idle[:NAMED])})"] if self._idle else []
        if texts := [path for path in self._texts.files if path not in self._texts.used]:
            more = ", ..." if len(texts) > NAMED else ""
            found.append(f"texts of no use: {len(texts)} ({', '.join(map(str, texts[:NAMED]))}{more})")
        return found

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
                found[composed(name)].append(path)
        return found

    def _by_name(self, value: str) -> Path | None:
        """The one file of the name with which a path ends that is from another machine, or begins elsewhere."""
        found = self._names.get(last_part(value), []) if self.place.is_dir() else []
        # Of two paths that end in one name only one can be meant, and nothing tells which.
        alone = len(found) == 1 and len(self._named[last_part(value)]) < 2
        return found[0].absolute() if alone else None

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
                path = Path(top, name)
                if is_private(name):
                    self._hide(path)
                elif path.is_file() or path.is_symlink():
                    yield path
                else:
                    self.census.leave("no plain file", path)  # to read a pipe would wait for whoever writes it

    def _hide(self, path: Path) -> None:
        if is_media(path.name):
            self.census.leave("hidden", path)

    def _from_folder(self) -> Iterator[Row]:
        files = list(self._walk())
        media = self._media = [path for path in files if is_media(path.name)]
        self._texts = Beside(files, self.place)
        stems = {path.with_suffix("") for path in media}
        rows = list[Row]()
        for path in files:
            suffix = path.suffix.lower()
            if path.name.lower() in LISTS:
                texts = next((path.with_name(name) for name in TOLD if path.with_name(name).is_file()), None)
                if texts is not None:
                    rows += self._listed(path, list(beside(path, texts)), must=True)
                    self._texts.used |= {path, texts}
            elif suffix == ".txt" and path.with_suffix("") not in stems and _is_list(path):
                rows += self._listed(path, read_table(path), must=False)
                self._texts.used.add(path)
            elif suffix in PACKED:
                self._idle.append(f"{path} is packed: unpack it")
            elif suffix in SUFFIXES and suffix != ".txt" and (suffix != ".json" or path.with_suffix("") not in stems):
                rows += self._from_file(path)
        yield from rows
        free = [path for path in media if os.path.abspath(path) not in self._taken]
        yield from self._pairs(free) if self._is_pair else self._singles(free)

    def _from_file(self, path: Path) -> list[Row]:
        """Rows of a list in the folder. What is none, or of another kind, is left out; metadata must fit."""
        must = path.stem.lower() in ("metadata", "captions")
        try:
            table = read_table(path)
        except UserError as error:
            if must or path.suffix.lower() == ".jsonl":
                raise
            self._idle.append(str(error))
            return []
        return self._listed(path, table, must)

    # Lists.

    def _listed(self, path: Path, table: list[tuple[str, dict[str, Any]]], must: bool) -> list[Row]:
        for _, values in table:
            self._columns |= dict.fromkeys(values)
            renamed = self.layout.renamed(self._renamed(values))
            for name in _paths([renamed.get(key) for key in (*self._wanted, CHAIN)]):
                self._named[last_part(name)].add(name)
        lacking = [self.layout.missing(self._renamed(values)) for _, values in table]
        if all(lacking):
            if must and table:
                self.layout.check(path, list(table[0][1]))
            self._idle += [f"{path} has no column for {', '.join(lacking[0])}"] if table else []
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
        """The row of an entry of a list; None if it is left out, or left to its file, and counted there."""
        raw = self._renamed(raw)
        values, c, folder = self.layout.renamed(raw), self.layout.columns, table.parent
        try:
            shown = media_of(values, c)
        except UserError as error:
            self.census.leave(str(error).partition(":")[0], place)
            return None
        names = _paths([*shown, values.get(CHAIN)])
        if not shown and not values.get(TURNS) and not values.get(CHAIN):
            self.census.leave("no image or video", place)
            return None
        if names:
            found = self._folder_of(names, table.parent)
            if isinstance(found, str):
                self.census.leave(found, f"{place}: {names[0][:LONGEST_SHOWN]}")
                return None
            folder, whole = found
            for key in (*self._wanted, CHAIN, TURNS):
                if key in values:
                    values[key] = _exchanged(values[key], whole)
            names = list(whole.values())
        said = values.get(TURNS) or c.text != "caption" or holds(values.get(c.text))
        if not said and self.place.is_dir() and len(self._wanted) == 1:
            return None  # a text beside the file may tell
        self._taken |= {os.path.abspath(folder / name) for name in names}
        if lost := self._lost(raw, values):
            self.census.leave(lost, place)
            return None
        for key in self._wanted:
            if not all(self._usable(folder / name, self._fits(key, name)) for name in _paths([values.get(key)])):
                return None
        if self._unfit([folder / name for name in names], place):
            return None
        self.sources[f"from {table.name}" if said else "the one for all"] += 1
        return Row(place, {key: value for key, value in values.items() if value is not None}, folder)

    def _lost(self, raw: Mapping[str, Any], values: Mapping[str, Any]) -> str:
        """What a row lacks; a question may be blank."""
        c, named = self.layout.columns, self.layout.named(raw)
        asks = named.get(c.text) if c.makes == "text" and isinstance(values.get(c.text), str) else None
        lacking = self.layout.missing(name for name, value in raw.items() if holds(value) or name == asks)
        if lacking:
            return f"no {', '.join(lacking)}"
        words = (c.text, c.output) if c.makes == "text" else (c.text,)
        wrong = [name for name in words if holds(values.get(name)) and not told(values[name])]
        return f"{named[wrong[0]]} is no text" if wrong else ""

    def _folder_of(self, names: list[str], beside: Path) -> tuple[Path, dict[str, str]] | str:
        """The folder in which the paths of a row begin, and the files that they mean; or why there are none."""
        if any(name.startswith(("http://", "https://")) for name in names):
            return "on the network: download the files and name those"
        roots = [beside, beside / "images", beside / "videos", beside.parent, self.place]
        for root in [Path(self.layout.media), *roots] if self.layout.media else roots:
            files = [_there(root / name) or _there(root / name.replace("\\", "/")) for name in names]
            if all(files):
                return root, {name: os.path.relpath(file, root) for name, file in zip(names, files) if file is not None}
        alone = [self._by_name(name) for name in names]
        if all(alone):
            return beside, {name: str(file) for name, file in zip(names, alone)}
        return "the file is missing"

    def _fits(self, column: str, name: str) -> str | None:
        """The column, if a file of this name can fill it."""
        moves, gif = name.lower().endswith(VIDEO_SUFFIXES), name.lower().endswith(".gif")
        return column if gif or moves == ("video" in column) else None

    # Files without a list.

    def _singles(self, media: list[Path]) -> Iterator[Row]:
        for path in media:
            column = self._column(path)
            if not self._usable(path, column) or self._unfit([path], path):
                continue
            said = self._said(path, self._texts.of(path))
            if said is not None:
                yield Row(str(path), {str(column): str(path.relative_to(self.place))} | said, self.place)

    def _pairs(self, media: list[Path]) -> Iterator[Row]:
        groups = defaultdict[str, dict[str, list[Path]]](lambda: defaultdict(list))
        for path in media:
            role, key = role_of(path.relative_to(self.place))
            if self._usable(path, self._column(path, role or "output_") or self._column(path, role or "input_")):
                groups[key][role].append(path)
        for key in [key for key, group in groups.items() if "output_" not in group and "" not in group]:
            base = re.sub(r"_\d+$", "", key)  # several sources of one target: 7_0.png, 7_1.png
            if base != key and groups.get(base, {}).keys() & {"output_", ""}:
                groups[base]["input_"] += groups.pop(key)["input_"]
        for key, group in groups.items():
            if len(sides := group.keys() - {""}) == 1 and (alone := group.pop("", [])):
                # One side may say nothing: images/1.png and control/1.png.
                group["input_" if sides == {"output_"} else "output_"] = alone
            for path in group.get("", []):
                self.census.leave("of no pair: neither a folder nor the end of its name says which side it is", path)
            sources, made = group.get("input_", []), group.get("output_", [])
            twins = max(Counter(path.with_suffix("") for path in (*sources, *made)).values(), default=1) > 1
            if not sources or len(made) != 1 or twins:
                why = "several files could be a half of its pair" if sources and made else "its other half is missing"
                for path in (*sources, *made):
                    self.census.leave(why, path)
                continue
            if self._unfit([*sources, *made], made[0]):
                continue
            own = next(filter(None, map(self._texts.of, (*made, *sources))), None) or self._texts.of_pair(key)
            said = self._said(made[0], own)
            if said is None:
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

    def _said(self, path: Path, own: Path | None) -> dict[str, Any] | None:
        """The words of a file, of its own text, or None where it has none, which is counted."""
        c, where = self.layout.columns, "from text files"
        if own is not None and own.suffix.lower() == ".json":
            return self._from_own_json(own, path)
        text = "" if own is None else read_text(own).strip()
        if not text and (folder := self._repeats(path)) is not None:
            text, where = folder[1], "from names of folders"
        if not text and self.layout.caption and c.text == "caption":
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
        held = held if isinstance(held, dict) else {}
        self._columns |= dict.fromkeys(held)
        found = self.layout.renamed(held)
        words = {k: v for k, v in found.items() if k not in self._wanted and v}
        c = self.layout.columns
        if not words.keys() & {c.text, c.output, TURNS}:
            self.census.leave("no caption", path)
            return None
        self.sources["from JSON files"] += 1
        return words

    def _unfit(self, paths: list[Path], name: object) -> bool:
        """Whether one of the files cannot be used, as far as its first bytes tell; it is counted."""
        for path in paths:
            if not path.is_file():
                why = "a link that leads nowhere"
            elif not path.stat().st_size:
                why = "an empty file"
            elif path.name.lower().endswith(VIDEO_SUFFIXES):
                continue
            elif (size := size_of(path)) is None:
                why = "it cannot be opened as an image"
            elif min(size) < self.layout.least:
                why = f"too small (a side below {self.layout.least} pixels)"
            else:
                continue
            self.census.leave(why, name)
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
        first = next((row.folder / name for name in _paths([row.values.get(key) for key in self._wanted])), None)
        inside = first is not None and self.place.is_dir() and first.is_relative_to(self.place)
        times, _ = (self._repeats(first) if inside and first is not None else None) or (1, "")
        if times > 1 and (note := f"repeats: {times} times what is in {first.parent.name}") not in self.census.notes:  # type: ignore[union-attr]
            self.census.notes.append(note)
        yield row
        for number in range(2, times + 1):
            yield Row(f"{row.place} ({number} of {times})", row.values, row.folder)


def _paths(held: Sequence[Any]) -> list[str]:
    """The paths among what columns of media hold."""
    found = list[str]()
    for value in held:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            one = one.get("path") if isinstance(one, Mapping) else one
            if isinstance(one, str) and one and not one.startswith("data:"):
                found.append(one)
    return found


def _there(path: Path) -> Path | None:
    """The file of a path, which may lack its suffix, as kohya's tables have them."""
    if is_file(path):
        return path
    if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES or not path.name:
        return None
    known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    return next((p for s in known for p in (path.with_name(path.name + s),) if is_file(p)), None)


def _exchanged(value: Any, files: Mapping[str, str]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_exchanged(one, files) for one in value]
    if isinstance(value, Mapping) and {"bytes", "path"} >= value.keys():
        value = value.get("path") if value.get("bytes") is None else value
    if isinstance(value, Mapping):  # parts of a dialogue
        return {name: one if name == "text" else _exchanged(one, files) for name, one in value.items()}
    return files.get(value, value) if isinstance(value, str) else value


def _is_list(path: Path) -> bool:
    """Whether the first line of a text, or the one below its head, names a file that is there."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = list(islice((line.strip() for line in file if line.strip()), 2))
    return any(is_file(path.parent / found[0]) for found in map(entry, lines) if found is not None)
