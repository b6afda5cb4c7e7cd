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

from adadelta_tx._files._entries import (
    CheckpointError,
    Claim,
    Entry,
    Look,
    exactly,
    refuse,
    shown,
)

_HEADER, _DIGEST = "adadelta_tx:header", "adadelta_tx:digest"
# Version 1 ended with the SHA-256 of all bytes before it, as a matrix in MATLAB's
# format 5: the tags of the matrix, its class, its dimensions, its name and its 32 bytes.
_SEAL = struct.pack(
    "<2I 4I 4I 2I24s 2I",
    *(14, 104, 6, 8, 9, 0, 5, 8, 1, 32, 1, 18, b"adadelta_tx:sha256", 2, 32),
)
_ALIASES, _TARGETS = "duplicate_keys", "duplicate_targets"  # lists of BrainPy 2.2
_TEXT_LIMIT = 2**24  # bytes of a header or a list
_NAMES_LIMIT = 10_000  # names in a list
_DAMAGED = "is damaged: it is not what was written."

Shapes = Callable[[tuple[int, ...]], list[tuple[int, ...]]]


class Stored(NamedTuple):
    """A variable of a file, and what our header says of it, if there is one."""

    look: Look
    told: str | None = None
    digest: str | None = None


class Description(NamedTuple):
    """What a file says of itself; ``None`` is what it does not say."""

    variables: dict[str, Stored]
    shapes: Shapes
    owner: str | None = None
    schedule: str | None = None
    numbers: Mapping[str, Any] | None = None

    def entry(self, name: str, wanted: Claim) -> Entry:
        """A variable's entry, if it can become an array like the one that is wanted."""
        stored = self.variables[name]
        entry = stored.look()
        told = stored.told or str(entry.claim)
        if stored.told:
            fits = told == str(wanted)
            if fits and entry.claim.dtype != _plain_dtype(wanted.dtype):
                raise CheckpointError(f"{_DAMAGED} {name} is {entry.claim}.")
        else:
            fits = _widens(entry.claim.dtype, wanted.dtype)
        if not fits or entry.claim.shape not in self.shapes(wanted.shape):
            codes = wanted.dtype == np.uint16 and not stored.told
            raise CheckpointError(
                f"{name} is {told} in the file, and {wanted} here."
                f"{' It does not say the epsilon that codes belong to.' * codes}"
            )
        return entry

    def value(self, name: str, entry: Entry, wanted: Claim) -> np.ndarray:
        """The array of that entry."""
        stored = self.variables[name]
        array = np.asarray(entry.read().reshape(wanted.shape), order="C")
        if stored.digest not in (None, _sha256(array)):
            raise CheckpointError(f"{_DAMAGED} {name} has another SHA-256.")
        value = array.view(wanted.dtype) if stored.told else array.astype(wanted.dtype)
        if value.dtype.kind in "iu" and not (stored.told or (value == array).all()):
            raise CheckpointError(f"{name} is too large for {wanted.dtype.name}.")
        return value


def entries_of(
    header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The entries of a file of ours.

    Raises:
      ValueError: If two names become one.
    """
    plain = {
        key: array.view(_plain_dtype(array.dtype)) for key, array in arrays.items()
    }
    variables = {
        key: (array.dtype.name, array.shape, _sha256(plain[key]))
        for key, array in arrays.items()
    }
    text = json.dumps({"format": 2, **header, "variables": variables}, allow_nan=False)
    entries = {_HEADER: np.frombuffer(text.encode(), np.uint8)}
    for key, array in plain.items():
        if (name := _entry(key)) in entries:
            raise ValueError(f"Two of the names are written alike: {name!r}.")
        entries[name] = array
    return entries | {_DIGEST: _digest(entries[_HEADER])}


def description_of(
    file: BinaryIO, entries: Mapping[str, Look], shapes: Shapes
) -> Description:
    """What an open file says of itself.

    Raises:
      CheckpointError: If it was of ours, but is not what was written any more.
    """
    header = _header(file, entries)
    if header is None:
        return Description(_brainpys(entries), shapes)
    missing = refuse(f"{_DAMAGED} It lacks an array.")
    variables = {
        key: Stored(
            entries.get(_entry(key), missing),
            f"{dtype} of shape {tuple(shape)}",
            *digest,
        )
        for key, (dtype, shape, *digest) in header["variables"].items()
    }
    numbers = dict(header["numbers"])
    if header["format"] == 1 and math.isnan(numbers["lr"]):
        numbers["lr"] = None
    return Description(variables, shapes, header["name"], header["schedule"], numbers)


def _header(file: BinaryIO, entries: Mapping[str, Look]) -> Any:
    """The header of a file of ours; ``None`` if the file has no likeness to one."""
    size = os.fstat(file.fileno()).st_size
    end = exactly(file, max(0, size - len(_SEAL) - 32), min(size, len(_SEAL)))
    if _HEADER not in entries:
        like_ours = any(_alike(name, m) for name in entries for m in (_HEADER, _DIGEST))
        if like_ours or _alike(end, _SEAL):
            raise CheckpointError(_DAMAGED)
        return None
    array = _short(entries[_HEADER](), min(size, _TEXT_LIMIT))
    text = array.tobytes()
    # A list of nothing takes 60 bytes of memory, and 3 of text.
    if text.count(b"[") + text.count(b"{") > 64 * len(entries):
        raise CheckpointError("has a header that no file has.")
    header = json.loads(text)
    if header["format"] not in (1, 2):
        raise CheckpointError(
            f"has version {header['format']} of our format. This is adadelta_tx for "
            "version 2."
        )
    if header["format"] == 2:
        digest = entries.get(_DIGEST, refuse(_DAMAGED))()
        intact = _short(digest, 32).tobytes() == _digest(array).tobytes()
    else:
        intact = end == _SEAL and exactly(file, size - 32, 32) == _digest_before(
            file, size - 32
        )
    if not intact:
        raise CheckpointError(_DAMAGED)
    return header


def _digest_before(file: BinaryIO, end: int) -> bytes:
    digest = hashlib.sha256()
    for place in range(0, end, 2**20):
        digest.update(exactly(file, place, min(2**20, end - place)))
    return digest.digest()


def _brainpys(entries: Mapping[str, Look]) -> dict[str, Stored]:
    """The variables of a file of BrainPy's.

    In .npz and .mat, 2.0 and 2.1 wrote "--" for a dot. 2.2 to 2.4 wrote a variable that
    has two names once, and lists of the others and of what they stand for.
    """
    variables: dict[str, Stored] = {}

    def add(name: str, stored: Stored) -> None:
        if name in variables:
            stored = Stored(refuse(f"has two entries called {shown(name)!r}."))
        variables[name] = stored

    for name, look in entries.items():
        add(name if "." in name else name.replace("--", "."), Stored(look))
    if _ALIASES in variables and _TARGETS in variables:
        lists = [_names(variables.pop(name).look()) for name in (_ALIASES, _TARGETS)]
        for alias, target in zip(*lists, strict=True):
            add(alias, variables[target])
    return variables


def _names(entry: Entry) -> list[str]:
    claim = entry.claim
    if claim.dtype.kind not in "SU" or math.prod(claim.shape) > _NAMES_LIMIT:
        raise CheckpointError(f"has a list of second names that is {claim}.")
    names = _short(entry, _TEXT_LIMIT).ravel().astype(str).tolist()
    if not claim.shape:
        names = names[0].split("+", _NAMES_LIMIT)
    return [name.strip() for name in names]


def _short(entry: Entry, most: int) -> np.ndarray:
    if entry.claim.size > most:
        raise CheckpointError("has a text that is too long.")
    return entry.read()


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


def _digest(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(_sha256(array)), np.uint8)


def _alike(one: str | bytes, other: str | bytes) -> bool:
    """Whether more than two thirds of what has a length are the same."""
    return sum(map(operator.eq, one, other)) > len(other) * 2 / 3
