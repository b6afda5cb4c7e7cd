"""What every format tells of a file: its entries, each looked at when asked for."""

import importlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np

OTHER = np.dtype("V")  # stands for whatever is not read


class CheckpointError(Exception):
    """A file cannot hold, or does not hold, the state of an optimizer.

    Nothing has changed then: no file and no variable.

    Examples:
      >>> import adadelta_tx
      >>> try:
      ...     adadelta_tx.Adadelta().load_states("run.txt")
      ... except adadelta_tx.CheckpointError as error:
      ...     print(error)  # doctest: +ELLIPSIS
      run.txt: no format has the extension '.txt'. There are .npz, .h5, .hdf5, ...
    """

    __module__ = "adadelta_tx"


class Claim(NamedTuple):
    """Of which dtype and shape an array is said to be."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name} of shape {self.shape}"


class Entry(NamedTuple):
    """What a file says of an array, and how to get its bytes."""

    claim: Claim
    data: Callable[[], bytes]
    order: Any = "C"

    def read(self) -> np.ndarray:
        """The array."""
        data = self.data()
        if len(data) != self.claim.size:
            raise CheckpointError("has an array that is not as long as its shape says.")
        return np.ndarray(self.claim.shape, self.claim.dtype, data, order=self.order)


Look = Callable[[], Entry]


def refuse(why: str) -> Look:
    """For an entry that nobody can read."""

    def look() -> Entry:
        raise CheckpointError(why)

    return look


def collected(found: Iterable[tuple[str, Look]]) -> dict[str, Look]:
    """Entries by name. Looking at one of two by one name, or of no shape, raises."""

    def checked(look: Look) -> Entry:
        entry = look()
        shape = entry.claim.shape
        if len(shape) > 64 or not all(0 <= n < 2**63 for n in shape):
            raise CheckpointError("has an array of an impossible shape.")
        return entry

    entries: dict[str, Look] = {}
    for name, look in found:
        again = refuse(f"has two entries called {shown(name)!r}.")
        entries[name] = again if name in entries else partial(checked, look)
    return entries


def exactly(file: BinaryIO, place: int, length: int) -> bytes:
    """The bytes at a place of a file, which may have become shorter."""
    file.seek(place)
    data = file.read(length)
    if len(data) != length:
        raise CheckpointError("ends too early.")
    return data


def package(name: str, extra: str) -> Any:
    """A library that a format needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"this format needs {name}: pip install 'adadelta_tx[{extra}]'. "
            ".npz, .pkl and .pickle need nothing more."
        ) from error


def shown(text: str, most: int = 80) -> str:
    """Text of a file for a message: short, and nothing that a terminal obeys."""
    cut = text if len(text) <= most else f"{text[:most]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
