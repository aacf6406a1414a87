"""A server on its address, from its first request to its last."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from openlance.serve.app import LAST_STEP
from openlance.serve.serving import Serving

GRACE = 3  # seconds for answers that are being sent when the server is told to end


class Server(uvicorn.Server):
    """Told to end, it first stops the work, so that every client hears why there is no result.

    Args:
        app: Of `serve.app`.
        host: Address to listen on.
        port: Likewise; 0 chooses a free one.
        listening: Called once it listens.
    """

    def __init__(self, app: FastAPI, host: str, port: int, listening: Callable[[Server], Any] | None = None) -> None:
        self.serving: Serving = app.state.serving
        self.listening = listening
        super().__init__(
            uvicorn.Config(
                app, host=host, port=port, log_config=None, access_log=False, server_header=False,
                timeout_graceful_shutdown=GRACE,
            )
        )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.listening is not None:
            await asyncio.to_thread(self.listening, self)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self.serving.worker.close, LAST_STEP)
        await super().shutdown(sockets)

    @property
    def url(self) -> str:
        """Where it listens, once it does."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"
