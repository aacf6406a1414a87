"""Prompts rewritten by a language model behind any server that speaks OpenAI's chat form, before a picture is made."""

from __future__ import annotations

import base64
import json
import mimetypes
import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from openlance.errors import UserError

INSTRUCTION = (
    "Rewrite the prompt below for a model that draws {what}s. Keep its subject, action, place and every detail it"
    " names; add light, texture, framing{motion} where it is silent, and nothing that contradicts it{picture}."
    " Translate it into English if it is not. Answer with the new prompt alone, as one plain paragraph."
    "\n\nPrompt: {prompt}"
)
TEMPERATURE, TOKENS = 0.3, 2048  # released code


@dataclass(frozen=True, kw_only=True)
class Enhancer:
    """url: base of the server, up to and with `/v1`; key: sent as a bearer token if there is one; timeout: seconds."""

    url: str
    model: str
    key: str = ""
    timeout: float = 120.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and bool(parts.netloc) and not re.search(r"\s", self.url)
        except ValueError:
            fits = False
        if not fits:
            raise UserError(f"{self.url!r} is no address of a server: give for example http://localhost:8000/v1")

    def rewrite(self, prompt: str, makes: str, picture: Path | None = None) -> str:
        """The prompt in more words. makes: "image" or "video"; picture: what a video begins with.

        UserError if the server cannot be reached or does not answer as expected.
        """
        motion = ", motion and camera" if makes == "video" else ""
        shown = ", and describe the picture given with it" if picture is not None else ""
        text = INSTRUCTION.format(what=makes, motion=motion, picture=shown, prompt=prompt)
        content: list[dict] = [{"type": "text", "text": text}]
        if picture is not None:
            content.append({"type": "image_url", "image_url": {"url": data_url(picture)}})
        answer = self._ask([{"role": "user", "content": content if picture is not None else text}])
        if not answer.strip():
            raise UserError(f"{self.url} rewrote the prompt to nothing: try another --enhance-model")
        return answer.strip()

    def _ask(self, messages: list[dict]) -> str:
        body = {"model": self.model, "messages": messages, "temperature": TEMPERATURE, "max_tokens": TOKENS}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            with urlopen(Request(address, json.dumps(body).encode(), headers), timeout=self.timeout) as reply:
                found = json.load(reply)
            return str(found["choices"][0]["message"]["content"])
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            raise UserError(f"{address} does not answer ({error}): check --enhance-url") from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{address} answered in another form than OpenAI's chat ({error!r})") from None


def data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
