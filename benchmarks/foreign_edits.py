"""Edits in words that the world does not use, written by hand, with the thing that each is about: which region the
model finds by itself. `benchmarks/foreign.py --edits` runs them."""

from __future__ import annotations

from typing import Any

import numpy as np

from openlance.inference.auto import regions
from openlance.inference.lance_pipeline import LancePipeline
from openlance.media import Clip
from openlance.sequence import tasks
from toyworld.render import pixel_box, render
from toyworld.scene import Object, Scene

TWO, THREE = ((0.28, 0.35), (0.72, 0.66)), ((0.25, 0.28), (0.74, 0.36), (0.45, 0.76))


def _scene(background: str, *names: str) -> Scene:
    places = {1: ((0.52, 0.48),), 2: TWO, 3: THREE}[len(names)]
    things = []
    for name, (x, y) in zip(names, places, strict=True):
        *fill, color, shape = name.split()
        things.append(Object(shape=shape, color=color, fill=fill[0] if fill else "solid", x=x, y=y))
    return Scene(objects=tuple(things), background=background)


SCENES = {
    "A": _scene("black", "red circle", "blue square"),
    "B": _scene("grey", "green star", "yellow triangle"),
    "C": _scene("black", "purple ring", "orange square", "white cross"),
    "D": _scene("brown", "cyan star"),
    "E": _scene("grey", "yellow ring", "red triangle"),
    "F": _scene("black", "white star", "blue star", "green circle"),
    "G": _scene("black", "striped orange circle", "purple square"),
    "H": _scene("black", "blue cross", "yellow cross", "red ring"),
}  # fmt: skip

# Scene; instruction; the one thing that changes where it stands, empty where something else is to happen.
EDITS: list[tuple[str, str, str]] = [
    # colours
    ("A", "could the circle be yellow instead of red?", "red circle"),
    ("A", "I'd like my square in orange", "blue square"),
    ("B", "give the star a purple coat", "green star"),
    ("B", "the triangle ought to be white", "yellow triangle"),
    ("C", "recolor that ring: green please", "purple ring"),
    ("C", "dye the cross cyan", "white cross"),
    ("D", "how about a red star?", "cyan star"),
    ("D", "it would look nicer in yellow", "cyan star"),
    ("E", "triangle -> blue", "red triangle"),
    ("F", "tint the white star green", "white star"),
    ("H", "swap the colour of the blue cross to red", "blue cross"),
    ("G", "let's see the square in white", "purple square"),
    # fills
    ("A", "only draw the contour of the circle", "red circle"),
    ("A", "fill the inside of the square with stripes", "blue square"),
    ("B", "I want the star to be hollow", "green star"),
    ("C", "the orange square should have stripes on it", "orange square"),
    ("G", "get rid of the stripes on the circle, one flat colour please", "striped orange circle"),
    ("E", "leave just the outline of the triangle", "red triangle"),
    ("F", "stripes for the green circle", "green circle"),
    ("H", "make that yellow cross stripy", "yellow cross"),
    ("D", "hollow it out", "cyan star"),
    ("C", "cross: outline only", "white cross"),
    # shapes
    ("A", "the square should become a ring", "blue square"),
    ("A", "morph the circle into a star", "red circle"),
    ("B", "reshape the triangle so that it is a cross", "yellow triangle"),
    ("C", "transform the ring to a triangle", "purple ring"),
    ("D", "I want a square here instead, same colour", "cyan star"),
    ("E", "use a star shape for the triangle", "red triangle"),
    ("F", "the green circle, make it triangular", "green circle"),
    ("G", "the striped circle turns into a square", "striped orange circle"),
    ("H", "blue cross becomes blue circle", "blue cross"),
    ("C", "convert the orange square into a circle", "orange square"),
    # removals
    ("A", "get rid of the square", "blue square"),
    ("A", "I don't want that circle any more", "red circle"),
    ("B", "no triangle, please", "yellow triangle"),
    ("B", "wipe out the star", "green star"),
    ("C", "make the ring disappear", "purple ring"),
    ("C", "lose the white cross", "white cross"),
    ("E", "the triangle has to go", "red triangle"),
    ("F", "cut the blue star from the picture", "blue star"),
    ("H", "drop the red ring", "red ring"),
    ("G", "hide the purple square", "purple square"),
    # replacements
    ("A", "instead of the circle I want a green triangle", "red circle"),
    ("A", "trade the square for a yellow star", "blue square"),
    ("B", "put a blue ring where the star is", "green star"),
    ("C", "exchange the ring with a red star", "purple ring"),
    ("C", "a yellow circle should take the place of the cross", "white cross"),
    ("E", "substitute a white square for the triangle", "red triangle"),
    ("F", "use a red square rather than the green circle", "green circle"),
    ("H", "the yellow cross makes way for a purple triangle", "yellow cross"),
    ("D", "I'd rather have an orange ring", "cyan star"),
    ("G", "the square is replaced by a cyan triangle", "purple square"),
    # sizes
    ("A", "the circle could be a good deal larger", "red circle"),
    ("A", "scale the square down", "blue square"),
    ("B", "blow the star up", "green star"),
    ("C", "I need a tinier cross", "white cross"),
    ("E", "give me a huge triangle", "red triangle"),
    ("F", "the blue star is too small, enlarge it", "blue star"),
    ("G", "reduce the size of the square", "purple square"),
    ("H", "grow the ring", "red ring"),
    # backgrounds
    ("A", "paint everything behind the shapes green", ""),
    ("A", "a grey backdrop would be nice", ""),
    ("B", "swap the background for white", ""),
    ("C", "I want all of this to stand on brown", ""),
    ("D", "the ground should be yellow", ""),
    ("E", "new background colour: black", ""),
    ("F", "replace the black behind them with purple", ""),
    ("G", "let the background turn blue", ""),
    ("H", "set it against white", ""),
    ("A", "leave the circle as it is and recolour only the background to white", ""),
    # tones
    ("A", "a bit gloomier, please", ""),
    ("B", "add more light to the whole image", ""),
    ("C", "drain all colour out of the picture", ""),
    ("D", "it should feel colder", ""),
    ("E", "give everything a sunset glow", ""),
    ("F", "flip all the colours to their opposites", ""),
    ("G", "lower the brightness", ""),
    ("H", "as a photographic negative", ""),
    ("D", "monochrome", ""),
    ("A", "make the whole scene dim", ""),
    # new things
    ("A", "there should also be a yellow star", ""),
    ("A", "one more shape: a white ring under the square", ""),
    ("B", "throw in a blue circle", ""),
    ("C", "squeeze a red star between the square and the ring", ""),
    ("D", "give the star a little friend, a red circle", ""),
    ("E", "I am missing a green square in the top corner", ""),
    ("F", "an additional orange triangle, please", ""),
    ("G", "include a white cross at the bottom", ""),
    ("H", "sprinkle in a green circle", ""),
    ("D", "let a yellow square join it", ""),
    # moves
    ("A", "slide the circle over to the other side", ""),
    ("A", "the square belongs at the bottom", ""),
    ("B", "shift the star a bit to the right", ""),
    ("C", "bring the cross up to the top edge", ""),
    ("D", "center the star", ""),
    ("E", "let the ring and the triangle switch places", ""),
    ("F", "push the green circle into a corner", ""),
    ("G", "put some distance between the two shapes", ""),
    ("H", "relocate the red ring to the upper left", ""),
    ("D", "nudge it downwards", ""),
]  # fmt: skip


def found(pipe: LancePipeline, side: int = 64) -> list[dict[str, Any]]:
    """What the model finds for each edit: the region's words, and the box of the thing that is meant."""
    spec = tasks.the_task(tasks.edit, "image")
    pictures = {key: Clip(render(scene, side, side)[None]) for key, scene in SCENES.items()}
    requests = [pipe.front.request(spec, words, [pictures[key]]) for key, words, _ in EDITS]
    lines = []
    for (key, words, thing), region in zip(EDITS, regions(pipe, requests), strict=True):
        names = {" ".join([*([o.fill] if o.fill != "solid" else []), o.color, o.shape]): o for o in SCENES[key].objects}
        boxes = [[float(v) for v in np.asarray(pixel_box(names[thing], side, side))]] if thing else []
        lines.append({"instruction": words, "thing": thing, "region": region.said, "meant": boxes})
    return lines
