"""The wordings of edits: {x} is what the instruction is about, {new} what becomes of it."""

from collections.abc import Sequence

import numpy as np

from toyworld.facts import Thing
from toyworld.scene import Object
from toyworld.words import noun_phrase, said

RECOLOUR = ("make {x} {new}", "make {x} {new}", "recolour {x} to {new}", "change the colour of {x} to {new}",
            "paint {x} {new}", "turn {x} {new}", "{x} should be {new}")  # fmt: skip
REFILL = {
    "solid": ("make {x} solid", "fill {x}", "make {x} filled"),
    "striped": ("make {x} striped", "make {x} striped", "give {x} stripes", "put stripes on {x}"),
    "outlined": ("make {x} outlined", "outline {x}", "make {x} hollow"),
}
RESHAPE = ("turn {x} into {new}", "turn {x} into {new}", "make {x} {new}", "change {x} to {new}",
           "change {x} into {new}")  # fmt: skip
REPLACE = ("replace {x} with {new}", "replace {x} with {new}", "replace {x} by {new}", "swap {x} for {new}",
           "put {new} in place of {x}")  # fmt: skip
REMOVE = ("remove {x}", "remove {x}", "delete {x}", "erase {x}", "take away {x}")
# "Draw ..." asks for a new picture and is no edit: it begins a dialogue anew.
ADD = ("add {new} {where}", "add {new} {where}", "put {new} {where}")
MOVE = ("move {x} {where}", "move {x} {where}", "put {x} {where}", "place {x} {where}")
BACKGROUND = ("change the background to {new}", "make the background {new}", "make the background {new}",
              "put it on a {new} background", "set the background to {new}")  # fmt: skip
TEXT = ('change the text to "{new}"', 'change the text to "{new}"', 'replace the text with "{new}"',
        'make it say "{new}"', 'change "{old}" to "{new}"', 'write "{new}" instead')  # fmt: skip
RESIZE = {
    "small": ("make {x} small", "make {x} tiny"), "medium": ("make {x} medium", "make {x} medium sized"),
    "large": ("make {x} large", "make {x} big"),
}  # fmt: skip
COMPARE = {
    "small": ("make {x} smaller", "shrink {x}"), "medium": (),
    "large": ("make {x} larger", "make {x} bigger", "enlarge {x}"),
}  # fmt: skip
STEPS = {
    "left": ("to the left", "to the left", "left", "further left"),
    "right": ("to the right", "to the right", "right", "further right"),
    "above": ("up", "up", "upwards", "further up"), "below": ("down", "down", "downwards", "further down"),
}  # fmt: skip
TONE = {
    "darker": ("make it darker", "make the picture darker", "darken the picture"),
    "brighter": ("make it brighter", "make the picture brighter", "brighten the picture"),
    "warmer": ("make it warmer", "make the picture warmer", "give it a warm tone"),
    "cooler": ("make it cooler", "make the picture cooler", "give it a cool tone"),
    "grey": ("make it black and white", "turn it black and white", "remove the colours"),
    "inverted": ("invert the colours", "invert it", "make it a negative"),
}


def fill(rng: np.random.Generator, forms: Sequence[str], **slots: str) -> str:
    """One of the wordings with its slots filled."""
    return " ".join(forms[int(rng.integers(len(forms)))].format(**slots).split())


def a(shape: str) -> str:
    return noun_phrase(Thing(shape))


def a_new(o: Object, rng: np.random.Generator) -> str:
    """An object that comes into the picture: what goes without saying is left out."""
    return noun_phrase(said(o), rng=rng)


def dress(text: str, rng: np.random.Generator) -> str:
    """Now and then a capital and a full stop."""
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.15 else text
