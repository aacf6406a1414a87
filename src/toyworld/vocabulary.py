"""The words of the world and what they look like: colours, shapes, sizes, relations; what is never trained."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 25, 35), "green": (30, 160, 50), "blue": (30, 70, 235), "yellow": (252, 220, 20),
    "purple": (150, 35, 200), "orange": (250, 125, 10), "cyan": (30, 215, 230), "white": (255, 255, 255),
}  # fmt: skip
DEFAULT_BACKGROUND = "black"
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0), "grey": (120, 120, 120), "brown": (100, 60, 25), **COLORS
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
FILLS = ("solid", "striped", "outlined")
SIZES: dict[str, float] = {"small": 0.125, "medium": 0.165, "large": 0.21}
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CATEGORIES = ("single", "color", "two", "attribute", "position", "count", "text")
HELDOUT_CATEGORIES = ("color", "attribute", "position", "count", "mixed")

# Half width and half height of a shape in units of r; its centre (x, y) is the centre of this box.
HALF_BOX = {
    "circle": (1.0, 1.0), "square": (0.88, 0.88), "triangle": (1.06, 0.92),
    "star": (1.07, 1.02), "cross": (1.0, 1.0), "ring": (1.0, 1.0),
}  # fmt: skip
GAP = 4.0 / 64  # least free space between two objects, in shorter sides
BORDER = 1.5 / 64  # least free space between an object and the edge of the picture
SIZE_JITTER = 0.04
# Glyph cell of a text: its width and the space between two cells, in units of the letter height.
CELL, SPACE = 0.82, 0.17
LETTER_HEIGHT = 0.30

# Never trained: 5 of the 48 pairs, and 7 of the 72 arrangements of two shapes (a left of b is b right of a).
HELDOUT_PAIRS = frozenset(
    [("purple", "star"), ("orange", "cross"), ("white", "triangle"), ("cyan", "square"), ("green", "ring")]
)
_TRIPLES = (
    ("star", "left", "circle"), ("square", "left", "ring"), ("triangle", "left", "cross"), ("cross", "left", "star"),
    ("circle", "above", "triangle"), ("ring", "above", "star"), ("square", "above", "cross"),
)  # fmt: skip
HELDOUT_TRIPLES = frozenset(_TRIPLES) | {(b, OPPOSITE[relation], a) for a, relation, b in _TRIPLES}

CLASHES = {
    frozenset(pair) for pair in (
        ("red", "orange"), ("orange", "yellow"), ("blue", "purple"), ("brown", "red"), ("cyan", "white"),
        ("red", "purple"),
    )
}  # fmt: skip
