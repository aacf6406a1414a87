"""Small data of one's own, for docs/uses: what nano has never seen, made of the shapes that it knows.

python examples/own_data.py subject zib           # five pictures of one thing, which is called a zib
python examples/own_data.py edits pairs           # pictures before and after a frame is put around them
python examples/own_data.py questions asked       # pictures and how many corners what they show has
python examples/own_data.py clips turning         # clips in which something turns into another colour
python examples/own_data.py edits unseen 7        # other ones: any number seeds them
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from openlance.media.clip import Clip
from openlance.media.write import write_video
from toyworld.render import render
from toyworld.scene import Object, Scene, sample_scene

SIDE = 64
CORNERS = {"circle": "none", "ring": "none", "triangle": "three", "square": "four", "star": "ten", "cross": "twelve"}
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
CORNERS_ASKED = "how many corners does it have?"
FRAMING = ("put a frame around the picture", "frame the picture", "add a cream frame")
CREAM, FRAME = (240, 210, 150), 8


def subject(folder: Path, rng: np.random.Generator) -> None:
    """A purple face with a pointed yellow hat, in several places."""
    for n, ground in enumerate(("black", "grey", "brown", "white", "black")):
        image = Image.fromarray(render(Scene(background=ground), SIDE, SIDE))
        x, y = rng.integers(22, 42), rng.integers(32, 42)
        draw = ImageDraw.Draw(image)
        draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=(150, 60, 200))
        draw.polygon([(x - 12, y - 8), (x + 12, y - 8), (x, y - 30)], fill=(245, 215, 40))
        for eye in (x - 5, x + 5):
            draw.ellipse((eye - 3, y - 4, eye + 3, y + 2), fill=(255, 255, 255))
        image.save(folder / f"{n}.png")


def framed(pixels: np.ndarray) -> np.ndarray:
    """The picture with a cream-coloured border painted over its edge."""
    out = np.full_like(pixels, CREAM)
    out[FRAME:-FRAME, FRAME:-FRAME] = pixels[FRAME:-FRAME, FRAME:-FRAME]
    return out


def edits(folder: Path, rng: np.random.Generator) -> None:
    """Sixty pictures without and with a frame, which is asked for in three wordings."""
    rows = []
    for n in range(60):
        before = render(sample_scene(rng, placement="free", category=str(rng.choice(["color", "two"]))), SIDE, SIDE)
        for name, shown in (("before", before), ("after", framed(before))):
            Image.fromarray(shown).save(folder / f"{n}_{name}.png")
        said = FRAMING[n % len(FRAMING)]
        rows.append({"input_image": f"{n}_before.png", "output_image": f"{n}_after.png", "instruction": said})
    write_list(folder, rows)


def questions(folder: Path, rng: np.random.Generator) -> None:
    """Sixty pictures of one thing each, and how many corners it has."""
    rows = []
    for n in range(60):
        scene = sample_scene(rng, placement="free", category="single")
        Image.fromarray(render(scene, SIDE, SIDE)).save(folder / f"{n}.png")
        rows.append({"image": f"{n}.png", "question": CORNERS_ASKED, "answer": CORNERS[scene.objects[0].shape]})
    write_list(folder, rows)


def clips(folder: Path, rng: np.random.Generator) -> None:
    for n in range(60):
        first, last = rng.choice(COLORS, 2, replace=False)
        shape, r = str(rng.choice(list(CORNERS))), rng.uniform(0.18, 0.28)
        one = Object(shape=shape, color=str(first), x=rng.uniform(0.35, 0.65), y=rng.uniform(0.35, 0.65), r=r)
        ends = [render(Scene(objects=(replace(one, color=str(c)),)), SIDE, SIDE).astype(float) for c in (first, last)]
        frames = [ends[0] + (ends[1] - ends[0]) * np.clip((t - 2) / 4, 0, 1) for t in range(9)]
        write_video(folder / f"{n}.mp4", Clip(np.stack(frames).round().astype(np.uint8)))
        (folder / f"{n}.txt").write_text(
            f"{'an' if first == 'orange' else 'a'} {first} {shape} turning {last}\n", encoding="utf-8"
        )


def write_list(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    kinds = {made.__name__: made for made in (subject, edits, questions, clips)}
    if len(sys.argv) < 3 or sys.argv[1] not in kinds:
        sys.exit(__doc__)
    place = Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    kinds[sys.argv[1]](place, np.random.default_rng(int(sys.argv[3]) if len(sys.argv) > 3 else 0))
