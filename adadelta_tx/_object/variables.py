"""Variables that an optimizer object updates, and their collections.

BrainPy's variables and ``brainstate.State`` are told by their class, without an
import: where such a variable exists, its library is imported already.
"""

import numbers
import sys
from collections.abc import Mapping
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
        dtype = jax.dtypes.canonicalize_dtype(self.dtype)  # x64 may be off by now
        if (value.shape, value.dtype) not in (
            (self.shape, x) for x in (self.dtype, dtype)
        ):
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


class Collector(dict[str, Any]):
    """Variables by name. ``+`` gives those of both, as with BrainPy's."""

    def __add__(self, other: Mapping[str, Any]) -> "Collector":
        for name in self.keys() & other.keys():
            if self[name] is not other[name]:
                raise ValueError(f"{name!r} is the name of another object already.")
        return Collector({**self, **other})

    def dict(self) -> dict[str, Any]:
        """The variables' values by name."""
        return {name: variable.value for name, variable in self.items()}


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


def trainable(train_vars: Any, known: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Those of ``train_vars`` that are not ``known`` yet; of one kind unless ``None``.

    Raises:
      TypeError: If it is not a dict of variables of floating-point or complex numbers.
      ValueError: If a name stands for another variable already, a variable has
        another name already, or two names are written alike.
    """
    if not isinstance(train_vars, Mapping | None):
        raise TypeError(
            f"train_vars must be a dict of variables, got {type(train_vars).__name__}."
            f"{_instead_of(train_vars)}"
        )
    together = {**known, **(train_vars or {})}
    names: dict[Any, str] = {}
    for name, variable in together.items():
        got = kind_of(variable)
        if got is None or kind not in (None, got):
            raise TypeError(
                f"train_vars[{name!r}] must be a variable of "
                + ("BrainPy, brainstate or adadelta_tx" if kind is None else "BrainPy")
                + f", got {type(variable).__name__.removesuffix('Impl')}."
                + (
                    " For others, write Adadelta(train_vars) with all of them."
                    if got
                    else _variable_of(name, variable, kind)
                )
            )
        if known.get(name, variable) is not variable:
            raise ValueError(
                f"{name!r} is the name of another object already. Choose another one."
            )
        first = names.setdefault(id(variable), name)
        if first is not name:
            raise ValueError(
                f"{name!r} is a second name of the variable {first!r}. Pass "
                "train_vars.unique()."
            )
        if names.setdefault(str(name).lstrip("."), name) is not name:
            raise ValueError(f"Two names become the same in a file: {name!r}.")
        for leaf in jax.tree.leaves(variable.value):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise TypeError(
                    f"train_vars[{name!r}] has dtype {jnp.result_type(leaf)}; Adadelta "
                    "trains floating-point or complex numbers. Leave it out."
                )
    return {name: v for name, v in together.items() if name not in known}


def _variable_of(name: str, value: Any, kind: Any) -> str:
    if is_number(value_of(value)):
        ours = "adadelta_tx.TrainVar(array), or with BrainPy " if kind is None else ""
        return f" Write {ours}bm.TrainVar(array)."
    if isinstance(value, Mapping):
        inner = next(iter(value), "w")
        return f' Write one dict of all variables: {{"{name}.{inner}": variable, …}}.'
    return ""


def _instead_of(train_vars: Any) -> str:
    if kind_of(train_vars) is not None:
        return ' Give it a name: {"w": variable}.'
    if isinstance(train_vars, imported("flax.nnx", "Module")):
        return " Write nnx.Optimizer(model, adadelta_tx.adadelta(), wrt=nnx.Param)."
    if hasattr(train_vars, "train_vars"):
        return " Write Adadelta(network.train_vars().unique())."
    if hasattr(train_vars, "states"):
        return " Write Adadelta(module.states(brainstate.ParamState))."
    if hasattr(train_vars, "__self__"):
        return f" Write {train_vars.__name__}(), with parentheses."
    if isinstance(train_vars, list | tuple | set):
        return (
            ' Give each a name: {"w": w, "b": b}. For a BrainPy network, write '
            "network.train_vars().unique()."
        )
    if is_number(train_vars) or callable(train_vars):
        return " The learning rate comes second here: Adadelta(train_vars, lr)."
    return ""


def checked_grads(grads: Any, values: Mapping[str, Any]) -> list[Any]:
    """The gradients of these values, in their order.

    Raises:
      TypeError, ValueError: See :meth:`adadelta_tx.Adadelta.check_grads`.
    """
    if not isinstance(grads, Mapping):
        raise TypeError(
            f"grads must be a dict with the names of the variables, {[*values][:5]}, "
            f"got {type(grads).__name__}."
            + (
                " Pass the gradients alone. jax.value_and_grad returns the loss first, "
                "brainpy.math.grad the gradients."
                if isinstance(grads, tuple)
                else " brainpy.math.grad returns a dict if grad_vars is one."
            )
        )
    if not values:
        raise ValueError(
            "There are no variables to train: train_vars was empty, or not given. Pass "
            "them to Adadelta(train_vars) or register_train_vars(train_vars)."
        )
    if values.keys() != grads.keys():
        missing = sorted(values.keys() - grads.keys(), key=str)
        extra = sorted(grads.keys() - values.keys(), key=str)
        raise ValueError(
            f"The gradients do not match the variables: missing {missing}, "
            f"unknown {extra}. {_of_names(missing, extra)}"
        )
    arrays = [value_of(grads[key]) for key in values]
    for (key, value), g in zip(values.items(), arrays, strict=True):
        if getattr(g, "shape", None) != getattr(value, "shape", 0) or (
            g.dtype != value.dtype
        ):
            _check_gradient(key, value, g)  # seldom: it takes longer
    return arrays


def _of_names(missing: list[Any], extra: list[Any]) -> str:
    if not missing:
        return "register_train_vars adds variables."
    if not extra:
        return "Pass zeros for a variable that the loss does not depend on."
    return "Use the names that the variables have in train_vars."


def _check_gradient(key: str, value: Any, g: Any) -> None:
    leaves = jax.tree.leaves(g, is_leaf=lambda x: x is None)
    if any(leaf is None for leaf in leaves):
        raise TypeError(
            f"Gradient {key!r} is None. Pass zeros for a variable that the loss does "
            "not depend on, or leave it out of train_vars."
        )
    want, got = (jax.tree.map(jnp.shape, x) for x in (value, g))
    if want != got:
        raise ValueError(f"Gradient {key!r} has shape {got}, not {want}.")
    for dtype in map(jnp.result_type, leaves):
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"Gradient {key!r} has dtype {dtype}; it must be floating-point or "
                "complex."
            )


def assign(variables: list[Any], values: list[Any]) -> None:
    """Gives each variable a value of its shape and dtype: all of them, or none.

    Raises:
      RuntimeError: If JAX traces a value for a variable that JAX does not track.
    """
    for variable, value in zip(variables, values, strict=True):
        if isinstance(variable, Variable) and isinstance(value, Tracer):
            raise RuntimeError(
                "An adadelta_tx.Variable cannot be set inside a JAX transformation, "
                "which does not track it. Call update, which compiles itself, and "
                "setters outside, or use the transformation adadelta_tx.adadelta()."
            )
    setters = {}
    if {"brainpy.math", "brainstate"} <= sys.modules.keys():
        kinds = (imported("brainpy.math", name) for name in ("Variable", "TrainVar"))
        # The setter that theirs extends. It records the write as theirs does,
        # without comparing shapes and dtypes, and refuses a leaking tracer.
        setters = dict.fromkeys(kinds, imported("brainstate", "State").value.fset)
    for variable, value in zip(variables, values, strict=True):
        setter = setters.get(type(variable))
        if setter is None:
            variable.value = value
        else:
            setter(variable, value)
