"""What every format tells of a file: entries by name, each looked at when asked for."""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

OTHER = np.dtype("V")  # stands for whatever is not read
NAMES = 2**16  # in a file; more would take more memory than small arrays do


class CheckpointError(Exception):
    """A file cannot hold, or does not hold, the state of an optimizer.

    When it is raised, no file and no variable has changed.

    Examples:
      >>> import adadelta_tx
      >>> try:
      ...     adadelta_tx.Adadelta().load_states("run.txt")
      ... except adadelta_tx.CheckpointError as error:
      ...     print(error)  # doctest: +ELLIPSIS
      run.txt: no format has the extension '.txt'. There are .npz, .h5, .hdf5, ...
    """

    __module__ = "adadelta_tx"


class ForeignError(CheckpointError):
    """Data that may be fine, but is not of the few kinds that are read."""


class Entry(NamedTuple):
    """What a file says of an array, and how to get its bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    data: Callable[[], Any]
    order: Any = "C"

    def __str__(self) -> str:
        return f"{self.dtype.name} of shape {self.shape}"

    def read(self, most: float = math.inf) -> np.ndarray:
        """The array, unless it has more bytes than ``most``."""
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > most or len(data := self.data()) != size:
            raise CheckpointError("has an array that is not as long as it should be.")
        return np.ndarray(self.shape, self.dtype, data, order=self.order)


Look = Callable[[], Entry]
Entries = Mapping[str, Look | None]  # None for one of two that have one name


def collected(found: Iterable[tuple[str, Look | None]]) -> Entries:
    """Entries by name."""
    entries: dict[str, Look | None] = {}
    for number, (name, look) in enumerate(found):
        if number == NAMES:
            raise CheckpointError(f"has more than {NAMES:,} names.")
        entries[name] = None if name in entries else look
    return entries


def looked_at(entries: Entries, name: str) -> Entry:
    """The entry of a name."""
    if (look := entries.get(name)) is None:
        number = "two entries" if name in entries else "no entry"
        raise CheckpointError(f"has {number} called {name!r}.")
    if len((entry := look()).shape) > 65:  # NumPy's 64, and one of a .mat file
        raise CheckpointError("has an array of more axes than NumPy's have.")
    return entry


def package(name: str) -> Any:
    """A library that a format needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"this format needs {name}: pip install {name.partition('.')[0]}. "
            ".npz, .pkl and .pickle need nothing more."
        ) from error
