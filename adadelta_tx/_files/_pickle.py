"""Pickles of arrays in plain containers, read without doing anything that they say.

``pickle.Unpickler`` with ``find_class`` is not enough: nine bytes take 4 GB, deep
lists end the process, and 60 bytes change the size of bfloat16 for everyone.
"""

import os
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from adadelta_tx._files._entries import (
    OTHER,
    CheckpointError,
    Claim,
    Entry,
    Look,
    exactly,
    shown,
)

_RECONSTRUCT = "numpy._core.multiarray._reconstruct"
_SCALAR = "numpy._core.multiarray.scalar"
_FROM_BUFFER = "numpy._core.numeric._frombuffer"
_JAX = "jax._src.array._reconstruct_array"
_JAX_OF_2022 = "jax._src.device_array.reconstruct_device_array"
_BFLOAT16 = "ml_dtypes.bfloat16"
_GLOBALS = {
    *("numpy.dtype", "numpy.ndarray", _BFLOAT16),
    *(_RECONSTRUCT, _SCALAR, _FROM_BUFFER, _JAX, _JAX_OF_2022),
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict},
}
_IGNORED = ("PROTO", "FRAME", "STOP")
_LIMIT = 10_000  # letters of a name


class _Bytes(NamedTuple):
    """Bytes that stay in the file."""

    place: int
    length: int


class _Call:
    """What a pickle wants called, with which arguments, and the state it would set."""

    __slots__ = ("arguments", "function", "state")

    def __init__(self, function: Any, arguments: Any) -> None:
        self.function, self.arguments, self.state = function, arguments, None


class _Arguments(NamedTuple):
    """The part of a file that :mod:`pickletools` reads arguments from: short ones."""

    file: BinaryIO

    def read(self, length: int) -> bytes:
        return self.file.read(min(length, _LIMIT))

    def readline(self) -> bytes:
        return self.file.readline(_LIMIT)


def write(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    """A dict."""
    pickle.dump(dict(entries), file, protocol=5)


def _operations(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """The instructions of a pickle: so many as a file of its size may need."""
    size = os.fstat(file.fileno()).st_size
    for _ in range(2**20 + size // 32):
        operation = pickletools.code2op[file.read(1).decode("latin1")]  # pyright: ignore
        name, argument = operation.name, None
        if name in _BYTES:
            length = int.from_bytes(file.read(_BYTES[name]), "little")
            argument = _Bytes(file.tell(), length)
            if file.seek(length, os.SEEK_CUR) > size:
                raise CheckpointError("ends too early.")
        elif operation.arg is not None:
            argument = operation.arg.reader(_Arguments(file))  # pyright: ignore
        yield name, argument
        if name == "STOP":
            return
    raise CheckpointError("has more instructions than arrays need.")


def _unpickled(file: BinaryIO) -> Any:
    """What a pickle of arrays and plain containers says, with nothing of it done.

    A pickle is a program for a machine with a stack. This machine has only the
    instructions that make data. It calls nothing, and hashes nothing but strings and
    integers.
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
            twice = type(stack[-1]) is not dict or type(key) not in (str, int)
            if twice or key in stack[-1]:
                raise CheckpointError("has a dict with a key twice, or of no text.")
            stack[-1][key] = value

    for name, argument in _operations(file):
        if name in _LITERALS or name in _BYTES:
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
                    f"asks for {shown(path)}. Only arrays of NumPy and JAX and plain "
                    "containers are read from a pickle."
                )
            stack.append(path)
        elif name == "REDUCE":
            stack.append(_Call(*cut(-2)))
        elif name == "BUILD" and type(stack[-2]) is _Call:
            (stack[-1].state,) = cut(-1)
        elif name not in _IGNORED:
            raise CheckpointError(f"has {name}, which no pickle of arrays needs.")
    return stack.pop()


def _array(file: BinaryIO, item: Any) -> Entry:
    """What a pickle says of an array; or that it is none."""
    match item:
        case _Call(function=function, arguments=(data, dtype, shape, order)) if (
            function == _FROM_BUFFER
        ):
            pass
        case (
            _Call(function=function, state=(_, shape, dtype, fortran, data))
            | _Call(
                function=function,
                arguments=(_, _, (_, shape, dtype, fortran, data), _),
            )
        ) if function in (_RECONSTRUCT, _JAX, _JAX_OF_2022):
            order = "F" if fortran else "C"
        case _Call(function=function, arguments=(dtype, data)) if function == _SCALAR:
            shape, order = (), "C"
        case _:
            return Entry(Claim(OTHER, ()), bytes)
    code = endian = ""
    match dtype:
        case _Call(
            function="numpy.dtype",
            arguments=(str(code), _, _),
            state=(_, str(endian), *_),
        ):
            pass
    if code == _BFLOAT16:
        known = np.dtype(jnp.bfloat16)
    elif re.fullmatch(r"[bcfiuU]\d{1,4}", code):
        known = np.dtype(f"{'>' if endian == '>' else '<'}{code}")
    else:
        known = OTHER
    if type(shape) is not tuple or not all(type(n) is int for n in shape):
        raise CheckpointError("has an array without a shape.")
    if type(data) is not _Bytes:
        raise CheckpointError("has an array without data.")
    # Looked at with its length, not with that of its shape: no more is read.
    return Entry(Claim(known, shape), partial(exactly, file, *data), order)


@contextmanager
def entries(file: BinaryIO) -> Iterator[list[tuple[str, Look]]]:
    """The entries of an open file: those of all dicts in it, by their own names."""
    file.seek(0)
    todo, found = [_unpickled(file)], {}
    if type(todo[0]) is not dict:
        raise CheckpointError("is not a pickle of a dict.")
    seen = {id(content) for content in todo}
    while todo:
        for key, value in todo.pop().items():
            if type(value) is not dict:
                found[key, id(value)] = value
            elif id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
    yield [(str(k), partial(_array, file, item)) for (k, _), item in found.items()]
