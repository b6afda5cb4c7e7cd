"""HDF5. The library says what is where; the bytes are read here.

libhdf5 reads what a damaged file asks for: it follows lengths in the heap of a
variable-length string for ever, and returns what lay in memory where a file has become
shorter.
"""

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from adadelta_tx._files._entries import (
    CheckpointError,
    Claim,
    Entry,
    Look,
    exactly,
    package,
)


class _Whole(io.FileIO):
    """A file that ends is an error for the library, too."""

    def readinto(self, buffer: Any) -> int:
        if (length := super().readinto(buffer)) != len(buffer):
            raise CheckpointError("ends too early.")
        return length


def write(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    """One dataset for each array."""
    with package("h5py", "h5").File(file, "w") as group:
        for name, array in entries.items():
            group[name] = array


@contextmanager
def entries(file: BinaryIO) -> Iterator[list[tuple[str, Look]]]:
    """The entries of an open file."""
    h5py = package("h5py", "h5")

    def look(name: str) -> Entry:
        # A soft or an external link, and data in other files, would lead elsewhere.
        # A chunk may be larger than its array, and is read as a whole.
        link = group.get(name, getlink=True)
        item: Any = group[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(item, h5py.Dataset) and not (
            item.external or item.is_virtual or item.chunks or item.shape is None
        ):
            place, text = item.id.get_offset(), h5py.check_string_dtype(item.dtype)
            if not item.dtype.hasobject:
                claim = Claim(item.dtype, item.shape)
                stored = h5py.h5t.py_create(item.dtype, logical=True)
                same = stored == item.id.get_type() or item.dtype.kind == "V"
                if same and (place is not None or claim.size == 0):
                    return Entry(claim, partial(exactly, file, place or 0, claim.size))
            elif text and item.shape == () and place is not None:
                place, length = _string(file, place)
                claim = Claim(np.dtype(f"S{length}"), ())
                return Entry(claim, partial(exactly, file, place, length))
        raise CheckpointError(f"{name!r} is not a plain array in the file itself.")

    with h5py.File(_Whole(file.fileno(), closefd=False), "r") as group:
        yield [(name, partial(look, name)) for name in group]


def _string(file: BinaryIO, place: int) -> tuple[int, int]:
    """Where a string of variable length is, and how long: an object of a heap."""
    length, place, wanted = struct.unpack("<IQI", exactly(file, place, 16))
    mark, size = struct.unpack("<8sQ", exactly(file, place, 16))
    end, place = place + size, place + 16
    for _ in range(2**16 if mark == b"GCOL\1\0\0\0" else 0):
        if place + 16 > end:
            break
        number, size = struct.unpack("<H6xQ", exactly(file, place, 16))
        if number == wanted and 0 < length <= min(size, end - place - 16):
            return place + 16, length
        place += 16 + size + -size % 8
    raise CheckpointError("has a text that is not where it should be.")
