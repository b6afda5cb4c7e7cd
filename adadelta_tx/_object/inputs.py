"""Whether numbers, variables and gradients fit; what to write instead if not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from adadelta_tx._core.hyperparameters import NUMBERS, number
from adadelta_tx._core.trees import foreign, is_foreign
from adadelta_tx._object.variables import imported, is_number, kind_of, value_of


def hyperparameter(name: str) -> Any:
    """An attribute of a number, which is checked where it is set."""

    def put(optimizer: Any, value: Any) -> None:
        if value is None and name == "weight_decay":
            value = 0.0
        if value is not None or name != "grad_epsilon":
            value = number(name, value, NUMBERS[name])
        old = vars(optimizer).get(name, value)  # or it is being made
        if isinstance(value, Tracer) and not isinstance(old, Tracer):
            raise RuntimeError(
                f"{name} cannot be set to {value} inside a JAX transformation, "
                "which does not track it. Set it outside, or pass it to an "
                f"optimizer that is made inside: Adadelta(train_vars, {name}=…)."
            )
        vars(optimizer)[name] = value

    return property(lambda optimizer: optimizer._own(name), put)


def trainable(train_vars: Any, known: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Those of ``train_vars`` that are not ``known`` yet: of any kind if ``None``."""
    if not isinstance(train_vars, Mapping | None):
        raise TypeError(
            f"train_vars must be a dict of variables, got {type(train_vars).__name__}."
            f"{_instead_of(train_vars)}"
        )
    together = {**known, **(train_vars or {})}
    names: dict[Any, str] = {}
    for name, variable in together.items():
        if kind_of(variable) is None or kind not in (None, kind_of(variable)):
            raise TypeError(
                f"train_vars[{name!r}] must be a variable of "
                + ("BrainPy, brainstate or adadelta_tx" if kind is None else "BrainPy")
                + f", got {type(variable).__name__.removesuffix('Impl')}."
                + _variable_of(name, variable, kind)
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
        for dtype in map(jnp.result_type, jax.tree.leaves(variable.value)):
            if not jnp.issubdtype(dtype, jnp.inexact):
                raise TypeError(
                    f"train_vars[{name!r}] has dtype {dtype}; Adadelta trains "
                    "floating-point or complex numbers. Leave it out."
                )
    return {name: v for name, v in together.items() if name not in known}


def _variable_of(name: str, value: Any, kind: Any) -> str:
    if kind_of(value):
        return " For others, write Adadelta(train_vars) with all of them."
    if is_number(value_of(value)):
        ours = "adadelta_tx.TrainVar(array), or with BrainPy " if kind is None else ""
        return f" Write {ours}bm.TrainVar(array)."
    if isinstance(value, Mapping):
        inner = next(iter(value), "w")
        return f' Write one dict of all variables: {{"{name}.{inner}": variable, …}}.'
    return ""


def _instead_of(x: Any) -> str:
    call = f"{getattr(x, '__name__', '')}(), with parentheses"
    flax = isinstance(x, imported("flax.nnx", "Module"))
    network = "network.train_vars().unique()"
    named = f'{{"w": w, "b": b}}. For a BrainPy network, write {network}'
    second = "The learning rate comes second here: Adadelta(train_vars, lr)"
    cases = (
        (kind_of(x) is not None, 'Give it a name: {"w": variable}'),
        (flax, "Write nnx.Optimizer(model, adadelta_tx.adadelta(), wrt=nnx.Param)"),
        (hasattr(x, "train_vars"), f"Write Adadelta({network})"),
        (hasattr(x, "states"), "Write Adadelta(module.states(brainstate.ParamState))"),
        (hasattr(x, "__self__"), f"Write {call}"),
        (isinstance(x, list | tuple | set), f"Give each a name: {named}"),
        (is_number(x) or callable(x), second),
    )
    return next((f" {instead}." for holds, instead in cases if holds), "")


def checked_grads(grads: Any, values: Mapping[str, Any]) -> list[Any]:
    """The gradients of these values, in their order."""
    if not isinstance(grads, Mapping):
        instead = "brainpy.math.grad returns a dict if grad_vars is one."
        if isinstance(grads, tuple):
            instead = (
                "Pass the gradients alone. jax.value_and_grad returns the loss first, "
                "brainpy.math.grad the gradients."
            )
        raise TypeError(
            f"grads must be a dict with the names of the variables, {[*values][:5]}, "
            f"got {type(grads).__name__}. {instead}"
        )
    if not values:
        raise ValueError(
            "There are no variables to train: train_vars was empty, or not given. Pass "
            "them to Adadelta(train_vars) or register_train_vars(train_vars)."
        )
    if values.keys() != grads.keys():
        missing = sorted(values.keys() - grads.keys(), key=str)
        extra = sorted(grads.keys() - values.keys(), key=str)
        instead = "Use the names that the variables have in train_vars."
        if not missing:
            instead = "register_train_vars adds variables."
        if not extra:
            instead = "Pass zeros for a variable that the loss does not depend on."
        raise ValueError(
            f"The gradients do not match the variables: missing {missing}, "
            f"unknown {extra}. {instead}"
        )
    arrays = [value_of(grads[key]) for key in values]
    for (key, value), g in zip(values.items(), arrays, strict=True):
        if is_foreign(g):
            raise foreign(g, f"Gradient {key!r}")
        if getattr(g, "shape", None) != getattr(value, "shape", 0) or (
            g.dtype != value.dtype
        ):
            _check_gradient(key, value, g)  # seldom: it takes longer
    if jax.device_count() > 1:
        _check_devices(values)
    return arrays


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
    for x, leaf in zip(jax.tree.leaves(value), leaves, strict=True):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"Gradient {key!r} has dtype {dtype}; it must be floating-point or "
                "complex."
            )
        if jnp.iscomplexobj(leaf) != jnp.iscomplexobj(x):
            raise TypeError(
                f"Gradient {key!r} is {dtype}, but its variable is "
                f"{jnp.result_type(x)}: both must be real, or both complex."
            )


def _check_devices(values: Mapping[str, Any]) -> None:
    names: dict[Any, str] = {}
    for name, value in values.items():
        for x in jax.tree.leaves(value):
            place = getattr(x, "sharding", None)  # None of a traced value
            if place is not None:
                names.setdefault(frozenset(place.device_set), name)
    if len(names) > 1:
        (one, first), (other, second) = [*names.items()][:2]
        raise ValueError(
            f"{first!r} is on {sorted(one, key=str)}, and {second!r} on "
            f"{sorted(other, key=str)}: one optimizer trains variables on the same "
            "devices. Move them by jax.device_put, or make an optimizer for each."
        )
