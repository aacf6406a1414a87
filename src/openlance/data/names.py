"""What people call their columns: one rule for tables, tars, Parquet, folders and Hugging Face's data sets.

    recognised(["original_image", "edit_prompt", "edited_image"], WANTED)
    # {"input_image_bytes": "original_image", "caption": "edit_prompt", "output_image_bytes": "edited_image"}

A name is read as its words: "original_image_file_name" is an image that is the original. A column fills one role.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Endings that say how a file is held, not what it is.
HELD = re.compile(r"_(file_?names?|file_?paths?|bytes?|paths?|files?|urls?|pil|lists?)$|(?<=image|video)_names?$")
IMAGE = frozenset(("image", "images", "img", "imgs", "picture", "photo", "jpg", "jpeg", "png", "webp", "pil"))
VIDEO = frozenset(("video", "videos", "clip", "clips", "movie", "mp4"))
# What is read, what is made, of pairs; and names of the two folders of pairs.
SOURCE = frozenset(
    ("input", "inputs", "source", "src", "original", "orig", "before", "control", "conditioning", "condition", "cond",
     "reference", "ref", "references", "subject", "subjects", "start", "unedited")
)  # fmt: skip
MADE = frozenset(
    ("output", "outputs", "target", "targets", "tgt", "edited", "after", "result", "modified", "end", "gt", "editted")
)
# Texts, the likeliest name first.
CAPTION = ("caption", "captions", "text", "texts", "prompt", "prompts", "description", "txt", "instruction", "desc",
           "long_caption", "detailed_caption", "short_caption", "recaption", "blip_caption", "title",
           "cap", "comment")  # fmt: skip
ORDER = ("instruction", "instructions", "edit_prompt", "edit_prompts", "edit_instruction", "edit_instructions", "edit",
         "editing_instruction", "edit_text", "edited_prompt_list", "prompt", "prompts", "caption", "captions", "text",
         "txt", "command")  # fmt: skip
QUESTION = ("question", "questions", "query", "prompt", "problem", "instruction", "q")
ANSWER = ("answer", "answers", "response", "responses", "reply", "caption", "text", "txt", "label", "a")
SYSTEM = ("system", "system_prompt")
TURNS = ("conversations", "conversation", "messages", "turns", "dialogue", "dialog", "texts")


def plain(name: str) -> str:
    """Lower case, words joined by one underscore."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")


def words_of(name: str) -> frozenset[str]:
    """The words of a column of media, without how it holds them."""
    known = plain(name)
    return frozenset(("file",)) if known in FILE else frozenset(HELD.sub("", known).split("_"))


CHAINS = ("image_list", "images", "imgs", "image_files", "image_paths")
FILE = ("file", "file_name", "filename", "file_path", "filepath", "path", "media", "media_path", "file_names")


def _media(names: Sequence[str], kinds: frozenset[str], role: frozenset[str]) -> list[str]:
    """The names of media of a kind in a role; without a role those that say of none."""
    found = []
    for name in names:
        words = words_of(name)
        left = words - kinds
        if (left <= role and left) if role else (not left and words):
            found.append(name)
    return found


def _texts(names: Sequence[str], known: Sequence[str]) -> list[str]:
    by_plain = {plain(name): name for name in reversed(names)} | {
        HELD.sub("", plain(name)): name for name in reversed(names) if plain(name).endswith("_list")
    }
    return [by_plain[k] for k in known if k in by_plain]


def recognised(names: Iterable[str], wanted: Sequence[str]) -> dict[str, str]:
    """Find which of the names fill which of our columns.

    Args:
        names: Of a table.
        wanted: Our columns, of one dataset type.

    Returns:
        Theirs by ours, each at most once; what nothing fits is left out.
    """
    names = list(names)
    found = {ours: ours for ours in wanted if ours in names}
    pairs = any(ours.startswith("output_") for ours in wanted) and any(ours.startswith("input_") for ours in wanted)

    def take(ours: str, candidates: Sequence[str]) -> None:
        if ours in wanted and ours not in found:
            free = [name for name in candidates if name not in found.values()]
            if free:
                found[ours] = free[0]

    for kind, kinds in (("image", IMAGE), ("video", VIDEO)):
        take(f"input_{kind}_bytes", _media(names, kinds, SOURCE))
        take(f"output_{kind}_bytes", _media(names, kinds, MADE))
        take(f"{kind}_bytes", _media(names, kinds, frozenset()))
    for kind, kinds in (("image", IMAGE), ("video", VIDEO)):
        # Of a pair one may be called image alone: ("conditioning_image", "image"), ("image", "edited_image").
        for end in ("output", "input"):
            other = {"output": "input", "input": "output"}[end]
            if any(ours.startswith(other) and ours in found for ours in wanted):
                alone = _media(names, kinds, frozenset())
                take(f"{end}_{kind}_bytes", alone or _media(names, frozenset(("file",)), frozenset()))
    for kind in ("image", "video"):
        take(f"{kind}_bytes", _media(names, frozenset(("file",)), frozenset()))
    take(
        "chain",
        [n for n in names if plain(n) in CHAINS and not found.keys() & {"input_image_bytes", "output_image_bytes"}],
    )
    for ours, known in (("caption", ORDER if pairs else CAPTION), ("turns", TURNS), ("history", ("history",)),
                        ("caption_i", SYSTEM), ("caption_q", QUESTION), ("caption_a", ANSWER)):  # fmt: skip
        take(ours, _texts(names, known))
    return found
