"""Make the pictures of README and docs with the shipped model: `python docs/make_images.py`.

Writes docs/images/nano.png: prompts and what nano drew for them, nothing picked, the seeds being 0, 1, 2 and so on; and
docs/images/image_edit.svg: the sequence of an edit.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import openlance
from openlance.cli.main import main as main_line

PROMPTS = [
    "a red circle left of a blue square",
    "a yellow triangle above a purple ring",
    "three orange circles",
    "four blue squares",
    "a striped green star",
    "an outlined purple circle on a grey background",
    "a small cyan triangle below a large orange square",
    'the text "A7"',
]
SIDE, ZOOM, COLUMNS, LABEL = 64, 3, 4, 40  # pixels of a picture, enlargement, pictures per line, height of a label
INK, PAPER = (40, 40, 40), (255, 255, 255)
OUT = Path(__file__).parent / "images" / "nano.png"


def wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text with line ends, so that no line is wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def sheet(pictures: list[Image.Image], labels: list[str]) -> Image.Image:
    """Pictures in a grid, each with its prompt below."""
    side, gap, font = SIDE * ZOOM, 12, ImageFont.load_default(13)
    lines = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (side + gap) + gap, lines * (side + LABEL + gap) + gap), PAPER)
    for number, (picture, label) in enumerate(zip(pictures, labels)):
        x, y = gap + number % COLUMNS * (side + gap), gap + number // COLUMNS * (side + LABEL + gap)
        page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        ImageDraw.Draw(page).text((x, y + side + 4), wrapped(label, side, font), INK, font)
    return page


def main() -> None:
    pictures = openlance.load("nano").generate(PROMPTS, height=SIDE, width=SIDE, seed=0)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures, PROMPTS).save(OUT)
    print(OUT)
    main_line(["explain", "image_edit", "make it blue", "-o", str(OUT.parent / "image_edit.svg")])


if __name__ == "__main__":
    main()
