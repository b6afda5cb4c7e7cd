"""One compiled step of all variables of an optimizer object."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adadelta_tx._core import accumulators
from adadelta_tx._core.transform import scale_by_adadelta

Columns = list[list[Any]]


def step(columns: Columns, grads: list[Any], lr: Any, fixed: Any) -> Columns:
    """One compiled step of the variables on each set of devices.

    The columns are the parameters, then what is kept of them, in the same order, and
    last the count of updates, if the state has one.
    """
    if any(isinstance(x, Tracer) for x in fixed):
        return _uncompiled(columns, grads, lr, fixed)
    leaves = jax.tree.leaves(columns[0]) if jax.device_count() > 1 else ()
    shardings = {getattr(x, "sharding", None) for x in leaves}
    if len(shardings) < 2 or None in shardings:  # None of a traced value
        return _compiled(columns, grads, lr, fixed)
    places: dict[Any, list[int]] = {}
    for i, value in enumerate(columns[0]):
        place = frozenset().union(*(x.devices() for x in jax.tree.leaves(value)))
        places.setdefault(place, []).append(i)
    new = [list(column) for column in columns]
    for rows in places.values():
        own = [[column[i] for i in rows] for column in columns[:-1]]
        own.append([np.asarray(count) for count in columns[-1]])
        *changed, new[-1] = _compiled(own, [grads[i] for i in rows], lr, fixed)
        for column, values in zip(new, changed, strict=False):
            for i, value in zip(rows, values, strict=True):
                column[i] = value
    return new


def _uncompiled(columns: Columns, grads: list[Any], lr: Any, fixed: Any) -> Columns:
    rho, epsilon, weight_decay = fixed
    params, *kept, count = columns
    names = accumulators.names_for(None if len(kept) > 1 else jnp.uint8)
    tx = optax.chain(
        scale_by_adadelta(rho, epsilon),
        optax.scale_by_learning_rate(lr),
        optax.add_decayed_weights(-weight_decay),
    )
    none = optax.EmptyState()
    trees = dict(zip(names, kept, strict=True))
    state: Any = (accumulators.state_of(trees, *(count or [None])), none, none)
    updates, state = tx.update(grads, state, params)
    new: Any = optax.apply_updates(params, updates)
    kept = accumulators.trees_of(state[0]).values()
    return [new, *kept, [accumulators.count_of(state[0])] if count else []]


# No names among its arguments, so that a second network of the same shapes compiles
# nothing.
_compiled = jax.jit(_uncompiled, static_argnames="fixed")
