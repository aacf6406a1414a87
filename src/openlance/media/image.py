"""Pictures in, pictures out: any file that Pillow reads becomes an upright 8-bit RGB Clip of one frame."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# A decoded picture of this size takes 192 MB; larger ones are nearly always a mistake or an attack.
MAX_PIXELS = 64_000_000
# Pillow's decoders report damage in all these ways, by format and place.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, RuntimeError, struct.error,
          zlib.error)  # fmt: skip
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def require_file(path: str | Path) -> Path:
    """The path, if it is a file that can be opened; UserError otherwise."""
    found = Path(path)
    try:
        if found.is_dir():
            raise UserError(f"{found} is a folder, not a file: give the path of one file")
        if not found.exists():
            raise UserError(f"there is no file {found}: check the path")
        if not found.is_file():
            raise UserError(f"{found} is not a regular file: give the path of a picture or video")
        with found.open("rb"):
            return found
    except OSError as error:
        raise UserError(f"cannot open {found}: {error.strerror or error}; check its permissions") from error


def read_image(path: str | Path, data: bytes | None = None) -> Clip:
    """Read one picture: turned upright (EXIF), transparency on white, any colour mode and depth as 8-bit RGB.

    The first frame of an animated file is taken. With `data`, the bytes of a file, path is only its name in errors.
    UserError if it is missing, unreadable, truncated or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    found = require_file(path) if data is None else Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size and EXIF warnings: the size is checked right below
            with Image.open(found if data is None else io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UserError(
                        f"{found} has {width}x{height} pixels, more than the {MAX_PIXELS // 10**6} megapixels allowed: "
                        f"scale it down first"
                    )
                image.load()
                upright = ImageOps.exif_transpose(image)
                pixels = np.array(to_rgb(upright))
    except UnidentifiedImageError as error:
        raise UserError(f"{found} is not a picture that can be read: use a PNG, JPEG or WebP file") from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{found} has more than the {MAX_PIXELS // 10**6} megapixels allowed: scale it down first"
        ) from error
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"{found} is damaged or truncated ({error}): get it again or convert it to PNG") from error
    return Clip(pixels[None])


def to_rgb(image: PillowImage) -> PillowImage:
    """8-bit RGB; transparent pixels become white (released code)."""
    from PIL import Image

    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = _to_8_bit(image).convert("RGBA")
        paper = Image.new("RGB", rgba.size, (255, 255, 255))
        paper.paste(rgba, mask=rgba.getchannel("A"))
        return paper
    return _to_8_bit(image).convert("RGB")


def _to_8_bit(image: PillowImage) -> PillowImage:
    """Scale the deep grey modes to 0..255; Pillow's own conversion would clip them to white."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":  # no fixed range: 0..1 unless the values say otherwise
        scale = 255.0 if np.nanmax(values, initial=0.0) <= 1.0 else 1.0
    else:  # 16 bits, which some readers hand over in 32
        scale = 255.0 / 65535.0
    grey = np.nan_to_num(values * scale).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey)


def write_image(path: str | Path, picture: Clip | np.ndarray) -> None:
    """Write the first frame of a Clip, or uint8 (H, W, 3), as .png, .jpg or .webp; it appears whole or not at all."""
    from PIL import Image

    target = Path(path)
    if target.suffix.lower() not in WRITABLE_SUFFIXES:
        raise UserError(f"cannot write a picture as {target.name!r}: end its name in {', '.join(WRITABLE_SUFFIXES)}")
    pixels = picture.pixels[0] if isinstance(picture, Clip) else picture
    options: dict[str, Any] = {} if target.suffix.lower() == ".png" else {"quality": 95}
    with atomic_path(target) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, **options)
