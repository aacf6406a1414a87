"""The key of the API before the Studio: whoever gives it gets a cookie that says so, and nobody else sees a thing."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from functools import partial
from html import escape
from http.cookies import SimpleCookie
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openlance.serve.keys import known
from openlance.serve.serving import Serving

COOKIE = "openlance_studio"
LONGEST = 4096  # bytes of the form
HERE = ("127.0.0.1", "::1")
LOOKS = 0.5  # seconds between two looks at whether the server ends
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>openlance Studio</title>
<meta name="viewport" content="width=device-width"><style>
:root {{color-scheme: light dark; font-family: system-ui, sans-serif}} body {{display: grid; place-items: center;
min-height: 90vh; margin: 1rem}} form {{display: grid; gap: .8rem; width: min(20rem, 100%)}} h1 {{font-size: 1.2rem;
margin: 0}} input, button {{font: inherit; padding: .5rem .7rem; border-radius: 8px; border: 1px solid #8888}}
</style><form method="post"><h1>openlance Studio</h1><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" autofocus required>
<button>Open</button><p role="alert">{said}</p></form></html>"""


class Login:
    """Lets through who has a cookie that one of the keys has signed. When the server ends, an open page is let go."""

    def __init__(self, app: ASGIApp, path: str, serving: Serving) -> None:
        self.app, self.path, self.worker, self.keys = app, path, serving.worker, serving.config.api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self.keys or self._known(scope):
            await self.app(_uncompressed(scope), partial(self._heard, receive), send)
            return
        answer = await self._asked(Request(scope, receive))
        await answer(scope, receive, send)

    async def _heard(self, receive: Receive) -> Message:
        """The next message, or that the client is gone once the server ends: pages keep a stream open for good."""
        coming = asyncio.ensure_future(receive())
        try:
            while not coming.done():
                await asyncio.wait({coming}, timeout=LOOKS)
                if self.worker.closed and not coming.done():
                    return {"type": "http.disconnect"}
            return coming.result()
        finally:
            coming.cancel()

    def _known(self, scope: Scope) -> bool:
        said = SimpleCookie(Request(scope).headers.get("cookie", "")).get(COOKIE)
        return said is not None and known(said.value, [_signed(key) for key in self.keys])

    async def _asked(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(PAGE.format(said=""), status_code=401)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST:
                return HTMLResponse(PAGE.format(said=escape("That is no key.")), status_code=413)
        said = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0].strip()
        if not known(said, self.keys):
            return HTMLResponse(PAGE.format(said=escape("This key is wrong.")), status_code=401)
        answer = RedirectResponse(self.path, status_code=303)
        answer.set_cookie(COOKIE, _signed(said), httponly=True, samesite="strict", path=self.path)
        return answer


def _uncompressed(scope: Scope) -> Scope:
    """A request of this machine without the wish for compression, which takes longer there than what it saves."""
    if (scope.get("client") or ("",))[0] not in HERE:
        return scope
    return dict(scope) | {"headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]}


def _signed(key: str) -> str:
    return hmac.new(key.encode(), COOKIE.encode(), hashlib.sha256).hexdigest()
