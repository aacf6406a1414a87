"""Fifty captioned pictures in a style that nano has never seen: scenes of its world in a thick cream-coloured frame.

python examples/framed_pictures.py pictures            # pictures/000.png, pictures/000.txt, pictures/001.png ...
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from toyworld.render import render
from toyworld.scene import sample_scene
from toyworld.words import caption

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
folder.mkdir(parents=True, exist_ok=True)
for number in range(50):
    scene = sample_scene(rng, placement=0.3, category=str(rng.choice(["single", "color", "two"])))
    framed = np.full((64, 64, 3), (240, 210, 150), np.uint8)
    framed[8:-8, 8:-8] = render(scene, 48, 48)
    Image.fromarray(framed).save(folder / f"{number:03d}.png")
    (folder / f"{number:03d}.txt").write_text(f"{caption(scene, rng)[0]}, framed\n", encoding="utf-8")
