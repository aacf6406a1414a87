"""Changes of a whole picture's colours: "darker", "warmer", "black and white".

    toned(scene, "darker")               # the scene with a ground one step darker; None where there is no such step

Every tone stays within the colours of the world, so that small VAEs can show it and the judge can name it: lighter,
darker, warmer and cooler move the ground one step; black and white leaves white on black or grey; a negative turns
every colour into the opposite one.
"""

from dataclasses import replace

from toyworld.scene import Scene, clashes, legible
from toyworld.vocabulary import BACKGROUNDS, COLORS

_GROUNDS: dict[str, dict[str, str]] = {
    "darker": {"white": "grey", "grey": "black", "yellow": "brown", "orange": "brown", "cyan": "blue"}
    | dict.fromkeys(("red", "green", "blue", "purple", "brown"), "black"),
    "brighter": {"black": "grey", "grey": "white", "brown": "orange", "orange": "yellow", "yellow": "white",
                 "blue": "cyan", "cyan": "white", "red": "orange"},
    "warmer": {"black": "brown", "grey": "brown", "white": "yellow", "yellow": "orange", "green": "yellow",
               "cyan": "yellow", "blue": "purple", "purple": "red"},
    "cooler": {"black": "blue", "grey": "blue", "white": "cyan", "yellow": "green", "green": "cyan", "red": "purple",
               "purple": "blue", "orange": "purple"},
    "grey": {name: "grey" if sum(rgb) > 382 else "black" for name, rgb in BACKGROUNDS.items()} | {"grey": "grey"},
    "inverted": {"black": "white", "white": "black", "red": "cyan", "cyan": "red", "green": "purple",
                 "purple": "green", "blue": "yellow", "yellow": "blue", "orange": "blue"},
}  # fmt: skip
# What becomes of the colours of objects and letters; in the other tones they stay as they are.
_PAINT = {"grey": dict.fromkeys(COLORS, "white"), "inverted": _GROUNDS["inverted"] | {"white": "black"}}
TONES = tuple(_GROUNDS)


def toned(scene: Scene, tone: str) -> Scene | None:
    """The scene in another tone, one of TONES; None where it cannot be shown or changes nothing."""
    ground, paint = _GROUNDS[tone].get(scene.background), _PAINT.get(tone, {})
    objects = tuple(replace(o, color=paint.get(o.color, o.color)) for o in scene.objects)
    text = scene.text and replace(scene.text, color=paint.get(scene.text.color, scene.text.color))
    colors = [o.color for o in objects] + ([text.color] if text else [])
    if ground is None or any(c not in COLORS or clashes(c, ground) for c in colors):
        return None
    after = replace(scene, objects=objects, background=ground, text=text)
    return None if after == scene or (text and not legible(text.color, ground)) else after
