"""Rounding at random: bits in, bits out.

A float is linear between two powers of 2. So random low bits, added before the low
bits are cut off, round it up or down with the probabilities that keep the mean.

The random bits are a hash of what differs anyway: of an element's position and value,
of its gradient or of the count of steps. Nothing of them is a constant of one array, so
that arrays of one shape share one compiled kernel.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

ONE = np.uint32(127 << 23)  # the bits of 1 in float32
_A_CUT, _B_CUT = 21, 20  # bits of the mantissa that the codes of a pair do without
_TOP = np.uint32(255)  # the largest code
# Odd numbers without pattern: those of the hash lowbias32, found by a search of
# https://github.com/skeeto/hash-prospector, and 2^32 divided by the golden ratio.
_MIX = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_GOLDEN = np.uint32(0x9E3779B9)


def seed(of: jax.Array, upper: jax.Array | int = 0) -> jax.Array:
    """A number for each element, from bits of its own and its position.

    The upper half of other bits counts too, which is all that a bfloat16 has. The
    position goes in axis by axis: so each device makes its own part, and XLA makes no
    array of positions.
    """
    of ^= (upper >> 16) * _GOLDEN
    if not of.ndim:
        return of * _MIX[0]
    for axis in reversed(range(of.ndim)):
        of ^= lax.broadcasted_iota(jnp.uint32, of.shape, axis)
        of *= _MIX[0] if axis == 0 else _GOLDEN
    return of


def noise(of: jax.Array, count: ArrayLike) -> jax.Array:
    """32 random bits for each element, other ones at each count."""
    x = of + jnp.asarray(count).astype(jnp.uint32) * _GOLDEN
    x = seed(x ^ (x >> 15))
    return (x ^ (x >> 15)) * _MIX[1]


@jax.custom_jvp
def to_bfloat16(values: jax.Array, seed: jax.Array, at_random: jax.Array) -> jax.Array:
    """Values as bfloat16, rounded at random or, elsewhere, to the nearest.

    Where it is at random, a value must be a normal number above 0. Two averages of one
    element share a ``seed``: their own bits tell their noise apart.
    """
    whole = bits(values)
    # Between -1/2 and 1/2 of the last place, before rounding to the nearest.
    up = jnp.where(at_random, seed + whole * _GOLDEN, np.uint32(0))
    up = lax.shift_right_arithmetic(up, np.uint32(16))
    rounded = lax.bitcast_convert_type(whole + up, jnp.float32)
    return rounded.astype(jnp.bfloat16)


@to_bfloat16.defjvp
def _to_bfloat16_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return to_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)


@jax.custom_jvp
def round_pair(
    a: jax.Array, above: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The codes of a and 1 + above, in one word, and the values that they stand for.

    The quotient of the two decides the length of a step, and noise in it adds up:
    without a bias in a or b there is one in the mean of (b - 1) / a, by which b grows.
    So b - 1 is first multiplied by what the rounding of a was, which has the mean 1.
    """
    random = noise(bits(a), count)
    high = _code(a, random >> (32 - _A_CUT), _A_CUT)
    b = 1 + above * (_value(high, _A_CUT).astype(a.dtype) * (1 / a))
    low = _code(b, random & np.uint32(2**_B_CUT - 1), _B_CUT)
    # Joined by an operation of two operands, so that XLA stores the result; it would
    # repeat all of the above where the codes are read if they came from one.
    codes = (high << 8).astype(jnp.uint16) | low.astype(jnp.uint16)
    # Signed, so that no shift is by a constant of the loop that makes the codes: where
    # XLA repeats nothing, it would load it at run time.
    return codes, *pair(codes, a.dtype, jnp.int32)


@round_pair.defjvp
def _round_pair_jvp(primals: Any, tangents: Any) -> Any:
    no_tangent = np.zeros(primals[0].shape, jax.dtypes.float0)
    codes, a, b = round_pair(*primals)
    return (codes, a, b), (no_tangent, *tangents[:2])


def pair(
    codes: jax.Array, dtype: DTypeLike, word: DTypeLike = jnp.uint32
) -> tuple[jax.Array, jax.Array]:
    """The two values that codes stand for, by arithmetic in 32-bit integers."""
    codes = codes.astype(word)
    a, b = _value(codes >> 8, _A_CUT), _value(codes & 255, _B_CUT)
    return a.astype(dtype), b.astype(dtype)


def bits(x: jax.Array) -> jax.Array:
    """The bits of each element as a float32."""
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def _code(x: jax.Array, noise: jax.Array, cut: int) -> jax.Array:
    """The bits of a float from 1 on without those that are cut off.

    The sign and the upper bits of the exponent go, too. What is too large, or is
    NaN, has the largest code.
    """
    return jnp.minimum((bits(x) - ONE + noise) >> cut, _TOP)


def _value(code: jax.Array, cut: int) -> jax.Array:
    return lax.bitcast_convert_type((code << cut) + ONE.astype(code.dtype), jnp.float32)
