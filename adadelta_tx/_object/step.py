"""One compiled step of all variables of an optimizer object."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from adadelta_tx._core import accumulators

Columns = list[list[Any]]
"""The parameters, then what is kept of them, in the same order; and last the count of
updates, if there is one."""


def step(columns: Columns, grads: list[Any], lr: jax.Array, fixed: Any) -> Columns:
    """One step: what the columns hold after it. All are on one set of devices."""
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(fixed)):
        return _uncompiled(columns, grads, lr, fixed)
    if jax.device_count() > 1:  # the scalars go to where the parameters are
        place = getattr(jax.tree.leaves(columns[0])[0], "sharding", None)
        if isinstance(place, NamedSharding):
            place = NamedSharding(place.mesh, PartitionSpec())
        *own, count = columns
        lr, *count = (  # a traced value is nowhere
            jax.device_put(x, place) if getattr(x, "sharding", place) != place else x
            for x in (lr, *count)
        )
        columns = [*own, count]
    return _compiled(columns, grads, lr, fixed)


def _uncompiled(columns: Columns, grads: list[Any], lr: Any, fixed: Any) -> Columns:
    numbers, weight_decay = fixed
    *columns, counts = columns
    count = counts[0] if counts else None

    @jax.jit  # which traces arrays of one shape once
    def advanced(*row: Any) -> tuple[jax.Array, ...]:
        g, x, *kept = map(_canonical, row)
        real = accumulators.arithmetic_dtype(g.dtype, x.dtype, kept[0].dtype)
        g = accumulators.widened(g, real)
        u, *kept = accumulators.advance(numbers, g, (*kept,), count, x.dtype)
        wide = x.astype(u.dtype)
        change = -1 * jnp.asarray(lr).astype(u.dtype) * u
        if isinstance(weight_decay, Tracer) or weight_decay:
            change += jnp.asarray(-weight_decay).astype(u.dtype) * wide
        return (wide + change).astype(x.dtype), *kept  # rounded once

    rows = jax.tree.map(advanced, grads, *columns)
    columns = jax.tree.transpose(jax.tree.structure(grads), None, rows)
    return [*columns, [x + 1 for x in counts]]


def _canonical(x: Any) -> jax.Array:
    """An array in 32 bits if x64 is off by now."""
    x = jnp.asarray(x)
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype))


# No names among its arguments, so that a second network of the same shapes compiles
# nothing.
_compiled = jax.jit(_uncompiled, static_argnames="fixed")
