"""`openlance serve --port 8000`: OpenAI's API for pictures, clips and chat; docs/serving.md has every endpoint.

The same from Python: `openlance.serve.app.create_app(openlance.load("nano"), ServeConfig())`, an ASGI application.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options
from openlance.errors import UserError

app = typer.Typer()


@app.command()
@options.grouped
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option("--api-key", help="Clients need one of these, or of OPENLANCE_API_KEYS (a,b).")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the model.  \\[default: of --model]")] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Jobs and files; one server each.")] = Path("outputs/serve"),
    origin: Annotated[list[str] | None, typer.Option("--origin", help="A web page that may call (CORS).")] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Results that may wait before others get 429.")] = 64,
    keep_hours: Annotated[float, typer.Option("--keep-hours", min=0.01, help="Finished files are kept as long.")] = 24,
    keep_gb: Annotated[float, typer.Option("--keep-gb", min=0.001, help="... and together take no more.")] = 4,
    *,
    checkpoint: options.Adapted,
) -> None:
    """Serve pictures, clips and chat to clients of OpenAI's API."""
    keys = [*(api_key or []), *os.environ.get("OPENLANCE_API_KEYS", "").split(",")]
    keys = [key.strip() for key in keys if key.strip()]
    options.check_writable(folder)
    try:
        from openlance.serve.app import JSONLines, create_app
        from openlance.serve.run import Server
    except ImportError as error:
        raise UserError(f"serving needs the package {error.name}: run pip install 'openlance[serve]'") from error
    from openlance.serve.config import ServeConfig

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    config = ServeConfig(
        name=name or checkpoint.model, folder=folder, api_keys=tuple(keys), origins=tuple(origin or ()), queued=queue,
        keep=keep_hours * 3600, keep_bytes=int(keep_gb * 1e9),
    )  # fmt: skip
    if not keys and not _loopback(host):
        logging.getLogger("openlance.serve").warning("%s is open to everyone who reaches it: give --api-key", host)
    Server(create_app(checkpoint.load(), config), host, port).run()


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
