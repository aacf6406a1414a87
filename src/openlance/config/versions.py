"""What runs here, as runs, results and reports note it."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("openlance", "torch", "transformers", "diffusers", "numpy", "safetensors")


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages (left out: those that decide what a model does), as far as installed."""
    found = {"python": platform.python_version()}
    for name in packages or PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
