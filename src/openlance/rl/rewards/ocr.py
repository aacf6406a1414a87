"""Whether an image shows the text that its prompt puts between quotes, as an optical character reader reads it.

    ocr                                  # RapidOCR with the models of PaddleOCR that come with its package
    ocr=paddle                           # PaddleOCR itself, where it is installed
    ocr=tesseract                        # Tesseract, where it is installed: another model, to judge what ocr rewarded

A reader yields the lines of an image from top to bottom and from left to right. Nothing is downloaded by us.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np

from openlance.errors import UserError
from openlance.rl.rewards.reward import Drawn, Reward
from openlance.rl.rewards.spelling import best_order, closeness, wanted

Read = Callable[[np.ndarray], Sequence[str]]  # a picture, uint8 (H, W, 3), RGB -> its lines
# Pixels of the shorter side up to which the detector enlarges, and the least width that the recognizer pads a line of
# 48 to (the package's own: 736 and 320); see `rapid`.
SHORTEST, NARROWEST = 128, 96
ENLARGED = 256  # pixels of the shorter side for Tesseract


class Ocr(Reward):
    """Scores texts that were asked for.

    Facts: "read", how near all that was read comes to what was asked for, by edit distance over its length, capitals
    and small letters alike; "exact", whether nothing differs. Where no text can be read both are 0. Of a video they are
    the mean of its first, middle and last frame.
    """

    name = "ocr"
    facts = {"read": 1.0, "exact": 0.5}  # ours: the last wrong letter is worth as much as half of the text
    cost = "32 ms for an image of 64x64 and 200 ms for one of 512x512 on one busy core (RapidOCR)"
    exploits = (
        "letters that only this reader can read: judge by another one; text that the reader is not sure of (under .5) "
        "counts as not there; nothing but the text is looked at, so images lose what else the prompt says"
    )
    takes = "the reader: paddle or tesseract"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        if argument not in READERS:
            raise UserError(f"there is no reader {argument!r}: use ocr, {', '.join(f'ocr={n}' for n in READERS if n)}")
        self._read: Read | None = None

    def check(self, prompt: str, truth: Any = None) -> None:
        wanted(prompt)

    def load(self) -> None:
        closeness("", "")
        self._read = READERS[self.argument]()

    def __call__(self, drawn: Sequence[Drawn]) -> list[Mapping[str, float]]:
        return [self._score(one) for one in drawn]

    def _score(self, drawn: Drawn) -> dict[str, float]:
        assert self._read is not None, "load comes first"
        texts = wanted(drawn.prompt)
        found = [best_order(self._read(still), texts) for still in drawn.stills()]
        near, exact = (float(np.mean(values)) for values in zip(*found))
        return {"read": near, "exact": exact}


@lru_cache(maxsize=2)
def rapid_ocr(narrowest: int = 320) -> Any:
    """Load RapidOCR with the detector and the recognizer of its package. UserError where it is not installed.

    Args:
        narrowest: Width in pixels to which a line of 48 is padded at least.
    """
    try:
        from rapidocr import RapidOCR
    except ImportError as missing:
        raise UserError(
            f"reading the text in a picture needs the package {missing.name}: pip install 'openlance[rl]'"
        ) from missing
    return RapidOCR(params={
        "Global.use_cls": False, "Global.log_level": "error", "Det.limit_side_len": SHORTEST,
        "Rec.rec_img_shape": [3, 48, narrowest], "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    })  # fmt: skip


def rapid() -> Read:
    """Read by RapidOCR.

    Measured on texts of one to four characters, in images of 64x64, of 96x96, and drawn by nano, 400 each: as many are
    read as with 256 and 320 (.920, .922, .450 for .920, .917, .465) in a third of the time.
    """
    reader = rapid_ocr(NARROWEST)
    # What to do is said at each call, since it keeps what another caller (the world's judge) has said.
    return lambda pixels: reader(pixels[:, :, ::-1], use_det=True, use_cls=False, use_rec=True).txts or ()


def paddle() -> Read:
    """PaddleOCR 3 of the user's own installation, with the models that it finds."""
    try:
        from paddleocr import PaddleOCR
    except ImportError as missing:
        raise UserError(
            f"the reward ocr=paddle needs the package {missing.name}: pip install paddleocr paddlepaddle, or take ocr, "
            "which runs the same models"
        ) from missing
    reader = PaddleOCR(use_doc_orientation_classify=False, use_doc_unwarping=False, use_textline_orientation=False)
    return lambda pixels: [
        line for page in reader.predict(np.ascontiguousarray(pixels[:, :, ::-1])) for line in page["rec_texts"]
    ]


def tesseract() -> Read:
    """Tesseract's own program, its English model, images enlarged to letters of a size that it was made for."""
    program = shutil.which("tesseract")
    if program is None:
        raise UserError(
            "the reward ocr=tesseract needs the program tesseract: install it (apt-get install tesseract-ocr), or take "
            "another reader"
        )
    # Sparse text, in no layout (psm 11); one thread, as every worker.
    command = [program, "stdin", "stdout", "--psm", "11", "-l", "eng"]

    def read(pixels: np.ndarray) -> list[str]:
        from PIL import Image

        image, data = Image.fromarray(pixels), BytesIO()
        times = max(1, round(ENLARGED / min(image.size)))
        image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC).save(data, "png")
        environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
        done = subprocess.run(command, input=data.getvalue(), capture_output=True, env=environment, check=True)
        return [line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]

    return read


READERS: dict[str, Callable[[], Read]] = {"": rapid, "paddle": paddle, "tesseract": tesseract}
