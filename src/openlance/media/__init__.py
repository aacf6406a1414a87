"""Pixels in, pixels out: reading, writing, choosing frames, and sizes that fit the model."""

from openlance.config.model import check_size, nearest_good_size
from openlance.media.buckets import (
    RESOLUTIONS,
    VAE_STRIDE,
    VIT_STRIDE,
    resolution,
    to_bucket,
)
from openlance.media.clip import MODEL_FPS, Clip
from openlance.media.files import atomic_path
from openlance.media.image import read_image, write_image
from openlance.media.inputs import Medium, as_clip, as_picture
from openlance.media.notices import collected, notice
from openlance.media.provenance import Provenance, read_provenance
from openlance.media.read import read_media, read_video
from openlance.media.source import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from openlance.media.timing import frame_indices
from openlance.media.video import write_video
from openlance.media.write import suffixes_for, write_media

__all__ = [
    "IMAGE_SUFFIXES",
    "MODEL_FPS",
    "RESOLUTIONS",
    "VAE_STRIDE",
    "VIDEO_SUFFIXES",
    "VIT_STRIDE",
    "Clip",
    "Medium",
    "Provenance",
    "as_clip",
    "as_picture",
    "atomic_path",
    "check_size",
    "collected",
    "frame_indices",
    "nearest_good_size",
    "notice",
    "read_image",
    "read_media",
    "read_provenance",
    "read_video",
    "resolution",
    "suffixes_for",
    "to_bucket",
    "write_image",
    "write_media",
    "write_video",
]
