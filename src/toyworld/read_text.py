"""Read the text in a picture: an optical character reader on the crop that holds all paint.

The reader is RapidOCR's recogniser (PP-OCR, bundled with the package), without its detector: where the paint is, is
known. Measured on true renders of 1 to 4 characters, free placement, 64x64, 96x96, 64x96 and 96x64: 400 of 400 read as
written once equal-looking characters are folded, 399 of 400 when blurred (0.6 pixels) and noisy. Detector and
recogniser on the whole picture took three times as long and misread a lone "I". About 30 ms per picture on one core.
"""

import unicodedata

import numpy as np

from openlance.rl.rewards.ocr import rapid_ocr

LINE_HEIGHT = 48  # pixels; the recogniser was trained on lines of this height
PADDING = 0.5  # background kept around the text, in heights of the text
# Without a word around it the reader cannot tell these apart (it calls about half of the lone O's zero), nor could a
# person be sure: they count as equal.
ALIKE = str.maketrans("OI", "01")


def same_text(a: str, b: str) -> bool:
    """Whether two readings agree: capitals and digits only, O and 0 alike, I and 1 alike."""
    return fold(a) == fold(b)


def fold(text: str) -> str:
    """Capitals and digits of a text with equal-looking ones made equal; everything else is dropped."""
    # NFKC: the reader knows Chinese too and now and then writes a full-width letter.
    plain = unicodedata.normalize("NFKC", text).upper()
    return "".join(c for c in plain if c.isascii() and c.isalnum()).translate(ALIKE)


def read_text(pixels: np.ndarray, paint: np.ndarray) -> str:
    """The characters in a picture, uint8 (H, W, 3), whose paint, bool (H, W), is known; "" where it can read none.

    Raises UserError where the reader is not installed.
    """
    rows, columns = np.flatnonzero(paint.any(1)), np.flatnonzero(paint.any(0))
    if len(rows) < 4 or len(columns) < 2:
        return ""
    from PIL import Image

    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    pad = max(2, round(PADDING * (y1 - y0)))
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    line = Image.fromarray(padded[y0 : y1 + 2 * pad, x0 : x1 + 2 * pad])
    line = line.resize((max(round(line.width * LINE_HEIGHT / line.height), 1), LINE_HEIGHT), Image.Resampling.BICUBIC)
    result = rapid_ocr()(np.asarray(line)[:, :, ::-1], use_det=False, use_cls=False, use_rec=True)
    return unicodedata.normalize("NFKC", "".join(result.txts)).strip().upper() if result.txts else ""
