"""What the VAE made of the media of a run, kept on disk: from the second epoch on nothing is decoded or encoded again.

    cache = Cache(Path("runs/mine/cache"), salt="0a1b", room=10_000_000_000)
    cache.put(clip.origin, latents)          # when a pack is prepared
    cache.shown(origin, inputs=1, fill=None) # when a row is read; Missing if something is not there

An entry is known by what it was made of: the contents of the files, how they are cut, and the `salt`, which stands for
the VAE. So what changes is made anew, and what is taken from here is equal to the last bit to what would be made. Each
epoch reads all rows in another order, so an entry that made room for another would be missed as soon: what is in stays,
and where an entry has no room it is left out. What was cut lately is in memory as well, since rows are read before
those of the epoch before are all encoded.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from openlance.config.model import VAEConfig
from openlance.data.front import NO_SIZE, Shown
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.files import atomic_path
from openlance.sequence.segment import Segments

log = logging.getLogger(__name__)
FOLDER = "cache"  # in that of a run
BLOCK = 4096  # bytes that a file takes at least
RECENT = 1 << 27  # bytes of pixels in memory, of each process that decodes


class Missing(LookupError):
    """An entry is not there."""


@dataclass
class Cache:
    """Entries in a folder.

    Args:
        folder: Made with the first entry.
        salt: Stands for all that entries depend on beside media and their cut: VAE, device, versions.
        vae: Configuration of the VAE, which gives the pixels of latents.
        room: Bytes that this process may add.
    """

    folder: Path
    salt: str
    vae: VAEConfig
    room: int = 0
    full: bool = field(default=False, init=False)
    recent: OrderedDict[str, Clip] = field(default_factory=OrderedDict, init=False, repr=False)
    remembered: int = field(default=0, init=False)  # bytes of pixels in it

    def origin(self, *parts: object) -> str:
        """Name what media become, from whatever that depends on."""
        said = "\0".join(map(repr, (self.salt, *parts)))
        return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.npy"

    def get(self, name: str) -> np.ndarray:
        """Read an entry; Missing if there is none. One that is damaged goes."""
        path = self._path(name)
        try:
            return np.load(path)
        except FileNotFoundError as error:
            raise Missing(name) from error
        except (OSError, ValueError, EOFError) as error:
            path.unlink(missing_ok=True)
            raise Missing(name) from error

    def put(self, name: str, value: np.ndarray) -> None:
        """Keep an entry, if there is room."""
        path, size = self._path(name), -(-(value.nbytes + 128) // BLOCK) * BLOCK
        if path.exists():
            return
        try:
            if size > self.room:
                raise OSError("it may hold no more")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.ascontiguousarray(value))
            self.room -= size
        except (OSError, UserError) as error:  # the disk may be full as well: training goes on without
            if not self.full:
                said = "what is not in it is decoded and encoded in every epoch; a larger cache_gb holds more"
                log.warning("%s is full (%s): %s", self.folder, error, said)
            self.full = True

    def remember(self, segments: Segments) -> None:
        """Keep the videos of a sample in memory, and as many of earlier ones as there is room for."""
        clips = [clip for s in segments for clip in (s.value, s.given) if isinstance(clip, Clip) and clip.origin]
        new = {clip.origin: clip for clip in clips if clip.origin not in self.recent}
        self.recent |= new
        self.remembered += sum(clip.pixels.nbytes for clip in new.values())
        while self.remembered > RECENT:
            self.remembered -= self.recent.popitem(last=False)[1].pixels.nbytes

    def shown(self, origin: str, inputs: int, fill: str | None) -> Shown:
        """Put together what is shown of a sample.

        Args:
            origin: Its name.
            inputs: How many media are read.
            fill: The text that it answers; None where it makes an image or video.

        Raises:
            Missing: If its target is not there; and from the views, when they are asked for.
        """
        views = [HeldViews(self, f"{origin}-{n}") for n in range(inputs)]
        if fill is not None:
            return Shown(views, NO_SIZE, fill)
        target = self.kept(f"{origin}-target")
        return Shown(views, target.pixels.shape[:3], target)

    def seen(self, name: str) -> Clip:
        """Find what the ViT sees."""
        return self.recent[name] if name in self.recent else Clip(self.get(name))

    def kept(self, name: str) -> Any:
        """Find latents, with the shape of the pixels that they stand for; or else these pixels."""
        import torch

        try:
            value = torch.from_numpy(self.get(name))
        except Missing:
            if name in self.recent:
                return self.recent[name]
            raise
        t, y, x, _ = value.shape
        shape = (1 + (t - 1) * self.vae.temporal_stride, y * self.vae.stride, x * self.vae.stride)
        return SimpleNamespace(pixels=SimpleNamespace(shape=(*shape, 3)), latents=value)


class HeldViews:
    """Both views of one of the media of a sample, as they are kept."""

    def __init__(self, cache: Cache, name: str) -> None:
        self._cache, self._name = cache, name

    @cached_property
    def seen(self) -> Clip:
        return self._cache.seen(f"{self._name}-seen")

    @cached_property
    def kept(self) -> Any:
        return self._cache.kept(f"{self._name}-kept")


class NamedViews:
    """Views of media whose videos say under which name a cache keeps them."""

    def __init__(self, views: Any, name: str) -> None:
        self._views, self._name = views, name

    @cached_property
    def seen(self) -> Clip:
        return replace(self._views.seen, origin=f"{self._name}-seen")

    @cached_property
    def kept(self) -> Clip:
        return replace(self._views.kept, origin=f"{self._name}-kept")


def named(shown: Shown, origin: str) -> Shown:
    """Return what is shown with the names of its entries."""
    fill = replace(shown.fill, origin=f"{origin}-target") if isinstance(shown.fill, Clip) else shown.fill
    return Shown([NamedViews(views, f"{origin}-{n}") for n, views in enumerate(shown.views)], shown.size, fill)


def resolved(segments: Segments) -> Segments:
    """Return segments whose media are the latents that a cache gave."""

    def value(held: Any) -> Any:
        return getattr(held, "latents", held)

    return [replace(s, value=value(s.value), given=value(s.given)) for s in segments]


def opened(folder: Path, cap: float, world: int, vae: VAEConfig, salt: Sequence[object]) -> Cache:
    """Open the cache of a run.

    Args:
        folder: Of the cache.
        cap: Bytes that it may hold. Of the free space of the disk it takes half at most.
        world: Processes that add to it, each its share of what is left.
        vae: Configuration of the VAE.
        salt: See `Cache`.
    """
    held = sum(-(-entry.stat().st_size // BLOCK) * BLOCK for entry in folder.glob("*/*") if entry.is_file())
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    room = max(0, int(min(cap - held, shutil.disk_usage(place).free / 2)) // world)
    return Cache(folder, "\0".join(map(repr, salt)), vae, room)
