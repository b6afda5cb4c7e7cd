"""Pickles of arrays in plain containers, read without doing anything that they say.

``pickle.Unpickler`` with ``find_class`` is not enough: nine bytes take 4 GB, deep
lists end the process, and 60 bytes change the size of bfloat16 for everyone.
"""

import os
import pickle
import pickletools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from adadelta_tx._files.entry import (
    OTHER,
    CheckpointError,
    Entry,
    ForeignError,
    Look,
    exactly,
)

CONVERT = "numpy.savez('new.npz', **numpy.load(old, allow_pickle=True))"
# All that a pickle may ask for, and what it is called here.
_GLOBALS = {
    "numpy.dtype": "dtype",
    "numpy.ndarray": "array",
    "ml_dtypes.bfloat16": "bfloat16",
    "numpy._core.multiarray._reconstruct": "reconstruct",
    "numpy._core.multiarray.scalar": "scalar",
    "numpy._core.numeric._frombuffer": "buffer",
    "jax._src.array._reconstruct_array": "jax",
    "jax._src.device_array.reconstruct_device_array": "jax",  # until 2022
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_LITERALS |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
# How much of the stack an instruction takes; 0 is all above the last mark.
_TAKES = {"TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "APPENDS": 0}
_TAKES |= {"SETITEM": 2, "SETITEMS": 0, "STACK_GLOBAL": 2, "REDUCE": 2, "BUILD": 1}
_LIMIT = 10_000  # letters of a name


class _Bytes(NamedTuple):
    """Bytes that stay in the file."""

    place: int
    length: int


class _Call:
    """What a pickle wants called, with which arguments, and the state it would set."""

    __match_args__ = __slots__ = ("function", "arguments", "state")

    def __init__(self, function: Any, arguments: Any) -> None:
        self.function, self.arguments, self.state = function, arguments, None


class _Arguments(NamedTuple):
    """A file from which only short arguments can be read."""

    file: BinaryIO

    def read(self, length: int) -> bytes:
        return self.file.read(min(length, _LIMIT))

    def readline(self) -> bytes:
        return self.file.readline(_LIMIT)


def write(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    """A dict."""
    pickle.dump(dict(entries), file, protocol=5)


def _operations(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """The instructions of a pickle: no more than a file of its size may need."""
    size = os.fstat(file.fileno()).st_size
    for _ in range(2**20 + size // 32):
        code = file.read(1).decode("latin1")
        operation = pickletools.code2op[code]  # pyright: ignore[reportAttributeAccessIssue]
        argument = None
        if operation.name in _BYTES:
            length = int.from_bytes(file.read(_BYTES[operation.name]), "little")
            argument = _Bytes(file.tell(), length)
            file.seek(min(length, size), os.SEEK_CUR)
        elif operation.arg is not None:
            argument = operation.arg.reader(_Arguments(file))
        if operation.name == "STOP":
            return
        yield operation.name, argument
    raise CheckpointError("has more instructions than arrays need.")


def _unpickled(file: BinaryIO) -> Any:
    """What a pickle of arrays and plain containers says, with nothing of it done.

    A pickle is a program for a machine with a stack. This machine has only the
    instructions that make data. It calls nothing, and hashes only strings and integers.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for name, argument in _operations(file):
        items = []
        if name in _TAKES:
            start = -_TAKES[name] or marks.pop()
            items, stack[start:] = stack[start:], []
        if name in _LITERALS or name in _BYTES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name.startswith("TUPLE"):
            stack.append(tuple(items))
        elif name.startswith("SETITEM"):
            target: Any = stack[-1]
            for key, value in zip(items[::2], items[1::2], strict=True):
                fits = type(target) is dict and type(key) in (str, int)
                if not fits or key in target:
                    raise CheckpointError("has a dict with a key twice, or of no text.")
                target[key] = value
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            path = ".".join(items or argument.split(" "))
            path = path.replace("numpy.core.", "numpy._core.")
            if path not in _GLOBALS:
                raise ForeignError(
                    f"asks for {path}. Only arrays of NumPy and JAX and plain "
                    "containers are read from a pickle."
                )
            stack.append(_GLOBALS[path])
        elif name == "REDUCE":
            stack.append(_Call(*items))
        elif name == "BUILD" and type(stack[-1]) is _Call:
            stack[-1].state = items[0]
        elif name not in ("PROTO", "FRAME", "APPEND", "APPENDS"):  # a list has no array
            raise ForeignError(f"has {name}, which no pickle of arrays needs.")
    return stack.pop()


def _array(file: BinaryIO, item: Any) -> Entry:
    """What a pickle says of an array; or that it is none."""
    order = "C"
    match item:
        case _Call("jax", (_, _, (_, shape, dtype, fortran, data), _)):
            order = "CF"[bool(fortran)]
        case _Call("reconstruct", _, (_, shape, dtype, fortran, data)):
            order = "CF"[bool(fortran)]
        case _Call("buffer", (data, dtype, shape, order)):
            pass
        case _Call("scalar", (dtype, data)):
            shape = ()
        case _:
            return Entry(OTHER, (), bytes)
    known = OTHER
    match dtype:
        case _Call("dtype", ("bfloat16", _, _)):
            known = np.dtype(jnp.bfloat16)
        case _Call("dtype", (str(code), _, _), (_, str(endian), *_)):
            if re.fullmatch(r"[bcfiuU]\d{1,4}", code):
                known = np.dtype(f"{'>' if endian == '>' else '<'}{code}")
    if type(shape) is not tuple or not all(type(n) is int for n in shape):
        raise CheckpointError("has an array without a shape.")
    if type(data) is not _Bytes:
        raise CheckpointError("has an array without data.")
    return Entry(known, shape, partial(exactly, file, *data), order)


@contextmanager
def entries(file: BinaryIO) -> Iterator[list[tuple[str, Look]]]:
    """The entries of an open file: those of all dicts in it, by their own names."""
    todo: list[Any] = [_unpickled(file)]
    if type(todo[0]) is not dict:
        raise CheckpointError("is not a pickle of a dict.")
    found, seen = [], {id(todo[0])}
    while todo:
        for key, value in todo.pop().items():
            if type(value) is not dict:
                found.append((str(key), partial(_array, file, value)))
            elif id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
    yield found
