"""What installed packages add, by entry points of the groups `openlance.*`:

    [project.entry-points."openlance.sources"]
    world = "toyworld.source:WorldSource"

| group | object |
|---|---|
| sources | `(task, **keys)` -> a `data.source.Source`; its name is a path of data |
| recipes | a `config.train.Recipe`; its name is the scale |
| benchmarks | a function that is a command, `openlance bench NAME` |
| commands | a `typer.Typer` app, `openlance NAME` |
| rewards | a `rl.rewards.Reward` class; its name is what `rewards` of a stage weighs |
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from openlance.errors import UserError


def plugins(group: str) -> dict[str, EntryPoint]:
    """List what is installed for a group ("sources"), by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=f"openlance.{group}")}


def plugin(group: str, name: str) -> Any:
    """Import one of a group.

    Returns:
        The object, or None if nothing of that name is installed.

    Raises:
        UserError: If it is installed and cannot be imported.
    """
    entry = plugins(group).get(name)
    if entry is None:
        return None
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"the plugin {name} ({entry.value}) cannot be loaded ({error}): install it again") from error
