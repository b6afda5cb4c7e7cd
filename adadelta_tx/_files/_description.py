"""Whose state a file is: told by our header, or inferred from BrainPy's names.

A file of ours is an ordinary file of its format with two more entries. The header, the
first, has the dtype, the shape and the SHA-256 of each array; the other, the last, the
SHA-256 of the header. So what is read is checked, whatever else there is in the file.
"""

import hashlib
import json
import math
import operator
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np

from adadelta_tx._files._entry import CheckpointError, Entry, Look, exactly, refuse

_HEADER, _DIGEST = "adadelta_tx:header", "adadelta_tx:digest"
# Version 1 ended with the SHA-256 of all before it, in a matrix of MATLAB's format 5:
# the tags of the matrix, its class, its dimensions, its name and its 32 bytes.
_SEAL = struct.pack(
    "<2I 4I 4I 2I24s 2I",
    *(14, 104, 6, 8, 9, 0, 5, 8, 1, 32, 1, 18, b"adadelta_tx:sha256", 2, 32),
)
_ALIASES, _TARGETS = "duplicate_keys", "duplicate_targets"  # lists of BrainPy 2.2
_TEXT_LIMIT = 2**24  # bytes of a header or of a list
_NAMES_LIMIT = 10_000  # names in a list
_DAMAGED = "is damaged: it is not what was written."

Shapes = Callable[[tuple[int, ...]], list[tuple[int, ...]]]


class Stored(NamedTuple):
    """A variable of a file, and what our header says of it, if there is one."""

    look: Look
    told: str = ""
    digest: str = ""


class Description(NamedTuple):
    """What a file says of itself; ``None`` is what it does not say."""

    variables: dict[str, Stored]
    shapes: Shapes
    owner: str | None = None
    schedule: str | None = None
    numbers: Mapping[str, Any] | None = None

    def array(self, name: str, like: Any) -> np.ndarray:
        """A variable's array, if it can become one of the dtype and shape of another.

        Raises:
          CheckpointError: If it cannot, or is not what was written.
        """
        look, told, digest = self.variables[name]
        entry, here = look(), str(Entry(like.dtype, like.shape, bytes))
        fits = told == here if told else _widens(entry.dtype, like.dtype)
        if not fits or entry.shape not in self.shapes(like.shape):
            codes = like.dtype == np.uint16 and not told
            raise CheckpointError(
                f"{name} is {told or entry} in the file, and {here} here."
                f"{' It does not say the epsilon that codes belong to.' * codes}"
            )
        if told and entry.dtype != _plain_dtype(like.dtype):
            raise CheckpointError(f"{_DAMAGED} {name} is {entry}.")
        array = np.asarray(entry.read().reshape(like.shape), order="C")
        if digest and digest != _sha256(array):
            raise CheckpointError(f"{_DAMAGED} {name} has another SHA-256.")
        value = array.view(like.dtype) if told else array.astype(like.dtype)
        if value.dtype.kind in "iu" and not (told or np.array_equal(value, array)):
            raise CheckpointError(f"{name} is too large for {like.dtype.name}.")
        return value


def entries_of(
    header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The entries of a file of ours.

    Raises:
      ValueError: If two names become one.
    """
    entries, variables = {_HEADER: np.zeros(0)}, {}
    for key, array in arrays.items():
        if (name := _entry(key)) in entries:
            raise ValueError(f"Two of the names are written alike: {name!r}.")
        entries[name] = array.view(_plain_dtype(array.dtype))
        variables[key] = array.dtype.name, array.shape, _sha256(entries[name])
    text = json.dumps({"format": 2, **header, "variables": variables}).encode()
    digest = hashlib.sha256(text).digest()
    return {**entries, _HEADER: _bytes(text), _DIGEST: _bytes(digest)}


def description_of(
    file: BinaryIO, entries: Mapping[str, Look], shapes: Shapes
) -> Description:
    """What an open file says of itself.

    Raises:
      CheckpointError: If it was one of ours, but is not what was written any more.
    """
    size = os.fstat(file.fileno()).st_size
    end = exactly(file, max(0, size - len(_SEAL) - 32), min(size, len(_SEAL)))
    if _HEADER not in entries:
        marks = ((name, mark) for name in entries for mark in (_HEADER, _DIGEST))
        if any(_alike(*pair) for pair in (*marks, (end, _SEAL))):
            raise CheckpointError(_DAMAGED)
        return Description(_brainpys(entries), shapes)
    text = entries[_HEADER]().read(min(size, _TEXT_LIMIT)).tobytes()
    # A list of nothing takes 60 bytes of memory, and 3 of text.
    if text.count(b"[") + text.count(b"{") > 64 * len(entries):
        raise CheckpointError("has a header of more variables than there are.")
    header = json.loads(text)
    version, numbers = header["format"], dict(header["numbers"])
    if version == 1:
        intact = end == _SEAL and _digest_before(file, size - 32)
        numbers["lr"] = None if math.isnan(numbers["lr"]) else numbers["lr"]
    elif version == 2:
        digest = entries.get(_DIGEST, refuse(_DAMAGED))().read(32).tobytes()
        intact = digest == hashlib.sha256(text).digest()
    else:
        raise CheckpointError(
            f"has version {version} of our format. This is adadelta_tx for version 2."
        )
    if not intact:
        raise CheckpointError(_DAMAGED)
    missing = refuse(f"{_DAMAGED} It lacks an array.")
    variables = {
        key: Stored(
            entries.get(_entry(key), missing), f"{dtype} of shape {(*shape,)}", *digest
        )
        for key, (dtype, shape, *digest) in header["variables"].items()
    }
    return Description(variables, shapes, header["name"], header["schedule"], numbers)


def _digest_before(file: BinaryIO, end: int) -> bool:
    digest = hashlib.sha256()
    for place in range(0, end, 2**20):
        digest.update(exactly(file, place, min(2**20, end - place)))
    return digest.digest() == exactly(file, end, 32)


def _brainpys(entries: Mapping[str, Look]) -> dict[str, Stored]:
    """The variables of a file of BrainPy's.

    In .npz and .mat, 2.0 and 2.1 wrote "--" for a dot. 2.2 and 2.3 wrote a variable
    that has two names once, and lists of other names and of what they stand for.
    """
    variables: dict[str, Stored] = {}

    def add(name: str, stored: Stored) -> None:
        twice = Stored(refuse(f"has two entries called {name!r}."))
        variables[name] = twice if name in variables else stored

    for name, look in entries.items():
        add(name if "." in name else name.replace("--", "."), Stored(look))
    if _ALIASES in variables and _TARGETS in variables:
        lists = [_names(variables.pop(name).look()) for name in (_ALIASES, _TARGETS)]
        for alias, target in zip(*lists, strict=True):
            add(alias, variables[target])
    return variables


def _names(entry: Entry) -> list[str]:
    if entry.dtype.kind not in "SU" or math.prod(entry.shape) > _NAMES_LIMIT:
        raise CheckpointError(f"has a list of second names that is {entry}.")
    names = entry.read(_TEXT_LIMIT).ravel().astype(str).tolist()
    names = names if entry.shape else names[0].split("+", _NAMES_LIMIT)
    return [name.strip() for name in names]


def _entry(name: str) -> str:
    """A name for a variable that every format can hold."""
    name = quote(name, safe=" '[]()", errors="surrogateescape")
    return "%5F" + name[1:] if name.startswith("_") else name


def _plain_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype itself, or unsigned integers where not every format can hold it."""
    narrow = dtype.itemsize < 4 and not np.issubdtype(dtype, np.integer)
    other = dtype.kind not in "biufc" or (narrow and dtype.kind != "b")
    return np.dtype(f"u{dtype.itemsize}") if other else dtype


def _widens(dtype: np.dtype, wide: np.dtype) -> bool:
    """Whether numbers of a dtype can be had in another one, if integers are small."""
    if all(jnp.issubdtype(d, jnp.signedinteger) for d in (dtype, wide)):
        return True
    if all(jnp.issubdtype(d, jnp.floating) for d in (dtype, wide)):
        return np.can_cast(dtype, wide, "safe")
    return dtype == wide != np.uint16  # which codes are


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def _alike(one: str | bytes, other: str | bytes) -> bool:
    """Whether two texts have more than two thirds of the second one's length alike."""
    return sum(map(operator.eq, one, other)) > len(other) * 2 / 3
