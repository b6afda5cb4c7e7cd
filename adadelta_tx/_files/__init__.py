"""Files: names and arrays to bytes, and back. Nothing here knows an optimizer."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from adadelta_tx._files import _h5, _mat, _npz, _pickle
from adadelta_tx._files._description import Description, description_of, entries_of
from adadelta_tx._files._entry import CheckpointError, ForeignError, Look, collected
from adadelta_tx._files._replacing import StrPath, replacing


class _Format(NamedTuple):
    write: Callable[..., None]
    entries: Callable[[BinaryIO], AbstractContextManager[list[tuple[str, Look]]]]
    convert: str  # a line that makes a file which is read of one that is not
    shapes: Callable[[tuple[int, ...]], list[tuple[int, ...]]] = lambda shape: [shape]


_SAVEZ = "numpy.savez('new.npz', **{{k: numpy.asarray(v) for k, v in {}.items()}})"
_SAVEMAT = "scipy.io.savemat('new.mat', scipy.io.loadmat(old))"
_LOAD = "pickle.load(open(old, 'rb'))"
_H5 = _Format(_h5.write, _h5.entries, _SAVEZ.format("h5py.File(old)"))
_PICKLE = _Format(_pickle.write, _pickle.entries, _SAVEZ.format(_LOAD))
_MAT = _Format(_mat.write, _mat.entries, _SAVEMAT, _mat.shapes)
_NPZ = _Format(_npz.write, _npz.entries, _SAVEZ.format("numpy.load(old)"))
_FORMATS = {".npz": _NPZ, ".h5": _H5, ".hdf5": _H5, ".mat": _MAT}
_FORMATS |= {".pkl": _PICKLE, ".pickle": _PICKLE}


def _format(filename: StrPath) -> _Format:
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
    if compressed and form is not _NPZ:
        raise ValueError(f"compressed is for .npz files, not for {filename}.")
    entries = entries_of(header, arrays)
    with replacing(filename) as file:
        form.write(file, entries, **({"compressed": True} if compressed else {}))


@contextmanager
def reading(filename: StrPath) -> Iterator[Description]:
    """What a file says of itself, while it is open.

    Raises:
      CheckpointError: For whatever goes wrong meanwhile, with the file's name.
      OSError: If the file cannot be opened.
    """
    form = _format(filename)
    if os.path.exists(filename) and not os.path.isfile(filename):
        raise CheckpointError(f"{filename}: is not a file.")
    with open(filename, "rb") as file:
        try:
            with form.entries(file) as entries:
                yield description_of(file, collected(entries), form.shapes)
        except Exception as error:
            told = str(error)
            if not isinstance(error, CheckpointError):
                told = f"cannot be read: {type(error).__name__}: {told}"
            if isinstance(error, ForeignError):
                told += f" If you trust the file, convert it: {form.convert}"
            raise CheckpointError(printable(f"{filename}: {told}")) from error


def printable(text: str) -> str:
    """Text that may quote a file: short, and nothing in it that a terminal obeys."""
    cut = text if len(text) <= 2000 else f"{text[:2000]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
