"""Whose state a file is: an optimizer's variables by name, all of them or none."""

import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

from adadelta_tx import _files
from adadelta_tx._files import CheckpointError, Claim, Description, StrPath, shown
from adadelta_tx._schedules import rate, restore_rate
from adadelta_tx._transform import NUMBERS, number
from adadelta_tx._variables import assign, value_of

_log = logging.getLogger("adadelta_tx")


def save_states(
    optimizer: Any,
    filename: StrPath,
    variables: Mapping[str, Any] | None = None,
    *,
    compressed: bool = False,
) -> None:
    """Writes a file: see :meth:`adadelta_tx.Adadelta.save_states`."""
    own = optimizer.vars()
    arrays = _arrays(own if variables is None else variables)
    header = {
        "name": optimizer.name,
        "schedule": optimizer.lr.name,
        "numbers": _checked({"lr": rate(optimizer.lr), **optimizer.numbers()}),
    }
    _files.write(filename, header, arrays, compressed)
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
    more = _leaves(_settable({} if variables is None else variables))
    with _files.reading(filename) as file:
        known = {**(variables or {}), **optimizer.vars()}
        leaves = _leaves(known)
        plan = match(file, optimizer.name, optimizer.lr.name, leaves, more)
        values, lines = _values(file, plan.places, leaves)
        targets = [
            (variable, jax.tree.structure(value_of(variable)).unflatten(new))
            for key, variable in known.items()
            if (names := _leaves({key: variable}).keys()) <= values.keys()
            and (new := [values[name] for name in names])
        ]
        old = {"lr": rate(optimizer.lr), **optimizer.numbers()}
        numbers = {} if file.numbers is None else _checked(file.numbers)
        lines += [f"loads {key} = {value}" for key, value in numbers.items()]
        if numbers and _kind(file.schedule) != _kind(optimizer.lr.name):
            del numbers["lr"]
            plan.warnings.append(
                f"lr stays {optimizer.lr!r}; the file's was a {file.schedule}."
            )
        changed = {key: new for key, new in numbers.items() if new != old[key]}
        _set(optimizer, targets, changed, old)
    for key, new in changed.items():
        plan.warnings.append(f"{key} is {new}, as in the file, not {old[key]}")
    for line in plan.warnings:
        _log.warning("%s: %s", filename, shown(line, 1000))
    for line in [*lines, *(f"leaves {left}" for left in plan.left)] if verbose else ():
        _log.info("%s: %s", filename, shown(line, 1000))


class Plan(NamedTuple):
    """Which variable of a file each of ours becomes, and what there is to say."""

    places: dict[str, str]
    left: list[str]
    warnings: list[str]


def match(
    file: Description,
    name: str,
    schedule: str,
    leaves: Collection[str],
    more: Collection[str] = (),
) -> Plan:
    """Finds the variables of an optimizer in a file.

    Args:
      file: What the file says of itself. BrainPy's say neither whose their variables
        are nor which schedule's counters are whose.
      name: The optimizer's name. Its own variables are those called ``name.key``.
      schedule: The same for its schedule.
      leaves: The names of all that can be loaded.
      more: Those among them that have the same names in the file.

    Raises:
      CheckpointError: If the file is of another optimizer or of other variables.
    """
    stored = file.variables
    own = [leaf.removeprefix(f"{name}.") for leaf in leaves if _of(leaf) == name]
    if not own:
        raise CheckpointError(
            f"{name} has no variables yet. Give it train_vars, or call "
            "register_train_vars, before it loads."
        )
    owner = _owner(file, name, own)
    places = {f"{name}.{key}": f"{owner}.{key}" for key in own}
    _complete(name, owner, own, stored)
    warnings = []
    for leaf in leaves:
        if _of(leaf) == schedule:
            key = leaf.removeprefix(f"{schedule}.")
            its = [x for x in stored if x.partition(".")[2] == key]
            if file.schedule is not None:
                its = [x for x in its if _of(x) == file.schedule]
            if len(its) == 1:
                places[leaf] = its[0]
            elif key != "lr":  # whose value is among the numbers
                warnings.append(f"{leaf} stays; the file has {_some(its)}.")
    if missing := [leaf for leaf in more if leaf not in {**stored, **places}]:
        raise CheckpointError(f"it has none of these variables: {_some(missing)}.")
    places = {leaf: leaf for leaf in more} | places
    left = [x for x in stored if x not in places.values()]
    used = {_of(place) for place in places.values()}
    looks = {stored[place].look for place in places.values()}
    others = [x for x in left if _of(x) not in used and stored[x].look not in looks]
    if others:
        warnings.append(
            f"holds more than {name}: {_some(others)}. load_states(…, variables=…) "
            "loads it, too."
        )
    return Plan(places, left, warnings)


def _owner(file: Description, name: str, own: Collection[str]) -> str:
    """Under which name a file has an optimizer's own variables."""
    found = sorted({_of(x) for x in file.variables if x.partition(".")[2] in own})
    if file.owner is not None:
        if name != file.owner and len(found) > 1:
            raise CheckpointError(
                f"it has variables of {_some(found)}, and was saved by {file.owner}. "
                f"Only an optimizer called {file.owner} can load it."
            )
        return file.owner
    if name in found or not found:
        return name
    if len(found) > 1:
        raise CheckpointError(
            f"it has variables of {_some(found)}. Give the optimizer the name of the "
            "one to load."
        )
    return found[0]


def _complete(
    name: str, owner: str, own: Collection[str], stored: Collection[str]
) -> None:
    """Checks that a file has an optimizer's own variables, and no more accumulators."""
    accumulators = ("_cache", "_delta", "_codes")
    theirs = [x.removeprefix(f"{owner}.") for x in stored if _of(x) == owner]
    missing = [key for key in own if key not in theirs]
    unknown = [
        key
        for key in theirs
        if key not in own and key.partition("[")[0].endswith(accumulators)
    ]
    if len(missing) == len(own):
        unknown = [x.removeprefix(f"{owner}.") for x in stored]
    if missing or unknown:
        coded = ["codes_count" in keys for keys in (own, theirs)]
        kinds = " This optimizer has accumulators in {}, and the file has them in {}."
        kinds = kinds.format(*("uint8" if c else "floats" for c in coded))
        raise CheckpointError(
            f"its variables are not those of {name}: missing {_some(missing)}; unknown "
            f"{_some(unknown)}.{kinds if coded[0] != coded[1] else ''}"
        )


def _of(name: str) -> str:
    return name.partition(".")[0]


def _some(names: Collection[str]) -> str:
    some = ", ".join(shown(name) for name in list(names)[:5]) or "none"
    return f"{some} and {len(names) - 5} more" if len(names) > 5 else some


def _kind(schedule: str | None) -> str:
    return (schedule or "").rstrip("0123456789")


def _arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values of variables, or of arrays, by name: one for each leaf of a tree."""
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
    """The arrays of variables, or arrays as they are, by name."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be a dict by name, got {variables!r}.")
    leaves = {}
    for name, variable in variables.items():
        if not isinstance(name, str) or not name.strip("."):
            raise TypeError(f"variables must have names, got {name!r} for one.")
        for path, leaf in tree_flatten_with_path(value_of(variable))[0]:
            key = name + keystr(path)
            if key in leaves:
                raise ValueError(f"Two values have the name {key!r}.")
            leaves[key] = leaf
    return leaves


def _settable(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, variable in variables.items():
        if not hasattr(variable, "value"):
            raise TypeError(
                f"variables[{name!r}] must be a variable, which can be set, got "
                f"{variable!r}."
            )
    return variables


def _checked(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an optimizer, its learning rate too, if there is one.

    Raises:
      TypeError, ValueError: If one is not a number, or out of its range.
    """
    most = float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).max)
    rates = (lambda x: 0 <= x <= most, "finite and at least 0")
    ranges = {"lr": rates, **NUMBERS}
    return {
        key: None
        if key == "lr" and numbers[key] is None
        else number(key, numbers[key], *r)
        for key, r in ranges.items()
    }


def _values(
    file: Description, places: Mapping[str, str], leaves: Mapping[str, Any]
) -> tuple[dict[str, jax.Array], list[str]]:
    """New arrays by leaf, where the old ones are, and what is loaded."""
    wanted, entries = {}, {}
    for leaf, place in places.items():
        if isinstance(leaves[leaf], Tracer):
            raise CheckpointError("it cannot be loaded inside a JAX transformation.")
        wanted[leaf] = Claim(np.dtype(leaves[leaf].dtype), leaves[leaf].shape)
        entries[leaf] = file.entry(place, wanted[leaf])
    values = {}
    for leaf, place in places.items():
        value = file.value(place, entries[leaf], wanted[leaf])
        old = leaves[leaf]
        sharding = old.sharding if getattr(old, "committed", False) else None
        values[leaf] = jax.device_put(value, sharding)
        if values[leaf].dtype != old.dtype:
            raise CheckpointError(f"{leaf} is {old.dtype.name}: enable jax_enable_x64.")
    return values, [
        f"loads {wanted[leaf]} from {place}" for leaf, place in places.items()
    ]


def _set(
    optimizer: Any,
    targets: Iterable[tuple[Any, Any]],
    numbers: Mapping[str, Any],
    old: Mapping[str, Any],
) -> None:
    """Gives variables and an optimizer their values: all of them or, on an error, none."""
    variables, values = zip(*targets, strict=True)
    before = [value_of(variable) for variable in variables]
    try:
        assign(list(variables), list(values))
        for key, value in numbers.items():
            _set_number(optimizer, key, value)
    except BaseException:
        for variable, value in zip(variables, before, strict=True):
            with contextlib.suppress(Exception):
                assign([variable], [value])
        for key in numbers:
            with contextlib.suppress(Exception):
                _set_number(optimizer, key, old[key])
        raise


def _set_number(optimizer: Any, key: str, value: Any) -> None:
    if key == "lr":
        restore_rate(optimizer.lr, value)
    else:
        setattr(optimizer, key, value)
