"""HDF5. The library says what is where; the bytes are read here.

libhdf5 follows the lengths in a damaged heap of strings for ever, and returns what lay
in memory where a file has become shorter.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from adadelta_tx._files.entry import Entry, ForeignError, Look, exactly, package

CONVERT = (
    "numpy.savez('new.npz', **{k: x[()] for k, x in h5py.File(old).items() "
    "if isinstance(x, h5py.Dataset)})"
)


def write(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    """One dataset for each array."""
    with package("h5py").File(file, "w") as group:
        for name, array in entries.items():
            group[name] = array


@contextmanager
def entries(file: BinaryIO) -> Iterator[list[tuple[str, Look]]]:
    """The entries of an open file."""
    h5py = package("h5py")

    def look(name: str) -> Entry:
        # A soft or an external link, and data in other files, would lead elsewhere.
        # A chunk may be larger than its array, and is read as a whole.
        link = group.get(name, getlink=True)
        item: Any = group[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(item, h5py.Dataset) and not (
            item.external or item.is_virtual or item.chunks or item.shape is None
        ):
            dtype, shape, place = item.dtype, item.shape, item.id.get_offset() or 0
            if dtype.hasobject and h5py.check_string_dtype(dtype) and not shape:
                place, length = _string(file, place)
                dtype = np.dtype(f"S{length}")
            size = item.size * dtype.itemsize
            if not dtype.hasobject and (place or not size):
                return Entry(dtype, shape, partial(exactly, file, place, size))
        raise ForeignError(f"{name!r} is not a plain array in the file itself.")

    with h5py.File(file, "r") as group:
        yield [(name, partial(look, name)) for name in group]


def _string(file: BinaryIO, place: int) -> tuple[int, int]:
    """Where a string of variable length is, and how long: an object of a heap."""
    length, place, wanted = struct.unpack("<IQI", exactly(file, place, 16))
    mark, size = struct.unpack("<8sQ", exactly(file, place, 16))
    end, place = place + size, place + 16
    for _ in range(2**16 if mark == b"GCOL\1\0\0\0" else 0):
        number, size = struct.unpack("<H6xQ", exactly(file, place, 16))
        if number == wanted and 0 < length <= min(size, end - place - 16):
            return place + 16, length
        place += 16 + size + -size % 8
    raise ForeignError("has a text that is not where it should be.")
