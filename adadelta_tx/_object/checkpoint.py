"""An optimizer's state, to a file and from it: all or nothing."""

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path

from adadelta_tx import _files
from adadelta_tx._core.hyperparameters import NUMBERS, number
from adadelta_tx._files import (
    CheckpointError,
    Description,
    File,
    failed,
    looked_at,
    printable,
)
from adadelta_tx._object.matching import match
from adadelta_tx._object.schedules import rate, restore_rate
from adadelta_tx._object.variables import assign, value_of

_log = logging.getLogger("adadelta_tx")
_NONE = {"lr": "the schedule's", "grad_epsilon": "epsilon"}
"""Numbers that may be ``None``, and what they are then."""


def save_states(
    optimizer: Any, file: File, variables: Mapping[str, Any] | None, compressed: bool
) -> None:
    """See :meth:`adadelta_tx.Adadelta.save_states`."""
    own, more = _own_and_more(optimizer, variables)
    arrays = _arrays({**own, **more})
    numbers = _checked(_numbers(optimizer))
    header = {"name": optimizer.name, "schedule": optimizer.lr.name, "numbers": numbers}
    _files.write(file, header, arrays, compressed)


def load_states(
    optimizer: Any, file: File, variables: Mapping[str, Any] | None, verbose: bool
) -> None:
    """See :meth:`adadelta_tx.Adadelta.load_states`."""
    own, more = _own_and_more(optimizer, variables)
    for key, variable in more.items():
        if not hasattr(variable, "value"):
            raise TypeError(f"variables[{key!r}] must be a variable, got {variable!r}.")
    told = _files.read(file)
    try:
        loaded, warnings = _load(optimizer, told, own, more)
    except Exception as error:
        raise failed(file, "cannot be loaded", error) from error
    for line in warnings:
        _log.warning("%s", printable(f"{file}: {line}"))
    if verbose:
        lines = [f"loads {name}: {what}" for name, what in loaded.items()]
        lines += [f"leaves {name}" for name in told.variables if name not in loaded]
        for line in lines:
            _log.info("%s", printable(f"{file}: {line}"))


def _load(
    optimizer: Any, told: Description, own: Mapping[str, Any], more: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Loads all or nothing; what was loaded, by names in the file, and warnings."""
    known = {**more, **own}
    old = _leaves(known)
    others = _leaves({key: x for key, x in more.items() if key not in own})
    batches = {k: getattr(x, "batch_axis", None) for k, x in more.items()}
    places, warnings = match(told, optimizer.name, optimizer.lr.name, old, others)
    new = {}
    for leaf, place in places.items():
        new[leaf] = _new(told, place, old[leaf], batches.get(leaf))
    had = _numbers(optimizer)
    numbers = {} if told.numbers is None else _checked(told.numbers)
    if numbers and _kind(told.schedule) != _kind(optimizer.lr.name):
        its = f"it followed a {told.schedule}, which files do not contain"
        if numbers["lr"] is not None:
            its = f"it is {numbers['lr']}"
        numbers["lr"] = had["lr"]
        warnings.append(
            f"lr stays {optimizer.lr!r}; in the file, {its}. To continue with that, "
            "pass it as lr when you make the optimizer."
        )
    changed = {key: x for key, x in numbers.items() if x != had[key]}
    for key in changed:
        now, before = (_NONE[key] if x is None else x for x in (numbers[key], had[key]))
        warnings.append(f"{key} is {now}, as in the file, not {before}")
    try:
        _set(optimizer, known, new, changed)
    except BaseException:
        with contextlib.suppress(Exception):  # at the one that raised
            _set(optimizer, known, old, {key: had[key] for key in changed})
        raise
    loaded = {place: _a(old[leaf]) for leaf, place in places.items()}
    return loaded | {key: str(value) for key, value in numbers.items()}, warnings


def _kind(schedule: str | None) -> str:
    return (schedule or "").rstrip("0123456789")


def _set(
    optimizer: Any,
    variables: Mapping[str, Any],
    leaves: Mapping[str, Any],
    numbers: Mapping[str, Any],
) -> None:
    """Sets the variables that all leaves are given of, and numbers, in one order."""
    for key, variable in variables.items():
        if _leaves({key: variable}).keys() <= leaves.keys():
            value = tree_map_with_path(
                lambda path, _, key=key: leaves[key + keystr(path)], value_of(variable)
            )
            assign([variable], [value])
    for key, value in numbers.items():
        if key == "lr":
            restore_rate(optimizer.lr, value)
        else:
            setattr(optimizer, key, value)


def _own_and_more(optimizer: Any, variables: Any) -> tuple[Any, Any]:
    """The optimizer's variables, and those that a caller names, which are others."""
    own, more = optimizer.vars(), {} if variables is None else variables
    _leaves(more)  # or a TypeError
    for key, variable in more.items():
        if own.get(key, variable) is not variable:
            raise ValueError(f"{key!r} is another variable of the optimizer's own.")
    return own, more


def _arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values of variables, or of arrays, by name: one for each leaf of a tree."""
    leaves = _leaves(variables)
    for name, leaf in leaves.items():
        if isinstance(leaf, Tracer):
            raise RuntimeError(f"{name!r} cannot be saved inside a JAX transformation.")
        if not getattr(leaf, "is_fully_addressable", True):
            raise CheckpointError(
                f"{name!r} is distributed over several processes. Save the state of "
                "the transformation adadelta_tx.adadelta() with Orbax."
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
    """The arrays in variables, and arrays that stand for one, by name."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables, after the path, must be a dict: {variables!r}.")
    leaves = {}
    for name, variable in variables.items():
        if not isinstance(name, str) or not name.strip("."):
            raise TypeError(f"variables must have names, got {name!r} for one.")
        for path, leaf in tree_flatten_with_path(value_of(variable))[0]:
            if (key := name + keystr(path)) in leaves:
                raise ValueError(f"Two values have the name {key!r}.")
            leaves[key] = leaf
    return leaves


def _numbers(optimizer: Any) -> dict[str, Any]:
    numbers = {key: getattr(optimizer, key) for key in NUMBERS}
    return {"lr": rate(optimizer.lr), **numbers}


def _checked(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's numbers, each in its range, or ``None`` where none was set."""
    largest = float(jnp.finfo(jnp.result_type(float)).max)
    ranges = {"lr": (lambda x: 0 <= x <= largest, "finite and at least 0"), **NUMBERS}
    return {
        key: None
        if numbers.get(key) is None and key in _NONE
        else number(key, numbers[key], in_range)
        for key, in_range in ranges.items()
    }


def _new(told: Description, place: str, old: Any, batch: int | None) -> jax.Array:
    """An array of a file, where the old one is, if it has its dtype and shape."""
    if isinstance(old, Tracer):
        raise CheckpointError("it cannot be loaded inside a JAX transformation.")
    entry, ours = looked_at(told.variables, place), told.owner is not None
    fits = entry.dtype == old.dtype if ours else _widens(entry.dtype, old.dtype)
    if not fits or entry.shape not in ([old.shape] if ours else told.shapes(old.shape)):
        how = ""
        if old.dtype == np.uint16 and not ours:
            how = " It does not say the epsilon that codes belong to."
        elif batch is not None:
            how = (
                " It is a hidden state, one for each example of a batch. Save and load "
                "the other variables: {k: v for k, v in network.vars().items() if "
                "v.batch_axis is None}."
            )
        raise CheckpointError(
            f"{place} is {entry} in the file, and {_a(old)} here.{how}"
        )
    array = entry.read().reshape(old.shape)
    value = array.astype(old.dtype, copy=False)
    if value.dtype.kind in "iu" and not np.array_equal(value, array):
        raise CheckpointError(f"{place} is too large for {old.dtype.name}.")
    sharding = old.sharding if getattr(old, "committed", False) else None
    new = jax.device_put(value, sharding)
    if new.dtype != old.dtype:
        raise CheckpointError(f"{place} is {old.dtype.name}: enable jax_enable_x64.")
    return new


def _widens(dtype: np.dtype, wide: np.dtype) -> bool:
    """Whether numbers of a dtype can be had in another one, if integers are small."""
    if all(jnp.issubdtype(d, jnp.signedinteger) for d in (dtype, wide)):
        return True
    if all(jnp.issubdtype(d, jnp.floating) for d in (dtype, wide)):
        return np.can_cast(dtype, wide, "safe")
    return dtype.newbyteorder("=") == wide != np.uint16  # which codes are


def _a(array: Any) -> str:
    return f"{array.dtype.name} of shape {array.shape}"
