"""Hyperparameters: their names, their ranges, and the checks that everyone uses."""

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

BELOW_1 = (lambda x: 0 <= x < 1, "in [0, 1)")
POSITIVE = (lambda x: 0 < x < 1e30, "above 0 and below 1e30")
AT_LEAST_0 = (lambda x: 0 <= x < math.inf, "finite and at least 0")
UP_TO_1 = (lambda x: 0 <= x <= 1, "in [0, 1]")
NUMBERS = {"rho": BELOW_1, "epsilon": POSITIVE, "weight_decay": UP_TO_1}
_REAL = (jnp.floating, jnp.integer)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def explained(
    instead: Mapping[str, str], too_many: str = ""
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Adds what to write to the error for arguments that a function does not have.

    Args:
      instead: What to write, by names of arguments that other libraries have.
      too_many: What to write after too many arguments without a name.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        room = len(inspect.signature(function).parameters)

        @functools.wraps(function)
        def wrapped(*args: _P.args, **named: _P.kwargs) -> _T:
            if foreign := [key for key in named if key in instead]:
                raise TypeError(
                    f"There is no argument {foreign[0]}. {instead[foreign[0]]}"
                )
            if too_many and len(args) > room:
                raise TypeError(f"{function.__name__}: too many arguments. {too_many}")
            return function(*args, **named)

        return wrapped

    return decorate


def number(
    name: str, value: Any, in_range: Callable[[float], bool], range_: str
) -> Any:
    """Return a number as a float if it is in range, and a traced value as it is.

    Raises:
      TypeError: If the value is not a real number.
      ValueError: If it is out of range.
    """
    value = scalar(name, value, in_range, range_)
    traced = isinstance(value, Tracer) or not isinstance(value, jax.Array)
    return value if traced else float(value)


def scalar(
    name: str, value: Any, in_range: Callable[[float], bool], range_: str
) -> Any:
    """Return what :func:`number` does, but a ``jax.Array`` as it is.

    So it stays a leaf of a closure that is turned into a pytree, as by
    ``equinox.internal.closure_to_pytree``: another value compiles nothing anew.
    """
    array = value
    if not isinstance(value, jax.Array):  # a list may have arrays of several shapes
        array = np.asarray(None if isinstance(value, list | tuple) else value)
    elif jnp.iscomplexobj(value):
        array = value.real  # optax.inject_hyperparams casts to the parameters' dtype
    if array.ndim or not any(jnp.issubdtype(array.dtype, kind) for kind in _REAL):
        got = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
        instead = ""
        if callable(value) and name in ("eps", *NUMBERS):
            instead = (
                " It takes no schedule: change it with optax.inject_hyperparams or, on "
                "an Adadelta object, by assignment."
            )
        raise TypeError(f"{name} must be a real number, got {got}.{instead}")
    if isinstance(array, Tracer):
        return array
    if not in_range(float(array)):
        raise ValueError(f"{name} must be {range_}, got {value}.")
    return array if isinstance(array, jax.Array) else float(array)


def warn_of_exchange(eps_name: str, eps: Any, rho: Any, order: str) -> None:
    """Warns of ε and ρ that are in range, but look like each other."""
    known = isinstance(eps, float | int) and isinstance(rho, float | int)
    if known and (0.5 <= eps < 1 or 0 < rho < 0.01):
        warnings.warn(
            f"{eps_name}={eps} and rho={rho} are unusual. Were the arguments in "
            f"another order? It is {order}. Name them: rho=0.95, {eps_name}=1e-6.",
            stacklevel=4,  # the caller of what is explained
        )


def rate(name: str, value: Any) -> Any:
    """Return a learning rate or decay that is checked: a number or a schedule.

    Raises:
      TypeError: If it is neither.
      ValueError: If it is a number below 0 or not finite.
    """
    leaves = jax.tree.leaves(value) if callable(value) else ()
    listed = isinstance(value, Mapping | list | tuple) and not callable(value)
    if listed or any(isinstance(x, jax.Array) and x.ndim for x in leaves):
        raise TypeError(
            f"{name} must be a number or a schedule, got a {type(value).__name__}. "
            "Pass parameters to init and update, not here. Wrap a "
            "schedule that holds arrays in a function: lambda count: schedule(count)."
        )
    if not callable(value):
        return scalar(name, value, *AT_LEAST_0)

    def schedule(count: Any) -> Any:
        at = f" at update {count}" if not isinstance(count, Tracer) else ""
        return scalar(
            f"{name}, as its schedule returns it{at},", value(count), *AT_LEAST_0
        )

    return schedule
