"""Images that know how they were made, and write that into their files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from PIL import Image

from openlance.media.files import KEY
from openlance.media.write import save_options

if TYPE_CHECKING:
    from openlance.media.clip import Verdict

OWN = {"pnginfo", "exif", "comment"}  # options of Pillow with which a caller says what goes beside the pixels
FORMS = ("PNG", "JPEG", "WEBP", "GIF")


class SignedImage(Image.Image):
    """A Pillow image with a record in its `info`, which `save` writes into PNG, JPEG, WebP and GIF files.

    `copy`, pickling and `copy.copy` keep that. What else is derived from it (`resize`, `convert`, `crop` ...) is
    another image: a plain one of Pillow, with the record in its `info` alone.
    """

    verdict: Verdict | None = None  # what the model found at it, where it was asked to check

    def copy(self) -> SignedImage:
        made = super().copy()
        made.__class__ = SignedImage
        made.verdict = self.verdict  # type: ignore[attr-defined]
        return made  # type: ignore[return-value]

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Save as Pillow does, the record included unless `pnginfo`, `exif` or `comment` is given."""
        name = os.fsdecode(fp) if isinstance(fp, (str, bytes, os.PathLike)) else str(getattr(fp, "name", ""))
        known = Image.registered_extensions().get(os.path.splitext(name)[1].lower(), "")
        form = (format or known).upper()
        record = str(self.info.get(KEY, ""))
        if record and form in FORMS and not OWN & params.keys():
            params |= save_options(record, form, os.path.basename(name) or "the image")
        super().save(fp, format, **params)
