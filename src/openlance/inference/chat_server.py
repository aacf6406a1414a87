"""A language model behind any server that speaks OpenAI's chat form."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from openlance.config.values import brief, checked
from openlance.errors import UserError
from openlance.media.clip import Clip

LONGEST_REPLY = 64 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class ChatServer:
    """A server that speaks OpenAI's chat form.

    Args:
        url: Its base, up to and with `/v1`.
        model: The name by which it knows its model.
        key: Sent as a bearer token, if there is one.
        timeout: Seconds to wait for it.
        temperature: Of its answers; None leaves it to the server.
        max_tokens: Of an answer.

    Raises:
        UserError: If a value makes no sense.
    """

    INSTEAD = "choose another model"  # what an error says one can do

    url: str
    model: str = "default"
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    temperature: float | None = None
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        checked(self)
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and parts.hostname and re.fullmatch("[!-~]+", self.url)
        except ValueError:
            fits = None
        if not fits:
            raise UserError(f"{brief(self.url)} is no address of a server: give for example http://localhost:8000/v1")
        if not re.fullmatch("[!-~]*", self.key):
            raise UserError("the key of the server has a blank or a letter in it that no key has: copy it anew")
        if not 0 < self.timeout <= 86400:
            raise UserError(f"timeout is {self.timeout:g}: it must be above 0 and at most a day, for example 120")

    def __call__(self, text: str, pictures: Sequence[Clip]) -> tuple[str, str]:
        """Answer a text and images: what is said, and why it ended ("length" where it was cut).

        Raises:
            UserError: If the server cannot be reached, or answers something else.
        """
        own = type(self).__name__
        shown = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
        content = [{"type": "text", "text": text}, *shown] if shown else text
        messages = [{"role": "user", "content": content}]
        body: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        body |= {} if self.temperature is None else {"temperature": self.temperature}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            asked = Request(address, json.dumps(body).encode(), headers)
            with build_opener(Straight).open(asked, timeout=self.timeout) as reply:
                return _answer(json.loads(reply.read(LONGEST_REPLY)))
        except HTTPError as error:
            raise UserError(f"{address} refused with {error.code}{_why(error)}: {self.INSTEAD}") from None
        except (OSError, HTTPException) as error:
            said = f"{address} does not answer ({getattr(error, 'reason', error)})"
            raise UserError(f"{said}: start it, or give another {own}(url=...)") from None
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            said = f"{address} answers otherwise than OpenAI's chat ({type(error).__name__}: {brief(str(error))})"
            raise UserError(f"{said}: give another {own}(url=...)") from None


class Straight(HTTPRedirectHandler):
    """Follows nobody: another host would get the key."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _answer(found: Any) -> tuple[str, str]:
    choice = found["choices"][0]
    text, reason = choice["message"]["content"], choice.get("finish_reason")
    if not isinstance(text, str) and reason != "length":  # a model that was cut while it thought has none
        raise TypeError(f"content is {brief(text)}")
    return text or "", str(reason)


def _why(error: HTTPError) -> str:
    """What a server said beside the number, on one line."""
    with error, suppress(OSError, HTTPException):
        said = error.read(4096).decode(errors="replace").strip()
        return f" ({brief(said)})" if said else ""
    return ""


def data_url(picture: Clip) -> str:
    from PIL import Image

    memory = io.BytesIO()
    Image.fromarray(picture.pixels[0]).save(memory, "PNG")
    return f"data:image/png;base64,{base64.b64encode(memory.getvalue()).decode()}"
