"""Images and videos in and out: reading, writing, choosing frames, and sizes that fit the model."""

from openlance.media.clip import MODEL_FPS, Clip, Provenance, frame_indices
from openlance.media.files import atomic_path, collected, notice
from openlance.media.image import read_image
from openlance.media.inputs import MediaInput, as_clip, as_image, read_media, read_provenance, read_video
from openlance.media.write import write_image, write_media, write_video

__all__ = [
    "MODEL_FPS", "Clip", "MediaInput", "Provenance", "as_clip", "as_image", "atomic_path", "collected", "frame_indices",
    "notice", "read_image", "read_media", "read_provenance", "read_video", "write_image", "write_media", "write_video",
]  # fmt: skip
