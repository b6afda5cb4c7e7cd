"""MATLAB's format 5, of which matrices of numbers and of text are read, not packed.

https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf, little-endian. scipy
writes it; its reader ends the process at damaged files.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from adadelta_tx._files.entry import (
    OTHER,
    CheckpointError,
    Entry,
    ForeignError,
    Look,
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


def write(file: Any, entries: Mapping[str, np.ndarray]) -> None:
    """Each array with a first axis of 1, as BrainPy from 2.2 on wrote it."""
    for name, array in entries.items():
        if array.nbytes >= 2**32 - 2**12:
            raise CheckpointError(f"{name} is too large for a .mat file.")
    arrays = {name: np.expand_dims(array, 0) for name, array in entries.items()}
    package("scipy.io").savemat(file, arrays)


def shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Those of an array in a .mat file: with a first axis, or as scipy writes it."""
    return [(1, *shape) if shape else (1, 1), (1,) * (2 - len(shape)) + shape]


def entries(data: bytes) -> Iterator[tuple[str, Look]]:
    """The entries of a file."""
    if data[124:128] != b"\x00\x01IM":
        raise ForeignError("is not of MATLAB's format 5, little-endian.")
    place, size, packed = 128, len(data), len(data) > 128
    while place < size:
        kind, start, end, place = _element(data, place, size)
        if kind == _MATRIX:
            _, flags, _, start = _element(data, start, end)
            _, *dimensions, start = _element(data, start, end)
            _, first, last, start = _element(data, start, end)
            look = partial(_look, data, flags, *dimensions, start, end)
            yield str(data[first:last], "latin1"), look
            packed = False
        elif kind != _COMPRESSED:
            raise CheckpointError("has something else than MATLAB's variables.")
    if packed:
        raise ForeignError("has only compressed variables.")


def _element(data: bytes, place: int, most: int) -> tuple[int, int, int, int]:
    """An element's type, where its data starts and ends, and where the next starts."""
    kind, length = struct.unpack_from("<2I", data, place)
    start, after = place + 8, place + 8 + length
    after += 0 if kind == _COMPRESSED else -length % 8
    if kind >> 16:  # a small one: type, length and data in 8 bytes
        kind, length, start, after = kind & 0xFFFF, kind >> 16, place + 4, place + 8
    if start + length > min(after, most):
        raise CheckpointError("has an element that is longer than its place.")
    return kind, start, start + length, after


def _look(
    data: bytes, flags: int, first: int, last: int, place: int, end: int
) -> Entry:
    view = memoryview(data)
    axes = view[first : min(last, first + 400)]
    shape = struct.unpack(f"<{len(axes) // 4}I", axes)
    kind, start, stop, place = _element(data, place, end)
    values, of = view[start:stop], (data[flags], kind)
    dtype = np.dtype(_DTYPES.get(of, OTHER))
    if of == _TEXT and 0 < math.prod(shape[-1:]) < 10_000:
        letters = partial(_letters, values, shape)
        return Entry(np.dtype(f"U{shape[-1]}"), shape[:-1], letters)
    if data[flags + 1] & _COMPLEX:
        if dtype.kind != "f":
            return Entry(OTHER, shape, bytes)
        _, start, stop, _ = _element(data, place, end)
        parts = [np.frombuffer(part, dtype) for part in (values, view[start:stop])]
        wide = np.result_type(dtype, np.complex64)
        return Entry(wide, shape, lambda: np.stack(parts, -1).tobytes(), "F")
    if data[flags + 1] & _LOGICAL and dtype == np.uint8:
        dtype = np.dtype(bool)
    return Entry(dtype, shape, lambda: values, "F")


def _letters(data: memoryview, shape: tuple[int, ...]) -> bytes:
    """Those of text, whose last axis is along it."""
    text = str(data, "utf-8").encode("utf-32-le")
    return np.frombuffer(text, "<u4").reshape(shape, order="F").tobytes()
