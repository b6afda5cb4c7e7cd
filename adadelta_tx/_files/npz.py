"""NumPy's .npz, of which arrays of numbers and of text are read, stored or deflated.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, format 1.0, in
a zip archive: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np

from adadelta_tx._files.entry import (
    NAMES,
    CheckpointError,
    Entry,
    ForeignError,
    Look,
)

CONVERT = "numpy.savez('new.npz', **numpy.load(old))"
# As NumPy writes it; its own reader takes seconds for what else may stand here.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': '([<>|]\w{2,9})', "
    rb"'fortran_order': (True|False), 'shape': \(([\dL, ]{0,800})\), \} *\n"
)


def write(
    file: io.BytesIO, entries: Mapping[str, np.ndarray], compressed: bool = False
) -> None:
    """As numpy.savez does, which has no room for an array called "file"."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in entries.items():
            if len(name) > 2**16 - 5:
                raise CheckpointError(f"has a name too long for .npz: {name[:50]}…")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def entries(data: bytes) -> Iterator[tuple[str, Look]]:
    """The entries of a file."""
    # Each takes the library ten times its 46 bytes. Numbers may look like one, too.
    if data.count(b"PK\1\2") > 1.01 * NAMES:
        raise CheckpointError(f"has more than {NAMES:,} names.")
    for info in zipfile.ZipFile(io.BytesIO(data)).infolist():
        code = "utf-8" if info.flag_bits & 0x800 else "cp437"
        name, place = info.orig_filename.encode(code), info.header_offset
        length, more = struct.unpack_from("<2H", data, place + 26)
        start = place + 30 + length + more
        if data[place + 30 : start - more] != name:
            raise CheckpointError(f"is damaged: {info.filename!r} has two names.")
        packed = memoryview(data)[start : start + info.compress_size]
        yield info.filename.removesuffix(".npy"), partial(_look, info, packed)


def _look(info: zipfile.ZipInfo, packed: memoryview) -> Entry:
    def content(most: int) -> bytes | memoryview:
        if info.compress_type == zipfile.ZIP_STORED:
            return packed[:most]
        if info.compress_type == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most)
        raise ForeignError("is compressed in a way that NumPy does not use.")

    header = bytes(content(2000))
    known = _HEADER.match(header)
    if not known or struct.unpack_from("<H", header, 8)[0] + 10 != known.end():
        raise ForeignError(f"{info.filename!r} is not an array of numbers.")
    descr, fortran, axes = (known[i].decode() for i in (1, 2, 3))
    shape = tuple(int(n.rstrip("L")) for n in axes.split(",") if n.strip())
    # Void of 2 bytes is how NumPy writes bfloat16.
    dtype = np.dtype(jnp.bfloat16 if descr[1:] == "V2" else descr)

    def array() -> memoryview:
        end = known.end() + math.prod(shape) * dtype.itemsize
        whole = content(end + 1)  # one more than there should be
        if len(whole) == end and zlib.crc32(whole) != info.CRC:
            raise CheckpointError(f"is damaged: {info.filename!r} has another CRC.")
        return memoryview(whole)[known.end() :]

    return Entry(dtype, shape, array, "CF"[fortran == "True"])
