"""Pickles of arrays in plain containers, read without doing anything that they say.

https://docs.python.org/3/library/pickletools.html: of the instructions of protocols 2
to 5 are read those that make data. ``pickle.Unpickler`` with ``find_class`` is not
enough: nine bytes take 4 GB, deep lists end the process, and 60 bytes change the size
of bfloat16 for everyone.
"""

import pickle
import pickletools
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from adadelta_tx._files.entry import (
    NAMES,
    OTHER,
    CheckpointError,
    Entry,
    ForeignError,
    Look,
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
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE"}
_LITERALS |= {"BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
_LITERALS |= {"BYTEARRAY8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONSTANTS |= {"EMPTY_LIST": None}  # no array is in one
# How much of the stack an instruction takes; 0 is all above the last mark.
_TAKES = {"TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "APPENDS": 0}
_TAKES |= {"SETITEM": 2, "SETITEMS": 0, "STACK_GLOBAL": 2, "REDUCE": 2, "BUILD": 1}
_LARGE = {"EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE"}


def write(file: Any, entries: Mapping[str, np.ndarray]) -> None:
    """A dict."""
    pickle.dump(dict(entries), file, protocol=5)


def _unpickled(data: bytes) -> Any:
    """What a pickle of arrays and plain containers says, with nothing of it done.

    A pickle is a program for a machine with a stack. This machine has only the
    instructions that make data. It calls nothing, and hashes only strings.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []
    left = 24 * NAMES  # instructions, of which some take more memory
    operations: Iterator[Any] = pickletools.genops(data)
    for operation, argument, _ in operations:
        name, items = operation.name, []
        left -= 3 if name in _LARGE else 1
        if left < 0:
            raise CheckpointError("has more instructions than arrays need.")
        if name in _TAKES:
            start = -_TAKES[name] or marks.pop()
            items, stack[start:] = stack[start:], []
        if name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            if argument not in (None, len(memo)):
                raise ForeignError("has its memo in another order than Python's.")
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            marks.append(len(stack))
        elif name.startswith("TUPLE"):
            stack.append(tuple(items))
        elif name.startswith("SETITEM"):
            target: Any = stack[-1]
            for key, value in zip(items[::2], items[1::2], strict=True):
                if type(key) is str:  # hashes of integers may be all one
                    if type(target) is not dict or key in target:
                        raise CheckpointError("has a dict with a key twice.")
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
            stack.append([*items, None])  # a function, arguments, a state to be set
        elif name == "BUILD" and type(stack[-1]) is list:
            stack[-1][2] = items[0]
        elif name not in ("PROTO", "FRAME", "APPEND", "APPENDS", "STOP"):
            raise ForeignError(f"has {name}, which no pickle of arrays needs.")
    return stack.pop()


def _array(item: Any) -> Entry:
    """What a pickle says of an array; or that it is none."""
    order = "C"
    match item:
        case ["jax", (_, _, (_, shape, dtype, fortran, data), _), _]:
            order = "CF"[bool(fortran)]
        case ["reconstruct", _, (_, shape, dtype, fortran, data)]:
            order = "CF"[bool(fortran)]
        case ["buffer", (data, dtype, shape, order), _]:
            pass
        case ["scalar", (dtype, data), _]:
            shape = ()
        case _:
            return Entry(OTHER, (), bytes)
    known = OTHER
    match dtype:
        case ["dtype", ("bfloat16", _, _), _]:
            known = np.dtype(jnp.bfloat16)
        case ["dtype", (str(code), _, _), (_, str(endian), *_)]:
            if re.fullmatch(r"[bcfiuU]\d{1,4}", code):
                known = np.dtype(f"{'>' if endian == '>' else '<'}{code}")
    if type(shape) is not tuple or not all(type(n) is int for n in shape):
        raise CheckpointError("has an array without a shape.")
    if not isinstance(data, bytes | bytearray):
        raise CheckpointError("has an array without data.")
    return Entry(known, shape, lambda: data, order)


def entries(data: bytes) -> Iterator[tuple[str, Look]]:
    """The entries of a file: those of all dicts in it, by their own names."""
    todo: list[Any] = [_unpickled(data)]
    if type(todo[0]) is not dict:
        raise CheckpointError("is not a pickle of a dict.")
    seen = {id(todo[0])}
    while todo:
        for key, value in todo.pop().items():
            if type(value) is not dict:
                yield key, partial(_array, value)
            elif id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
