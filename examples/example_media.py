"""Draw the media of the example requests that `openlance run` brings along: `python examples/example_media.py`.

Writes src/openlance/assets/config/examples/media: scenes of the procedural world, so that the right answers are known.
"""

from pathlib import Path

from openlance.media import Clip
from toyworld.motion import ClipScene, Motion, render_clip
from toyworld.render import render
from toyworld.scene import Object, Scene
from toyworld.vocabulary import SIZES

OUT = Path(__file__).parents[1] / "src" / "openlance" / "assets" / "config" / "examples" / "media"
SIDE = 64  # pixels
CIRCLE = Object(shape="circle", color="red", x=0.28)
SQUARE = Object(shape="square", color="blue", x=0.72)
SCENES = {
    "circle_square": Scene(objects=(CIRCLE, SQUARE)),
    "star": Scene(objects=(Object(shape="star", color="yellow", size="large", r=SIZES["large"]),)),
    "square": Scene(objects=(Object(shape="square", color="blue", size="small", r=SIZES["small"]),)),
    "three_squares": Scene(
        objects=tuple(
            Object(shape="square", color="green", x=x, y=y) for x, y in ((0.25, 0.3), (0.75, 0.3), (0.5, 0.72))
        ),
        background="white",
    ),
}
CLIPS = {
    "moving_circle": (Object(shape="circle", color="red", x=0.3), Motion(kind="right", amount=0.4)),
    "growing_star": (Object(shape="star", color="yellow", r=SIZES["small"]), Motion(kind="growing", amount=1.9)),
}

for name, scene in SCENES.items():
    Clip(render(scene, SIDE, SIDE)[None]).save(OUT / f"{name}.png")
for name, (thing, motion) in CLIPS.items():
    Clip(render_clip(ClipScene(scene=Scene(objects=(thing,)), motions=(motion,)), SIDE, SIDE)).save(OUT / f"{name}.mp4")
