"""`openlance serve --port 8000`: the OpenAI API for images, videos and chat; docs/howto/serving.md has every endpoint.
`openlance studio`: the same with a page in the browser (docs/howto/studio.md).

The same from Python: `openlance.serve.app.create_app(openlance.load("nano"), ServeConfig())`, an ASGI application.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from openlance.cli import options
from openlance.errors import UserError

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline
    from openlance.serve.config import ServeConfig
    from openlance.serve.run import Server
    from openlance.serve.worker import Queue

KEYS, ADMIN_KEY = "OPENLANCE_API_KEYS", "OPENLANCE_ADMIN_KEY"
HOST = re.compile(r"[\w.-]+(:\d{1,5})?", re.ASCII)

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server is, who may use it, and what it keeps."""

    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1"
    port: Annotated[int, Option(min=0, max=65535, help="0 chooses a free one.")] = 8000
    api_key: Annotated[
        list[str] | None, Option(help=f"Key that clients need; repeat it for several.  \\[default: ${KEYS}, a,b,c]")
    ] = None
    admin_key: Annotated[
        str | None, Option(help=f"Key of the routes under /admin; none: no such routes.  \\[default: ${ADMIN_KEY}]")
    ] = None
    name: Annotated[str | None, Option(help="Name of the model in the API.  \\[default: that of --model]")] = None
    folder: Annotated[Path, Option(help="Folder of jobs and files, for one server.")] = Path("outputs/serve")
    origin: Annotated[list[str] | None, Option(help="Origin of web pages that may call (CORS); repeatable.")] = None
    media_host: Annotated[
        list[str] | None,
        Option(help="Host, or host:port, whose images and videos may be named by address; repeatable."),
    ] = None
    media_private: Annotated[bool, Option("--media-private", help="These hosts may be on a private network.")] = False
    queue: Annotated[int, Option(min=1, help="Results that may wait before others get status 429.")] = 64
    keep_hours: Annotated[float, Option(min=0.01, help="Hours for which finished files are kept.")] = 24
    keep_gb: Annotated[float, Option(min=0.001, help="Gigabytes of finished files to keep.")] = 4

    @property
    def keys(self) -> tuple[str, ...]:
        said = self.api_key or os.environ.get(KEYS, "").split(",")
        return tuple(key.strip() for key in said if key.strip())

    def config(self, model: str) -> ServeConfig:
        """What the server allows. UserError for settings that open too much, or are none."""
        from openlance.serve.config import ServeConfig

        keys, hosts = self.keys, _hosts(self.media_host or (), self.media_private)
        admin = (os.environ.get(ADMIN_KEY, "") if self.admin_key is None else self.admin_key).strip()
        if admin and admin in keys:
            raise UserError("the admin key is one of the API keys, which clients have: choose another")
        return ServeConfig(
            name=self.name or model, folder=self.folder, api_keys=keys, admin_key=admin, media_hosts=hosts,
            media_private=self.media_private, origins=tuple(self.origin or ()), queued=self.queue,
            keep=self.keep_hours * 3600, keep_bytes=int(self.keep_gb * 1e9),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Where the model runs, if not in the server."""

    ray: Annotated[bool, Option("--ray", help="Run the model on replicas of Ray Serve.")] = False
    address: Annotated[
        str | None, Option(help="Ray cluster: HOST:PORT, or auto.  \\[default: $RAY_ADDRESS, or a new one here]")
    ] = None
    min_replicas: Annotated[int, Option(min=1, help="Replicas of each checkpoint.")] = 1
    max_replicas: Annotated[int | None, Option(min=1, help="As many when busy.  \\[default: one per GPU]")] = None
    target_requests: Annotated[
        int | None, Option(min=1, help="Requests of a replica at which more start.  \\[default: what one pass holds]")
    ] = None

    @contextmanager
    def model(self, checkpoint: options.Checkpoint) -> Iterator[tuple[LancePipeline, Callable[..., Queue]]]:
        """A model, and what makes the queue that runs it, for as long as it is served."""
        if not self.ray:
            if self != Replicas():
                raise UserError("--address and the options for replicas do nothing on their own: add --ray")
            from openlance.serve.worker import Worker

            yield checkpoint.load(), Worker
            return
        least, most = self.min_replicas, self.max_replicas
        if most is not None and most < least:
            raise UserError(f"--max-replicas {most} is below --min-replicas {least}: give as many or more")
        from openlance.serve.cluster import Cluster, connected

        checkpoint = checkpoint.anywhere()
        pipe = checkpoint.load()
        with connected(self.address):
            yield pipe, partial(Cluster, load=checkpoint.load, least=least, most=most, target=self.target_requests)


@app.command()
@options.grouped
def serve(
    studio: Annotated[bool, Option("--studio", help="Serve the Studio as well, a page in the browser.")] = False,
    *,
    place: Place,
    replicas: Replicas,
    checkpoint: options.Checkpoint,
) -> None:
    """Serve images, videos and chat to clients of the OpenAI API, until Ctrl-C."""
    _run(place, replicas, checkpoint, logging.INFO, _told if studio else None)


@app.command()
@options.grouped
def studio(
    browser: Annotated[bool, Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    *,
    place: Place,
    replicas: Replicas,
    checkpoint: options.Checkpoint,
) -> None:
    """Open the Studio, every task of a model as a page in the browser, until Ctrl-C."""
    _run(place, replicas, checkpoint, logging.WARNING, _opened if browser else _told)


def _run(
    place: Place, replicas: Replicas, checkpoint: options.Checkpoint, level: int, studio: Callable[[Server], Any] | None
) -> None:
    """Serve until Ctrl-C; studio: called once its page is there, None without one."""
    config = place.config(checkpoint.model)
    options.check_writable(place.folder)
    _check_address(place.host, place.port)
    try:
        if studio is not None:
            from openlance.serve.studio.page import mount
        from openlance.runtime.machine import steady_memory
        from openlance.serve.app import JSONLines, create_app
        from openlance.serve.run import Server
    except ImportError as error:
        extra = "studio" if studio is not None else "serve"
        what = "the Studio" if studio is not None else "serving"
        raise UserError(f"{what} needs the package {error.name}: run pip install 'openlance[{extra}]'") from error

    steady_memory()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if not place.keys and not _loopback(place.host):
        log = logging.getLogger("openlance.serve")
        log.warning("%s is open to everyone who reaches it: give --api-key", place.host)
    with replicas.model(checkpoint) as (pipe, runs):
        made = create_app(pipe, config, runs)
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


def _hosts(said: Sequence[str], private: bool) -> tuple[str, ...]:
    """Hosts in the form that is compared. UserError for what is none."""
    if private and not said:
        raise UserError("--media-private is about the hosts of --media-host: give one")
    for one in said:
        if not HOST.fullmatch(one):
            raise UserError(
                f"--media-host {one}: expected a host's name alone, such as example.com or example.com:8443"
            )
    return tuple(one.lower() for one in said)


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
