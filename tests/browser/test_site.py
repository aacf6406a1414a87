"""The documentation as a reader opens it, from its folder: nothing is missing, nothing comes from elsewhere, it fits a
phone, the search finds, and what a newcomer looks for is a click away. `make docs` builds it; screenshots are kept."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("tools_screens", ROOT / "tools" / "screens.py")
screens = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(screens)


@pytest.mark.skipif(not (screens.SITE / "index.html").is_file(), reason="there is no site: make docs")
@pytest.mark.parametrize("name", screens.WIDTHS)
def test_the_site_is_whole(chromium, name):
    screens.OUT.mkdir(parents=True, exist_ok=True)
    assert screens.taken(chromium, name, *screens.WIDTHS[name]) == []
