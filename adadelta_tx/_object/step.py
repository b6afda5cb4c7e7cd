"""One compiled step of all variables of an optimizer object."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from adadelta_tx._core import accumulators
from adadelta_tx._core.transform import scale_by_adadelta

Columns = list[list[Any]]


def step(columns: Columns, grads: list[Any], lr: jax.Array, fixed: Any) -> Columns:
    """One compiled step of the variables on each set of devices.

    The columns are the parameters, then what is kept of them, in the same order, and
    last the count of updates, if the state has one.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(fixed)):
        return _uncompiled(columns, grads, lr, fixed)
    leaves = jax.tree.leaves(columns[0]) if jax.device_count() > 1 else ()
    shardings = {getattr(x, "sharding", None) for x in leaves}
    if not shardings or None in shardings:  # None of a traced value
        return _compiled(columns, grads, lr, fixed)
    if len(shardings) == 1:
        return _compiled_there(columns, grads, lr, fixed)
    places: dict[Any, list[int]] = {}
    for i, value in enumerate(columns[0]):
        place = frozenset().union(*(x.devices() for x in jax.tree.leaves(value)))
        places.setdefault(place, []).append(i)
    new = [list(column) for column in columns]
    for rows in places.values():
        own = [[column[i] for i in rows] for column in columns[:-1]]
        own.append(columns[-1])
        *changed, new[-1] = _compiled_there(own, [grads[i] for i in rows], lr, fixed)
        for column, values in zip(new, changed, strict=False):
            for i, value in zip(rows, values, strict=True):
                column[i] = value
    return new


def _compiled_there(columns: Columns, grads: list[Any], lr: Any, fixed: Any) -> Columns:
    """The step, with its scalars on the devices that the parameters are on."""
    place = jax.tree.leaves(columns[0])[0].sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec())
    *own, count = columns
    lr, *count = (
        x if getattr(x, "sharding", place) == place else jax.device_put(x, place)
        for x in (lr, *count)
    )
    return _compiled([*own, count], grads, lr, fixed)


def _uncompiled(columns: Columns, grads: list[Any], lr: Any, fixed: Any) -> Columns:
    (rho, epsilon, grad_epsilon), weight_decay = fixed
    params, *kept, count = jax.tree.map(_canonical, columns)
    names = accumulators.names_for(None if len(kept) > 1 else jnp.uint8)
    trees = dict(zip(names, kept, strict=True))
    state: Any = accumulators.state_of(trees, *(count or [None]))
    tx = scale_by_adadelta(rho, epsilon, grad_eps=grad_epsilon)
    wide = jax.tree.map(_wide, grads, params, kept[0])
    updates, state = tx.update(wide, state, params)
    move = functools.partial(_moved, lr, weight_decay)
    kept = accumulators.trees_of(state).values()
    count = [accumulators.count_of(state)] if count else []
    return [jax.tree.map(move, params, updates), *kept, count]


def _canonical(x: Any) -> jax.Array:
    """An array in 32 bits if x64 is off by now."""
    x = jnp.asarray(x)
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype))


def _wide(g: Any, parameter: jax.Array, stored: jax.Array) -> jax.Array:
    """A gradient in the dtype to calculate in, and so the update in it too."""
    g = _canonical(g)
    real = accumulators.arithmetic_dtype(g.dtype, parameter.dtype, stored.dtype)
    return accumulators.widened(g, real)


def _moved(lr: Any, weight_decay: Any, x: jax.Array, update: jax.Array) -> jax.Array:
    """A parameter after its step, which is rounded once, to the parameter's dtype."""
    wide = x.astype(update.dtype)
    change = -1 * jnp.asarray(lr).astype(update.dtype) * update
    if isinstance(weight_decay, Tracer) or weight_decay:
        change += jnp.asarray(-weight_decay).astype(update.dtype) * wide
    return (wide + change).astype(x.dtype)


# No names among its arguments, so that a second network of the same shapes compiles
# nothing.
_compiled = jax.jit(_uncompiled, static_argnames="fixed")
