"""Ask about a picture: `python examples/ask.py [PICTURE]`; without one, about a scene of the procedural world."""

import sys

import numpy as np
from PIL import Image

import openlance
from toyworld.render import render
from toyworld.scene import sample_scene

QUESTIONS = ["how many objects are there?", "is there a red circle?", "what color is the background?"]


def main() -> None:
    if len(sys.argv) > 1:
        picture = Image.open(sys.argv[1])
    else:
        scene = sample_scene(np.random.default_rng(3), placement="free", category="position")
        picture = Image.fromarray(render(scene, 64, 64))

    pipe = openlance.load("nano")
    print("caption:", pipe.caption(picture))

    # Several questions are answered in one batch; a picture that they share is looked at once.
    for question, answer in zip(QUESTIONS, pipe.ask([picture] * len(QUESTIONS), QUESTIONS)):
        print(f"{question} {answer}")

    # One answer as it is written.
    pipe.ask(picture, "describe the picture", stream=lambda piece: print(piece, end="", flush=True))
    print()


if __name__ == "__main__":
    main()
