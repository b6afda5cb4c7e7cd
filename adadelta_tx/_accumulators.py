"""How E[g²] and E[Δx²] are stored: in floats of some dtype, or in 8 bits each.

Both are at least 0, and both are only ever used as v + ε. So 8 bits hold 1 + v / ε
with the sign and the bits that a float would have no use for cut off: the upper bits
of its exponent, the lower ones of its mantissa. What is cut off is rounded up or
down at random, with the probabilities that leave the mean as it is; a float is
linear between two powers of 2, so adding random low bits before the cut does it.
One 16-bit word holds both codes of an element.
"""

import contextlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike

from adadelta_tx import _recurrence as recurrence

_SUPPORTED = ("uint8", "float16", "bfloat16", "float32", "float64")
_STOCHASTIC_FROM = 0.98  # ρ from which bfloat16 loses more by rounding to nearest
_ONE = np.uint32(127 << 23)  # the bits of 1 in float32
_GROWTH = 62  # 8 bits hold E[g²] up to 2^62 ε, with room for rounding

Stored = tuple[jax.Array, ...]
"""E[g²] and E[Δx²] of one parameter, or the codes of both."""

Salt = tuple[Any, Any]
"""A number for the noise in each of the two, or None where there is none."""


class CodedState(NamedTuple):
    """State of :func:`adadelta_tx.scale_by_adadelta` with 8-bit accumulators.

    Attributes:
      count: Number of updates so far, an int32 scalar: a seed of the rounding.
      codes: A tree like the parameters of uint16 arrays with their shapes. The high
        byte has the code of E[g²], the low byte that of E[Δx²].

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


def suffixes(requested: DTypeLike | None) -> tuple[str, ...]:
    """How variables are called in which an optimizer object keeps a parameter's."""
    return ("_codes",) if requested == jnp.uint8 else ("_cache", "_delta")


def storage_dtype(requested: DTypeLike | None, parameter_dtype: DTypeLike) -> jnp.dtype:
    """The dtype of a parameter's accumulators: as requested, or at least float32."""
    if requested == jnp.uint8:
        return jnp.dtype(jnp.uint16)  # both codes in one word
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


def state_of(names: Sequence[str], stored: Sequence[Any]) -> State:
    """The state of arrays in a flat list: E[g²], then E[Δx²], or codes and a count."""
    n = len(names)
    columns, count = [stored[:n], stored[n:]], None
    last = jax.tree.leaves(stored)[-1:]
    if last and last[0].dtype == jnp.int32:
        columns, count = [stored[:n]], stored[n]
    return as_state([dict(zip(names, x, strict=True)) for x in columns], count)


def largest_gradient(stored: Stored, eps: recurrence.Scalar) -> recurrence.Scalar:
    """The largest |g| that these accumulators have room for.

    Its square is a quarter of the largest number or code: neither E[g²] nor, but
    for rounding, E[Δx²] grows beyond the largest g².
    """
    if len(stored) > 1:
        return 2.0 ** (jnp.finfo(stored[0].dtype).maxexp // 2 - 1)
    bound, largest = 2.0 ** (_GROWTH // 2) * eps**0.5, 2.0**63
    if isinstance(bound, float):
        return min(bound, largest)
    return jnp.minimum(bound, largest)


def zeros(parameter: Any, dtype: DTypeLike) -> jax.Array:
    """An accumulator of zeros with the parameter's shape and sharding."""
    if isinstance(parameter, Tracer):
        # XLA shards a value as what it is calculated from. Plain zeros would come
        # from nothing, and jit would put all of them on one device.
        return (jnp.abs(parameter) < 0).astype(dtype)
    return jnp.zeros_like(parameter, dtype=dtype)


def advance(
    stored: Stored,
    share: jax.Array,
    still: jax.Array,
    c: recurrence.Coefficients,
    salt: Salt,
    count: Any,
) -> tuple[Stored, jax.Array, jax.Array]:
    """The accumulators after a gradient with that share: stored, and their values.

    Where the gradient is 0, it is ``still``. The parameter's :func:`salt` and the
    count of steps, if the state has one, are what the noise of rounding comes from.

    The values are the stored ones: what is calculated from them alone lets an
    accumulator overwrite the old one without a copy.
    """
    s, d = read(stored, share.dtype, c.eps)
    if len(stored) == 1:
        s = recurrence.next_e_g(share, s, c)
        d = recurrence.next_e_x(share, s, d, c)
        codes, s, d = _coded(s, d, c.eps, stored[0], _seed(salt[0], count))
        return (codes,), s, d
    s, new_s = _write(
        recurrence.next_e_g(share, s, c), stored[0], c.rho, still, salt[0]
    )
    d = recurrence.next_e_x(share, new_s, d, c)
    d, new_d = _write(d, stored[1], c.rho, still, salt[1])
    return (s, d), new_s, new_d


def read(
    stored: Stored, dtype: DTypeLike, eps: recurrence.Scalar
) -> tuple[jax.Array, jax.Array]:
    """The values of E[g²] and E[Δx²], for arithmetic in ``dtype``.

    An infinite E[g²], as a state of optax.adadelta can hold, is the largest that the
    stored dtype has, so that it decays.
    """
    if len(stored) == 1:
        pair = _decoded(stored[0] >> 8, 2), _decoded(stored[0] & 255, 3)
        s, d = ((x.astype(dtype) - 1) * eps for x in pair)
        return s, d
    s, d = (x.astype(dtype) for x in stored)
    return jnp.minimum(s, float(jnp.finfo(stored[0].dtype).max)), d


def _write(
    values: jax.Array,
    like: jax.Array,
    rho: recurrence.Scalar,
    still: jax.Array,
    salt: Any,
) -> tuple[jax.Array, jax.Array]:
    """Floats stored as ``like`` is, and the values to go on calculating with.

    Only float16 is too narrow to go on with what is stored, since E[Δx²] underflows
    there to a number that says nothing.
    """
    if like.dtype == jnp.float16:
        return values.astype(like.dtype), values
    if like.dtype == jnp.bfloat16 and not (
        isinstance(rho, float) and rho < _STOCHASTIC_FROM
    ):
        stored = _to_bfloat16(values, rho, still, _seed(salt, 0))
    else:
        stored = values.astype(like.dtype)
    return stored, stored.astype(values.dtype)


@jax.custom_jvp
def _to_bfloat16(
    values: jax.Array, rho: recurrence.Scalar, still: jax.Array, seed: jax.Array
) -> jax.Array:
    """Rounded up or down at random, from :data:`_STOCHASTIC_FROM` on.

    The state of floats is optax's, which counts no steps. So the noise comes from
    the values, whose lower bits are new in each step with another gradient. Without
    one, where they stand still, the same value would be rounded alike for ever.
    """
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    noise = _mixed(bits ^ seed) >> 16
    noise = jnp.where(still | (rho < _STOCHASTIC_FROM), 1 << 15, noise)
    noise = jnp.where(jnp.isnan(values), 0, noise)  # or some would become 0
    rounded = (bits + noise) & np.uint32(0xFFFF0000)
    return lax.bitcast_convert_type(rounded, jnp.float32).astype(jnp.bfloat16)


@_to_bfloat16.defjvp
def _to_bfloat16_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _to_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)


@jax.custom_jvp
def _coded(
    s: jax.Array, d: jax.Array, eps: Any, old: jax.Array, seed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The codes, and the values that they stand for."""
    codes = encode(s, d, eps, old, seed)
    return codes, *read((codes,), s.dtype, eps)


@_coded.defjvp
def _coded_jvp(primals: Any, tangents: Any) -> Any:
    no_tangent = np.zeros(primals[0].shape, jax.dtypes.float0)
    return _coded(*primals), (no_tangent, *tangents[:2])


def encode(
    s: jax.Array, d: jax.Array, eps: Any, old: jax.Array, seed: jax.Array
) -> jax.Array:
    """The codes of both values of each element; the ``old`` ones are for the noise.

    Their ratio decides the length of a step, and noise in it adds up: without a
    bias in s or d there is one in the mean of d / s, by which d grows. So d is
    first multiplied by what the rounding of s was, which has the mean 1.
    """
    exact = 1 + s * (1 / eps)
    high = _rounded(exact, 2, _noise(old, seed))
    d = d * (_decoded(high, 2).astype(s.dtype) / exact)
    low = _rounded(1 + d * (1 / eps), 3, _noise(old, ~seed))
    # Joined by an operation of two operands, so that XLA stores the result; it would
    # repeat all of the above where the codes are read if they came from one.
    return (high << 8).astype(jnp.uint16) | low.astype(jnp.uint16)


def _rounded(x: jax.Array, mantissa_bits: int, noise: jax.Array) -> jax.Array:
    """The code of ``x`` ≥ 1 with so many bits of the mantissa, rounded at random.

    A NaN or what is too large has the largest code.
    """
    cut = 23 - mantissa_bits
    largest = np.uint32((255 << cut) + _ONE).view(np.float32)
    x = x.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(x < largest, x, largest), jnp.uint32)
    return (bits - _ONE + (noise >> (32 - cut))) >> cut


def _decoded(code: jax.Array, mantissa_bits: int) -> jax.Array:
    bits = (code.astype(jnp.uint32) << (23 - mantissa_bits)) + _ONE
    return lax.bitcast_convert_type(bits, jnp.float32)


def salt(path: Any, stored: Stored) -> Salt:
    """What tells the noise in a parameter's accumulators from that of all others."""
    if not any(x.dtype in (jnp.uint16, jnp.bfloat16) for x in stored):
        return None, None
    name = jax.tree_util.keystr(path)
    s, d = (np.uint32(zlib.crc32(x.encode())) for x in (name, f"{name} E[Δx²]"))
    return s, d


def _seed(salt: Any, count: Any) -> jax.Array:
    return _mixed(salt ^ _mixed(jnp.asarray(count).astype(jnp.uint32)))


def _noise(codes: jax.Array, seed: jax.Array) -> jax.Array:
    """32 random bits for each element, other ones for another seed.

    They are :func:`_mixed` of the element's position. The seed goes in twice, so that
    two of them do not give the same sequence with a shift; and the old codes, which
    tell the members of a vmap and the parts of a shard_map from each other.
    """
    x = _position(codes.shape) ^ seed
    x = ((x ^ (x >> 16)) * np.uint32(0x7FEB352D)) ^ _mixed(seed + 1)
    x = ((x ^ codes) ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits: lowbias32 of https://github.com/skeeto/hash-prospector."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _position(shape: tuple[int, ...]) -> jax.Array:
    """The index of each element in the flat array, up to multiples of 2^32.

    From one iota for each axis, so that each device makes its own part.
    """
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index = lax.broadcasted_iota(jnp.uint32, shape, axis)
        position += index * np.uint32(stride % 2**32)
        stride *= shape[axis]
    return position
