"""Read the text in a picture by the letters of the world themselves: a second reader beside `read_text`.

It shares neither weights nor preprocessing with that one, so that a model rewarded by one can be judged by the other:
the picture becomes coverage by one ink, one line as high as the letters; every letter is laid over every place of it,
and the row of letters that explains most of the ink is what is read.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from toyworld import segment_pixels as seg
from toyworld.render import glyph
from toyworld.vocabulary import CELL, LETTERS, SPACE

HEIGHT = 20  # pixels of the line and of its letters; about what they have in a picture of 64x64
WIDTH = round(CELL * HEIGHT)
LEAST_GAP = round(SPACE / 2 * HEIGHT)  # between two cells; half of what the world leaves
LEAST_CONTRAST = 28.0  # opponent units, as `analyse` takes it
LEAST_MATCH = 0.5  # soft IoU below which a blob is no letter
SHIFTS = (-1, 0, 1)  # rows of the line by which a letter may stand higher or lower than the others


def match_text(pixels: np.ndarray) -> str:
    """Return the characters in a picture, uint8 (H, W, 3); "" where there is none that looks like a letter."""
    line = _line(_coverage(pixels))
    return "" if line is None else _best_row(*_gains(line))


def _coverage(pixels: np.ndarray) -> np.ndarray:
    """How much of each pixel is ink, float32 (H, W): the colour farthest from the ground is the ink."""
    ground = seg.background_color(pixels)
    x = seg.to_opponent(pixels) - seg.to_opponent(ground)
    far = np.sqrt((x**2).sum(-1))
    strongest = np.sort(far.ravel())[-max(far.size // 100, 8) :][0]
    if strongest < LEAST_CONTRAST:
        return np.zeros(far.shape, np.float32)
    return seg.coverage(x, np.median(x[far >= strongest], 0))[0]


def _line(cover: np.ndarray) -> np.ndarray | None:
    """The ink with nothing above or below, stretched to the letters' height, with room on all sides."""
    rows, columns = np.flatnonzero((cover > 0.5).any(1)), np.flatnonzero((cover > 0.5).any(0))
    if len(rows) < 4 or len(columns) < 2:
        return None
    from PIL import Image

    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    width = max(round((right - left) * HEIGHT / (bottom - top)), 1)
    line = Image.fromarray(cover[top:bottom, left:right]).resize((width, HEIGHT), Image.Resampling.BILINEAR)
    return np.pad(np.asarray(line), ((1, 1), (WIDTH, WIDTH)))


def _gains(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the best letter at each place: how much ink it explains, and which it is, (P,) each."""
    letters = letters_KN()
    energy = (letters**2).sum(-1)
    best = None
    for shift in SHIFTS:
        windows = np.lib.stride_tricks.sliding_window_view(line[1 + shift : 1 + shift + HEIGHT], (HEIGHT, WIDTH))[0]
        flat = windows.reshape(len(windows), -1)
        both = flat @ letters.T
        gain = 2 * both - energy
        match = both / np.maximum((flat**2).sum(-1)[:, None] + energy - both, 1e-6)
        gain[match < LEAST_MATCH] = -np.inf
        best = gain if best is None else np.maximum(best, gain)
    assert best is not None
    return best.max(1), best.argmax(1)


def _best_row(gain: np.ndarray, letter: np.ndarray) -> str:
    """The letters that explain most ink together, a gap between each two."""
    step = WIDTH + LEAST_GAP
    total, chosen = np.zeros(len(gain) + step), np.full(len(gain) + step, -1)
    for place in range(len(gain)):  # total[place + step]: the best with windows up to that place
        end, before = place + step, place
        total[end], chosen[end] = total[end - 1], -1
        if gain[place] > 0 and total[before] + gain[place] > total[end]:
            total[end], chosen[end] = total[before] + gain[place], letter[place]
    found, end = "", len(total) - 1
    while end >= step:
        if chosen[end] < 0:
            end -= 1
            continue
        found, end = LETTERS[chosen[end]] + found, end - step
    return found


@lru_cache(maxsize=1)
def letters_KN() -> np.ndarray:
    """The letters of the world at the size of the line, float32 (36, HEIGHT * WIDTH)."""
    from PIL import Image

    cells = [Image.fromarray(glyph(letter)).resize((WIDTH, HEIGHT), Image.Resampling.BOX) for letter in LETTERS]
    return np.stack([np.asarray(cell).ravel() for cell in cells])
