"""How E[g²] and E[Δx²] are stored: in which dtype, and what fits into it."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

_SUPPORTED = ("float16", "bfloat16", "float32", "float64")


def storage_dtype(requested: DTypeLike | None, parameter_dtype: DTypeLike) -> jnp.dtype:
    """The dtype of a parameter's accumulators: as requested, or at least float32."""
    if requested is not None:
        return jax.dtypes.canonicalize_dtype(requested)
    return arithmetic_dtype(parameter_dtype)


def check_requested(accumulator_dtype: Any) -> DTypeLike | None:
    """Return the dtype if accumulators can be stored in it.

    Raises:
      ValueError: If they cannot; the message lists the dtypes that they can.
    """
    if accumulator_dtype is None:
        return None
    name = None
    if not isinstance(accumulator_dtype, np.ndarray | jax.Array | list | tuple):
        with contextlib.suppress(TypeError):
            name = jnp.dtype(accumulator_dtype).name
    if name not in _SUPPORTED:
        raise ValueError(
            f"accumulator_dtype must be None or one of {', '.join(_SUPPORTED)}; "
            f"got {accumulator_dtype!r}."
        )
    return jnp.dtype(name)


def arithmetic_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """The real dtype to calculate in, given the dtypes of the arrays involved."""
    widest = max(jnp.finfo(dtype).dtype.itemsize for dtype in dtypes)
    return jnp.dtype(jnp.float64 if widest == 8 else jnp.float32)


def largest_gradient(dtype: DTypeLike) -> float:
    """The largest |g| that accumulators of this dtype have room for.

    Its square is a quarter of the dtype's largest number: neither E[g²] nor, but
    for rounding, E[Δx²] grows beyond the largest g².
    """
    return 2.0 ** (jnp.finfo(dtype).maxexp // 2 - 1)


def zeros(parameter: Any, dtype: DTypeLike) -> jax.Array:
    """An accumulator of zeros with the parameter's shape and sharding."""
    if isinstance(parameter, Tracer):
        # XLA shards a value as what it is calculated from. Plain zeros would come
        # from nothing, and jit would put all of them on one device.
        return (jnp.abs(parameter) < 0).astype(dtype)
    return jnp.zeros_like(parameter, dtype=dtype)


def read(stored: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The accumulator's values, for arithmetic in ``dtype``.

    An infinite one, as a state of optax.adadelta can hold, is the largest that the
    stored dtype has, so that it decays.
    """
    largest = float(jnp.finfo(stored.dtype).max)
    return jnp.minimum(stored.astype(dtype), largest)


def write(values: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``values`` stored as ``like`` is, and the values to go on calculating with.

    Those are the stored ones: what is calculated from them alone lets an
    accumulator overwrite the old one without a copy. Only float16 is too narrow
    for it, since E[Δx²] underflows there to a number that says nothing.
    """
    stored = values.astype(like.dtype)
    if like.dtype == jnp.float16:
        return stored, values
    return stored, stored.astype(values.dtype)
