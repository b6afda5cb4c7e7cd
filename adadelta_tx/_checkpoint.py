"""Files of an optimizer's state: written whole or not at all, and checked before use.

A file of ours is an ordinary file of its format, with one array for each variable, a
header and, after all that, a seal: the SHA-256 of every byte before it. The seal is
checked before anything is parsed. A file without any trace of us is read as BrainPy's.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import stat
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

from adadelta_tx._formats import (
    ALIASES,
    FORMATS,
    OTHER,
    TARGETS,
    CheckpointError,
    Claim,
    Format,
    Reader,
)
from adadelta_tx._hyperparameters import NUMBERS, number
from adadelta_tx._schedules import rate, restore_rate
from adadelta_tx._variables import assign, value_of

StrPath = str | os.PathLike[str]

_log = logging.getLogger("adadelta_tx")

_VERSION = 1
_MARK = b"adadelta_tx:"  # no variable's entry has a colon
_HEADER = "adadelta_tx:header"
# A matrix in MATLAB's format 5, which allows nothing else at the end of a file: the
# tags of the matrix, its class, its dimensions, its name and its 32 bytes.
_SEAL = struct.pack(
    "<2I 4I 4I 2I24s 2I",
    *(14, 104, 6, 8, 9, 0, 5, 8, 1, 32, 1, 18, b"adadelta_tx:sha256", 2, 32),
)
_TEXT_LIMIT = 2**24  # bytes of text that even a small file may claim


class _Plan(NamedTuple):
    """What loading will set, and what there is to say about it."""

    variables: list[Any]
    values: list[Any]
    numbers: dict[str, Any]
    warnings: list[str]
    lines: list[str]


def save_states(
    optimizer: Any,
    filename: StrPath,
    variables: Mapping[str, Any] | None = None,
    *,
    compressed: bool = False,
) -> None:
    """Writes a file: see :meth:`adadelta_tx.Adadelta.save_states`."""
    form = _format(filename)
    if compressed and form is not FORMATS[".npz"]:
        raise ValueError(f"compressed is for .npz files, not for {filename}.")
    own = optimizer.vars()
    arrays = _arrays(own if variables is None else variables)
    header = {
        "format": _VERSION,
        "name": optimizer.name,
        "schedule": optimizer.lr.name,
        "numbers": {"lr": rate(optimizer.lr), **optimizer.numbers()},
        "variables": {key: (x.dtype.name, x.shape) for key, x in arrays.items()},
    }
    entries = {_HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    entries |= {_entry(key): _plain(array) for key, array in arrays.items()}
    with _replacing(filename) as file:
        form.write(file, entries, **({"compressed": True} if compressed else {}))
        file.seek(0, os.SEEK_END)
        file.write(_SEAL)
        file.write(_digest(file, file.tell()))
    if not _leaves(own).keys() <= arrays.keys():
        _log.warning(
            "%s: does not hold the state of %s, whose vars() are not among the "
            "variables. It cannot be loaded.",
            filename,
            optimizer.name,
        )


def load_states(
    optimizer: Any,
    filename: StrPath,
    variables: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> None:
    """Reads a file: see :meth:`adadelta_tx.Adadelta.load_states`."""
    if variables is not None:
        raise NotImplementedError("load_states of other variables than vars()")
    form = _format(filename)
    try:
        if os.path.exists(filename) and not os.path.isfile(filename):
            raise CheckpointError("is not a file.")
        with open(filename, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            sealed = _is_sealed(file, size)
            file.seek(0)
            with form.reader(file) as reader:
                plan = _plan(optimizer, form, reader, size, sealed)
        old = {key: getattr(optimizer, key) for key in NUMBERS}
        old["lr"] = rate(optimizer.lr)
        changed = {key: new for key, new in plan.numbers.items() if new != old[key]}
        if "lr" in changed:
            restore_rate(optimizer.lr, changed["lr"])
    except CheckpointError as error:
        raise CheckpointError(f"{filename}: {error}") from error.__cause__
    except Exception as error:
        raise CheckpointError(
            f"{filename}: cannot be read as a {_extension(filename)} file of an "
            f"optimizer: {type(error).__name__}: {error}"
        ) from error
    assign(plan.variables, plan.values)
    for key, new in changed.items():
        if key != "lr":
            setattr(optimizer, key, new)
        _log.warning(
            "%s: %s is %s, as in the file, not %s", filename, key, new, old[key]
        )
    for line in plan.warnings:
        _log.warning("%s: %s", filename, line)
    for line in plan.lines if verbose else ():
        _log.info("%s: %s", filename, line)


def _extension(filename: StrPath) -> str:
    return os.path.splitext(filename)[1].lower() or ".npz"


def _format(filename: StrPath) -> Format:
    extension = _extension(filename)
    if extension not in FORMATS:
        raise CheckpointError(
            f"{filename}: no format has the extension {extension!r}. "
            f"There are {', '.join(FORMATS)}."
        )
    return FORMATS[extension]


def _arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values of variables, or of arrays, by name: one for each leaf of a tree."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be a dict by name, got {variables!r}.")
    for name in variables:
        if not isinstance(name, str) or not name.strip("."):
            raise TypeError(f"variables must have names, got {name!r} for one.")
    leaves = _leaves(variables)
    for name, leaf in leaves.items():
        if isinstance(leaf, Tracer):
            raise RuntimeError(f"{name!r} cannot be saved inside a JAX transformation.")
        if not getattr(leaf, "is_fully_addressable", True):
            raise CheckpointError(
                f"{name!r} is spread over several processes. Save the state of the "
                "transformation adadelta_tx.adadelta() with Orbax."
            )
    arrays = {}
    for name, leaf in jax.device_get(leaves).items():
        try:
            array = np.asarray(leaf, order="C")
        except TypeError as error:
            raise TypeError(f"variables[{name!r}]: {error}") from error
        if array.dtype != bool and not jnp.issubdtype(array.dtype, np.number):
            raise TypeError(
                f"variables[{name!r}] is not an array of numbers: {leaf!r}."
            )
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return arrays


def _leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    leaves = {}
    for name, variable in variables.items():
        for path, leaf in tree_flatten_with_path(value_of(variable))[0]:
            key = name + keystr(path)
            if key in leaves:
                raise ValueError(f"Two values have the name {key!r}.")
            leaves[key] = leaf
    return leaves


def _entry(name: str) -> str:
    """A name for a variable that every format can hold."""
    name = quote(name, safe=" '[]()", errors="surrogateescape")
    return "%5F" + name[1:] if name.startswith("_") else name


def _plain_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype itself, or unsigned integers where not every format can hold it."""
    narrow = dtype.itemsize < 4 and not np.issubdtype(dtype, np.integer)
    other = dtype.kind not in "biufc" or (narrow and dtype.kind != "b")
    return np.dtype(f"u{dtype.itemsize}") if other else dtype


def _plain(array: np.ndarray) -> np.ndarray:
    return array.view(_plain_dtype(array.dtype))


@contextmanager
def _replacing(filename: StrPath) -> Iterator[BinaryIO]:
    """A new file that takes the place of another when it is complete on the disk."""
    path = os.path.realpath(filename)
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "There is no folder", folder)
    exists = os.path.exists(path)
    if (exists and not os.path.isfile(path)) or not os.path.basename(filename):
        raise IsADirectoryError(errno.EISDIR, "Not a regular file", str(filename))
    mode = stat.S_IMODE(os.stat(path).st_mode) if exists else 0o666
    temporary = os.path.join(folder, f".{name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        # No one may read this who may not read the old one.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(temporary, flags, mode), "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if exists:
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The file is in its place. Not every file system can flush a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(file: BinaryIO, size: int) -> bytes:
    """The SHA-256 of the first bytes of a file."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(size, 2**20))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()


def _is_sealed(file: BinaryIO, size: int) -> bool:
    """Whether a file is ours.

    Raises:
      CheckpointError: If it was, but is not what was written any more.
    """
    start = size - hashlib.sha256().digest_size
    file.seek(max(0, start - len(_SEAL)))
    end = file.read()
    if end.startswith(_SEAL) and end[len(_SEAL) :] == _digest(file, start):
        return True
    file.seek(0)
    before = b""
    while chunk := file.read(2**20):
        if _MARK in before + chunk:
            raise CheckpointError("is damaged: it is not what was written.")
        before = chunk[-len(_MARK) :]
    return False


def _plan(
    optimizer: Any, form: Format, reader: Reader, size: int, sealed: bool
) -> _Plan:
    """What loading will do. All that can be wrong with a file is found here."""
    header = _header(reader, size) if sealed else {}
    if sealed:
        entries = {key: _entry(key) for key in header["variables"]}
        targets, warnings = _targets(optimizer, header, entries)
    else:
        entries = _brainpys_entries(reader, size)
        targets, warnings = _brainpys_targets(optimizer, entries)

    def told(key: str) -> str:
        if not sealed:
            return str(reader.claims[entries[key]])
        dtype, shape = header["variables"][key]
        return f"{dtype} of shape {tuple(shape)}"

    leaves = _leaves(targets)
    for key, leaf in leaves.items():
        if isinstance(leaf, Tracer):
            raise CheckpointError("it cannot be loaded inside a JAX transformation.")
        stored = reader.claims.get(entries[key], Claim(OTHER, ()))
        here = f"{leaf.dtype.name} of shape {leaf.shape}"
        fits = stored.shape == form.shape(leaf.shape) and (
            (told(key) == here and stored.dtype == _plain_dtype(np.dtype(leaf.dtype)))
            if sealed
            else _widens(stored.dtype, leaf.dtype)
        )
        if not fits:
            why = " It does not say the epsilon that codes belong to."
            raise CheckpointError(
                f"{key} is {told(key)} in the file, and {here} here."
                f"{why if leaf.dtype == np.uint16 and not sealed else ''}"
            )
    arrays = reader.read([entries[key] for key in leaves])
    values = {}
    for key, leaf in leaves.items():
        array = np.asarray(arrays[entries[key]])
        if (array.dtype, array.shape) != reader.claims[entries[key]]:
            raise CheckpointError(f"{key} is not what the file says that it is.")
        array = array.reshape(leaf.shape)
        value = array.view(leaf.dtype) if sealed else array.astype(leaf.dtype)
        if value.dtype.kind in "iu" and not np.array_equal(value, array):
            raise CheckpointError(f"{key} is too large for {leaf.dtype.name}.")
        sharding = leaf.sharding if getattr(leaf, "committed", False) else None
        values[key] = jax.device_put(value, sharding)
        if values[key].dtype != leaf.dtype:
            raise CheckpointError(f"{key} is {leaf.dtype.name}: enable jax_enable_x64.")
    trees = [
        jax.tree.structure(value_of(variable)).unflatten(
            [values[leaf] for leaf in _leaves({key: variable})]
        )
        for key, variable in targets.items()
    ]
    numbers = {}
    if sealed:
        saved = header["numbers"]
        numbers = {key: number(key, saved[key], *NUMBERS[key]) for key in NUMBERS}
        schedule, lr = header["schedule"], optimizer.lr
        if _kind(schedule) == _kind(lr.name):
            lr = saved["lr"]  # a number; NaN or nothing where a schedule gives it
            numbers["lr"] = None if lr is None or math.isnan(lr) else lr + 0.0
        else:
            warnings.append(f"lr stays {lr!r}; the file's was a {schedule}.")
    lines = [f"loads {told(key)} from {key}" for key in leaves]
    lines += [f"loads {key} = {value}" for key, value in numbers.items()]
    lines += [f"leaves {told(key)} at {key}" for key in entries if key not in leaves]
    return _Plan(list(targets.values()), trees, numbers, warnings, lines)


def _header(reader: Reader, size: int) -> dict[str, Any]:
    header = json.loads(_text(reader, _HEADER, size).tobytes())
    if header["format"] != _VERSION:
        raise CheckpointError(
            f"has version {header['format']} of our format. This is adadelta_tx for "
            f"version {_VERSION}."
        )
    return header


def _targets(
    optimizer: Any, header: Mapping[str, Any], names: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Our variables by their names in a file of ours, and what it has not."""
    name, schedule = header["name"], header["schedule"]
    found = _owners(optimizer, names)
    if optimizer.name != name and len(found) > 1:
        raise CheckpointError(
            f"it has variables of {_some(found)}, and was saved by {name}. Only an "
            f"optimizer called {name} can load it."
        )
    targets = _named(optimizer, name, names)
    warnings = []
    for key, counter in _part(optimizer, optimizer.lr.name).items():
        if f"{schedule}.{key}" in names:
            targets[f"{schedule}.{key}"] = counter
        elif key != "lr":  # whose value is among the numbers
            warnings.append(f"{optimizer.lr.name}.{key} stays; the file has none.")
    return targets, warnings


def _brainpys_targets(
    optimizer: Any, names: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """The same for a file of BrainPy's, which does not say whose counters are whose."""
    found = _owners(optimizer, names)
    if optimizer.name in found or not found:
        found = [optimizer.name]
    if len(found) > 1:
        raise CheckpointError(
            f"it has variables of {_some(found)}. Give the optimizer the name of the "
            "one to load."
        )
    targets = _named(optimizer, found[0], names)
    warnings = []
    for key, counter in _part(optimizer, optimizer.lr.name).items():
        its = [name for name in names if name.partition(".")[2] == key]
        if len(its) == 1:
            targets[its[0]] = counter
        else:
            warnings.append(
                f"{optimizer.lr.name}.{key} stays; the file has {_some(its)}."
            )
    return targets, warnings


def _part(optimizer: Any, name: str) -> dict[str, Any]:
    """Those of an optimizer's variables that stand under one name."""
    prefix = f"{name}."
    own = optimizer.vars().items()
    return {k.removeprefix(prefix): v for k, v in own if k.startswith(prefix)}


def _owners(optimizer: Any, names: Collection[str]) -> list[str]:
    """Those names under which a file has some of an optimizer's own variables."""
    keys = _leaves(_part(optimizer, optimizer.name)).keys()
    parts = [name.partition(".") for name in names]
    return sorted({owner for owner, _, key in parts if key in keys})


def _named(optimizer: Any, name: str, names: Collection[str]) -> dict[str, Any]:
    """An optimizer's own variables under the name that it has in a file."""
    part = _part(optimizer, optimizer.name)
    if not part:
        raise CheckpointError(
            f"{optimizer.name} has no variables yet. Give it train_vars, or call "
            "register_train_vars, before it loads."
        )
    targets = {f"{name}.{key}": variable for key, variable in part.items()}
    need = _leaves(targets)
    missing = [key for key in need if key not in names]
    accumulator = re.compile(rf"{re.escape(name)}\..*_(cache|delta|codes)\b")
    unknown = [
        key
        for key in names
        if key not in need and (len(missing) == len(need) or accumulator.match(key))
    ]
    if missing or unknown:
        ours, theirs = (f"{name}.codes_count" in keys for keys in (need, names))
        kinds = " This optimizer has accumulators in {}, and the file has them in {}."
        kinds = kinds.format(
            *("uint8" if coded else "floats" for coded in (ours, theirs))
        )
        raise CheckpointError(
            f"its variables are not those of {optimizer.name}: missing "
            f"{_some([key.removeprefix(f'{name}.') for key in missing])}; unknown "
            f"{_some([key.removeprefix(f'{name}.') for key in unknown])}."
            f"{kinds if ours != theirs else ''}"
        )
    return targets


def _brainpys_entries(reader: Reader, size: int) -> dict[str, str]:
    """The entry of each variable; BrainPy 2.2 stored one that has two names once."""
    entries = {name: name for name in reader.claims}
    if ALIASES in entries and TARGETS in entries:
        columns = [_text(reader, name, size).ravel() for name in (ALIASES, TARGETS)]
        del entries[ALIASES], entries[TARGETS]
        for alias, target in zip(*columns, strict=True):
            entries[str(alias).strip()] = entries[str(target).strip()]
    return entries


def _text(reader: Reader, name: str, size: int) -> np.ndarray:
    dtype, shape = reader.claims[name]
    if math.prod(shape) * max(1, dtype.itemsize) > max(size, _TEXT_LIMIT):
        raise CheckpointError(f"{name!r} is too long for a file of {size} bytes.")
    return reader.read([name])[name]


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def _widens(dtype: np.dtype, wide: np.dtype) -> bool:
    """Whether numbers of a dtype can be had in another one, if integers are small."""
    if all(jnp.issubdtype(d, jnp.signedinteger) for d in (dtype, wide)):
        return True
    floating = all(jnp.issubdtype(d, jnp.floating) for d in (dtype, wide))
    return floating and np.can_cast(dtype, wide, "safe")
