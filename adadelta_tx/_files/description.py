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
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np

from adadelta_tx._files.entry import (
    CheckpointError,
    Entries,
    Entry,
    collected,
    exactly,
    looked_at,
)

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


class Description(NamedTuple):
    """What a file says of itself; ``None`` is what it does not say."""

    variables: Entries
    shapes: Shapes
    owner: str | None = None
    schedule: str | None = None
    numbers: Mapping[str, Any] | None = None

    def array(self, name: str, like: Any) -> np.ndarray:
        """A variable's array, if it can have the dtype and shape of another one."""
        entry, ours = looked_at(self.variables, name), self.owner is not None
        fits = entry.dtype == like.dtype if ours else _widens(entry.dtype, like.dtype)
        shapes = [like.shape] if ours else self.shapes(like.shape)
        if not fits or entry.shape not in shapes:
            codes = like.dtype == np.uint16 and not ours
            raise CheckpointError(
                f"{name} is {entry} in the file, and {like.dtype.name} of shape "
                f"{like.shape} here."
                f"{' It does not say the epsilon that codes belong to.' * codes}"
            )
        array = entry.read().reshape(like.shape)
        value = array.astype(like.dtype, copy=False)
        if value.dtype.kind in "iu" and not np.array_equal(value, array):
            raise CheckpointError(f"{name} is too large for {like.dtype.name}.")
        return value


def entries_of(
    header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The entries of a file of ours."""
    entries, variables = {_HEADER: np.zeros(0, np.uint8)}, {}
    for key, array in arrays.items():
        if (name := _entry_name(key)) in entries:
            raise ValueError(f"Two of the names are written alike: {name!r}.")
        entries[name] = array.view(_plain(array.dtype))
        variables[key] = array.dtype.name, array.shape, _sha256(entries[name].tobytes())
    text = json.dumps({"format": 2, **header, "variables": variables}).encode()
    entries[_HEADER] = np.frombuffer(text, np.uint8)
    return entries | {_DIGEST: np.frombuffer(hashlib.sha256(text).digest(), np.uint8)}


def described(file: BinaryIO, entries: Entries, shapes: Shapes) -> Description:
    """What an open file says of itself."""
    size = os.fstat(file.fileno()).st_size
    end = exactly(file, max(0, size - len(_SEAL) - 32), min(size, len(_SEAL)))
    if _HEADER not in entries:
        marks = ((name, mark) for name in entries for mark in (_HEADER, _DIGEST))
        if any(_alike(*pair) for pair in (*marks, (end, _SEAL))):
            raise CheckpointError(_DAMAGED)
        return Description(_brainpys(entries), shapes)
    text = looked_at(entries, _HEADER).read(min(size, _TEXT_LIMIT)).tobytes()
    # A list of nothing takes 60 bytes of memory, and 3 of text.
    if text.count(b"[") + text.count(b"{") > 64 * len(entries):
        raise CheckpointError("has a header of more variables than there are.")
    header = json.loads(text)
    version, numbers = header["format"], dict(header["numbers"])
    if version == 1:
        intact = end == _SEAL and _digest_before(file, size - 32)
        numbers["lr"] = None if math.isnan(numbers["lr"]) else numbers["lr"]
    elif version == 2:
        digest = looked_at(entries, _DIGEST).read(32).tobytes()
        intact = digest == hashlib.sha256(text).digest()
    else:
        raise CheckpointError(
            f"has version {version} of our format. This is adadelta_tx for version 2."
        )
    if not intact:
        raise CheckpointError(_DAMAGED)
    variables = {
        key: partial(_ours, entries, key, shapes, *told)
        for key, told in header["variables"].items()
    }
    return Description(variables, shapes, header["name"], header["schedule"], numbers)


def _ours(
    entries: Entries, key: str, shapes: Shapes, name: str, axes: Any, digest: str = ""
) -> Entry:
    """An entry as the array that it was, which is checked when it is read."""
    stored = looked_at(entries, _entry_name(key))
    dtype, shape = jnp.dtype(str(name)[:30]), tuple(axes)
    if stored.dtype != _plain(dtype) or stored.shape not in shapes(shape):
        raise CheckpointError(f"{_DAMAGED} {key} is {stored}.")

    def data() -> bytes:
        content = stored.read().tobytes()
        if digest and digest != _sha256(content):
            raise CheckpointError(f"{_DAMAGED} {key} has another SHA-256.")
        return content

    return Entry(dtype, shape, data)


def _digest_before(file: BinaryIO, end: int) -> bool:
    digest = hashlib.sha256()
    for place in range(0, end, 2**20):
        digest.update(exactly(file, place, min(2**20, end - place)))
    return digest.digest() == exactly(file, end, 32)


def _brainpys(entries: Entries) -> Entries:
    """The variables of a file of BrainPy's.

    In .npz and .mat, 2.0 and 2.1 wrote "--" for a dot. 2.2 and 2.3 wrote a variable
    that has two names once, and lists of other names and of what they stand for.
    """
    found = [(x if "." in x else x.replace("--", "."), y) for x, y in entries.items()]
    if _ALIASES in entries and _TARGETS in entries:
        lists = [_names(looked_at(entries, name)) for name in (_ALIASES, _TARGETS)]
        found = [(name, y) for name, y in found if name not in (_ALIASES, _TARGETS)]
        found += [(alias, entries[x]) for alias, x in zip(*lists, strict=True)]
    return collected(found)


def _names(entry: Entry) -> list[str]:
    if entry.dtype.kind not in "SU" or math.prod(entry.shape) > _NAMES_LIMIT:
        raise CheckpointError(f"has a list of second names that is {entry}.")
    array = entry.read(_TEXT_LIMIT).ravel()
    array = np.char.decode(array, "utf-8") if entry.dtype.kind == "S" else array
    if (array.astype(str).view(np.uint32) > sys.maxunicode).any():
        raise CheckpointError("has a text of what are no letters.")
    names = array.tolist() if entry.shape else array[0].split("+", _NAMES_LIMIT)
    return [name.strip() for name in names]


def _entry_name(name: str) -> str:
    """A name for a variable that every format can hold."""
    name = quote(name, safe=" '[]()", errors="surrogateescape")
    return "%5F" + name[1:] if name.startswith("_") else name


def _plain(dtype: np.dtype) -> np.dtype:
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


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def _alike(one: str | bytes, other: str | bytes) -> bool:
    """Whether two texts have more than two thirds of the second one's length alike."""
    return sum(map(operator.eq, one, other)) > len(other) * 2 / 3
