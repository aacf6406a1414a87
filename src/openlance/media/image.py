"""Images in and out: whatever Pillow reads becomes upright 8-bit sRGB on white, an animation a video."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import MODEL_FPS, Clip, frames_by_time, joined, tell_speed
from openlance.media.files import Source, begins_as_video, notice, still_form

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageCms import ImageCmsTransform

# A decoded image of this size takes 192 MB; larger ones are nearly always a mistake or an attack.
MAX_PIXELS = 64_000_000
MOST_BYTES = 1 << 28  # of a file whose metadata are read: Pillow takes some kinds into memory whole
# Formats that Pillow knows by their first bytes but cannot decode by itself.
STUBS = ("MPEG", "BUFR", "GRIB", "HDF5", "WMF")
# Formats whose frames are moments or pages. Of others they are previews, depth maps (MPO), layers (PSD) or sizes (ICO).
MOVING = ("GIF", "WEBP", "PNG", "AVIF", "TIFF", "FLI", "DCX")
# Pillow's decoders report damage in all these ways, by format and place.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, RuntimeError, struct.error,
          zlib.error)  # fmt: skip
# Writers keep equal frames in a row as one that is shown for longer. Steady animations of fewer frames a second than
# this, whose every frame is shown for two of the model's or more, therefore go by time.
SLOWEST = MODEL_FPS / 2 - 0.1
# Clocks of these formats, in seconds: a GIF counts hundredths, the others thousandths.
GIF_TICK, TICK = 0.01, 0.001
BROWSERS = 0.1  # seconds for which browsers show the frames of a GIF that tells no times
REDUCED, SUBFILE_TYPE = 1, 254  # TIFF: a page that is a smaller copy of another has this bit of this tag
# Other tags of a TIFF: bits of a number; 0 where the largest is black; 1 for unsigned numbers, 2 for signed ones.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
# The color spaces that a profile may describe, as ICC names them, and the Pillow mode each is about.
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def read_image(source: str | Path | bytes, name: str | None = None) -> Clip:
    """Read one image: turned upright (EXIF), transparency on white, any color space and depth as 8-bit sRGB.

    Args:
        source: a file, or its bytes. Of an animated file the first frame is taken.
        name: what errors and notices call it, if not by its path.

    Returns:
        A video of one frame.

    Raises:
        UserError: it is missing, not an image, unreadable, truncated or too large.
    """
    file = Source(source, name)
    image = open_image(file)
    if image is None:
        what = "a video, not an image" if begins_as_video(file.head()) else "not an image that can be read"
        raise UserError(f"{file.name} is {what}: use a PNG, JPEG or WebP file")
    with image:
        if (count := frames_of(image, file.name)) > 1:
            notice(f"{file.name} moves, and an image is wanted: the first of its {count} frames is taken")
        return one_image(image, file.name)


def open_image(source: Source) -> PillowImage | None:
    """Open what a file says about itself, its pixels not yet decoded; None if it is not an image.

    Raises:
        UserError: it is damaged, or a reader of its format is not installed.
    """
    from PIL import Image, UnidentifiedImageError

    form, name = still_form(source.head()), source.name
    if begins_as_video(source.head()):
        return None
    with readable(name):
        try:
            if form == "HEIC":  # of which phones make one out of many tiles
                from pillow_heif import HeifImageFile

                return HeifImageFile(source.open())  # type: ignore[no-untyped-call]
            image = Image.open(source.open() if isinstance(source.given, bytes) else source.given)
        except (ImportError, UnidentifiedImageError) as error:
            if form is None:
                return None
            said = f"{name} is in {form} format, for which no reader is installed, or damaged"
            raise UserError(f"{said}: run pip install 'openlance[media]', or convert it to JPEG or PNG") from error
    if image.format not in STUBS:
        return image
    image.close()
    return None


@lru_cache(maxsize=1)
def readers() -> frozenset[str]:
    """Return the suffixes of the images for which a reader is installed."""
    from importlib.util import find_spec

    from PIL import Image

    kinds = Image.registered_extensions()
    heif = (".heic", ".heif", ".hif") if find_spec("pillow_heif") else ()
    return frozenset({suffix for suffix, kind in kinds.items() if kind in Image.OPEN and kind not in STUBS} | {*heif})


def size_of(path: Path) -> tuple[int, int] | None:
    """Read (height, width) in pixels of an image from its head; None if it cannot be read."""
    try:
        image = open_image(Source(path))
    except UserError:
        return None
    if image is None:
        return None
    with image:
        return image.height, image.width


def one_image(image: PillowImage, name: str) -> Clip:
    """Read the frame on which a Pillow image stands, as it is to be shown. UserError if it is damaged or too large."""
    with readable(name):
        return Clip(upright_rgb(image, name)[None])


def metadata(source: Source, ifd: int) -> dict[Any, Any]:
    """Read what an image's file says beside its pixels, which are not decoded.

    Returns:
        Pillow's `info`, and the directory of that number of its EXIF.

    Raises:
        UserError: it is not an image, damaged or too large.
    """
    if source.size() > MOST_BYTES:
        raise UserError(f"{source.name} is larger than the {MOST_BYTES >> 20} MiB up to which metadata are read")
    image = open_image(source)
    if image is None:
        raise UserError(f"{source.name} is not an image or video that can be read: give a PNG or MP4 file")
    with image, readable(source.name):
        return {**image.info, **image.getexif().get_ifd(ifd)}


def frames_of(image: PillowImage, name: str) -> int:
    """Count the frames or pages of an open file: 1 where they are no moments. UserError if it breaks off."""
    with readable(name):
        return getattr(image, "n_frames", 1) if image.format in MOVING else 1


def read_animation(
    image: PillowImage, name: str, choose: Callable[[float], Sequence[float]] | None = None
) -> Clip:  # fmt: skip
    """Read frames of an open animation by the time each is shown.

    Args:
        image: It.
        name: What errors and notices call it.
        choose: As in `video.read_moments`; by default the frames that the model sees.

    Returns:
        A video at 12 frames a second, each frame as `upright_rgb` has it.

    Raises:
        UserError: it is damaged, too large, or its frames differ in size.
    """
    with readable(name):
        shown, seconds = _durations(image, name)
        gif = image.format == "GIF"
        untold = min((s for s in seconds if s), default=BROWSERS if gif else 1 / MODEL_FPS)
        ends = np.cumsum([s or untold for s in seconds])
        starts = np.concatenate([[0.0], ends[:-1]])
        if choose is None:
            chosen = frames_by_time(starts, float(ends[-1]), tick=GIF_TICK if gif else TICK, slowest=SLOWEST)
        else:
            moments = np.asarray(choose(float(ends[-1]))) + (GIF_TICK if gif else TICK)
            chosen = np.clip(np.searchsorted(starts, moments, side="right") - 1, 0, len(starts) - 1).tolist()
        frames = {}
        for index in sorted(set(chosen)):
            image.seek(shown[index])
            frames[index] = upright_rgb(image, name)
    if not any(seconds) and len(frames) < len(shown):
        notice(f"{name} does not say how long its {len(shown)} frames are shown: {len(frames)} of them are read")
    tell_speed(name, float(ends[-1]), len(chosen))
    return joined([frames[index] for index in chosen], name)


def _durations(image: PillowImage, name: str) -> tuple[list[int], list[float]]:
    """The numbers of the frames that are shown, and the seconds of each; 0 where the file does not say."""
    shown, seconds = [], []
    for index in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(index)
        reduced = getattr(image, "tag_v2", {}).get(SUBFILE_TYPE, 0) & REDUCED
        # A PNG may begin with an image for viewers that do not know animations.
        if (index == 0 and image.info.get("default_image")) or (index > 0 and reduced):
            continue
        _load(image, name)  # a WebP tells the time of a frame only now
        shown.append(index)
        seconds.append(image.info.get("duration", 0) / 1000)
    return shown, seconds


def check_pixels(name: str, width: int, height: int) -> None:
    """Raise UserError if frames of a size are too large to be decoded."""
    if width * height > MAX_PIXELS:
        most = f"the {MAX_PIXELS // 10**6} megapixels allowed"
        raise UserError(f"{name} has {width}x{height} pixels, more than {most}: scale it down first")


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what Pillow raises for damaged files into a UserError; its warnings about them are not shown."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has far more than {MAX_PIXELS // 10**6} megapixels: scale it down first") from error
    except BROKEN as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} is damaged or truncated ({why}): get the file again") from error


def _load(image: PillowImage, name: str) -> None:
    """Decode the frame on which an image stands. Pillow maps an uncompressed TIFF whose path it knows into memory, and
    then forgets how it is to be turned; so it is not told the path."""
    check_pixels(name, image.width, image.height)
    path = getattr(image, "filename", "")
    try:
        image.filename = ""  # type: ignore[attr-defined]
        image.load()
    finally:
        image.filename = path  # type: ignore[attr-defined]


def upright_rgb(image: PillowImage, name: str) -> np.ndarray:
    """Settle everything a file says about how its pixels are to be shown.

    Args:
        image: a Pillow image, of which the frame on which it stands is taken; it is loaded, not changed.
        name: what errors and notices call it.

    Returns:
        uint8 (H, W, 3) in sRGB: turned upright (EXIF), transparency on white (released code), any depth as 8 bits.
    """
    from PIL import ImageOps

    _load(image, name)
    found: Any = getattr(image, "tag_v2", {})  # what is turned upright has none
    tags = {tag: np.ravel(found.get(tag))[0] for tag in (BITS, PHOTOMETRIC, SAMPLE_FORMAT)}
    try:
        image = ImageOps.exif_transpose(image)
    except BROKEN as error:
        notice(f"{name} has EXIF data that cannot be read ({error}): it is shown as it is stored")
    return _rgb(image, name, tags)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay uint8 (H, W, 4) on white: uint8 (H, W, 3)."""
    from PIL import Image

    return _rgb(Image.fromarray(np.ascontiguousarray(rgba)), "the image", {})


def _rgb(image: PillowImage, name: str, tags: dict[int, Any]) -> np.ndarray:
    """8-bit sRGB of a loaded image; transparent pixels become white. tags: of a TIFF."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    opaque, alpha = _without_alpha(image)
    rgb = _to_srgb(_to_8_bit(opaque, tags), profile, name)
    if alpha is not None:
        paper = Image.new("RGB", rgb.size, (255, 255, 255))
        paper.paste(rgb, mask=alpha)
        rgb = paper
    return np.array(rgb)


def _without_alpha(image: PillowImage) -> tuple[PillowImage, PillowImage | None]:
    """The colors of an image and its opacity, 0..255 ("L"), or None where it is opaque."""
    from PIL import Image

    key = image.info.get("transparency")
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert(image.mode.upper())
    if image.mode == "LA":
        return image.convert("L"), image.getchannel("A")
    if image.mode.startswith("I;16") and isinstance(key, int):
        return image, Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    if image.mode == "RGB" and isinstance(key, tuple) and len(key) == 3:
        # A key of 16 bits is compared with what Pillow keeps of such pixels: their upper halves.
        color = np.array(key) >> 8 if max(key) > 255 else np.array(key)
        return image, Image.fromarray(np.where((np.asarray(image) == color).all(-1), 0, 255).astype(np.uint8))
    clear = key is not None or getattr(image, "has_transparency_data", False)  # a palette may have opacities itself
    if image.mode in ("RGBA", "PA") or (clear and image.mode in ("P", "L", "1")):
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    return image, None


def _to_8_bit(image: PillowImage, tags: dict[int, Any]) -> PillowImage:
    """Scale the deep gray modes to 0..255; Pillow's own conversion would cut them off at white."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":  # no fixed range: 0..1 unless the values say otherwise
        largest = 1 if values[np.isfinite(values)].max(initial=0.0) <= 1.0 else 255
    else:
        bits, form = tags.get(BITS), tags.get(SAMPLE_FORMAT)
        if values.dtype == np.int32 and form == 1 and bits != 16:
            values = values.view(np.uint32)  # Pillow has only signed numbers of 32 bits
        # 16 bits, which some readers hand over in 32, unless there are larger numbers.
        deep = values.max(initial=0) > 65535
        largest = np.iinfo(values.dtype).max if deep else 32767 if (bits, form) == (16, 2) else 65535
    gray = np.nan_to_num(values.astype(np.float64) * (255.0 / largest), posinf=255.0).round().clip(0, 255)
    return Image.fromarray((255 - gray if tags.get(PHOTOMETRIC) == 0 else gray).astype(np.uint8))


def _to_srgb(image: PillowImage, profile: bytes | None, name: str) -> PillowImage:
    """RGB of an 8-bit image without alpha, by its color profile if it has one of its kind."""
    from PIL import ImageCms

    if image.mode == "LAB":  # CIE L*a*b* (D50, as ICC and TIFF have it)
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    if not profile:
        return image.convert("RGB")
    try:
        space, transform = _transform(profile)
        mode = PROFILE_MODES.get(space)
        if mode is None:
            notice(f"{name} has a color profile of {space}, which is not for an image: it is left out")
        elif image.mode == mode or (mode == "RGB" and image.mode != "CMYK"):
            fitting = image.convert(mode)
            return fitting.convert("RGB") if transform is None else transform.apply(fitting)
        # Of another mode, it was converted since, and kept the profile of what it was.
    except (*BROKEN, ImportError, ImageCms.PyCMSError) as error:  # a broken profile, or a Pillow without Little CMS
        notice(f"{name} has a color profile that cannot be read ({error}): its colors are taken as sRGB")
    return image.convert("RGB")


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[str, ImageCmsTransform | None]:
    """The color space of a profile ("RGB", "GRAY", "CMYK", "Lab" ...) and its transform to sRGB, perceptual as viewers
    have it; None for a space of no image, and where it would change nothing.

    A profile of sRGB itself, which most photos have, must not cost a level by rounding: it is told by what it does to
    even steps of all colors.
    """
    from PIL import Image, ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    mode = PROFILE_MODES.get(space)
    if mode is None:
        return space, None
    # Of gray, Little CMS makes a coarse table that is off by ten levels in the dark; without it, it is exact.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    if mode != "CMYK":
        steps = np.linspace(0, 255, 18).astype(np.uint8)
        probe = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3) if mode == "RGB" else steps[None]
        even = Image.fromarray(probe)
        change = np.abs(np.asarray(transform.apply(even)).astype(int) - np.asarray(even.convert("RGB")))
        if change.max() <= 1:
            return space, None
    return space, transform
