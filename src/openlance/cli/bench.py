"""`openlance bench NAME`: the benchmarks of installed packages; toyworld has `world` and `quality`."""

from __future__ import annotations

import typer

from openlance.config.plugins import plugin, plugins

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def bench() -> None:
    """Evaluate a model on a benchmark."""


for name in plugins("benchmarks"):
    app.command(name)(plugin("benchmarks", name))
