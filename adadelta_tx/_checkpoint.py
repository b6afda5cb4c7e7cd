"""Files of an optimizer's state: their formats, writing and checked reading.

A file of ours is an ordinary file of its format, with one array for each variable, a
header and, after all that, a seal: the SHA-256 of every byte before it. The seal is
checked before anything is parsed. A file without any trace of us is read as BrainPy's.
"""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import math
import os
import pickle
import pickletools
import re
import secrets
import shutil
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

from adadelta_tx._schedules import rate, restore_rate
from adadelta_tx._transform import AT_LEAST_0, NUMBERS, number
from adadelta_tx._variables import assign, value_of

StrPath = str | os.PathLike[str]

_log = logging.getLogger("adadelta_tx")

_VERSION = 1
_HEADER = "adadelta_tx:header"  # no variable's entry has a colon
_MARK = b"adadelta_tx"
# A matrix in MATLAB's format 5, which allows nothing else at the end of a file: the
# tags of the matrix, its class, its dimensions, its name and its 32 bytes.
_SEAL = struct.pack(
    "<2I 4I 4I 2I24s 2I",
    *(14, 104, 6, 8, 9, 0, 5, 8, 1, 32, 1, 18, b"adadelta_tx:sha256", 2, 32),
)
_TEXT_LIMIT = 2**24  # bytes of text that even a small file may claim
_PLAIN = [np.dtype(f"{k}{n}") for k in "iu" for n in (1, 2, 4, 8)]
_PLAIN += [np.dtype(np.float32), np.dtype(np.float64)]
_OTHER = np.dtype("V")  # stands for whatever is not read
_BFLOAT16 = np.dtype(jnp.bfloat16)
_ALIASES, _TARGETS = "duplicate_keys", "duplicate_targets"  # of BrainPy 2.2


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


class _Claim(NamedTuple):
    """What a file says of an entry."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype.name} of shape {self.shape}"


class _Reader(NamedTuple):
    """The entries of an open file, and a function that reads those of given names."""

    claims: dict[str, _Claim]
    read: Callable[[Collection[str]], Mapping[str, Any]]


class _Format(NamedTuple):
    write: Callable[..., None]
    reader: Callable[[BinaryIO, contextlib.ExitStack], _Reader]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple


class _Plan(NamedTuple):
    """What loading will set, and what there is to say about it."""

    variables: list[Any]
    values: list[Any]
    numbers: dict[str, float]
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
    if compressed and form is not _FORMATS[".npz"]:
        raise ValueError(f"compressed is for .npz files, not for {filename}.")
    arrays = _arrays(optimizer.vars() if variables is None else variables)
    header = {
        "format": _VERSION,
        "name": optimizer.name,
        "schedule": optimizer.lr.name,
        "numbers": {
            "lr": rate(optimizer.lr),
            **optimizer.numbers(),
        },
        "variables": {k: (x.dtype.name, x.shape) for k, x in arrays.items()},
    }
    text = json.dumps(header, ensure_ascii=False).encode()
    entries = {_HEADER: np.frombuffer(text, np.uint8)}
    entries |= {_entry(name): _plain(array) for name, array in arrays.items()}
    with _replacing(filename) as file:
        form.write(file, entries, *([True] if compressed else []))
        file.seek(0, os.SEEK_END)
        file.write(_SEAL)
        file.write(_digest(file, file.tell()))


def load_states(optimizer: Any, filename: StrPath, verbose: bool = False) -> None:
    """Reads a file: see :meth:`adadelta_tx.Adadelta.load_states`."""
    form = _format(filename)
    path = os.fspath(filename)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise CheckpointError("is not a file.")
        with open(path, "rb") as file, contextlib.ExitStack() as stack:
            size = os.fstat(file.fileno()).st_size
            sealed = _is_sealed(file, size)
            file.seek(0)
            plan = _plan(optimizer, form, form.reader(file, stack), size, sealed)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path}: cannot be read: {kind}: {error}") from error
    assign(plan.variables, plan.values)
    for line in plan.lines if verbose else ():
        _log.info("%s: %s", path, line)
    for key, new in plan.numbers.items():
        old = rate(optimizer.lr) if key == "lr" else float(getattr(optimizer, key))
        if old == new or (math.isnan(old) and math.isnan(new)):
            continue
        _log.warning("%s: %s is %s as in the file, not %s.", path, key, new, old)
        if key == "lr":
            restore_rate(optimizer.lr, new)
        else:
            setattr(optimizer, key, new)
    for line in plan.warnings:
        _log.warning("%s: %s", path, line)


def _format(filename: StrPath) -> _Format:
    extension = os.path.splitext(filename)[1].lower() or ".npz"
    if extension not in _FORMATS:
        raise CheckpointError(
            f"{os.fspath(filename)}: no format has the extension {extension!r}. "
            f"There are {', '.join(_FORMATS)}."
        )
    return _FORMATS[extension]


def _arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values of variables, or of arrays, by name: one for each leaf of a tree."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be a dict by name, got {variables!r}.")
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
            arrays[name] = np.asarray(leaf, order="C")
        except TypeError as error:
            raise TypeError(f"variables[{name!r}]: {error}") from error
        if arrays[name].dtype.hasobject or arrays[name].dtype.names:
            raise TypeError(f"variables[{name!r}] is not an array, but {leaf!r}.")
    return arrays


def _leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name + keystr(path): leaf
        for name, variable in variables.items()
        for path, leaf in tree_flatten_with_path(value_of(variable))[0]
    }


def _entry(name: str) -> str:
    """A name for a variable that every format can hold."""
    name = quote(name, safe=" '[]()")
    return "%5F" + name[1:] if name.startswith("_") else name


def _plain(array: np.ndarray) -> np.ndarray:
    """The array, or its bytes where not every format can hold its dtype."""
    return array if array.dtype in _PLAIN else np.frombuffer(array.tobytes(), np.uint8)


@contextlib.contextmanager
def _replacing(filename: StrPath) -> Iterator[BinaryIO]:
    """A new file that takes the place of another when it is complete on the disk."""
    path = os.path.realpath(filename)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            shutil.copymode(path, temporary)
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
    optimizer: Any, form: _Format, reader: _Reader, size: int, sealed: bool
) -> _Plan:
    """What loading will do. All that can be wrong with a file is found here."""
    header: dict[str, Any] = {"name": None, "schedule": None}
    if sealed:
        header = _header(reader, size)
        entries = {key: _entry(key) for key in header["variables"]}
        claims = {
            key: _Claim(jnp.dtype(dtype), tuple(shape))
            for key, (dtype, shape) in header["variables"].items()
        }
    else:
        entries = _brainpys_entries(reader, size)
        claims = {key: reader.claims[entry] for key, entry in entries.items()}
    name = _prefix(claims, optimizer.implicit_vars, optimizer.name, header["name"])
    targets = _under(name, optimizer.implicit_vars)
    need = _leaves(targets).keys()
    have = {key for key in claims if key.startswith(f"{name}.")}
    if not need:
        raise CheckpointError(
            f"{optimizer.name} has no variables yet. Give it train_vars, or call "
            "register_train_vars, before it loads."
        )
    if need != have:
        raise CheckpointError(
            f"its variables are not those of {optimizer.name}: missing "
            f"{_some(need - have)}, unknown {_some(have - need)}."
        )
    lr = optimizer.lr
    counters = lr.vars("relative", level=0)
    schedule = _prefix(claims, counters, lr.name, header["schedule"])
    counters = _under(schedule, counters)
    warnings = [
        f"{key} is not in the file and stays as it is."
        for key in counters.keys() - claims.keys()
    ]
    targets |= {key: counters[key] for key in counters.keys() & claims.keys()}
    numbers = {}
    if name == header["name"]:
        saved = header["numbers"]
        numbers = {key: number(key, saved[key], *NUMBERS[key]) for key in NUMBERS}
        kind = _kind(header["schedule"])
        if kind != _kind(lr.name):
            warnings.append(f"lr stays {lr!r}, where the file has a {kind}.")
        elif math.isnan(float(saved["lr"])):
            numbers["lr"] = math.nan
        else:
            numbers["lr"] = number("lr", saved["lr"], *AT_LEAST_0)
    leaves = _leaves(targets)
    for key, leaf in leaves.items():
        here, stored = _Claim(np.dtype(leaf.dtype), leaf.shape), claims[key]
        if sealed:
            fits = stored == here and reader.claims[entries[key]] == _stored(here, form)
        else:
            fits = _widens(stored.dtype, here.dtype)
            fits = fits and stored.shape == form.shape(here.shape)
        if not fits:
            raise CheckpointError(f"{key} is {stored} in the file, and {here} here.")
    arrays = reader.read([entries[key] for key in leaves])
    values = {}
    for key, leaf in leaves.items():
        array = arrays[entries[key]]
        if (array.dtype, array.shape) != reader.claims[entries[key]]:
            raise CheckpointError(f"{key} is not what the file says that it is.")
        values[key] = _placed(array, leaf)
    lines = [f"loads {claims[key]} from {key}" for key in leaves]
    lines += [f"leaves {claims[key]} at {key}" for key in claims.keys() - leaves.keys()]
    trees = [
        jax.tree.structure(value_of(variable)).unflatten(
            [values[leaf] for leaf in _leaves({key: variable})]
        )
        for key, variable in targets.items()
    ]
    return _Plan(list(targets.values()), trees, numbers, warnings, lines)


def _header(reader: _Reader, size: int) -> dict[str, Any]:
    header = json.loads(_text(reader, _HEADER, size).tobytes())
    if header["format"] != _VERSION:
        raise CheckpointError(
            f"has version {header['format']} of our format. This is adadelta_tx for "
            f"version {_VERSION}."
        )
    return header


def _brainpys_entries(reader: _Reader, size: int) -> dict[str, str]:
    """The entry of each variable; BrainPy 2.2 stored one that has two names once."""
    entries = {name: name for name in reader.claims}
    if _ALIASES in entries and _TARGETS in entries:
        columns = [_text(reader, name, size).ravel() for name in (_ALIASES, _TARGETS)]
        del entries[_ALIASES], entries[_TARGETS]
        for alias, target in zip(*columns, strict=True):
            entries[str(alias).strip()] = entries[str(target).strip()]
    return entries


def _text(reader: _Reader, name: str, size: int) -> np.ndarray:
    claim = reader.claims[name]
    if math.prod(claim.shape) * claim.dtype.itemsize > max(size, _TEXT_LIMIT):
        raise CheckpointError(f"{name!r} cannot be {claim}.")
    return reader.read([name])[name]


def _prefix(
    claims: Collection[str], variables: Mapping[str, Any], own: str, saved: str | None
) -> str:
    """The name under which a file has some of these variables, or else ``own``."""
    keys = {key.lstrip(".") for key in _leaves(variables)}
    names = [key.partition(".") for key in claims]
    found = {name for name, _, key in names if key in keys}
    for name in (own, saved):
        if name in found:
            return name
    if len(found) > 1:
        raise CheckpointError(
            f"it has variables of {', '.join(sorted(found))}. Give the optimizer the "
            "name of the one to load."
        )
    return found.pop() if found else own


def _under(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key.lstrip('.')}": v for key, v in variables.items()}


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def _stored(claim: _Claim, form: _Format) -> _Claim:
    """What :func:`_plain` makes of an array, as a file of this format claims it."""
    if claim.dtype in _PLAIN:
        return _Claim(claim.dtype, form.shape(claim.shape))
    size = math.prod(claim.shape) * claim.dtype.itemsize
    return _Claim(np.dtype(np.uint8), form.shape((size,)))


def _widens(dtype: np.dtype, wide: np.dtype) -> bool:
    """Whether a dtype's numbers are all numbers of another one of its kind."""
    kinds = (jnp.floating, jnp.signedinteger, jnp.unsignedinteger)
    alike = any(all(jnp.issubdtype(d, kind) for d in (dtype, wide)) for kind in kinds)
    return dtype == wide or (alike and np.can_cast(dtype, wide, "safe"))


def _placed(array: np.ndarray, leaf: Any) -> jax.Array:
    """What a file stores as the array that is to stand where ``leaf`` is."""
    if array.dtype == np.uint8 and leaf.dtype not in _PLAIN:
        array = np.frombuffer(array.tobytes(), leaf.dtype)
    array = array.reshape(leaf.shape).astype(leaf.dtype)
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.device_put(array, sharding)


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


def _npz_reader(file: BinaryIO, stack: contextlib.ExitStack) -> _Reader:
    archive = stack.enter_context(zipfile.ZipFile(file))
    claims = {}
    for info in archive.infolist():
        with archive.open(info) as member:
            name = info.filename.removesuffix(".npy")
            if name in claims:
                raise CheckpointError(f"has two entries called {name!r}.")
            if np.lib.format.read_magic(member) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        # Void of 2 bytes is how NumPy writes bfloat16.
        claims[name] = _Claim(_BFLOAT16 if dtype.str == "|V2" else dtype, shape)

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

    return _Reader(claims, read)


def _write_h5(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    with _package("h5py", "h5").File(file, "w") as group:
        for name, array in entries.items():
            group[name] = array


def _h5_reader(file: BinaryIO, stack: contextlib.ExitStack) -> _Reader:
    h5py = _package("h5py", "h5")
    group = stack.enter_context(h5py.File(file, "r"))
    claims = {}
    for name in group:
        # A soft or an external link, and data in other files, would lead elsewhere.
        link = group.get(name, getlink=True)
        item: Any = group[name] if isinstance(link, h5py.HardLink) else None
        text = name in (_ALIASES, _TARGETS)
        if (
            not isinstance(item, h5py.Dataset)
            or item.external
            or item.is_virtual
            or (item.dtype.hasobject and not text)
        ):
            raise CheckpointError(f"{name!r} is not an array in the file itself.")
        claims[name] = _Claim(np.dtype("U1") if text else item.dtype, item.shape)

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(
                group[name].asstr()[()].split("+")
                if name in (_ALIASES, _TARGETS)
                else group[name][()]
            )
            for name in names
        }

    return _Reader(claims, read)


def _write_mat(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    arrays = {name: np.expand_dims(array, 0) for name, array in entries.items()}
    _package("scipy.io", "mat").savemat(file, arrays)


def _mat_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array in a .mat file: BrainPy's first axis, and at least two."""
    return (1, *shape) if shape else (1, 1)


def _mat_reader(file: BinaryIO, stack: contextlib.ExitStack) -> _Reader:
    del stack
    scipy_io = _package("scipy.io", "mat")
    dtypes = {"double": "f8", "single": "f4", "char": "U1"}
    dtypes |= {
        f"{u}int{8 * n}": f"{u or 'i'}{n}" for u in ("", "u") for n in (1, 2, 4, 8)
    }
    claims = {}
    for name, shape, kind in scipy_io.whosmat(file):
        if name in claims:
            raise CheckpointError(f"has two entries called {name!r}.")
        dtype = np.dtype(dtypes.get(kind, _OTHER))
        claims[name] = _Claim(dtype, tuple(map(int, shape)))

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        file.seek(0)
        return scipy_io.loadmat(file, variable_names=list(names))

    return _Reader(claims, read)


def _write_pickle(file: BinaryIO, entries: Mapping[str, np.ndarray]) -> None:
    pickle.dump(dict(entries), file, protocol=5)


class _Pickled:
    """An array in a pickle, as it is told there: nothing of NumPy is called."""

    def __init__(
        self, data: Any = b"", dtype: Any = None, shape: Any = (), order: str = "C"
    ) -> None:
        self.data, self.dtype, self.shape, self.order = data, dtype, shape, order

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, fortran, self.data = state
        self.order = "F" if fortran else "C"


class _PickledDtype:
    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.endian = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.endian = state[1]

    def dtype(self) -> np.dtype:
        if self.code is _BFLOAT16:
            return _BFLOAT16
        if not re.fullmatch(r"[fiuU]\d+", str(self.code)):
            return _OTHER
        return np.dtype(f"{'>' if self.endian == '>' else '<'}{self.code}")


def _unpickled(data: bytes) -> Any:
    """What a pickle holds, if that is arrays and plain containers."""
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        # A number far ahead would have the unpickler make a table of that length.
        ahead = operation.name.endswith("PUT") and (argument or 0) > count
        if ahead or operation.name.startswith("EXT"):
            raise CheckpointError("is a pickle that none of NumPy and BrainPy writes.")

    # Made anew each time, since a pickle can set attributes of what it can name.
    class Array(_Pickled):
        pass

    class Dtype(_PickledDtype):
        pass

    known = {
        "numpy.ndarray": None,
        "numpy.dtype": Dtype,
        "numpy._core.numeric._frombuffer": Array,
        "numpy._core.multiarray._reconstruct": lambda *_: Array(),
        "ml_dtypes.bfloat16": _BFLOAT16,
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            path = f"{module}.{name}"
            if (key := path.replace("numpy.core.", "numpy._core.")) not in known:
                raise CheckpointError(
                    f"asks for {path}. Only NumPy's arrays and plain containers are "
                    "read from a pickle."
                )
            return known[key]

    return Unpickler(io.BytesIO(data)).load()


def _pickle_reader(file: BinaryIO, stack: contextlib.ExitStack) -> _Reader:
    del stack
    content = _unpickled(file.read())
    if not isinstance(content, dict):
        raise CheckpointError("is not a pickle of a dict.")
    items = {}
    for name, item in content.items():
        # BrainPy's state_dict() has one such dict for each of its objects.
        items |= item if isinstance(item, dict) else {name: item}
    claims = {
        str(name): _Claim(item.dtype.dtype(), item.shape)
        if isinstance(item, _Pickled) and isinstance(item.dtype, _PickledDtype)
        else _Claim(_OTHER, ())
        for name, item in items.items()
    }

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        return {
            name: np.frombuffer(items[name].data, claims[name].dtype).reshape(
                items[name].shape, order=items[name].order
            )
            for name in names
        }

    return _Reader(claims, read)


_H5 = _Format(_write_h5, _h5_reader)
_PICKLE = _Format(_write_pickle, _pickle_reader)
_FORMATS = {
    ".npz": _Format(_write_npz, _npz_reader),
    ".h5": _H5,
    ".hdf5": _H5,
    ".mat": _Format(_write_mat, _mat_reader, _mat_shape),
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
}
