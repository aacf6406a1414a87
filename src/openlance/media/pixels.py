"""Any Pillow image as upright 8-bit sRGB on white: orientation, depth, transparency and color profile settled."""

from __future__ import annotations

import io
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from openlance.media.notices import notice

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageCms import ImageCmsTransform

# Pillow's decoders report damage in all these ways, by format and place.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, RuntimeError, struct.error,
          zlib.error)  # fmt: skip
SAMPLE_FORMAT = 339  # TIFF tag: 1 of unsigned numbers, 2 of signed ones
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

    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except BROKEN as error:
        notice(f"{name} has EXIF data that cannot be read ({error}): it is shown as it is stored")
        upright = image
    return np.array(to_rgb(upright, name))


def to_rgb(image: PillowImage, name: str = "the picture") -> PillowImage:
    """8-bit sRGB of a loaded image; transparent pixels become white (released code)."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    opaque, alpha = _without_alpha(image)
    opaque = _to_8_bit(opaque)
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
    if image.mode in ("RGBA", "PA") or (key is not None and image.mode in ("P", "L", "1")):
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    return image, None


def _to_8_bit(image: PillowImage) -> PillowImage:
    """Scale the deep gray modes to 0..255; Pillow's own conversion would clip them to white."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":  # no fixed range: 0..1 unless the values say otherwise
        scale = 255.0 if values[np.isfinite(values)].max(initial=0.0) <= 1.0 else 1.0
    else:
        tags = getattr(image, "tag_v2", {})
        if values.dtype == np.int32 and tags.get(SAMPLE_FORMAT) == 1:
            values = values.view(np.uint32)  # Pillow has only signed numbers of 32 bits
        # 16 bits, which some readers hand over in 32, unless there are larger numbers.
        deep = values.max(initial=0) > 65535
        scale = 255.0 / (np.iinfo(values.dtype).max if deep else 65535)
    gray = np.nan_to_num(values.astype(np.float64) * scale, posinf=255.0).round().clip(0, 255)
    return Image.fromarray(gray.astype(np.uint8))


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
