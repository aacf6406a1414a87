"""Make the gallery of the docs with the shipped model: `python tools/gallery.py` writes docs/gallery.md and its files.

Every entry is a command line, run here as it stands on the page, one after the other in one folder. Nothing is picked:
the seed is 7 throughout, and what nano gets wrong stays.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import shlex
from pathlib import Path

from openlance.cli.main import main as run

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "gallery"
HEAD = """# Gallery

What nano, the model that ships with the package (17 million parameters), makes of a prompt, with the command that makes
it: with the same seed you get the same, up to rounding. Every entry has seed 7 and nothing is picked, so mistakes are
here too; [nano](nano.md) says how often it is right. Images are 64 pixels wide and enlarged by your browser.
`python tools/gallery.py` makes this page.
"""
SECTIONS = {
    "Images": [
        'generate t2i "a red circle left of a blue square" --seed 7 -o circle-square.png',
        'generate t2i "a red circle left of a blue square" --distilled --seed 7 -o few-passes.png',
        'generate t2i "a large blue star on a white background" --seed 7 -o star.png',
        'generate t2i "a striped green square" --seed 7 -o striped.png',
        'generate t2i "a yellow triangle above a purple ring" --seed 7 -o triangle-ring.png',
        'generate t2i "three orange circles" --seed 7 -o three.png',
        'generate t2i "an outlined purple circle on a grey background" --seed 7 -o outlined.png',
        """generate t2i 'the text "A7"' --seed 7 -o text.png""",
        """generate t2i 'the text "A7"' --seed 7 --check 4 -o text-checked.png""",
    ],
    "Edits": [
        'edit circle-square.png "make the circle green" --seed 7 -o green-circle.png',
        'edit circle-square.png "replace the blue square with a yellow star" --seed 7 -o yellow-star.png',
        'edit circle-square.png "make the background white" --seed 7 -o white.png',
        'edit circle-square.png "remove the red circle" --seed 7 -o removed.png',
        'edit star.png "make it striped" --region "the star" --seed 7 -o striped-star.png',
        'generate subject star.png --prompt "the given object on a grey background" --seed 7 -o subject.png',
    ],
    "Videos": [
        'generate t2v "a red circle moves right" --seed 7 -o right.webp',
        'generate t2v "a small green square moves up" --seed 7 -o up.webp',
        'generate i2v circle-square.png "the circle moves up" --seed 7 -o animated.webp',
        'generate flf2v circle-square.png green-circle.png "the circle turns green" --seed 7 -o between.webp',
        'edit right.webp "make the circle blue" --seed 7 -o blue.webp',
    ],
    "Questions": [
        "caption circle-square.png",
        'ask circle-square.png "where is the circle relative to the square?"',
        'ask three.png "how many circles are there?"',
        'ask circle-square.png "locate the blue square"',
        'ask right.webp "which way does the circle move?"',
    ],
    "A dialogue": [
        'story "draw a red circle left of a blue square" "make the circle yellow" "what color is the circle?" '
        '"animate: the circle moves up" "what moves?" --seed 7 -o story',
    ],
}  # fmt: skip


def made(line: str) -> str:
    """Run a command and give what it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = run(shlex.split(line))
    assert code == 0, line
    return said.getvalue().strip()


def entry(line: str) -> str:
    """A command with what came of it, as a figure."""
    said, command = made(line), f"openlance {line}"
    output = shlex.split(line)[-1] if " -o " in line else ""
    shown = (
        f'<img src="gallery/{output}" alt="{html.escape(line)}" width="128">'
        if output
        else f"<p>{html.escape(said)}</p>"
    )
    return f"<figure>{shown}<figcaption><code>{html.escape(command)}</code></figcaption></figure>"


def told(line: str) -> str:
    """The command of a story, with its page."""
    made(line)
    written = FOLDER / "story" / "story.md"
    page = written.read_text("utf-8").replace("](", "](gallery/story/")
    written.unlink()
    page = re.sub(
        r"(?m)^\[.*\]\((.*mp4)\)$", r'<video src="\1" width="128" autoplay loop muted playsinline></video>', page
    )
    return f"```sh\nopenlance {line}\n```\n\n{page}"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.chdir(FOLDER)
    parts = [HEAD]
    for title, lines in SECTIONS.items():
        parts.append(f"## {title}\n")
        if lines[0].startswith("story"):
            parts += map(told, lines)
        else:
            parts.append("\n".join(['<div class="shots">', *map(entry, lines), "</div>\n"]))
    (DOCS / "gallery.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
