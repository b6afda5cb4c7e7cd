"""Files: names and arrays to bytes, and back. Nothing here knows an optimizer."""

import contextlib
import io
import os
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from adadelta_tx._files import h5, mat, npz, pickle
from adadelta_tx._files.description import Description, described, entries_of
from adadelta_tx._files.entry import (
    CheckpointError,
    ForeignError,
    collected,
    looked_at,
)
from adadelta_tx._files.replacing import StrPath, replacing

File = StrPath | BinaryIO
_REST = 0.1  # seconds

_FORMATS = {".npz": npz, ".h5": h5, ".hdf5": h5, ".mat": mat}
_FORMATS |= {".pkl": pickle, ".pickle": pickle}


def _format(file: Any, method: str) -> Any:
    """The module of a file's format, which a path's extension tells."""
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{file} must be open in binary mode.")
    if hasattr(file, method):
        return npz
    if not isinstance(file, str | os.PathLike) or isinstance(os.fspath(file), bytes):
        raise TypeError(
            "The first argument is a binary file object, or the path of a file, got "
            f"{type(file).__name__}."
        )
    if "\0" in os.fspath(file):
        raise CheckpointError(f"{printable(repr(file))}: a path has no NUL in it.")
    extension = os.path.splitext(file)[1].lower() or ".npz"
    if extension not in _FORMATS:
        raise CheckpointError(
            f"{file}: no format has the extension {extension!r}. "
            f"There are {', '.join(_FORMATS)}."
        )
    return _FORMATS[extension]


def write(
    file: Any,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    compressed: bool,
) -> None:
    """Writes arrays by name and a header to a file, whole or not at all."""
    form, content = _format(file, "write"), io.BytesIO()
    if compressed and form is not npz:
        raise ValueError(f"compressed is for .npz files, not for {file}.")
    entries = entries_of(header, arrays)
    try:
        collected((name, None) for name in entries)  # that they are not too many
        form.write(content, entries, **({"compressed": True} if compressed else {}))
        written = _described(form, content.getvalue())
        for name in arrays:  # what cannot be read again is not saved
            looked_at(written.variables, name)
    except Exception as error:
        raise failed(file, "cannot be written", error) from error
    rest = content.getbuffer()
    if not hasattr(file, "write"):
        with replacing(file) as new:
            new.write(rest)
        return
    while rest:  # a file without a buffer may take a part
        taken = file.write(rest)
        rest = rest[len(rest) if taken is None else taken :]


def read(file: Any) -> Description:
    """What a file says of itself, which is read as a whole."""
    form, is_open = _format(file, "read"), hasattr(file, "read")
    if not is_open and os.path.exists(file) and not os.path.isfile(file):
        raise CheckpointError(f"{file}: is not a file.")
    with contextlib.nullcontext(file) if is_open else open(file, "rb") as opened:
        try:
            start = time.time()
            if not (data := opened.read()):
                raise CheckpointError("is empty, or was read to its end: seek(0).")
            told = _described(form, data)
            if told.owner is None and not is_open:
                _check_at_rest(opened, data, start)
            return told
        except OSError:
            raise
        except Exception as error:
            raise failed(file, "cannot be read", error) from error


def _check_at_rest(file: BinaryIO, data: bytes, start: float) -> None:
    """Checks that a file without digests was not being written when it was read."""
    written = os.fstat(file.fileno()).st_mtime
    if written > start - _REST:
        time.sleep(_REST)
        file.seek(0)
        if file.read() != data or os.fstat(file.fileno()).st_mtime != written:
            raise CheckpointError("is being written by another process.")


def _described(form: Any, data: bytes) -> Description:
    shapes = getattr(form, "shapes", lambda shape: [shape])
    return described(data, collected(form.entries(data)), shapes)


def failed(file: Any, what: str, error: BaseException) -> CheckpointError:
    """The error that tells of another one, with the file's name."""
    told = str(error)
    if not isinstance(error, CheckpointError):
        told = f"{what}: {type(error).__name__}: {told}"
    if isinstance(error, ForeignError):
        told += f" If you trust the file, convert it: {_format(file, 'read').CONVERT}"
    return CheckpointError(printable(f"{file}: {told}"))


def printable(text: str) -> str:
    """Text that may quote a file: short, and nothing in it that a terminal obeys."""
    cut = text if len(text) <= 2000 else f"{text[:2000]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
