"""One compiled step of all variables of an optimizer object."""

import itertools
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer

from adadelta_tx._accumulators import as_state, parts
from adadelta_tx._transform import scale_by_adadelta


def step(values: list[Any], grads: list[Any], lr: Any, fixed: Any) -> list[Any]:
    """One compiled step of the variables on each set of devices.

    The values are the parameters, then for each suffix what is kept of them, in the
    same order, then the count of updates, if the state has one.
    """
    if any(isinstance(x, Tracer) for x in fixed):
        return _uncompiled(values, grads, lr, fixed)
    n, new = len(grads), list(values)
    leaves = jax.tree.leaves(values[:n]) if jax.device_count() > 1 else ()
    shardings = {getattr(x, "sharding", None) for x in leaves}
    if len(shardings) < 2 or None in shardings:  # None of a traced value
        return _compiled(values, grads, lr, fixed)
    places: dict[Any, list[int]] = {}
    for i, value in enumerate(values[:n]):
        place = frozenset().union(*(x.devices() for x in jax.tree.leaves(value)))
        places.setdefault(place, []).append(i)
    count = range(n * (1 + fixed[-1]), len(values))
    for rows in places.values():
        its = [i + start for start in range(0, count.start, n) for i in rows]
        own = [*(values[i] for i in its), *(np.asarray(values[i]) for i in count)]
        changed = _compiled(own, [grads[i] for i in rows], lr, fixed)
        for i, value in zip((*its, *count), changed, strict=True):
            new[i] = value
    return new


def _uncompiled(values: list[Any], grads: list[Any], lr: Any, fixed: Any) -> list[Any]:
    n = len(grads)
    rho, epsilon, weight_decay, columns = fixed
    params, *trees = (values[i * n : i * n + n] for i in range(1 + columns))
    count = values[(1 + columns) * n :] or [None]
    tx = optax.chain(
        scale_by_adadelta(rho, epsilon),
        optax.scale_by_learning_rate(lr),
        optax.add_decayed_weights(-weight_decay),
    )
    none = optax.EmptyState()
    state: Any = (as_state(trees, *count), none, none)
    updates, state = tx.update(grads, state, params)
    trees, count = parts(state[0])
    new: Any = [optax.apply_updates(params, updates), *trees]
    return [*itertools.chain(*new), *([] if count is None else [count])]


# No names among its arguments, so that a second network of the same shapes compiles
# nothing.
_compiled = jax.jit(_uncompiled, static_argnames="fixed")
