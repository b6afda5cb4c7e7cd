"""NumPy's .npz: a zip archive of arrays."""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

from adadelta_tx._files.entry import CheckpointError, Entry, ForeignError, Look

CONVERT = "numpy.savez('new.npz', **numpy.load(old))"
_HEADER_LIMIT = 1000  # a long header of Python 2 takes seconds


def write(
    file: BinaryIO, entries: Mapping[str, np.ndarray], compressed: bool = False
) -> None:
    """As numpy.savez does, which has no room for an array called "file"."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in entries.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@contextmanager
def entries(file: BinaryIO) -> Iterator[list[tuple[str, Look]]]:
    """The entries of an open file."""

    def look(info: zipfile.ZipInfo) -> Entry:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ForeignError("is compressed in a way that NumPy does not use.")
        with archive.open(info) as member:
            # A header of version 2 may be 4 GiB long; no array of numbers needs it.
            if np.lib.format.read_magic(member) != (1, 0):
                raise ForeignError(f"{info.filename!r} is not an array of numbers.")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(
                member, max_header_size=_HEADER_LIMIT
            )
            start = member.tell()

        def data() -> bytes:
            with archive.open(info) as member:
                member.read(start)
                content = member.read(math.prod(shape) * dtype.itemsize)
                if member.read(1):  # reading to the end checks the CRC, too
                    raise CheckpointError(f"{info.filename!r} is longer than it says.")
                return content

        # Void of 2 bytes is how NumPy writes bfloat16.
        known = np.dtype(jnp.bfloat16) if dtype.str == "|V2" else dtype
        return Entry(known, shape, data, "CF"[fortran])

    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        yield [(i.filename.removesuffix(".npy"), partial(look, i)) for i in infos]
