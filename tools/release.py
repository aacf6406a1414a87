"""Prepare a release: `make release VERSION=0.2.0`.

Writes the version into the package and CITATION.cff and dates the changelog's part "Unreleased", whose place a new one
takes. What then remains, the commit and its tag, is printed, for a person to do.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, CITATION, CHANGELOG = (
    ROOT / name for name in ("src/openlance/__init__.py", "CITATION.cff", "CHANGELOG.md")
)  # fmt: skip


def released(changelog: str, version: str, date: str) -> str:
    """The changelog with its unreleased part under a version.

    Raises:
        ValueError: If the version is there already, or nothing is unreleased.
    """
    if f"## [{version}]" in changelog:
        raise ValueError(f"the changelog has {version} already: choose a later version")
    before, mark, after = changelog.partition("## [Unreleased]\n")
    if not mark or not after.partition("\n## [")[0].strip():
        raise ValueError("the changelog has nothing unreleased: write what has changed first")
    return f"{before}{mark}\n## [{version}] - {date}\n{after}"


def replaced(text: str, pattern: str, new: str) -> str:
    """A text with one line replaced; there has to be exactly one."""
    found, count = re.subn(pattern, new, text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{count} lines match {pattern}: expected one")
    return found


def main(version: str) -> None:
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        sys.exit("write the version as 0.2.0 or 0.2.0rc1: make release VERSION=0.2.0")
    if subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, check=True).stdout:
        sys.exit("the working tree has changes: commit them first")
    date = datetime.date.today().isoformat()
    try:
        texts = {
            CHANGELOG: released(CHANGELOG.read_text("utf-8"), version, date),
            PACKAGE: replaced(PACKAGE.read_text("utf-8"), r'^__version__ = ".*"$', f'__version__ = "{version}"'),
            CITATION: replaced(
                replaced(CITATION.read_text("utf-8"), r"^version: .*$", f"version: {version}"),
                r"^date-released: .*$", f"date-released: {date}",
            ),
        }  # fmt: skip
    except ValueError as error:
        sys.exit(str(error))
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    print(f"next: make test docs, git commit -am 'Release {version}', git tag v{version}, twine upload dist/*")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
