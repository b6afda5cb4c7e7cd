"""Whose state a file is: told by our header, or inferred from BrainPy's names.

A file of ours is an ordinary file of its format with two more entries. The header, the
first, has the dtype, the shape and the SHA-256 of each array; the other, the last, the
SHA-256 of the header. So what is read is checked, whatever else there is in the file.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np

from adadelta_tx._files.entry import (
    CheckpointError,
    Entries,
    Entry,
    collected,
    looked_at,
)

_HEADER, _DIGEST = "adadelta_tx:header", "adadelta_tx:digest"
# A list of nothing takes JSON 60 bytes of memory, and 3 of text. Here is none.
_WRITTEN = re.compile(
    rb'\{"format": 2, [^{}]{1,5000}\{[^{}]{1,5000}\}, "variables": \{'
    rb'(?:"(?:[^"\\]|\\.)*+": "\w{1,20} \([\d,]*\) [0-9a-f]{64}"(?:, |(?=\})))*+\}\}'
)
_ALIASES, _TARGETS = "duplicate_keys", "duplicate_targets"  # lists of BrainPy 2.2
_LIST, _SECOND = 2**22, 10_000  # bytes of a list, and names in it
_DAMAGED = "is damaged: it is not what was written."

Shapes = Callable[[tuple[int, ...]], list[tuple[int, ...]]]


class Description(NamedTuple):
    """What a file says of itself; ``None`` is what it does not say."""

    variables: Entries
    shapes: Shapes  # an array of one of ours may have in a foreign file
    owner: str | None = None
    schedule: str | None = None
    numbers: Mapping[str, Any] | None = None


def entries_of(
    header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The entries of a file of ours."""
    entries, variables = {_HEADER: np.zeros(0, np.uint8)}, {}
    for key, array in arrays.items():
        if (name := _entry_name(key)) in entries:
            raise ValueError(f"Two of the names are written alike: {name!r}.")
        entries[name] = array.view(_plain(array.dtype))
        digest = _sha256(entries[name])
        shape = ",".join(map(str, array.shape))
        variables[key] = f"{array.dtype.name} ({shape}) {digest}"
    text = json.dumps({"format": 2, **header, "variables": variables}).encode()
    entries[_HEADER] = np.frombuffer(text, np.uint8)
    return entries | {_DIGEST: np.frombuffer(hashlib.sha256(text).digest(), np.uint8)}


def described(data: bytes, entries: Entries, shapes: Shapes) -> Description:
    """What a file says of itself, of whose bytes these are the entries."""
    if _HEADER not in entries:
        if any(mark in data for mark in (b"adadelta_tx:", b', "variables": {"')):
            raise CheckpointError(_DAMAGED)
        return Description(_brainpys(entries), shapes)
    text = looked_at(entries, _HEADER).read(2**22 + len(data) // 2).tobytes()
    digest = looked_at(entries, _DIGEST).read(32).tobytes()
    if digest != hashlib.sha256(text).digest():
        raise CheckpointError(_DAMAGED)
    if not _WRITTEN.fullmatch(text):
        raise CheckpointError("has a header of ours that is of no version known here.")
    header = json.loads(text)
    variables = {
        key: partial(_ours, entries, key, shapes, told)
        for key, told in header["variables"].items()
    }
    numbers = dict(header["numbers"])
    return Description(variables, shapes, header["name"], header["schedule"], numbers)


def _ours(entries: Entries, key: str, shapes: Shapes, told: str) -> Entry:
    """An entry as the array that it was, which is checked when it is read."""
    stored = looked_at(entries, _entry_name(key))
    name, axes, digest = told.split(" ")
    dtype = jnp.dtype(name)
    shape = tuple(int(n) for n in axes[1:-1].split(",") if n)
    if stored.dtype != _plain(dtype) or stored.shape not in shapes(shape):
        raise CheckpointError(f"{_DAMAGED} {key} is {stored}.")

    def data() -> np.ndarray:
        content = np.ascontiguousarray(stored.read())
        if digest != _sha256(content):
            raise CheckpointError(f"{_DAMAGED} {key} has another SHA-256.")
        return content.ravel().view(np.uint8)

    return Entry(dtype, shape, data)


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
    if entry.dtype.kind not in "SU" or math.prod(entry.shape) > _SECOND:
        raise CheckpointError(f"has a list of second names that is {entry}.")
    array = entry.read(_LIST).ravel()
    array = np.char.decode(array, "utf-8") if entry.dtype.kind == "S" else array
    if (array.astype(str).view(np.uint32) > sys.maxunicode).any():
        raise CheckpointError("has a text of what are no letters.")
    names = array.tolist() if entry.shape else array[0].split("+", _SECOND)
    return [name.strip() for name in names]


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry_name(name: str) -> str:
    """A name for a variable that every format can hold."""
    name = quote(name, safe=" '[]()", errors="surrogateescape")
    return "%5F" + name[1:] if name.startswith("_") else name


def _plain(dtype: np.dtype) -> np.dtype:
    """The dtype itself, or unsigned integers where not every format can hold it."""
    narrow = dtype.itemsize < 4 and not np.issubdtype(dtype, np.integer)
    other = dtype.kind not in "biufc" or (narrow and dtype.kind != "b")
    return np.dtype(f"u{dtype.itemsize}") if other else dtype
