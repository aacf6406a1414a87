"""Make the pictures and answers of docs/uses from the runs of its pages: `python docs/make_uses.py FOLDER [USE ...]`.

FOLDER holds what the commands of the pages leave (benchmarks/uses.py runs them): pictures, zib, pairs, asked, turning
and runs/style, runs/zib, runs/framing, runs/corners, runs/turning. Nothing is picked: seeds are 0, 1, 2 ..., media
those of seed 9000, which no page trains on.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import openlance
from toyworld.questions import sample_question
from toyworld.render import render

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))
from common import markdown, put, recorded  # noqa: E402

SIDE, GAP, LABEL, LEFT = 96, 6, 44, 74  # pixels of a picture, between, of a label below, of a name at the left
INK, PAPER = (40, 40, 40), (255, 255, 255)


def sheet(name: str, rows: list[tuple[str, list[Image.Image]]], labels: list[str]) -> None:
    """Write docs/images/uses-NAME.png: rows of pictures with names, a label below each column."""
    font, count = ImageFont.load_default(11), max(len(images) for _, images in rows)
    page = Image.new("RGB", (LEFT + count * (SIDE + GAP), len(rows) * (SIDE + GAP) + LABEL), PAPER)
    pen = ImageDraw.Draw(page)
    for y, (title, images) in enumerate(rows):
        pen.text((4, y * (SIDE + GAP) + SIDE // 2 - 6), title, INK, font)
        for x, image in enumerate(images):
            place = (LEFT + x * (SIDE + GAP), y * (SIDE + GAP))
            page.paste(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), place)
    for x, label in enumerate(labels):
        lines, line = [], ""
        for word in label.split():
            if line and font.getlength(f"{line} {word}") > SIDE:
                lines, line = [*lines, line], word
            else:
                line = f"{line} {word}".strip()
        pen.text((LEFT + x * (SIDE + GAP), len(rows) * (SIDE + GAP)), "\n".join([*lines, line]), INK, font)
    out = HERE / "images" / f"uses-{name}.png"
    page.quantize(160, dither=Image.Dither.NONE).save(out, optimize=True)
    print(out)


def both(run: Path) -> list[tuple[str, openlance.LancePipeline]]:
    """nano without and with an adapter."""
    tuned = openlance.load("nano")
    tuned.load_lora_weights(str(run))
    return [("before", openlance.load("nano")), ("after", tuned)]


def unseen(kind: str) -> Path:
    place = Path(tempfile.mkdtemp())
    subprocess.run([sys.executable, HERE.parent / "examples" / "own_data.py", kind, place, "9000"], check=True)
    return place


def style(folder: Path) -> None:
    prompts = ["a red circle, framed", "a blue star, framed", "two green squares, framed", "a yellow ring, framed"]
    prompts += ["a red circle"]
    sheet("style", [(name, p.generate(prompts, seed=0)) for name, p in both(folder / "runs/style")], prompts)


def subject(folder: Path) -> None:
    prompts = ["a zib", "a zib on a white background", "a zib on a grey background", "a purple circle", "a red circle"]
    rows = [("trained on", [Image.open(f) for f in sorted((folder / "zib").glob("*.png"))])]
    rows += [(name, p.generate(prompts, seed=0)) for name, p in both(folder / "runs/zib")]
    sheet("subject", rows, prompts)


def edits(folder: Path) -> None:
    place = unseen("edits")
    listed = recorded(place / "metadata.jsonl")[:5]
    sources = [Image.open(place / row["input_image"]).convert("RGB") for row in listed]
    words = [row["instruction"] for row in listed]
    rows = [("source", list(sources))]
    rows += [(name, p.edit(list(sources), words, seed=0)) for name, p in both(folder / "runs/framing")]
    sheet("edits", rows, words)


def clips(folder: Path) -> None:
    prompts = ["a red circle turning blue", "a yellow square turning purple"]
    rows = []
    for name, pipe in both(folder / "runs/turning"):
        made = pipe.generate_video(prompts, num_frames=9, seed=0)
        rows.append((name, [clip.images()[t] for clip in made for t in (0, 4, 8)]))
    sheet("clips", rows, [f"{prompt}, frame {t + 1}" for prompt in prompts for t in (0, 4, 8)])


def questions(folder: Path) -> None:
    place, rng = unseen("questions"), np.random.default_rng(9000)
    listed = recorded(place / "metadata.jsonl")[:3]
    shown = [Image.open(place / row["image"]).convert("RGB") for row in listed]
    rows = [(row["question"], row["answer"]) for row in listed]
    for usual in (sample_question(rng) for _ in range(3)):
        shown.append(Image.fromarray(render(usual.scene, 64, 64)))
        rows.append((usual.question, usual.answer))
    answers = [p.ask(list(shown), [question for question, _ in rows]) for _, p in both(folder / "runs/corners")]
    sheet("questions", [("asked about", shown)], [f"{n + 1}" for n in range(len(shown))])
    said = [[n + 1, *(f"`{words}`" for words in row)] for n, row in enumerate(zip(*zip(*rows), *answers, strict=True))]
    put(HERE / "uses" / "questions.md", "answers", markdown(["", "question", "right", "before", "after"], said))


def main() -> None:
    made = {f.__name__: f for f in (style, subject, edits, clips, questions)}
    folder, *chosen = sys.argv[1:]
    (HERE / "images").mkdir(exist_ok=True)
    for name in chosen or made:
        made[name](Path(folder))


if __name__ == "__main__":
    main()
