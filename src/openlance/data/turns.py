"""Dialogues as training data hold them: LLaVA and ShareGPT `conversations`, OpenAI `messages`, pairs of question and
answer. All become turns: a question, what is shown with it, its answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from openlance.config.values import MARK, brief
from openlance.errors import UserError

SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "developer": "system", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
}  # fmt: skip
# Where media stand in a text, as LLaVA, Qwen and InternVL write it.
PLACE = re.compile(r"\s*(?:<image>|<video>|<ImageHere>|<image-placeholder>|<\|image\|>|<image_\d+>)\s*")
SHOWN = ("image", "image_url", "input_image", "video", "video_url", "input_video")


class Turn(NamedTuple):
    """media: pairs of a value, as a column holds one, and "image" or "video"."""

    question: str
    media: list[tuple[Any, str]]
    answer: str


class _Said(NamedTuple):
    speaker: str
    text: str
    media: list[tuple[Any, str]]
    places: list[str]  # of media beside the dialogue: their kinds


def turns_of(said: Any, media: Sequence[tuple[Any, str]]) -> tuple[str | None, list[Turn]]:
    """Read a dialogue.

    Args:
        said: The list of its messages, or that list as JSON.
        media: What columns beside it show, in order: they go where the texts have places for them, or else into the
            first question.

    Returns:
        The system prompt, if there is one, and the turns.

    Raises:
        UserError: For what is no dialogue, does not end with an answer, or has other places than media.
    """
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except ValueError as error:
            raise UserError(f"the dialogue {brief(said)} is no JSON list of messages: write LLaVA's form") from error
    if not isinstance(said, Sequence) or isinstance(said, (str, bytes)) or not len(said):
        good = "a list of messages, such as {from: human, value: ..}"
        raise UserError(f"the dialogue is {brief(said)}: expected {good}")
    messages = [one for entry in said for one in _messages(entry)]
    waiting, places = list(media), sum(len(m.places) for m in messages)
    if places and places != len(waiting):
        raise UserError(f"the dialogue has {places} places for images or videos and {len(waiting)} of them beside it")
    system, turns, asked, shown = None, list[Turn](), list[str](), list[tuple[Any, str]]()
    for message in messages:
        if message.speaker == "system":
            system = message.text or None
        elif message.speaker == "user":
            wanted = message.places if places else [kind for _, kind in waiting]
            shown += [*message.media, *(_taken(waiting, kind) for kind in wanted)]
            asked = [*asked, message.text]
        else:
            if not asked and not shown and not turns:
                asked = [""]
            if turns and not asked:  # an answer in several messages
                turns[-1] = turns[-1]._replace(answer=f"{turns[-1].answer}\n{message.text}")
            else:
                turns.append(Turn("\n".join(filter(None, asked)), shown, message.text))
            asked, shown = [], []
    if asked or not turns:
        raise UserError("the dialogue does not end with an answer: add it, or take the last question out")
    if empty := [n for n, turn in enumerate(turns, start=1) if not turn.answer.strip()]:
        raise UserError(f"the answer of turn {empty[0]} of the dialogue is blank: expected a text")
    return system, turns


def _taken(waiting: list[tuple[Any, str]], kind: str) -> tuple[Any, str]:
    """Take the next of a kind; where there is none, the next (frames of a video stand at places of images, too)."""
    return waiting.pop(next((n for n, (_, one) in enumerate(waiting) if one == kind), 0))


def _messages(entry: Any) -> list[_Said]:
    if isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(text, str) for text in entry):
        return [_said("user", entry[0]), _said("assistant", entry[1])]
    if not isinstance(entry, Mapping):
        raise UserError(f"a message of the dialogue is {brief(entry)}: expected a role and its text")
    if {"user", "assistant"} <= entry.keys():
        return [_said("user", entry["user"]), _said("assistant", entry["assistant"])]
    role = str(next((entry[key] for key in ("from", "role", "speaker") if entry.get(key)), "")).lower()
    if role not in SPEAKERS:
        raise UserError(f"a message of the dialogue is from {role!r}: expected {', '.join(SPEAKERS)}")
    content = next((entry[key] for key in ("value", "content", "text") if entry.get(key) is not None), "")
    return [_said(SPEAKERS[role], content)]


def _said(speaker: str, content: Any) -> _Said:
    parts = [content] if isinstance(content, (str, Mapping)) else content
    if not isinstance(parts, Sequence):
        raise UserError(f"a message of the dialogue holds {brief(content)}: expected a text or a list of parts")
    texts, media, places = list[str](), list[tuple[Any, str]](), list[str]()
    for part in parts:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") or next((key for key in ("text", *SHOWN) if part.get(key) is not None), "")
        if kind in ("text", "input_text", "output_text"):
            text = (part.get("text") or "").removeprefix(MARK)
            places += ["video" if "video" in place else "image" for place in PLACE.findall(text)]
            texts.append(PLACE.sub("\n", text).strip())
        elif kind in SHOWN:
            value = next((part[key] for key in (kind, *SHOWN, "path", "url") if part.get(key) is not None), None)
            value = value.get("url", value) if isinstance(value, Mapping) else value
            what = "video" if "video" in kind else "image"
            if value is None:  # it stands for one of the columns
                places.append(what)
            else:
                media.append((value, what))
        else:
            raise UserError(f"a part of a message is of type {kind!r}: expected text, {', '.join(SHOWN)}")
    if speaker != "user" and (media or places):
        raise UserError(f"the {speaker} of the dialogue shows an image or video: only the user can")
    return _Said(speaker, "\n".join(filter(None, texts)), media, places)
