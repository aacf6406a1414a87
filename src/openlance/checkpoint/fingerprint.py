"""A short name for what weights are, quick enough to be worked out beside every picture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from openlance.checkpoint.tensors import listed_files, read_header

WHOLE = 1 << 26  # bytes up to which a file is read in full
ENDS = 1 << 20  # bytes that are read at both ends of a larger one
SAMPLE = 1 << 12  # bytes that are read of each of its tensors


def fingerprint(*weights: Path) -> str:
    """Hash files of weights, or indices and their shards: 16 hexadecimal digits of BLAKE2b.

    It is the same on every machine and under every name. A file of up to 64 MiB counts whole. Of a larger one count its
    length, its first and last MiB, which hold the header of a safetensors file and the checksums of a zip archive
    (.pth), and the first 4096 bytes of each tensor of a safetensors file: training changes these, a flipped bit need
    not.

    Args:
        *weights: Files, in the order in which they count.

    Raises:
        OSError: If one cannot be read.
        UserError: If one is a damaged safetensors file.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in (file for part in weights for file in listed_files(part)):
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as file:
            for begin, count in _read(path, path.stat().st_size):
                file.seek(begin)
                digest.update(file.read(count))
    return digest.hexdigest()


def _read(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """(place, number) of the bytes of a file that count."""
    if size <= WHOLE:
        yield 0, size
        return
    yield 0, ENDS
    if path.suffix == ".safetensors":
        entries, start = read_header(path)
        for begin, end in sorted(entry["data_offsets"] for entry in entries.values()):
            yield start + begin, min(SAMPLE, end - begin)
    yield size - ENDS, ENDS
