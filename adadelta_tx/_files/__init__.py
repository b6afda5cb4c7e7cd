"""Files: names and arrays to bytes, and back. Nothing here knows an optimizer."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from adadelta_tx._files import _h5, _mat, _npz, _pickle
from adadelta_tx._files._description import Description, description_of, entries_of
from adadelta_tx._files._entries import CheckpointError, Claim, Look, collected, shown
from adadelta_tx._files._replacing import StrPath, replacing

__all__ = [
    "CheckpointError",
    "Claim",
    "Description",
    "StrPath",
    "reading",
    "shown",
    "write",
]


class _Format(NamedTuple):
    write: Callable[..., None]
    entries: Callable[[BinaryIO], AbstractContextManager[list[tuple[str, Look]]]]
    convert: str  # what makes an ordinary .npz of a file that is refused
    shapes: Callable[[tuple[int, ...]], list[tuple[int, ...]]] = lambda shape: [shape]


_SAVE = "numpy.savez('new.npz', **{{k: numpy.asarray(v) for k, v in {}.items()}})"
_H5 = _Format(_h5.write, _h5.entries, _SAVE.format("h5py.File(file)"))
_PICKLE = _Format(_pickle.write, _pickle.entries, _SAVE.format("pickle.load(file)"))
_FORMATS = {
    ".npz": _Format(_npz.write, _npz.entries, _SAVE.format("numpy.load(file)")),
    ".h5": _H5,
    ".hdf5": _H5,
    ".mat": _Format(
        _mat.write,
        _mat.entries,
        "scipy.io.savemat('new.mat', scipy.io.loadmat(file))",
        _mat.shapes,
    ),
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
}


def _format(filename: StrPath) -> tuple[str, _Format]:
    extension = os.path.splitext(filename)[1].lower() or ".npz"
    if extension not in _FORMATS:
        raise CheckpointError(
            f"{filename}: no format has the extension {extension!r}. "
            f"There are {', '.join(_FORMATS)}."
        )
    return extension, _FORMATS[extension]


def write(
    filename: StrPath,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    compressed: bool,
) -> None:
    """Writes arrays by name and a header to a file, whole or not at all."""
    extension, form = _format(filename)
    if compressed and extension != ".npz":
        raise ValueError(f"compressed is for .npz files, not for {filename}.")
    entries = entries_of(header, arrays)
    with replacing(filename) as file:
        form.write(file, entries, **({"compressed": True} if compressed else {}))


@contextmanager
def reading(filename: StrPath) -> Iterator[Description]:
    """What a file says of itself, while it is open.

    Raises:
      CheckpointError: For whatever goes wrong inside, with the file's name.
      OSError: If the file cannot be opened.
    """
    extension, form = _format(filename)
    if os.path.exists(filename) and not os.path.isfile(filename):
        raise CheckpointError(f"{filename}: is not a file.")
    with open(filename, "rb") as file:
        try:
            with form.entries(file) as entries:
                yield description_of(file, collected(entries), form.shapes)
        except CheckpointError as error:
            raise CheckpointError(shown(f"{filename}: {error}", 2000)) from error
        except Exception as error:
            why = f"cannot be read as a {extension} file of an optimizer"
            told = f"{filename}: {why}: {type(error).__name__}: {error}"
            raise CheckpointError(shown(told, 2000)) from error
