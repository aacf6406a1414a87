"""`openlance download -o downloads`: the released model, or any repository of the hub; a cut-off download goes on.

Without -o the files go into the hub's cache, where `openlance.load("bytedance-research/Lance")` finds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from openlance.cli import options

app = typer.Typer(add_completion=False)


@app.command()
def download(
    repo: Annotated[str, Argument(help="owner/name on the Hugging Face Hub.")] = "bytedance-research/Lance",
    output: Annotated[Path | None, Option("-o", "--output", help="A folder.  \\[default: the hub's cache]")] = None,
    revision: Annotated[
        str | None,
        Option(help="A branch, tag or commit.  \\[default: a pinned commit of the released model, else main]"),
    ] = None,
    only: Annotated[str | None, Option(help="Files to download, for example 'Lance_3B/*,Qwen*,Wan*'.")] = None,
) -> None:
    """Download a model from the hub; run it again to complete or to update it."""
    if output is not None:
        options.check_writable(output)
    from openlance.checkpoint.hub import fetch
    from openlance.runtime.inspection import inspect, summary

    patterns = [name.strip() for name in only.split(",")] if only else None
    folder = fetch(repo, patterns, folder=output, revision=revision)
    typer.echo(folder if patterns else summary(inspect(folder)))
