"""The one form in which images and videos travel, a block of frames, and which frames of a video the model sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from openlance.config.values import brief, convert, number
from openlance.errors import UserError
from openlance.media.files import KEY, LONGEST, notice

if TYPE_CHECKING:
    from PIL.Image import Image

# Frames per second of every clip the model reads or makes (released code).
MODEL_FPS = 12.0
# Longer videos are not cut but sped up: the frames of the whole are spread over this time (released code).
MAX_SECONDS = 6.0
# Taken where the file does not say (released code).
UNKNOWN_FPS = 24
# The temporal stride of the VAE; the first frame stands alone, so clips have 4k + 1 frames.
TEMPORAL_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The making of one result.

    Args:
        openlance: Version of this package.
        task: A name of `sequence.tasks.TASKS`, or empty.
        prompt: What was asked for, in full.
        negative_prompt: What guidance led away from.
        region: Of an edit where it changed its source, and how that was found; empty for a plain one.
        seed: Of its noise; None where that came from elsewhere.
        width: In pixels.
        height: In pixels.
        num_frames: 1 for an image.
        model: Name, not path.
        model_hash: Of the weights that drew it (`checkpoint.tensors.fingerprint`).
        dtype: Numbers in which the model ran.
        lora: Names of adapters.
        settings: Fields of `config.sampling.Sampling`; and what a later version adds.
    """

    openlance: str
    task: str = ""
    prompt: str
    negative_prompt: str = ""
    region: str = ""
    seed: int | None = None
    width: int
    height: int
    num_frames: int = 1
    model: str = ""
    model_hash: str = ""
    dtype: str = ""
    lora: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """Every field by its name, the settings among them."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "settings"}
        return own | dict(self.settings)

    @property
    def text(self) -> str:
        """The record in JSON. Halves of surrogate pairs, which UTF-8 lacks, are escaped."""
        said = json.dumps(self.as_data(), ensure_ascii=False)
        return said.encode("utf-8", "backslashreplace").decode("utf-8")

    @classmethod
    def parse(cls, text: str, name: str) -> Provenance:
        """Read a record. UserError if it is damaged; `name` is of the file."""
        hints = get_type_hints(cls)
        try:
            if len(text) > LONGEST:
                raise ValueError(f"longer than {LONGEST} characters")
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError("no JSON object")
            own = {k: convert(hints[k], data.pop(k), k) for k in list(data) if k in hints and k != "settings"}
            return cls(**own, settings=data)
        except (ValueError, TypeError, RecursionError) as error:
            said = f"the record in {name} of how it was made is damaged ({error})"
            raise UserError(f"{said}: get the file again") from None


def carried(info: Mapping[Any, Any]) -> Provenance | None:
    """Return the record that a Pillow image carries in its `info`; None if there is no whole one."""
    text = info.get(KEY)
    try:
        return Provenance.parse(text, "the image") if isinstance(text, str) else None
    except UserError:
        return None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a model finds at a result of its own, by its own answers (`inference.checking`).

    Args:
        draw: Which draw of the request this result is, from 1 on.
        draws: How many were made.
        facts: How many facts it was asked about; 0 where the words of the request gave none.
        faults: Those that do not hold, in words.
        unsure: Those of which it is not sure.
        score: Logarithm of the probability that the model gives to the right answers; nearer to 0 is better.
    """

    draw: int
    draws: int
    facts: int
    faults: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    score: float = 0.0

    @property
    def fine(self) -> bool:
        """Whether it is sure that every fact holds."""
        return not self.faults and not self.unsure

    def as_data(self) -> dict[str, Any]:
        """The same for records and answers, without the score."""
        return {
            "fine": self.fine, "draw": self.draw, "draws": self.draws, "facts": self.facts,
            "faults": list(self.faults), "unsure": list(self.unsure),
        }  # fmt: skip

    def __str__(self) -> str:
        if not self.facts:
            return "nothing in the words could be checked"
        named = (("faults", self.faults), ("unsure", self.unsure))
        found = "; ".join(f"{name}: {', '.join(facts)}" for name, facts in named if facts) or "no fault"
        return f"{found} ({self.facts} facts, draw {self.draw} of {self.draws})"


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """The frames of an image (one frame) or a video.

    Args:
        pixels: uint8 (T, H, W, 3), RGB, 0..255.
        fps: frames per second, without meaning for an image.
        made: how, where a model drew it here and that is to be known; files and Pillow images carry it along.
        verdict: what the model found at it, where it was asked to check; Pillow images have it too.
        origin: name under which a cache of training keeps what is made of it; empty where none does.

    Raises:
        UserError: the pixels are of another type or shape, or the rate is not positive.
    """

    pixels: np.ndarray
    fps: float = MODEL_FPS
    made: Provenance | None = None
    verdict: Verdict | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, np.ndarray):
            raise UserError(f"the pixels of a video are {brief(self.pixels)}: expected an array, uint8 (T, H, W, 3)")
        shape, kind = self.pixels.shape, self.pixels.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UserError(f"a video needs uint8 pixels (T, H, W, 3) with no empty axis, got {kind} {tuple(shape)}")
        object.__setattr__(self, "fps", number("fps", self.fps))
        if not self.fps > 0:
            raise UserError(f"a video needs a positive frame rate, got fps={self.fps}")

    def __repr__(self) -> str:
        return f"Clip({self.frames} frames of {self.width}x{self.height}, {self.fps:g} a second)"

    @cached_property
    def key(self) -> bytes:
        """What the frames show, in 16 bytes: equal for equal pixels, wherever they came from."""
        numbers = np.ascontiguousarray(self.pixels)
        return hashlib.blake2b(numbers.data, digest_size=16, key=repr(numbers.shape).encode()).digest()

    @property
    def frames(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[2])

    @property
    def record(self) -> str:
        """How it was made, in JSON; empty where nobody knows."""
        return "" if self.made is None else self.made.text

    def save(self, path: str | Path) -> None:
        """Write the video as the suffix says: .mp4, .webp or .gif; one frame also as .png or .jpg.

        Raises:
            UserError: the suffix is another one, or the place cannot be written.
        """
        from openlance.media.write import write_media

        write_media(path, self)

    def images(self) -> list[Image]:
        """Give its frames as Pillow images. Where it is known how they were made, their `info` says so, and their
        `save` writes it into the file (`media.signed`)."""
        from PIL import Image

        frames = [Image.fromarray(np.ascontiguousarray(frame)) for frame in self.pixels]
        if self.made is not None or self.verdict is not None:
            from openlance.media.signed import SignedImage

            for frame in frames:
                frame.__class__ = SignedImage
                frame.verdict = self.verdict  # type: ignore[attr-defined]
                frame.info |= {KEY: self.record} if self.record else {}
        return frames

    def with_pixels(self, pixels: np.ndarray) -> Clip:
        """Return a video of the same frame rate with other frames, of which nobody knows how they were made."""
        return Clip(pixels, self.fps)


def joined(frames: Sequence[np.ndarray], name: str) -> Clip:
    """Put frames, each uint8 (H, W, 3), into one video at the model's rate. UserError if their sizes differ."""
    sizes = list(dict.fromkeys(frame.shape[:2] for frame in frames))
    if len(sizes) > 1:
        (h, w), (other_h, other_w) = sizes[:2]
        raise UserError(f"{name} has frames of several sizes, {w}x{h} and {other_w}x{other_h}: scale them to one size")
    return Clip(np.stack(frames), MODEL_FPS)


def frame_indices(total: int, fps: float | None) -> list[int]:
    """Choose the frames of a steady video that the model sees: at most 69 of them, 4k + 1, about 12 a second.

    The rule of the released code: file rate rounded, duration capped at 6 s, floor to a multiple of 4 and add one
    (take 3 off where it is a multiple already), then even integer steps from the first to the last frame.

    Args:
        total: frames of the video.
        fps: its frames per second; None where they are not known (24 is taken).

    Returns:
        Ascending frame numbers; slow videos repeat frames.

    Raises:
        UserError: the video has no frame.
    """
    if total < 1:
        raise UserError("a video without frames cannot be sampled: give one that has at least one frame")
    rate = round(fps) if fps else 0
    chosen: list[int] = np.linspace(0, total - 1, _count(total / (rate or UNKNOWN_FPS)), dtype=int).tolist()
    return chosen


def _count(seconds: float) -> int:
    """How many frames of a video of a length are kept (released code)."""
    count = round(MODEL_FPS * min(seconds, MAX_SECONDS))
    if count % TEMPORAL_STRIDE:
        return count // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
    return max(count - TEMPORAL_STRIDE + 1, 1)


def frames_by_time(
    starts: np.ndarray, end: float, rate: float | None = None, *, tick: float = 0.0, slowest: float = 0.5
) -> list[int]:
    """Choose the frames that the model sees from when each is shown.

    A steady video is sampled by `frame_indices`. Any other one is looked at in as many even moments as a steady one of
    its length, from the middle of its shortest frame (or of the model's own, if that is shorter) to as long before its
    end.

    Args:
        starts: seconds at which each frame appears, ascending, (N,).
        end: second at which the last one goes.
        rate: frames per second as the file has them; taken where it agrees with `starts`.
        tick: resolution of the file's clock in seconds, to which `starts` are rounded.
        slowest: frames per second up to which a steady video goes by time as well. The released rule rounds a rate of
            half a frame a second to zero and would not know how long such a video lasts.

    Returns:
        Ascending frame numbers of 0..N-1.
    """
    if len(starts) <= 1:
        return frame_indices(len(starts), rate)
    times = np.asarray(starts, np.float64) - starts[0]
    length = end - float(starts[0])
    measured = steady_rate(times, length, tick)
    if measured is not None:
        agreed = rate if rate and abs(rate / measured - 1) < 0.02 else measured
        if agreed > slowest:
            return frame_indices(len(times), agreed)
    gaps = np.diff(np.append(times, length))
    shortest = min(gaps[gaps > 0].min(initial=1 / MODEL_FPS), 1 / MODEL_FPS)
    moments = np.linspace(0, length - shortest, _count(length)) + shortest / 2
    chosen: list[int] = (np.searchsorted(times, moments, side="right") - 1).clip(0, len(times) - 1).tolist()
    return chosen


def steady_rate(times: np.ndarray, length: float, tick: float = 0.0) -> float | None:
    """Measure the frames per second of a video that shows each frame equally long.

    Args:
        times: seconds at which each frame appears, ascending from 0, (N,) of two or more.
        length: seconds of the whole video.
        tick: resolution of the clock. Rounding to it (milliseconds in Matroska, say) makes no video unsteady, nor does
            a frame that comes a quarter of a frame early or late: the sampler would see the same.

    Returns:
        The rate, or None for any other video.
    """
    period = float(times[-1]) / (len(times) - 1)
    if period <= 0:
        return None
    allowed = max(period / 4, tick if tick < period / 2 else 0.0)
    uneven = np.abs(times - period * np.arange(len(times))).max()
    held = length - float(times[-1])  # a last frame that stays is a pause; that it is short says little
    return 1 / period if uneven <= allowed and held <= period + allowed else None


def tell_speed(name: str, seconds: float, frames: int) -> None:
    """Say that a video of more than `MAX_SECONDS` is spread over the frames that are kept of it."""
    if seconds > MAX_SECONDS + 1 / MODEL_FPS:
        faster = f"{seconds / (frames / MODEL_FPS):.1f} times faster; cut it to {MAX_SECONDS:g} s to keep its speed"
        notice(f"{name} lasts {seconds:.1f} s: {frames} frames, evenly spread, are kept, so it looks {faster}")
