"""Variables that an optimizer object updates.

BrainPy's variables and ``brainstate.State`` are told by their class, without an
import: where such a variable exists, its library is imported already.
"""

import numbers
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Variable:
    """A container for an array: read ``variable.value``, and assign to it.

    It takes the place of BrainPy's ``bm.Variable`` in code without BrainPy.

    Args:
      value: An array or a number.

    Raises:
      ValueError: When a value of another shape or dtype is assigned.

    Examples:
      >>> import adadelta_tx
      >>> import jax.numpy as jnp
      >>> v = adadelta_tx.Variable(jnp.zeros(2))
      >>> v.value = v.value + 1.0
      >>> v
      Variable([1., 1.], dtype=float32)
      >>> jnp.sum(v.value)
      Array(2., dtype=float32)
    """

    def __init__(self, value: Any) -> None:
        """See the class."""
        self._value = array(value)

    @property
    def value(self) -> jax.Array:
        """The array."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        value = array(value)
        narrow = jax.dtypes.canonicalize_dtype(self.dtype)  # x64 may be off by now
        if value.shape != self.shape or value.dtype not in (self.dtype, narrow):
            raise ValueError(
                f"A {type(self).__name__} of shape {self.shape} and dtype {self.dtype} "
                f"cannot hold shape {value.shape} and dtype {value.dtype}."
            )
        self._value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self._value.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's dtype."""
        return self._value.dtype

    def __repr__(self) -> str:
        array = repr(self._value).removeprefix("Array")
        return f"{type(self).__name__}{array}"


class TrainVar(Variable):
    """A :class:`adadelta_tx.Variable` that is trained."""


def array(value: Any) -> jax.Array:
    """An array without a number's weak type, for which steps would compile again.

    Numbers go to the device by a transfer that ``jax.transfer_guard`` allows.
    """
    if not isinstance(value, jax.Array):
        is_scalar = isinstance(value, numbers.Number)
        value = jax.device_put(np.asarray(value)) if is_scalar else jnp.asarray(value)
    return value.astype(value.dtype) if getattr(value, "weak_type", False) else value


def like(old: jax.Array, value: Any) -> jax.Array:
    """A number in the dtype of an array, or in 32 bits if x64 is off by now."""
    x, dtype = array(value), jax.dtypes.canonicalize_dtype(old.dtype)
    return x if x.dtype == dtype else x.astype(dtype)  # which would copy it


def imported(module: str, name: str) -> Any:
    """What a library calls so; an empty tuple if it is not imported, as no class."""
    return getattr(sys.modules.get(module), name, ())


def kind_of(x: Any) -> Any:
    """The class of variables that transformations track like ``x``; or ``None``."""
    if isinstance(x, Variable):
        return Variable
    if isinstance(x, imported("brainpy.math", "Variable")):
        return imported("brainpy.math", "Variable")
    if isinstance(x, imported("brainstate", "State")):
        return imported("brainstate", "LongTermState")
    return None


def is_number(x: Any) -> bool:
    """Whether ``x`` is a number or an array, and no variable of one."""
    return isinstance(x, numbers.Number | np.ndarray | jax.Array)


def value_of(x: Any) -> Any:
    """The array in BrainPy's or our own wrapper of one; anything else as it is."""
    return getattr(x, "value", x)


def assign(variables: list[Any], values: list[Any]) -> None:
    """Gives each variable a value of its shape and dtype: all of them, or none."""
    for variable, value in zip(variables, values, strict=True):
        if isinstance(variable, Variable) and isinstance(value, Tracer):
            raise RuntimeError(
                "An adadelta_tx.Variable cannot be set inside a JAX transformation, "
                "which does not track it. Call update, which compiles itself, and "
                "setters outside, or use the transformation adadelta_tx.adadelta()."
            )
    # BrainPy's setter leaves a tracer of plain jax.jit in its variable. That of
    # brainstate, which it extends, refuses one, and records the write as theirs does.
    theirs = [imported("brainpy.math", name) for name in ("Variable", "TrainVar")]
    put = getattr(imported("brainstate", "State"), "value", None)
    for variable, value in zip(variables, values, strict=True):
        if put is not None and type(variable) in theirs:
            put.fset(variable, value)
        else:
            variable.value = value
