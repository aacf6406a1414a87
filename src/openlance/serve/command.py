"""`openlance serve --port 8000`: the OpenAI API for images, videos and chat; docs/serving.md has every endpoint.
`openlance studio`: the same with a page in the browser (docs/studio.md).

The same from Python: `openlance.serve.app.create_app(openlance.load("nano"), ServeConfig())`, an ASGI application.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.serve.config import ServeConfig
    from openlance.serve.run import Server

KEYS = "OPENLANCE_API_KEYS"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server is, who may use it, and what it keeps."""

    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1"
    port: Annotated[int, Option(min=0, max=65535, help="0 chooses a free one.")] = 8000
    api_key: Annotated[
        list[str] | None, Option(help=f"Key that clients need; repeat it for several.  \\[default: ${KEYS}, a,b,c]")
    ] = None
    name: Annotated[str | None, Option(help="Name of the model in the API.  \\[default: that of --model]")] = None
    folder: Annotated[Path, Option(help="Folder of jobs and files, for one server.")] = Path("outputs/serve")
    origin: Annotated[list[str] | None, Option(help="Origin of web pages that may call (CORS); repeatable.")] = None
    queue: Annotated[int, Option(min=1, help="Results that may wait before others get status 429.")] = 64
    keep_hours: Annotated[float, Option(min=0.01, help="Hours for which finished files are kept.")] = 24
    keep_gb: Annotated[float, Option(min=0.001, help="Gigabytes of finished files to keep.")] = 4

    @property
    def keys(self) -> tuple[str, ...]:
        said = self.api_key or os.environ.get(KEYS, "").split(",")
        return tuple(key.strip() for key in said if key.strip())

    def config(self, model: str) -> ServeConfig:
        from openlance.serve.config import ServeConfig

        return ServeConfig(
            name=self.name or model, folder=self.folder, api_keys=self.keys, origins=tuple(self.origin or ()),
            queued=self.queue, keep=self.keep_hours * 3600, keep_bytes=int(self.keep_gb * 1e9),
        )  # fmt: skip


@app.command()
@options.grouped
def serve(
    studio: Annotated[bool, Option("--studio", help="Serve the Studio as well, a page in the browser.")] = False,
    *,
    place: Place,
    checkpoint: options.Checkpoint,
) -> None:
    """Serve images, videos and chat to clients of the OpenAI API, until Ctrl-C."""
    _run(place, checkpoint, logging.INFO, _told if studio else None)


@app.command()
@options.grouped
def studio(
    browser: Annotated[bool, Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    *,
    place: Place,
    checkpoint: options.Checkpoint,
) -> None:
    """Open the Studio, every task of a model as a page in the browser, until Ctrl-C."""
    _run(place, checkpoint, logging.WARNING, _opened if browser else _told)


def _run(place: Place, checkpoint: options.Checkpoint, level: int, studio: Callable[[Server], Any] | None) -> None:
    """Serve until Ctrl-C; studio: called once its page is there, None without one."""
    options.check_writable(place.folder)
    _check_address(place.host, place.port)
    try:
        from openlance.serve.app import JSONLines, create_app
        from openlance.serve.run import Server

        if studio is not None:
            from openlance.serve.studio.page import mount
    except ImportError as error:
        extra = "studio" if studio is not None else "serve"
        what = "the Studio" if studio is not None else "serving"
        raise UserError(f"{what} needs the package {error.name}: run pip install 'openlance[{extra}]'") from error

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if not place.keys and not _loopback(place.host):
        log = logging.getLogger("openlance.serve")
        log.warning("%s is open to everyone who reaches it: give --api-key", place.host)
    made = create_app(checkpoint.load(), place.config(checkpoint.model))
    if studio is not None:
        mount(made, checkpoint.code)
    Server(made, place.host, place.port, studio).run()


def _told(server: Server) -> str:
    address = f"{server.url}/studio/"
    typer.echo(f"The Studio is at {address}  (Ctrl-C ends it)")
    return address


def _opened(server: Server) -> None:
    import webbrowser

    webbrowser.open(_told(server))


def _check_address(host: str, port: int) -> None:
    """UserError unless a server can listen there."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port} ({error}): choose another --port or --host") from None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
