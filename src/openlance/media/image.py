"""Pictures in, pictures out: any file that Pillow reads becomes an upright 8-bit RGB Clip of one frame."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import atomic_path
from openlance.media.pixels import BROKEN, upright_rgb
from openlance.media.provenance import save_options
from openlance.media.source import Source, is_movie, still_form

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# A decoded picture of this size takes 192 MB; larger ones are nearly always a mistake or an attack.
MAX_PIXELS = 64_000_000
WRITTEN_AS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
WRITABLE_SUFFIXES = tuple(WRITTEN_AS)
MOST_BYTES = 1 << 28  # of a file whose metadata are read: Pillow takes some kinds into memory whole
# Formats that Pillow knows by their first bytes but cannot decode by itself.
STUBS = ("MPEG", "BUFR", "GRIB", "HDF5", "WMF")


def read_image(path: str | Path | bytes, data: bytes | None = None) -> Clip:
    """Read one picture: turned upright (EXIF), transparency on white, any color space and depth as 8-bit sRGB.

    The first frame of an animated file is taken.

    Args:
        path: a file, or its bytes.
        data: the bytes of a file, of which path is then only the name in errors.

    Raises:
        UserError: it is missing, no picture, unreadable, truncated or too large.
    """
    source = Source.of(path) if data is None else Source.of(data, str(path))
    image = None if is_movie(source.head()) else open_picture(source)
    if image is None:
        movie = "a video, not a picture" if is_movie(source.head()) else "not a picture that can be read"
        raise UserError(f"{source.name} is {movie}: use a PNG, JPEG or WebP file")
    with image:
        return one_picture(image, source.name)


def open_picture(source: Source) -> PillowImage | None:
    """Open what a file says about itself, its pixels not yet decoded; None if it is no picture.

    Raises:
        UserError: it is damaged, too large, or a reader of its format is not installed.
    """
    from PIL import Image, UnidentifiedImageError

    form, name = still_form(source.head()), source.name
    with _in_a_sentence(name):
        if form == "HEIC":
            return _checked(_open_heic(source), name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own size and EXIF warnings: the size is checked below
                image = Image.open(source.path or source.open())
        except UnidentifiedImageError as error:
            if form == "AVIF":
                raise UserError(_missing_reader(name, "an AVIF")) from error
            return None
        if image.format in STUBS:
            image.close()
            return None
        return _checked(image, name)


def one_picture(image: PillowImage, name: str) -> Clip:
    """The frame on which a Pillow image stands, as it is to be shown. UserError if it is damaged or too large."""
    with _in_a_sentence(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Clip(upright_rgb(_checked(image, name), name)[None])


def metadata(source: Source, ifd: int) -> dict[Any, Any]:
    """What a picture's file says beside its pixels, which are not decoded: Pillow's `info` and a directory of its EXIF.

    Raises:
        UserError: it is no picture, damaged or too large.
    """
    if source.size() > MOST_BYTES:
        raise UserError(f"{source.name} is larger than the {MOST_BYTES >> 20} MiB up to which metadata are read")
    image = open_picture(source)
    if image is None:
        raise UserError(f"{source.name} is neither a picture nor a video that can be read: give a PNG or MP4 file")
    with image, _in_a_sentence(source.name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {**image.info, **image.getexif().get_ifd(ifd)}


def _open_heic(source: Source) -> PillowImage:
    """A HEIC or HEIF picture, of which phones make one out of many tiles, by pillow-heif."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise UserError(_missing_reader(source.name, "a HEIC")) from error
    return HeifImageFile(source.open())


def _missing_reader(name: str, form: str) -> str:
    return (
        f"{name} is {form} picture, for which no reader is installed, or a damaged one: type "
        f"pip install 'openlance[media]', or convert it to JPEG or PNG"
    )


def _checked(image: PillowImage, name: str) -> PillowImage:
    """The image, if it is of a size that may be decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{name} has {image.width}x{image.height} pixels, more than the {MAX_PIXELS // 10**6} megapixels allowed: "
            f"scale it down first"
        )
    return image


@contextmanager
def _in_a_sentence(name: str) -> Iterator[None]:
    """What Pillow raises for damaged files, as a UserError."""
    from PIL import Image

    try:
        yield
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has more than the {MAX_PIXELS // 10**6} megapixels allowed: scale it down") from error
    except UserError:
        raise
    except BROKEN as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} is damaged or truncated ({why}): get it again or convert it to PNG") from error


def write_image(path: str | Path, picture: Clip | np.ndarray) -> None:
    """Write the first frame of a Clip, or uint8 (H, W, 3), as .png, .jpg or .webp; it appears whole or not at all. The
    file says how the clip was made, if that is known.

    Raises:
        UserError: the name ends otherwise, or the place cannot be written (a full disk, say).
    """
    from PIL import Image

    target = Path(path)
    if target.suffix.lower() not in WRITABLE_SUFFIXES:
        raise UserError(f"cannot write a picture as {target.name!r}: end its name in {', '.join(WRITABLE_SUFFIXES)}")
    form = WRITTEN_AS[target.suffix.lower()]
    pixels, made = (picture.pixels[0], picture.made) if isinstance(picture, Clip) else (picture, None)
    options = save_options(made, form, target.name) | ({} if form == "PNG" else {"quality": 95})
    memory = io.BytesIO()  # writing to a full disk itself, Pillow may leave out the end of a JPEG without a word
    Image.fromarray(np.ascontiguousarray(pixels)).save(memory, form, **options)
    with atomic_path(target) as temporary:
        temporary.write_bytes(memory.getvalue())
