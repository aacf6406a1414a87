"""How an image or video was made: one record, which its file carries and `read_provenance` finds there.

PNG: text chunks `openlance` (this record in JSON) and `parameters` (the lines that other programs read). JPEG, WebP:
UserComment of EXIF. GIF: its comment. MP4: the tag `comment`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from openlance.config.values import convert
from openlance.errors import UserError
from openlance.media.files import notice

KEY = "openlance"
BEGIN = f'{{"{KEY}": '  # of every record: comments of other programs begin otherwise
LONGEST = 1 << 20  # bytes of a record; Pillow reads no longer text either
LONGEST_JPEG = 60_000  # bytes of EXIF, which is one segment there
EXIF_IFD, USER_COMMENT, UNICODE = 0x8769, 0x9286, b"UNICODE\0"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The making of one result.

    Args:
        openlance: Version of this package.
        task: A name of `sequence.tasks.TASKS`, or empty.
        prompt: What was asked for, in full.
        negative_prompt: What guidance led away from.
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

    @property
    def parameters(self) -> str:
        """The lines that Stable Diffusion WebUI writes and many programs read."""
        how = self.settings
        lines = [self.prompt, *([f"Negative prompt: {self.negative_prompt}"] if self.negative_prompt else [])]
        lines.append(
            f"Steps: {how.get('num_inference_steps')}, Sampler: {how.get('solver')}, "
            f"CFG scale: {how.get('guidance_scale')}, Seed: {self.seed}, Size: {self.width}x{self.height}, "
            f"Model hash: {self.model_hash}, Model: {self.model}, Version: openlance {self.openlance}"
        )
        return "\n".join(lines).encode("utf-8", "replace").decode("utf-8")

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
            raise UserError(
                f"the record in {name} of how it was made is damaged ({error}): get the file again"
            ) from None


def carried(info: Mapping[Any, Any]) -> Provenance | None:
    """Return the record that a Pillow image carries in its `info`; None if there is no whole one."""
    text = info.get(KEY)
    try:
        return Provenance.parse(text, "the image") if isinstance(text, str) else None
    except UserError:
        return None


def save_options(made: Provenance | None, form: str, name: str) -> dict[str, Any]:
    """Make the options of Pillow's `save` with which a file carries a record.

    Args:
        made: the record; None for a file without one.
        form: "PNG", "JPEG", "WEBP" or "GIF".
        name: of the file, in notices.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = written(made, name)
    if made is None or not text:
        return {}
    if form == "PNG":
        chunks = PngInfo()
        chunks.add_itxt(KEY, text)
        chunks.add_text("parameters", made.parameters)
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


def written(made: Provenance | None, name: str) -> str:
    """Return the text of a record: empty if there is none, or if it is too long to be read again, which is noticed."""
    text = "" if made is None else made.text
    if len(text.encode()) <= LONGEST:
        return text
    notice(f"{name} does not say how it was made: that takes more than {LONGEST} bytes")
    return ""
