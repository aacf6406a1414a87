"""`openlance download -o downloads`: the released model, or any repository of the hub; a cut-off download goes on.

Without -o the files go into the hub's cache, where `openlance.load("bytedance-research/Lance")` finds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openlance.cli import options

app = typer.Typer()


@app.command()
def download(
    repo: Annotated[str, typer.Argument(help="owner/model on the hub.")] = "bytedance-research/Lance",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A folder.  \\[default: the hub's cache]", show_default=False)
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="A branch, tag or commit.  \\[default: of the released model a fixed commit, else main]",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Names to fetch, for example 'Lance_3B/*,Qwen*,Wan*'.")
    ] = None,
) -> None:
    """Fetch a model from the hub; run it again to complete or to update."""
    if output is not None:
        options.check_writable(output)

    from openlance.checkpoint.formats import Hub
    from openlance.checkpoint.hub import fetch
    from openlance.runtime.inspection import inspect, summary

    patterns = [name.strip() for name in only.split(",")] if only else None
    folder = fetch(repo, patterns, folder=output, hub=Hub(revision=revision))
    typer.echo(folder if patterns else summary(inspect(folder)))
