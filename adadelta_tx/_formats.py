"""The formats of checkpoints: how arrays by name are written to a file, and read.

A reader tells what a file claims to hold before it reads any of it, calls nothing that
a file names, and follows nothing that leads out of it.
"""

import importlib
import io
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

ALIASES, TARGETS = "duplicate_keys", "duplicate_targets"  # lists of BrainPy 2.2
OTHER = np.dtype("V")  # stands for whatever is not read
_BFLOAT16 = np.dtype(jnp.bfloat16)


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


class Claim(NamedTuple):
    """What a file says of an entry."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype.name} of shape {self.shape}"


class Reader(NamedTuple):
    """The entries of an open file, and a function that reads those of given names."""

    claims: dict[str, Claim]
    read: Callable[[Collection[str]], Mapping[str, Any]]


class Format(NamedTuple):
    write: Callable[..., None]
    reader: Callable[[BinaryIO], AbstractContextManager[Reader]]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple


def _claimed(claims: Iterable[tuple[str, Claim]]) -> dict[str, Claim]:
    """The claims by name.

    Raises:
      CheckpointError: If there are two by one name, or one has an impossible shape.
    """
    collected: dict[str, Claim] = {}
    for name, claim in claims:
        if name in collected:
            raise CheckpointError(f"has two entries called {name!r}.")
        if len(claim.shape) > 64 or not all(0 <= n < 2**63 for n in claim.shape):
            raise CheckpointError("has an array of an impossible shape.")
        collected[name] = claim
    return collected


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"this format needs {name}: pip install 'adadelta_tx[{extra}]'. "
            ".npz, .pkl and .pickle need nothing more."
        ) from error


def _write_npz(
    file: BinaryIO, entries: Mapping[str, np.ndarray], compressed: bool = False
) -> None:
    # As numpy.savez does, which has no room for an array called "file".
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in entries.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@contextmanager
def _npz_reader(file: BinaryIO) -> Iterator[Reader]:
    def claim(info: zipfile.ZipInfo) -> Claim:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError("is compressed in a way that NumPy does not use.")
        with archive.open(info) as member:
            # A header of version 2 may be 4 GiB long; no array of numbers needs it.
            if np.lib.format.read_magic(member) != (1, 0):
                raise CheckpointError(f"{info.filename!r} is not an array of numbers.")
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            # Void of 2 bytes is how NumPy writes bfloat16.
            return Claim(_BFLOAT16 if dtype.str == "|V2" else dtype, shape)

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        arrays = {}
        for name in names:
            with archive.open(f"{name}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):  # reading to the end checks the CRC, too
                    raise CheckpointError(f"{name!r} is longer than it says.")
            bfloat16 = claims[name].dtype == _BFLOAT16
            arrays[name] = array.view(_BFLOAT16) if bfloat16 else array
        return arrays

    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        claims = _claimed((i.filename.removesuffix(".npy"), claim(i)) for i in infos)
        yield Reader(claims, read)


def _write_h5(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    with _package("h5py", "h5").File(file, "w") as group:
        for name, array in entries.items():
            group[name] = array


@contextmanager
def _h5_reader(file: BinaryIO) -> Iterator[Reader]:
    h5py = _package("h5py", "h5")

    def claim(name: str) -> Claim:
        # A soft or an external link, and data in other files, would lead elsewhere.
        # A chunk may be larger than its array, and is read as a whole.
        link = group.get(name, getlink=True)
        item: Any = group[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(item, h5py.Dataset) and not (
            item.external or item.is_virtual or item.chunks
        ):
            if not item.dtype.hasobject:
                return Claim(item.dtype, item.shape)
            text = name in (ALIASES, TARGETS) and h5py.check_string_dtype(item.dtype)
            if text and item.shape == ():
                return Claim(np.dtype("U1"), ())
        raise CheckpointError(f"{name!r} is not a plain array in the file itself.")

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(
                group[name].asstr()[()].split("+")
                if name in (ALIASES, TARGETS)
                else group[name][()]
            )
            for name in names
        }

    with h5py.File(file, "r") as group:
        yield Reader(_claimed((name, claim(name)) for name in group), read)


def _write_mat(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    for name, array in entries.items():
        if array.nbytes >= 2**32 - 2**12:
            raise CheckpointError(f"{name} is too large for a .mat file.")
    arrays = {name: np.expand_dims(array, 0) for name, array in entries.items()}
    _package("scipy.io", "mat").savemat(file, arrays)


def _mat_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array in a .mat file: BrainPy's first axis, and at least two."""
    return (1, *shape) if shape else (1, 1)


# The class of a matrix in MATLAB's format 5, and the type that its data has then.
_MAT_DTYPES = {
    **{(6, 9): "f8", (7, 7): "f4", (8, 1): "i1", (9, 2): "u1", (10, 3): "i2"},
    **{(11, 4): "u2", (12, 5): "i4", (13, 6): "u4", (14, 12): "i8", (15, 13): "u8"},
    (4, 16): "U1",
}


@contextmanager
def _mat_reader(file: BinaryIO) -> Iterator[Reader]:
    """Reads plain matrices. scipy's reader ends the process at some damaged files."""
    if file.read(128)[124:] != b"\x00\x01IM":
        raise CheckpointError("is not of MATLAB's format 5, little-endian.")
    size = os.fstat(file.fileno()).st_size
    places = {}

    def element(start: int, end: int) -> tuple[int, int, int, int]:
        """Type, place and length of an element's data, and where the next starts."""
        kind, length = struct.unpack("<2I", content(start, 8))
        if kind >> 16:  # a small one: type, length and data in 8 bytes
            parts = kind & 0xFFFF, start + 4, kind >> 16, start + 8
        else:
            parts = kind, start + 8, length, start + 8 + length + -length % 8
        if parts[1] + parts[2] > min(end, parts[3]):
            raise CheckpointError("has an element that is longer than its place.")
        return parts

    def content(place: int, length: int) -> bytes:
        file.seek(place)
        return file.read(length)

    def matrices() -> Iterator[tuple[str, Claim]]:
        start = 128
        while start < size:
            kind, place, length, start = element(start, size)
            if kind != 14:
                raise CheckpointError("has something else than plain matrices.")
            end = place + length
            _, at, length, place = element(place, end)
            flags = content(at, length)
            _, at, length, place = element(place, end)
            shape = struct.unpack(f"<{length // 4}i", content(at, length))
            _, at, length, place = element(place, end)
            name = content(at, length).decode("latin1")
            kind, at, length, _ = element(place, end)
            is_complex = flags[1] & 8
            dtype = OTHER if is_complex else _MAT_DTYPES.get((flags[0], kind), OTHER)
            places[name] = at, length
            yield name, Claim(np.dtype(dtype), shape)

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        arrays = {}
        for name in names:
            dtype, shape = claims[name]
            data = content(*places[name])
            if dtype.kind == "U":  # the last axis is along the text
                letters = np.array(list(data.decode())).reshape(shape, order="F")
                arrays[name] = np.apply_along_axis("".join, -1, letters)
            else:
                arrays[name] = np.frombuffer(data, dtype).reshape(shape, order="F")
        return arrays

    claims = _claimed(matrices())
    yield Reader(claims, read)


def _write_pickle(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    pickle.dump(dict(entries), file, protocol=5)


_GLOBALS = {
    "ml_dtypes.bfloat16",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict},
}


class _Call:
    """What a pickle wants called, with which arguments, and the state it would set."""

    def __init__(self, function: Any, arguments: Any) -> None:
        self.function, self.arguments, self.state = function, arguments, None


def _unpickled(file: BinaryIO) -> Any:
    """What a pickle of arrays and plain containers says, with nothing of it done.

    A pickle is a program for a machine with a stack. This machine has only the
    instructions that make data. It calls nothing, and hashes nothing but strings.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def cut(start: int) -> list[Any]:
        items = stack[start:]
        del stack[start:]
        return items

    def put(items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(stack[-1]) is not dict or type(key) is not str or key in stack[-1]:
                raise CheckpointError("has a dict with a key twice, or not of strings.")
            stack[-1][key] = value

    # A file would make room for as many bytes as it is asked for, however few it has.
    operations: Iterator[Any] = pickletools.genops(io.BytesIO(file.read()))
    for operation, argument, _ in operations:
        name = operation.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(cut(-int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(cut(marks.pop())))
        elif name in ("APPEND", "APPENDS"):
            cut(-1 if name == "APPEND" else marks.pop())  # no list has what we read
        elif name in ("SETITEM", "SETITEMS"):
            put(cut(-2 if name == "SETITEM" else marks.pop()))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ") if name == "GLOBAL" else cut(-2)
            path = ".".join(words).replace("numpy.core.", "numpy._core.")
            if path not in _GLOBALS:
                raise CheckpointError(
                    f"asks for {path}. Only NumPy's arrays and plain containers are "
                    "read from a pickle."
                )
            stack.append(path)
        elif name == "REDUCE":
            stack.append(_Call(*cut(-2)))
        elif name == "BUILD" and type(stack[-2]) is _Call:
            (stack[-1].state,) = cut(-1)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise CheckpointError(f"has {name}, which no pickle of arrays needs.")
    return stack.pop()


def _pickled_array(item: Any) -> tuple[Claim, Any, Any]:
    """What a pickle says of an array, its data and their order; or that it is none."""
    match item:
        case _Call(
            function="numpy._core.numeric._frombuffer",
            arguments=(data, dtype, shape, order),
        ):
            pass
        case _Call(
            function="numpy._core.multiarray._reconstruct",
            state=(_, shape, dtype, fortran, data),
        ):
            order = "F" if fortran else "C"
        case _Call(function="numpy._core.multiarray.scalar", arguments=(dtype, data)):
            shape, order = (), "C"
        case _:
            return Claim(OTHER, ()), b"", "C"
    code = endian = ""
    match dtype:
        case _Call(
            function="numpy.dtype",
            arguments=(str(code), _, _),
            state=(_, str(endian), *_),
        ):
            pass
    if code == "ml_dtypes.bfloat16":
        known = _BFLOAT16
    elif re.fullmatch(r"[bcfiuU]\d{1,4}", code):
        known = np.dtype(f"{'>' if endian == '>' else '<'}{code}")
    else:
        known = OTHER
    if type(shape) is not tuple or not all(type(n) is int for n in shape):
        raise CheckpointError("has an array without a shape.")
    return Claim(known, shape), data, order


@contextmanager
def _pickle_reader(file: BinaryIO) -> Iterator[Reader]:
    content = _unpickled(file)
    if type(content) is not dict:
        raise CheckpointError("is not a pickle of a dict.")
    arrays = {}

    def found() -> Iterator[tuple[str, Claim]]:
        for name, item in content.items():
            # BrainPy's state_dict() has a dict for each of its objects.
            for key, value in (item if type(item) is dict else {name: item}).items():
                arrays[key] = _pickled_array(value)
                yield key, arrays[key][0]

    claims = _claimed(found())

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        values = {}
        for name in names:
            (dtype, shape), data, order = arrays[name]
            values[name] = np.frombuffer(data, dtype).reshape(shape, order=order)
        return values

    yield Reader(claims, read)


_H5 = Format(_write_h5, _h5_reader)
_PICKLE = Format(_write_pickle, _pickle_reader)
FORMATS = {
    ".npz": Format(_write_npz, _npz_reader),
    ".h5": _H5,
    ".hdf5": _H5,
    ".mat": Format(_write_mat, _mat_reader, _mat_shape),
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
}
