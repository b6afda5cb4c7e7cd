"""HDF5 in its first layout, as h5py writes it unless it is asked for another one.

https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html: of it are read a
superblock 0, the root group's symbol table, and arrays of numbers in one piece. The
library ends the process, and loads others, at what a damaged file may ask for.
"""

import struct
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from adadelta_tx._files.entry import CheckpointError, Entry, ForeignError, Look, package

CONVERT = (
    "numpy.savez('new.npz', **{k: x[()] for k, x in h5py.File(old).items() "
    "if isinstance(x, h5py.Dataset)})"
)
_SPACE, _DTYPE, _EXTERNAL, _LAYOUT, _MORE, _TABLE = 1, 3, 7, 8, 16, 17  # messages
_TEXT = b"\x19\1\0\0\x10\0\0\0", b"\x19\1\1\0\x10\0\0\0"  # of any length, ASCII, UTF-8


def _message(dtype: np.dtype) -> bytes:
    """What a file says of a dtype, as h5py does."""
    order, size = dtype.byteorder == ">", dtype.itemsize
    if dtype.kind == "b":
        values = b"FALSE\0\0\0TRUE\0\0\0\0\0\1"
        return b"\x18\2\0\0\1\0\0\0" + _message(np.dtype("i1")) + values
    if dtype.kind == "c":
        half = np.dtype(f"{'>' if order else '<'}f{size // 2}")
        pairs = zip((b"r", b"i"), (0, half.itemsize), strict=True)
        parts = [struct.pack("<8sI28x", x, at) + _message(half) for x, at in pairs]
        return struct.pack("<4BI", 0x16, 2, 0, 0, size) + b"".join(parts)
    if dtype.kind == "f":
        info = np.finfo(dtype)
        bits: Any = info.nmant, info.iexp, 0, info.nmant, 2 ** (info.iexp - 1) - 1
        head = 0x11, 0x20 | order, 8 * size - 1, 0, size, 0, 8 * size
        return struct.pack("<4BI2H4BI", *head, *bits)
    signed = 8 * (dtype.kind == "i")
    return struct.pack("<4BI2H", 0x10, order | signed, 0, 0, size, 0, 8 * size)


_DTYPES = {
    (text := _message(dtype)).ljust(len(text) + -len(text) % 8, b"\0"): dtype
    for code in "?bhiqBHIQefdFD"
    for dtype in [np.dtype(code).newbyteorder("<"), np.dtype(code).newbyteorder(">")]
}


def write(file: Any, entries: Mapping[str, np.ndarray]) -> None:
    """One dataset for each array."""
    with package("h5py").File(file, "w") as group:
        for name, array in entries.items():
            group[name] = array


def entries(data: bytes) -> Iterator[tuple[str, Look]]:
    """The entries of a file: what is in the root group."""
    if data[:9] != b"\x89HDF\r\n\x1a\n\0" or data[13:15] != b"\x08\x08":
        raise ForeignError("is not HDF5 in its first layout.")
    base, root = struct.unpack_from("<Q32xQ", data, 24)
    table = _messages(data, root).get(_TABLE)
    if base or table is None:
        raise ForeignError("has names in another layout than HDF5's first.")
    tree, heap = struct.unpack("<2Q", table)
    mark, size, start = struct.unpack_from("<5s3xQ8xQ", data, heap)
    if mark != b"HEAP\0" or start + size > len(data):
        raise CheckpointError("has names that are not in a heap.")
    names, letters, seen, nodes = data[start : start + size], 0, set(), [tree]
    while nodes:
        node = nodes.pop()
        mark, kind, used = struct.unpack_from("<4sBxH", data, node)
        if node in seen or (mark, kind) not in ((b"TREE", 0), (b"SNOD", 1)):
            raise CheckpointError("has a tree that is none.")
        seen.add(node)
        if mark == b"TREE":
            children = struct.unpack_from("<" + "8xQ" * used, data, node + 24)
            nodes += reversed(children)
            continue
        for place in range(node + 8, node + 8 + 40 * used, 40):
            offset, header, link = struct.unpack_from("<2QI", data, place)
            if (end := names.find(b"\0", offset)) < 0 or letters > len(data):
                raise CheckpointError("has names without an end.")
            letters += end - offset
            name = str(names[offset:end], "utf-8", "surrogateescape")
            yield name, partial(_look, data, name, header if link < 2 else 0)


def _messages(data: bytes, place: int) -> dict[int, bytes]:
    """What the header of an object says, by kind."""
    version, number, size = struct.unpack_from("<BxH4xI", data, place)
    blocks, found = [(place + 16, size)], {}
    if version != 1 or number > 1000:
        raise ForeignError("has an object in another layout.")
    for start, length in blocks:
        place = start
        while number and place + 8 <= start + length:
            kind, size = struct.unpack_from("<2H", data, place)
            text, place, number = (
                data[place + 8 : place + 8 + size],
                place + 8 + size,
                number - 1,
            )
            if kind == _MORE:
                blocks.append(struct.unpack("<2Q", text))
            elif kind in found and kind in (_SPACE, _DTYPE, _LAYOUT, _TABLE):
                raise CheckpointError("has an object that is two.")
            found[kind] = text
    return found


def _look(data: bytes, name: str, header: int) -> Entry:
    said = _messages(data, header) if header else {}
    space, kind, layout = (said.get(x, b"") for x in (_SPACE, _DTYPE, _LAYOUT))
    if (space[:1], layout[:2]) == (b"\1", b"\3\1") and _EXTERNAL not in said:
        shape = struct.unpack_from(f"<{space[1]}Q", space, 8)
        place, size = struct.unpack_from("<2Q", layout, 2)
        dtype = _DTYPES.get(kind)
        if dtype is None and kind[:8] in _TEXT and not shape:
            place, size = _text(data, place)
            dtype = np.dtype(f"S{size}")
        if dtype is not None:
            return Entry(dtype, shape, lambda: memoryview(data)[place : place + size])
    raise ForeignError(f"{name!r} is not a plain array in the file itself.")


def _text(data: bytes, place: int) -> tuple[int, int]:
    """Where a text is, and how long: an object of a heap."""
    length, place, wanted = struct.unpack_from("<IQI", data, place)
    mark, size = struct.unpack_from("<8sQ", data, place)
    end, place = place + size, place + 16
    for _ in range(2**16 if mark == b"GCOL\1\0\0\0" else 0):
        number, size = struct.unpack_from("<H6xQ", data, place)
        if number == wanted and 0 < length <= min(size, end - place - 16):
            return place + 16, length
        place += 16 + size + -size % 8
    raise ForeignError("has a text that is not where it should be.")
