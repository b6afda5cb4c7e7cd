"""Variables that an optimizer object updates, their collections and their names.

BrainPy's variables and ``brainstate.State`` are told by their class, without an
import: where such a variable exists, its library is imported already.
"""

import itertools
import numbers
import sys
import weakref
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Variable:
    """A named place for an array: ``variable.value`` reads it, and assigning sets it.

    It stands where BrainPy's ``bm.Variable`` would, for code without BrainPy.

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
        self._value = jnp.asarray(value)

    @property
    def value(self) -> jax.Array:
        """The array."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        if not isinstance(value, jax.Array):
            value = jnp.asarray(value)
        if (value.shape, value.dtype) != (self.shape, self.dtype):
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
    """Named variables or nodes, in order. One name cannot stand for two of them."""

    def __setitem__(self, name: str, item: Any) -> None:
        if self.get(name, item) is not item:
            raise ValueError(f"The name {name!r} stands for another object already.")
        super().__setitem__(name, item)

    def update(self, other: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds the items of another dict."""
        for name, item in other.items():
            self[name] = item

    def __add__(self, other: Any) -> Self:
        """The items of both."""
        both = type(self)(self)
        both.update(other)
        return both

    def subset(self, type_: type | tuple[type, ...]) -> Self:
        """Those items that are of this type."""
        return type(self)(
            (name, item) for name, item in self.items() if isinstance(item, type_)
        )

    def unique(self) -> Self:
        """Each item once, by the first of its names."""
        first = {id(item): name for name, item in reversed(self.items())}
        return type(self)(
            (name, item) for name, item in self.items() if first[id(item)] == name
        )

    def dict(self) -> dict[str, Any]:
        """The variables' values by name."""
        return {name: variable.value for name, variable in self.items()}


def is_variable(x: Any) -> bool:
    """Whether an optimizer can train ``x``: ours, or of brainstate's family."""
    return isinstance(x, Variable) or _is_state(x)


def variable_like(other: Any, value: Any) -> Any:
    """A variable for ``value`` that the same transformations track as ``other``."""
    if not _is_state(other):
        return Variable(value)
    brainpy_math = sys.modules.get("brainpy.math")
    if brainpy_math is not None and isinstance(other, brainpy_math.Variable):
        return brainpy_math.Variable(value)
    return sys.modules["brainstate"].LongTermState(value)


def value_of(x: Any) -> Any:
    """The array in BrainPy's or our own wrapper of one; anything else as it is."""
    return getattr(x, "value", x)


def trainable(train_vars: Any, known: Collector) -> Collector:
    """Those of ``train_vars`` that are not ``known`` yet.

    Raises:
      TypeError: If it is not a dict of variables.
      ValueError: If a name stands for another variable already, a variable has
        another name already, or two names are written alike.
    """
    if train_vars is not None and not isinstance(train_vars, Mapping):
        hint = ""
        number = isinstance(train_vars, numbers.Number | np.ndarray | jax.Array)
        if number or callable(train_vars):
            hint = " The learning rate comes second here: Adadelta(train_vars, lr)."
        raise TypeError(
            f"train_vars must be a dict of variables, got {train_vars!r}.{hint}"
        )
    together = Collector(known)
    together.update(train_vars or {})
    for name, variable in together.items():
        if not is_variable(variable):
            raise TypeError(
                f"train_vars[{name!r}] must be a variable of BrainPy, brainstate or "
                f"adadelta_tx, got {type(variable).__name__}."
            )
    again = together.keys() - together.unique().keys()
    if again:
        raise ValueError(
            f"{sorted(again)} are second names of variables that are trained already. "
            "Pass train_vars.unique()."
        )
    if len({str(name).lstrip(".") for name in together}) < len(together):
        raise ValueError(f"Two of these names are written alike: {list(together)}.")
    return Collector((k, v) for k, v in together.items() if k not in known)


def checked_grads(grads: Any, values: Mapping[str, Any]) -> list[Any]:
    """The gradients of these values, in their order.

    Raises:
      TypeError, ValueError: See :meth:`adadelta_tx.Adadelta.check_grads`.
    """
    if not isinstance(grads, Mapping):
        raise TypeError(f"grads must be a dict by variable, got {grads!r}.")
    missing = sorted(values.keys() - grads.keys())
    extra = sorted(grads.keys() - values.keys())
    if missing or extra:
        raise ValueError(
            f"The gradients are not those of the variables: missing {missing}, "
            f"unknown {extra}. register_train_vars adds variables."
        )
    arrays = [value_of(grads[key]) for key in values]
    for (key, value), g in zip(values.items(), arrays, strict=True):
        want, got = _shapes(value), _shapes(g)
        if want != got:
            raise ValueError(f"Gradient {key!r} has shape {got}, not {want}.")
    return arrays


def assign(variables: list[Any], values: list[Any]) -> None:
    """Gives each variable a value of its shape and dtype: all of them, or none.

    Raises:
      RuntimeError: If JAX traces a value for a variable that JAX does not track.
    """
    for variable, value in zip(variables, values, strict=True):
        if isinstance(variable, Variable) and isinstance(value, Tracer):
            raise RuntimeError(
                "An adadelta_tx.Variable was to be set inside a JAX transformation, "
                "which does not track it. Use the gradient transformation "
                "adadelta_tx.adadelta() there."
            )
    setters = {}
    if {"brainpy.math", "brainstate"} <= sys.modules.keys():
        math, state = sys.modules["brainpy.math"], sys.modules["brainstate"].State
        # The setter that theirs extends. It records the write as theirs does,
        # without comparing shapes and dtypes, and refuses a leaking tracer.
        setters = dict.fromkeys((math.Variable, math.TrainVar), state.value.fset)
    for variable, value in zip(variables, values, strict=True):
        setter = setters.get(type(variable))
        if setter is None:
            variable.value = value
        else:
            setter(variable, value)


def _shapes(x: Any) -> Any:
    return x.shape if hasattr(x, "shape") else jax.tree.map(jnp.shape, x)


def _is_state(x: Any) -> bool:
    brainstate = sys.modules.get("brainstate")
    return brainstate is not None and isinstance(x, brainstate.State)


_owners: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_counters: dict[str, itertools.count] = {}


def claim_name(owner: Any, name: str | None, type_: str) -> str:
    """Gives ``owner`` a name, the next automatic one of ``type_`` for ``None``.

    Raises:
      ValueError: If the name is not an identifier, or in use by a living object.
    """
    name = free_name(owner, name, type_)
    for old in [old for old, its_owner in _owners.items() if its_owner is owner]:
        del _owners[old]
    _owners[name] = owner
    return name


def free_name(owner: Any, name: str | None, type_: str) -> str:
    """The name that ``owner`` could have: see :func:`claim_name`."""
    if name is None:
        numbers = _counters.setdefault(type_, itertools.count())
        return next(
            candidate
            for candidate in (f"{type_}{number}" for number in numbers)
            if candidate not in _owners
        )
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"A name must be a valid identifier, got {name!r}.")
    if _owners.get(name, owner) is not owner:
        raise ValueError(
            f"The name {name!r} is in use by {_owners[name]!r}. Choose another one, "
            "delete that object, or call adadelta_tx.clear_name_cache()."
        )
    return name


def clear_name_cache() -> None:
    """Makes all names free again, and automatic ones start at 0.

    Examples:
      >>> import adadelta_tx
      >>> adadelta_tx.clear_name_cache()
      >>> adadelta_tx.Adadelta().name
      'Adadelta0'
    """
    _owners.clear()
    _counters.clear()
