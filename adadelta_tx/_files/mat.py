"""MATLAB's format 5. scipy writes it; its reader ends the process at damaged files."""

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import numpy as np

from adadelta_tx._files.entry import (
    OTHER,
    CheckpointError,
    Entry,
    ForeignError,
    Look,
    exactly,
    package,
)

CONVERT = (
    "scipy.io.savemat('new.mat', {k: x for k, x in scipy.io.loadmat(old).items() "
    "if k[:2] != '__'})"
)
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
    package("scipy.io").savemat(file, arrays)


def shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Those of an array in a .mat file: with a first axis, or as scipy writes it."""
    return [(1, *shape) if shape else (1, 1), (1,) * (2 - len(shape)) + shape]


@contextmanager
def entries(file: BinaryIO) -> Iterator[list[tuple[str, Look]]]:
    """The entries of an open file."""
    if exactly(file, 0, 128)[124:] != b"\x00\x01IM":
        raise ForeignError("is not of MATLAB's format 5, little-endian.")

    def element(start: int, end: int) -> tuple[int, int, int, int]:
        """Type, place and length of an element's data, and where the next starts."""
        kind, length = struct.unpack("<2I", exactly(file, start, 8))
        if kind >> 16:  # a small one: type, length and data in 8 bytes
            parts = kind & 0xFFFF, start + 4, kind >> 16, start + 8
        else:
            padding = 0 if kind == _COMPRESSED else -length % 8
            parts = kind, start + 8, length, start + 8 + length + padding
        if parts[1] + parts[2] > min(end, parts[3]):
            raise CheckpointError("has an element that is longer than its place.")
        return parts

    def short(start: int, end: int) -> tuple[bytes, int]:
        _, place, length, after = element(start, end)
        return exactly(file, place, min(length, 10_000)), after

    def matrix(place: int, end: int) -> tuple[str, Look]:
        flags, place = short(place, end)
        dimensions, place = short(place, end)
        shape = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
        name, place = short(place, end)
        kind, at, length, place = element(place, end)
        data = partial(exactly, file, at, length)
        dtype = np.dtype(_DTYPES.get((flags[0], kind), OTHER))
        if flags[1] & _LOGICAL and dtype == np.uint8:
            dtype = np.dtype(bool)
        if flags[1] & _COMPLEX and dtype.kind == "f":
            _, at, length, _ = element(place, end)
            data = partial(pairs, dtype, data, partial(exactly, file, at, length))
            dtype = np.result_type(dtype, np.complex64)
        look = partial(Entry, dtype, shape, data, "F")
        if (flags[0], kind) == _TEXT and shape and 0 < shape[-1] < 10_000:
            dtype, data = np.dtype(f"U{shape[-1]}"), partial(text, shape, data)
            look = partial(Entry, dtype, shape[:-1], data)
        return name.decode("latin1"), look

    def text(shape: tuple[int, ...], data: Callable[[], bytes]) -> bytes:
        """Text, whose last axis is along it."""
        return np.array(list(data().decode())).reshape(shape, order="F").tobytes()

    def pairs(dtype: np.dtype, *parts: Callable[[], bytes]) -> bytes:
        real, imaginary = (np.frombuffer(part(), dtype) for part in parts)
        return np.stack([real, imaginary], -1).tobytes()

    found, start, end = [], 128, os.fstat(file.fileno()).st_size
    while start < end:
        kind, place, length, start = element(start, end)
        if kind == _MATRIX:
            found.append(matrix(place, place + length))
        elif kind != _COMPRESSED:
            raise CheckpointError("has something else than MATLAB's variables.")
    if start > 128 and not found:
        raise ForeignError("has only compressed variables.")
    yield found
