"""What a server allows and where it keeps things."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits of a server.

    Args:
        name: By which clients call the model.
        folder: Of jobs and files; it belongs to one server at a time.
        api_keys: Any of them opens the API; none leaves it open.
        admin_key: It opens `/admin`, which is not there without one.
        media_hosts: Hosts, or host:port, from which images and videos that clients name are fetched.
        media_private: Whether these hosts may have addresses that are not global, such as those of an own network.
        media_seconds: For such a fetch, all of it.
        origins: Pages of other hosts that may call it (CORS).
        queued: Results that may wait; more are told to come back.
        batch_cells: Latent cells of one pass; 0: as many as the checkpoint's own batch of its usual images.
        window: Seconds without an arrival after which a worker waits no more for those it has just served; where a
            quarter of its patience is longer, that.
        share: Its patience, as a share of what their pass took.
        keep: Seconds after which a finished file and its job are removed.
        keep_bytes: Of all files together; the oldest go first.
        keep_jobs: Jobs that are remembered.
        media: Images and videos of a conversation.
        image_bytes: Of an image that is sent.
        video_bytes: Of a video that is sent.
        image_pixels: Of a frame that is sent.
        video_pixels: Of all frames together.
        video_frames: Of a video that is sent.
        video_seconds: Likewise.
        larger: How many times the model's usual area a result may have.
        num_frames: Longest video that is made.
        stalled: Seconds without a step after which a busy worker counts as stuck.
    """

    name: str = "nano"
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="openlance-serve-")))
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_key: str = field(default="", repr=False)
    media_hosts: tuple[str, ...] = ()
    media_private: bool = False
    media_seconds: float = 10.0
    origins: tuple[str, ...] = ()
    queued: int = 64
    batch_cells: int = 0
    window: float = 0.05
    share: float = 0.1
    keep: float = 24 * 3600.0
    keep_bytes: int = 4 << 30
    keep_jobs: int = 10_000
    media: int = 64
    image_bytes: int = 20 << 20
    video_bytes: int = 200 << 20
    image_pixels: int = 16_000_000
    video_pixels: int = 4_000_000_000
    video_frames: int = 2_000
    video_seconds: float = 60.0
    larger: int = 4
    num_frames: int = 121
    stalled: float = 600.0

    @property
    def body_bytes(self) -> int:
        """Of a request: a video in base64, and room for the rest."""
        return self.video_bytes * 4 // 3 + (1 << 20)
