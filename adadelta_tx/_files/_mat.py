"""MATLAB's format 5. scipy writes it; its reader ends the process at damaged files."""

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import numpy as np

from adadelta_tx._files._entries import (
    OTHER,
    CheckpointError,
    Claim,
    Entry,
    Look,
    exactly,
    package,
    refuse,
)

_LIMIT = 10_000  # bytes of a name or of a list of dimensions
# The class of a matrix, and the type that its data has then.
_DTYPES = {
    **{(6, 9): "f8", (7, 7): "f4", (8, 1): "i1", (9, 2): "u1", (10, 3): "i2"},
    **{(11, 4): "u2", (12, 5): "i4", (13, 6): "u4", (14, 12): "i8", (15, 13): "u8"},
}
_MATRIX, _COMPRESSED, _TEXT, _LOGICAL, _COMPLEX = 14, 15, (4, 16), 2, 8


def write(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    """Each array with a first axis of 1, as BrainPy from 2.2 on wrote it."""
    for name, array in entries.items():
        if array.nbytes >= 2**32 - 2**12:
            raise CheckpointError(f"{name} is too large for a .mat file.")
    arrays = {name: np.expand_dims(array, 0) for name, array in entries.items()}
    package("scipy.io", "mat").savemat(file, arrays)


def shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Those of an array in a .mat file: with a first axis, or as scipy writes it."""
    return [(1, *shape) if shape else (1, 1), (1,) * (2 - len(shape)) + shape]


@contextmanager
def entries(file: BinaryIO) -> Iterator[list[tuple[str, Look]]]:
    """The entries of an open file."""
    if exactly(file, 0, 128)[124:] != b"\x00\x01IM":
        raise CheckpointError("is not of MATLAB's format 5, little-endian.")
    size = os.fstat(file.fileno()).st_size

    def element(start: int, end: int) -> tuple[int, int, int, int]:
        """Type, place and length of an element's data, and where the next starts."""
        kind, length = struct.unpack("<2I", exactly(file, start, 8))
        if kind >> 16:  # a small one: type, length and data in 8 bytes
            parts = kind & 0xFFFF, start + 4, kind >> 16, start + 8
        else:
            parts = kind, start + 8, length, start + 8 + length + -length % 8
        if parts[1] + parts[2] > min(end, parts[3]):
            raise CheckpointError("has an element that is longer than its place.")
        return parts

    def short(start: int, end: int) -> tuple[bytes, int]:
        _, place, length, after = element(start, end)
        return exactly(file, place, min(length, _LIMIT)), after

    def matrix(place: int, end: int) -> tuple[str, Look]:
        flags, place = short(place, end)
        dimensions, place = short(place, end)
        shape = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
        name, place = short(place, end)
        kind, at, length, place = element(place, end)
        if (flags[0], kind) == _TEXT and shape and shape[-1] > 0:
            claim = Claim(np.dtype(f"U{shape[-1]}"), shape[:-1])
            entry = Entry(claim, partial(letters, shape, at, length))
        else:
            dtype = np.dtype(_DTYPES.get((flags[0], kind), OTHER))
            if flags[1] & _LOGICAL and dtype == np.uint8:
                dtype = np.dtype(bool)
            data = partial(exactly, file, at, length)
            if flags[1] & _COMPLEX and dtype.kind == "f":
                other, imag, length, _ = element(place, end)
                dtype = np.dtype(f"c{2 * dtype.itemsize}") if other == kind else OTHER
                data = partial(
                    complex_, dtype, data, partial(exactly, file, imag, length)
                )
            entry = Entry(Claim(dtype, shape), data, "F")
        return name.decode("latin1"), lambda: entry

    def letters(shape: tuple[int, ...], at: int, length: int) -> bytes:
        """Text, whose last axis is along it."""
        text = np.array(list(exactly(file, at, length).decode()))
        return text.reshape(shape, order="F").tobytes()

    def complex_(dtype: np.dtype, *parts: Callable[[], bytes]) -> bytes:
        real, imag = (np.frombuffer(part(), dtype) for part in parts)
        return np.stack([real, imag], -1).tobytes()

    def found() -> Iterator[tuple[str, Look]]:
        start = 128
        while start < size:
            kind, place, length, start = element(start, size)
            if kind == _MATRIX:
                yield matrix(place, place + length)
            elif kind == _COMPRESSED:
                yield "a compressed variable", refuse("is compressed.")
            else:
                raise CheckpointError("has something else than MATLAB's variables.")

    yield list(found())
