"""Whose state a file is: an optimizer's variables by name, all of them or none."""

import contextlib
import logging
import re
from collections.abc import Collection, Iterable, Mapping
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
    known = {**more, **own}
    told = _files.read(file)
    try:
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
            numbers["lr"] = had["lr"]
            warnings.append(
                f"lr stays {optimizer.lr!r}; in the file it was a {told.schedule}, "
                "whose code no file has. To go on with it, make the optimizer with it."
            )
        changed = {key: x for key, x in numbers.items() if x != had[key]}
        for key in changed:
            now, before = (
                _NONE[key] if x is None else x for x in (numbers[key], had[key])
            )
            warnings.append(f"{key} is {now}, as in the file, not {before}")
        try:
            _set(optimizer, known, new, changed)
        except BaseException:
            with contextlib.suppress(Exception):  # at the one that raised
                _set(optimizer, known, old, {key: had[key] for key in changed})
            raise
    except Exception as error:
        raise failed(file, "cannot be loaded", error) from error
    for line in warnings:
        _log.warning("%s", printable(f"{file}: {line}"))
    if verbose:
        loaded = {place: _a(old[leaf]) for leaf, place in places.items()}
        loaded |= {key: str(value) for key, value in numbers.items()}
        lines = [f"loads {name}: {what}" for name, what in loaded.items()]
        lines += [f"leaves {name}" for name in told.variables if name not in loaded]
        for line in lines:
            _log.info("%s", printable(f"{file}: {line}"))


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


def match(
    file: Description,
    name: str,
    schedule: str,
    leaves: Collection[str],
    others: Collection[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """Finds variables of ours in a file: their names there, by their names here.

    An optimizer's own variables are the ``leaves`` called ``name.key``, its schedule's
    those called ``schedule.key``. ``others`` have the same names in the file.
    """
    names, warnings = file.variables, []
    own, counters = (
        {_key(x): x for x in leaves if _of(x) == y} for y in (name, schedule)
    )
    owner = _owner(file, name, own)
    _check_complete(name, own, owner, names)
    places = {leaf: leaf for leaf in others}
    places |= {leaf: f"{owner}.{key}" for key, leaf in own.items()}
    for key, leaf in counters.items():
        its = [x for x in names if _key(x) == key and file.schedule in (None, _of(x))]
        if len(its) == 1:
            places[leaf] = its[0]
        elif key != "lr":  # whose value is among the numbers
            warnings.append(f"{leaf} stays; the file has {_some(its)}.")
    if missing := [place for place in places.values() if place not in names]:
        raise CheckpointError(f"it lacks these variables: {_some(missing)}.")
    owners = {_of(place) for place in places.values()}
    looks = {names[place] for place in places.values()}
    left = [x for x in names if _of(x) not in owners and names[x] not in looks]
    if left and not others:  # who loads more has said what
        how = "load_states(filename, variables=…) loads more."
        warnings.append(f"has more than {name}: {_some(left)}. {how}")
    return places, warnings


def _owner(file: Description, name: str, own: Collection[str]) -> str:
    """Under which name a file has an optimizer's own variables."""
    if not own:
        raise CheckpointError(
            f"{name} has no variables yet. Give it train_vars, or call "
            "register_train_vars, before it loads a file."
        )
    found = sorted({_of(x) for x in file.variables if _key(x) in own})
    owner = file.owner or (name if name in found else next(iter(found), name))
    if len(found) > 1 and owner != name:
        write = "Give the optimizer the name that its variables have there."
        if file.owner:
            write = f"It was saved by {file.owner}: load it by that one's load_states"
            write += "(filename, variables=…), with the other's vars()."
        raise CheckpointError(f"it has variables of {_some(found)}. {write}")
    return owner


def _check_complete(
    name: str, own: Collection[str], owner: str, names: Collection[str]
) -> None:
    """Checks that a file has an optimizer's own variables, and no more accumulators."""
    theirs = {_key(x): x for x in names if _of(x) == owner}
    missing = [key for key in own if key not in theirs]
    kinds = ("_cache", "_delta", "_codes")
    more = [x for x in theirs if x not in own and x.partition("[")[0].endswith(kinds)]
    if len(missing) == len(own):
        more = [*names]
    if missing or more:
        kinds = ["uint8" if "codes_count" in x else "floats" for x in (own, theirs)]
        differ = " This optimizer has accumulators in {}, and the file has them in {}."
        differ = differ.format(*kinds) if kinds[0] != kinds[1] else ""
        if missing and _unnumbered(missing) <= _unnumbered(map(_key, more)):
            differ = (
                " BrainPy numbers layers: to start again at 0, call "
                "bm.clear_name_cache() before you make the network."
            )
        raise CheckpointError(
            f"its variables are not those of {name}: missing {_some(missing)}; unknown "
            f"{_some(more)}.{differ}"
        )


def _unnumbered(names: Iterable[str]) -> set[str]:
    return {re.sub(r"\d", "", name) for name in names}


def _of(name: str) -> str:
    return name.partition(".")[0]


def _key(name: str) -> str:
    return name.partition(".")[2]


def _kind(schedule: str | None) -> str:
    return (schedule or "").rstrip("0123456789")


def _some(names: Collection[str]) -> str:
    shown = ", ".join(name[:100] for name in [*names][:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


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
