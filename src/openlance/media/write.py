"""One way to write what was made: the suffix chooses the form, and the file appears whole or not at all.

A file carries the record of how its content was made. PNG: text chunks `openlance` (the record in JSON) and
`parameters` (the lines that other programs read). JPEG, WebP: UserComment of EXIF. GIF: its comment. MP4: the tag
`comment`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.config.values import path_of
from openlance.errors import UserError
from openlance.media.files import EXIF_IFD, KEY, LONGEST, UNICODE, USER_COMMENT, atomic_path, notice

if TYPE_CHECKING:
    from openlance.media.clip import Clip

LONGEST_JPEG = 60_000  # bytes of EXIF, which is one segment there
WRITTEN_AS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
WRITABLE_SUFFIXES = tuple(WRITTEN_AS)
ANIMATED_SUFFIXES = (".webp", ".gif")
CLIP_SUFFIXES = (".mp4", *ANIMATED_SUFFIXES)


def write_media(path: str | Path, clip: Clip) -> None:
    """Write an image (.png .jpg .webp) or a video (.mp4, or animated .webp and .gif).

    Raises:
        UserError: the suffix is another one, or the place cannot be written.
    """
    path = path_of("the file to write", path)
    suffix = path.suffix.lower()
    what, good = ("an image", WRITABLE_SUFFIXES) if clip.frames == 1 else ("a video", CLIP_SUFFIXES)
    if suffix not in (*good, *CLIP_SUFFIXES):
        raise UserError(f"cannot write {what} as {path.name!r}: end its name in {', '.join(good)}")
    if clip.frames == 1 and suffix in WRITABLE_SUFFIXES:
        write_image(path, clip)
    elif suffix in ANIMATED_SUFFIXES:
        write_animation(path, clip)
    else:
        write_video(path, clip)


def write_image(path: str | Path, picture: Clip | np.ndarray) -> None:
    """Write the first frame of a Clip, or uint8 (H, W, 3), as .png, .jpg or .webp; it appears whole or not at all. The
    file says how the video was made, if that is known.

    Raises:
        UserError: the name ends otherwise, or the place cannot be written (a full disk, say).
    """
    target = Path(path)
    if target.suffix.lower() not in WRITABLE_SUFFIXES:
        raise UserError(f"cannot write an image as {target.name!r}: end its name in {', '.join(WRITABLE_SUFFIXES)}")
    # Writing to a full disk itself, Pillow may leave out the end of a JPEG without a word.
    data = encode_image(picture, WRITTEN_AS[target.suffix.lower()], name=target.name)
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def encode_image(
    picture: Clip | np.ndarray, form: str = "PNG", quality: int | None = None, name: str = "the image"
) -> bytes:
    """Encode the first frame of a Clip, or uint8 (H, W, 3), with how it was made, if that is known.

    Args:
        picture: What to encode.
        form: "PNG", "JPEG" or "WEBP".
        quality: Of JPEG and WebP, 0 to 100; 95 by default.
        name: What notices call it.
    """
    from PIL import Image

    pixels, text = (picture, "") if isinstance(picture, np.ndarray) else (picture.pixels[0], picture.record)
    options = save_options(text, form, name)
    if form != "PNG":
        options["quality"] = 95 if quality is None else quality
    memory = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(memory, form, **options)
    return memory.getvalue()


def write_video(path: str | Path, clip: Clip, *, crf: int = 18) -> None:
    """Write a video as H.264, yuv420p, .mp4, at its frame rate; the file appears whole or not at all.

    Its colors are BT.709 and say so, since players guess by the size otherwise; its index comes first, for browsers. It
    says how the video was made, if that is known.

    Args:
        path: a name that ends in .mp4.
        clip: frames with even sides.
        crf: quality, 0 (largest) to 51 (smallest); 18 is visually lossless.

    Raises:
        UserError: another suffix, an odd side (4:2:0 color needs even ones), or a place that cannot be written.
    """
    import av

    target = Path(path)
    if target.suffix.lower() != ".mp4":
        raise UserError(f"cannot write a video as {target.name!r}: end its name in .mp4")
    if clip.height % 2 or clip.width % 2:
        raise UserError(f"a video of {clip.height}x{clip.width} has an odd side: use sides that are even")
    index_first = {"movflags": "faststart"}
    with atomic_path(target) as temporary, av.open(str(temporary), "w", format="mp4", options=index_first) as container:
        if text := written(clip.record, target.name):
            container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=Fraction(clip.fps).limit_denominator(1001))
        for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, name, 1)  # BT.709 of limited range, in ffmpeg's numbers
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        # With its macroblock tree x264 reads memory that nobody wrote, where frames are narrow: the same frames would
        # not always be the same pixels.
        stream.options = {"crf": str(crf), "preset": "medium", "x264-params": "mbtree=0"}
        for pixels in clip.pixels:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))


def write_animation(path: str | Path, clip: Clip) -> None:
    """Write a video as an endless .webp (quality 90) or .gif (256 colors, times in hundredths of a second)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_animation(clip, Path(path).suffix.lower().lstrip(".")))


def encode_animation(clip: Clip, form: str = "webp") -> bytes:
    """Encode a video as an animation of form "webp" or "gif"."""
    first, *others = clip.images()
    options: dict[str, Any] = {"quality": 90, "method": 4} if form == "webp" else {"disposal": 1}
    options |= save_options(clip.record, form.upper(), f"the {form}")
    memory = io.BytesIO()
    first.save(memory, form, save_all=True, append_images=others, duration=_durations(clip), loop=0, **options)
    return memory.getvalue()


def _durations(clip: Clip) -> list[int]:
    """Milliseconds of each frame, multiples of ten as GIF has them, that together last as long as the video."""
    ends = np.round(np.arange(clip.frames + 1) * 100 / clip.fps).astype(int) * 10
    lasts: list[int] = np.maximum(np.diff(ends), 20).tolist()  # players slow down what is shorter
    return lasts


def save_options(text: str, form: str, name: str) -> dict[str, Any]:
    """Make the options of Pillow's `save` with which a file carries a record.

    Args:
        text: the record in JSON; empty for a file without one.
        form: "PNG", "JPEG", "WEBP" or "GIF".
        name: of the file, in notices.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if not written(text, name):
        return {}
    if form == "PNG":
        chunks = PngInfo()
        chunks.add_itxt(KEY, text)
        with suppress(ValueError, AttributeError):  # of an image whose record somebody has changed
            chunks.add_text("parameters", parameters(json.loads(text)))
        return {"pnginfo": chunks}
    if form == "GIF":
        return {"comment": text.encode()}
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE + text.encode("utf-16-be")
    data = exif.tobytes()
    if form == "JPEG" and len(data) > LONGEST_JPEG:
        notice(f"{name} does not say how it was made: that is too long for a JPEG, and a PNG has room for it")
        return {}
    return {"exif": data}


def parameters(made: Mapping[str, Any]) -> str:
    """Word a record as the lines that Stable Diffusion WebUI writes and many programs read."""
    negative = made.get("negative_prompt")
    lines = [made.get("prompt", ""), *([f"Negative prompt: {negative}"] if negative else [])]
    lines.append(
        f"Steps: {made.get('num_inference_steps')}, Sampler: {made.get('solver')}, "
        f"CFG scale: {made.get('guidance_scale')}, Seed: {made.get('seed')}, "
        f"Size: {made.get('width')}x{made.get('height')}, Model hash: {made.get('model_hash')}, "
        f"Model: {made.get('model')}, Version: openlance {made.get('openlance')}"
    )
    return "\n".join(lines).encode("utf-8", "replace").decode("utf-8")


def written(text: str, name: str) -> str:
    """Return the text of a record, or an empty one, with a notice, if it is too long to be read again."""
    if len(text.encode()) <= LONGEST:
        return text
    notice(f"{name} does not say how it was made: that takes more than {LONGEST} bytes")
    return ""
