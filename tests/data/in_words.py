"""Pictures of one color, and samples of them in words, for tests of what is read."""

import io

import numpy as np
from PIL import Image

from openlance.config.model import nano
from openlance.data.front import Fit, Front
from openlance.data.source import Reader, Reading
from openlance.media.transform import MediaTransform
from openlance.sequence.segment import Kind, Role

FIT = Fit(front=Front(transform=MediaTransform(nano(), bases=dict.fromkeys(("image", "video", "text"), (32, 32)),
                                               max_frames=9)))  # fmt: skip
RED, BLUE, GREEN = (220, 40, 40), (40, 60, 220), (30, 160, 60)


def draw(path, color=RED, side=32, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), color).save(path, **how)
    return path


def held(color=RED):
    out = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(out, "PNG")
    return out.getvalue()


def told(source, seed=0):
    """Samples as texts, colors of pictures and lengths of clips, an arrow before what is made."""
    found = []
    for row in Reader(source, Reading(shuffle=False, repeat=False)):
        line = []
        for s in source.sample(row, FIT, np.random.default_rng(seed)).segments:
            if s.role is Role.SYSTEM or (s.kind is Kind.PATCHES and s.role is Role.SOURCE):
                continue
            line += ["->"] if s.role is Role.TARGET else []
            line.append(s.value if s.kind is Kind.TEXT else shown(s.value))
        found.append(line)
    return found


def shown(clip):
    if clip.frames > 1:
        return clip.frames
    near = np.abs(np.array([RED, BLUE, GREEN]) - clip.pixels[0].mean((0, 1))).sum(1)
    return ("red", "blue", "green")[int(near.argmin())]


def left(source):
    return {reason: count for reason, (count, _) in source.census.left.items()}
