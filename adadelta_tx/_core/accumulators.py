"""How E[g²] and E[Δx²] are stored: in floats of some dtype, or in 8 bits each.

Both are at least 0, and both are only ever used as v + ε. So 8 bits hold 1 + v / ε
with the sign and the bits that a float would have no use for cut off: the upper bits
of its exponent, the lower ones of its mantissa. One 16-bit word holds both codes of an
element.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import DTypeLike

from adadelta_tx._core import recurrence, rounding

FLOATS = ("float16", "bfloat16", "float32", "float64")
_SUPPORTED = ("uint8", *FLOATS)
_STOCHASTIC_FROM = 0.98  # ρ from which bfloat16 loses more by rounding to nearest
_GROWTH = 62  # 8 bits hold E[g²] up to 2^62 ε, with room for rounding

Stored = tuple[jax.Array, ...]
"""E[g²] and E[Δx²] of one parameter, or the codes of both."""


class CodedState(NamedTuple):
    """State of :func:`adadelta_tx.scale_by_adadelta` with 8-bit accumulators.

    Attributes:
      count: Number of updates so far, an int32 scalar, which seeds the rounding.
      codes: A tree like the parameters, of uint16 arrays with their shapes. The high
        byte is the code of E[g²], the low byte that of E[Δx²].

    Examples:
      >>> import adadelta_tx
      >>> import jax.numpy as jnp
      >>> tx = adadelta_tx.scale_by_adadelta(accumulator_dtype=jnp.uint8)
      >>> tx.init({"w": jnp.ones(2)}).codes
      {'w': Array([0, 0], dtype=uint16)}
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    codes: Any


State = optax.ScaleByAdaDeltaState | CodedState


def is_coded(stored: Stored) -> bool:
    """Whether this is the codes of a parameter, not its two accumulators."""
    return len(stored) == 1


def is_state(node: Any) -> bool:
    """Whether this is the state of an Adadelta."""
    return isinstance(node, State)


def as_state(trees: Sequence[Any], count: Any) -> State:
    """A state of E[g²] and E[Δx²] or, with a count, of codes."""
    if count is None:
        return optax.ScaleByAdaDeltaState(*trees)
    return CodedState(count, *trees)


def parts(state: Any) -> tuple[tuple[Any, ...], Any]:
    """What :func:`as_state` makes the state from."""
    if isinstance(state, CodedState):
        return (state.codes,), state.count
    return (state.e_g, state.e_x), None


def names(state: State) -> tuple[str, ...]:
    """What the trees of :func:`parts` are called in the state."""
    return ("codes",) if isinstance(state, CodedState) else state._fields


def suffixes(requested: DTypeLike | None) -> tuple[str, ...]:
    """How variables are called in which an optimizer object keeps a parameter's."""
    return ("_codes",) if requested == jnp.uint8 else ("_cache", "_delta")


def storage_dtype(requested: DTypeLike | None, parameter_dtype: DTypeLike) -> jnp.dtype:
    """The dtype of a parameter's accumulators: as requested, or at least float32.

    Raises:
      ValueError: If that is float64 and JAX has no float64.
    """
    if requested == jnp.uint8:
        return jnp.dtype(jnp.uint16)  # both codes in one word
    if requested is None:
        return arithmetic_dtype(parameter_dtype)
    if jax.dtypes.canonicalize_dtype(requested) != requested:
        raise ValueError(
            f"accumulator_dtype is {requested}, but JAX computes in 32 bits. Call "
            'jax.config.update("jax_enable_x64", True) first, or choose float32.'
        )
    return jnp.dtype(requested)


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
        traced = ""
        if isinstance(accumulator_dtype, jax.Array):
            traced = " Name it in the static_args of optax.inject_hyperparams."
        raise ValueError(
            f"accumulator_dtype must be None or one of {', '.join(_SUPPORTED)}; "
            f"got {accumulator_dtype!r}.{traced}"
        )
    return jnp.dtype(name)


def arithmetic_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """The real dtype to calculate in, given the dtypes of the arrays involved."""
    floats = [jnp.finfo(x).dtype for x in dtypes if jnp.issubdtype(x, jnp.inexact)]
    return jnp.dtype(jnp.float64 if jnp.float64 in floats else jnp.float32)


def zeros(parameter: Any, dtype: DTypeLike) -> jax.Array:
    """An accumulator of zeros with the parameter's shape and sharding."""
    if isinstance(parameter, Tracer):
        # XLA shards a value as what it is calculated from. Plain zeros would come
        # from nothing, and jit would put all of them on one device.
        return (jnp.abs(parameter) < 0).astype(dtype)
    return jnp.zeros_like(parameter, dtype=dtype)


def advance(
    rho: recurrence.Scalar,
    eps: recurrence.Scalar,
    g: jax.Array,
    stored: Stored,
    count: jax.Array | None,
) -> tuple[jax.Array, *Stored]:
    """The update for a gradient, and what is stored after it.

    The update is calculated from what is stored: so an accumulator overwrites the old
    one without a copy, even where XLA makes one array after the other.
    """
    real = arithmetic_dtype(g.dtype, stored[0].dtype)
    c = recurrence.coefficients(rho, eps, real)
    wide = jnp.complex128 if real == jnp.float64 else jnp.complex64
    exact = g.astype(wide if jnp.iscomplexobj(g) else real)
    if is_coded(stored):
        exact = recurrence.bounded(exact, _largest_coded(c.eps))
        share = recurrence.new_share(exact, recurrence.relative(c))
        pair = recurrence.next_pair(share, *rounding.pair(stored[0], real), c)
        codes, a, b = rounding.round_pair(*pair, count)
        u = recurrence.update_of_pair(exact, share, a, b, c)
        return u.astype(g.dtype), codes
    dtype = stored[0].dtype
    exact = recurrence.bounded(exact, _largest(dtype))
    share = recurrence.new_share(exact, c)
    s, d = _read_floats(stored, real)
    write = functools.partial(_write, dtype, rho, exact.real, stored[1])
    new_s, s = write(recurrence.next_e_g(share, s, c), share)
    share_x = recurrence.new_share_x(share, s, d, c)
    new_d, d = write(recurrence.next_e_x(share_x, d, c), share_x)
    return recurrence.update(exact, share, s, d, c).astype(g.dtype), new_s, new_d


def read(
    stored: Stored, dtype: DTypeLike, eps: recurrence.Scalar
) -> tuple[jax.Array, jax.Array]:
    """The values of E[g²] and E[Δx²], for arithmetic in ``dtype``."""
    if is_coded(stored):
        a, b = rounding.pair(stored[0], dtype)
        return (a - 1) * eps, (b - 1) * eps
    return _read_floats(stored, dtype)


def _read_floats(stored: Stored, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """The values as they are, but for an infinite E[g²].

    A state of optax.adadelta can hold one. It counts as the largest number of its
    dtype, so that it decays.
    """
    s, d = (x.astype(dtype) for x in stored)
    return jnp.minimum(s, float(jnp.finfo(stored[0].dtype).max)), d


def _largest(dtype: DTypeLike) -> float:
    """The largest |g| that accumulators have room for.

    Its square is a quarter of the largest number: neither E[g²] nor, but for
    rounding, E[Δx²] grows beyond the largest g².
    """
    return 2.0 ** (jnp.finfo(dtype).maxexp // 2 - 1)


def _largest_coded(eps: recurrence.Scalar) -> recurrence.Scalar:
    bound, largest = 2.0 ** (_GROWTH // 2) * eps**0.5, _largest(jnp.float32)
    if isinstance(bound, float):
        return min(bound, largest)
    return jnp.minimum(bound, largest)


def _write(
    dtype: DTypeLike,
    rho: recurrence.Scalar,
    g: jax.Array,
    old_d: jax.Array,
    values: jax.Array,
    share: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Values as they are stored, and the values to go on calculating with.

    Only float16 is too narrow to go on with what is stored, since E[Δx²] underflows
    there to a number that says nothing.

    The state of floats is optax's, which counts no steps. So the noise of bfloat16
    comes from the values, the gradient and the old E[Δx²]. A gradient that repeats
    itself may hold both averages still, but not E[g²] alone: below g², it would make
    E[Δx²] grow exponentially. Without a share of a gradient, they are rounded to the
    nearest.
    """
    if dtype == jnp.float16:
        return values.astype(dtype), values
    fixed = isinstance(rho, float)
    if dtype != jnp.bfloat16 or (fixed and rho < _STOCHASTIC_FROM):
        stored = values.astype(dtype)
    else:
        at_random = share > float(jnp.finfo(jnp.float32).tiny)
        if not fixed:
            at_random &= rho >= _STOCHASTIC_FROM
        seed = rounding.seed(rounding.bits(g), rounding.bits(old_d))
        stored = rounding.to_bfloat16(values, seed, at_random)
    return stored, stored.astype(values.dtype)
