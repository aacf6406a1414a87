"""Any Pillow image as upright 8-bit sRGB on white: orientation, depth, transparency and color profile settled."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.media.notices import notice

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageCms import ImageCmsTransform

# Pillow's decoders report damage in all these ways, by format and place.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, RuntimeError, struct.error,
          zlib.error)  # fmt: skip
# Tags of a TIFF: bits of a number; 0 where the largest is black; 1 for unsigned numbers, 2 for signed ones.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
# The color spaces that a profile may describe, as ICC names them, and the Pillow mode each is about.
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def upright_rgb(image: PillowImage, name: str) -> np.ndarray:
    """Settle everything a file says about how its pixels are to be shown.

    Args:
        image: the frame on which a Pillow image stands; it is loaded, not changed.
        name: what notices call it.

    Returns:
        uint8 (H, W, 3) in sRGB: turned upright (EXIF), transparency on white (released code), any depth as 8 bits.
    """
    from PIL import ImageOps

    load(image)
    tags = dict(getattr(image, "tag_v2", {}))  # what is turned upright has none
    try:
        upright = ImageOps.exif_transpose(image)
    except BROKEN as error:
        notice(f"{name} has EXIF data that cannot be read ({error}): it is shown as it is stored")
        upright = image
    return np.array(to_rgb(upright, name, tags))


def load(image: PillowImage) -> None:
    """Decode the frame on which an image stands. Pillow maps an uncompressed TIFF whose path it knows into memory, and
    then forgets how it is to be turned; so it is not told the path."""
    path = getattr(image, "filename", "")
    try:
        image.filename = ""  # type: ignore[attr-defined]
        image.load()
    finally:
        image.filename = path  # type: ignore[attr-defined]


def to_rgb(image: PillowImage, name: str = "the picture", tags: Mapping[int, Any] | None = None) -> PillowImage:
    """8-bit sRGB of a loaded image; transparent pixels become white (released code). tags: of a TIFF."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    opaque, alpha = _without_alpha(image)
    opaque = _to_8_bit(opaque, tags or {})
    rgb = _lab_to_rgb(opaque) if opaque.mode == "LAB" else _to_srgb(opaque, profile, name)
    if alpha is None:
        return rgb
    paper = Image.new("RGB", rgb.size, (255, 255, 255))
    paper.paste(rgb, mask=alpha)
    return paper


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay uint8 (H, W, 4) on white paper: uint8 (H, W, 3)."""
    from PIL import Image

    return np.array(to_rgb(Image.fromarray(np.ascontiguousarray(rgba))))


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


def _to_8_bit(image: PillowImage, tags: Mapping[int, Any]) -> PillowImage:
    """Scale the deep gray modes to 0..255; Pillow's own conversion would clip them to white."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":  # no fixed range: 0..1 unless the values say otherwise
        scale = 255.0 if values[np.isfinite(values)].max(initial=0.0) <= 1.0 else 1.0
    else:
        bits, form = _tag(tags, BITS), _tag(tags, SAMPLE_FORMAT)
        if values.dtype == np.int32 and form == 1 and bits != 16:
            values = values.view(np.uint32)  # Pillow has only signed numbers of 32 bits
        # 16 bits, which some readers hand over in 32, unless there are larger numbers.
        deep = values.max(initial=0) > 65535
        largest = np.iinfo(values.dtype).max if deep else 32767 if (bits, form) == (16, 2) else 65535
        scale = 255.0 / largest
    gray = np.nan_to_num(values.astype(np.float64) * scale, posinf=255.0).round().clip(0, 255)
    if _tag(tags, PHOTOMETRIC) == 0:
        gray = 255 - gray
    return Image.fromarray(gray.astype(np.uint8))


def _tag(tags: Mapping[int, Any], number: int) -> Any:
    """The value of a tag, or the first of several."""
    value = tags.get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _lab_to_rgb(image: PillowImage) -> PillowImage:
    """CIE L*a*b* (D50, as ICC and TIFF have it) as sRGB."""
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    assert converted is not None
    return converted


def _to_srgb(image: PillowImage, profile: bytes | None, name: str) -> PillowImage:
    """RGB of an 8-bit image without alpha, by its color profile if it has one of its kind."""
    if not profile:
        return image.convert("RGB")
    try:
        space = _profile_space(profile)
        mode = PROFILE_MODES.get(space)
        if mode is None:
            notice(f"{name} has a color profile of {space}, which is not for a picture: it is left out")
            return image.convert("RGB")
        if image.mode != mode and (mode != "RGB" or image.mode == "CMYK"):
            return image.convert("RGB")  # it was converted since, and kept the profile of what it was
        transform = _transform(profile, mode)
        fitting = image.convert(mode)
        if transform is None:
            return fitting.convert("RGB")
        return transform.apply(fitting)
    except _profile_errors() as error:
        notice(f"{name} has a color profile that cannot be read ({error}): its colors are taken as sRGB")
        return image.convert("RGB")


def _profile_errors() -> tuple[type[Exception], ...]:
    """What a broken profile, or a Pillow without Little CMS, raises."""
    try:
        from PIL.ImageCms import PyCMSError
    except ImportError:
        return (ImportError,)
    return (*BROKEN, PyCMSError, ImportError)


@lru_cache(maxsize=8)
def _profile_space(profile: bytes) -> str:
    """The color space whose values a profile is about: "RGB", "GRAY", "CMYK", "Lab" ..."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """The transform of a profile to sRGB, perceptual as viewers have it; None where it would change nothing.

    A profile of sRGB itself, which most photos have, must not cost a level by rounding: it is told by what it does to
    even steps of all colors.
    """
    from PIL import Image, ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    # Of gray, Little CMS makes a coarse table that is off by ten levels in the dark; without it, it is exact.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    if mode == "CMYK":
        return transform
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    probe = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3) if mode == "RGB" else steps[None]
    picture = Image.fromarray(probe)
    change = np.abs(np.asarray(transform.apply(picture)).astype(int) - np.asarray(picture.convert("RGB")))
    return transform if change.max() > 1 else None
