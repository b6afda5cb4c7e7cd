"""Hyperparameters: their names, their ranges, and the checks that everyone uses."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

BELOW_1 = (lambda x: 0 <= x < 1, "in [0, 1)")
POSITIVE = (lambda x: 0 < x < 1e30, "above 0 and below 1e30")
BELOW_1E30 = (lambda x: 0 <= x < 1e30, "at least 0 and below 1e30")
AT_LEAST_0 = (lambda x: 0 <= x < math.inf, "finite and at least 0")
UP_TO_1 = (lambda x: 0 <= x <= 1, "in [0, 1]")
NUMBERS = {
    "rho": BELOW_1,
    "epsilon": POSITIVE,
    "grad_epsilon": BELOW_1E30,
    "weight_decay": UP_TO_1,
}
"""Those of an optimizer object; ``grad_epsilon`` may be ``None``."""
_REAL = (jnp.floating, jnp.integer)

Range = tuple[Callable[[float], bool], str]


def number(name: str, value: Any, in_range: Range) -> Any:
    """A number as a float if it is in range, and a traced value as it is.

    A TypeError or a ValueError says what else it is.
    """
    if isinstance(value, jax.Array) and not isinstance(value, Tracer):
        value = jax.device_get(value)  # explicitly, for jax.transfer_guard
    return scalar(name, value, in_range)


def scalar(name: str, value: Any, in_range: Range, kind: str = "a real number") -> Any:
    """What :func:`number` returns, but a ``jax.Array`` as it is.

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
        if callable(value) and name in ("eps", "grad_eps", *NUMBERS):
            instead = (
                " It takes no schedule: change it with optax.inject_hyperparams or, on "
                "an Adadelta object, by assignment."
            )
        raise TypeError(f"{name} must be {kind}, got {got}.{instead}")
    rounded = ""
    if array.dtype.itemsize < 4 and isinstance(array, jax.Array):
        rounded = (
            f" It has the parameters' dtype, {array.dtype}, which has few digits. Pass "
            "hyperparam_dtype=jnp.float32 to optax.inject_hyperparams."
        )
    if isinstance(array, Tracer):
        if rounded and name == "rho":  # 0.999 is 1 then, and nothing else tells
            warnings.warn(f"{name} is traced, and not checked.{rounded}", stacklevel=5)
        return array
    check, range_ = in_range
    if not check(float(jax.device_get(array))):
        raise ValueError(f"{name} must be {range_}, got {value}.{rounded}")
    return array if isinstance(array, jax.Array) else float(array)


def scalar_or_schedule(name: str, value: Any) -> Any:
    """A learning rate or decay: a number of at least 0, or a schedule of such ones."""
    leaves = jax.tree.leaves(value) if callable(value) else ()
    many = Mapping | list | tuple | Iterator
    listed = isinstance(value, many) and not callable(value)
    if listed or any(isinstance(x, jax.Array) and x.ndim for x in leaves):
        raise TypeError(
            f"{name} must be a number or an optax schedule, got a "
            f"{type(value).__name__}. Pass parameters to init and update, not here. "
            "Wrap a schedule that holds arrays: lambda count: schedule(count)."
        )
    if not callable(value):
        return scalar(name, value, AT_LEAST_0, "a number or an optax schedule")

    def schedule(count: ArrayLike) -> Any:
        at = f" at update {count}" if not isinstance(count, Tracer) else ""
        return scalar(
            f"{name}, as its schedule returns it{at},", value(count), AT_LEAST_0
        )

    return schedule


def warn_of_unusual(
    learning_rate: Any,
    rho: Any,
    eps: Any,
    names: tuple[str, str],
    order: str,
) -> None:
    """Warn of numbers in range that are seldom meant: habits from other optimizers.

    Only of numbers that were written down: a sweep has those of NumPy or JAX.
    """
    rate_name, eps_name = names
    if type(learning_rate) in (int, float) and 0 < learning_rate <= 0.01:
        warnings.warn(
            f"{rate_name}={learning_rate} makes every step {1 / learning_rate:.0f} "
            "times smaller. Adadelta sets its own step sizes: leave it at 1, as in the "
            "paper.",
            stacklevel=4,  # the caller of what is decorated
        )
    known = isinstance(eps, float | int) and isinstance(rho, float | int)
    if known and (0.5 <= eps < 1 or 0 < rho < 0.01):
        warnings.warn(
            f"{eps_name}={eps} and rho={rho} are unusual. Were the arguments in "
            f"another order? It is {order}. Name them: rho=0.95, {eps_name}=1e-6.",
            stacklevel=4,
        )
