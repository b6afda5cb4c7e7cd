"""Files: names and arrays to bytes, and back. Nothing here knows an optimizer."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from adadelta_tx._files import h5, mat, npz, pickle
from adadelta_tx._files.description import Description, described, entries_of
from adadelta_tx._files.entry import CheckpointError, ForeignError, collected
from adadelta_tx._files.replacing import StrPath, replacing

_FORMATS = {".npz": npz, ".h5": h5, ".hdf5": h5, ".mat": mat}
_FORMATS |= {".pkl": pickle, ".pickle": pickle}


def _format(filename: StrPath) -> Any:
    if not isinstance(filename, str | os.PathLike):
        raise TypeError(
            f"The first argument is the path of a file, got {type(filename).__name__}."
        )
    extension = os.path.splitext(filename)[1].lower() or ".npz"
    if extension not in _FORMATS:
        raise CheckpointError(
            f"{filename}: no format has the extension {extension!r}. "
            f"There are {', '.join(_FORMATS)}."
        )
    return _FORMATS[extension]


def write(
    filename: StrPath,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    compressed: bool,
) -> None:
    """Writes arrays by name and a header to a file, whole or not at all."""
    form = _format(filename)
    if compressed and form is not npz:
        raise ValueError(f"compressed is for .npz files, not for {filename}.")
    entries = entries_of(header, arrays)
    with replacing(filename) as file:
        form.write(file, entries, **({"compressed": True} if compressed else {}))


@contextmanager
def reading(filename: StrPath) -> Iterator[Description]:
    """What a file says of itself, while it is open."""
    form = _format(filename)
    shapes = getattr(form, "shapes", lambda shape: [shape])
    if os.path.exists(filename) and not os.path.isfile(filename):
        raise CheckpointError(f"{filename}: is not a file.")
    with open(filename, "rb") as file:
        try:
            with form.entries(file) as found:
                yield described(file, collected(found), shapes)
        except Exception as error:
            told = str(error)
            if not isinstance(error, CheckpointError):
                told = f"cannot be read: {type(error).__name__}: {told}"
            if isinstance(error, ForeignError):
                told += f" If you trust the file, convert it: {form.CONVERT}"
            raise CheckpointError(printable(f"{filename}: {told}")) from error


def printable(text: str) -> str:
    """Text that may quote a file: short, and nothing in it that a terminal obeys."""
    cut = text if len(text) <= 2000 else f"{text[:2000]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
