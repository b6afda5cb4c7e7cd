"""Adadelta's recurrence for one array, in the order that overwrites its inputs.

With ``g`` the gradient, ``s`` = E[g²] and ``d`` = E[Δx²], Zeiler (2012,
https://arxiv.org/abs/1212.5701, Algorithm 1) writes::

    s ← ρ s + (1 − ρ) g²
    u = g √((d + ε) / (s + ε))
    d ← ρ d + (1 − ρ) u²

There ``u`` and the new ``d`` both need the old ``d``, so a compiler must copy
it. Here ``d`` goes first, and ``u`` recovers what it needs from the new ``d``::

    s ← ρ s + (1 − ρ) g²
    d ← ρ d + (1 − ρ) g² (d + ε) / (s + ε)
    u = g √((d + ρ ε) / (ρ (s + ε) + (1 − ρ) g²))

Substituting the second line into the third gives the paper's ``u``. All terms
are non-negative, so nothing cancels.

The ε beside ``s`` may be another one, ε_g: it is in the units of ``g²``, and where
``s`` is small compared with it, the step is gradient descent. The other one is in the
units of ``x²``.

Where the accumulators are stored as ``a`` = 1 + ``s`` / ε_g and ``b`` = 1 + ``d`` / ε,
the same numbers are::

    a ← ρ a + (1 − ρ) + (1 − ρ) g² / ε_g
    b ← ρ b + (1 − ρ) + (1 − ρ) g² / ε_g · b / a
    u = g √(ε / ε_g) √((b − (1 − ρ)) / (ρ a + (1 − ρ) g² / ε_g))
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Scalar = float | jax.Array


class Hyperparameters(NamedTuple):
    """The numbers of the equations; without ``grad_eps``, it is ``eps``."""

    rho: Scalar
    eps: Scalar
    grad_eps: Scalar | None = None


class Coefficients(NamedTuple):
    """What the three equations multiply by and add, for one dtype."""

    rho: Scalar
    one_minus_rho: Scalar
    rho_d: Scalar
    eps: Scalar
    grad_eps: Scalar


def least_eps(dtype: jnp.dtype) -> float:
    """The least ε that is safe for arithmetic and averages in a real dtype.

    Its product with what :func:`coefficients` adds to ρ is a normal number.
    """
    info = jnp.finfo(dtype)
    return float(info.tiny) / float(info.eps) ** 2


def coefficients(
    numbers: Hyperparameters,
    dtype: jnp.dtype,
    least: float,
    least_grad_eps: float,
) -> Coefficients:
    """Prepare the hyperparameters for arithmetic in the real ``dtype``.

    At ρ = 0 the new ``d`` says nothing of the old one where ``g`` is 0, and the
    third equation is 0 / 0. In ``d`` alone, the rounding error squared is added
    to ρ: that keeps it defined and changes no digit.
    """
    rho, eps, grad_eps = numbers
    tiny_rho = float(jnp.finfo(dtype).eps) ** 2
    eps = _at_least(_in_dtype(eps, dtype), least)
    if grad_eps is not None:
        grad_eps = _at_least(_in_dtype(grad_eps, dtype), least_grad_eps)
    return Coefficients(
        rho=_in_dtype(rho, dtype),
        one_minus_rho=_in_dtype(1 - rho, dtype),
        rho_d=_in_dtype(rho, dtype) + tiny_rho,
        eps=eps,
        grad_eps=eps if grad_eps is None else grad_eps,
    )


class Decayed(NamedTuple):
    """A gradient, with the parameter and the weight decay still to be added."""

    gradient: jax.Array
    parameter: jax.Array
    weight_decay: Scalar

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.result_type(self.gradient)


def total(g: jax.Array | Decayed) -> jax.Array:
    """The gradient with the decay of its parameter, in the gradient's dtype."""
    if not isinstance(g, Decayed):
        return g
    decay, parameter = (
        jnp.asarray(x).astype(g.dtype) for x in (g.weight_decay, g.parameter)
    )
    return g.gradient + decay * parameter


def bounded(g: jax.Array, bound: Scalar, repeated: bool = True) -> jax.Array:
    """Shorten ``g`` to ``bound``, beyond which its square has no room.

    Of a complex number, the longer of its two parts goes up to half of that.

    The equations use ``g`` only through this one operation. Where XLA repeats
    operations, it repeats a single unary one in each pass rather than store its
    result, and so also whatever computes ``g`` element by element (clipping, weight
    decay). Elsewhere the bound is read from memory, and a clamp by a number that may
    be NaN takes three instructions more than comparisons.
    """
    if jnp.iscomplexobj(g):
        largest = float(jnp.finfo(g.dtype).max)
        real, imag = (jnp.clip(x, -largest, largest) for x in (g.real, g.imag))
        longer = jnp.maximum(jnp.abs(real), jnp.abs(imag))
        shrink = bound / 2 / jnp.maximum(longer, bound / 2)
        return lax.complex(real * shrink, imag * shrink)
    low, high = (jnp.asarray(x, g.dtype) for x in (-bound, bound))
    if not repeated:
        g = jnp.where(g > high, high, g)
        return jnp.where(g < low, low, g)
    if isinstance(bound, jax.Array):  # clamp has no derivative by a scalar bound
        low, high = (jnp.broadcast_to(x, g.shape) for x in (low, high))
    return lax.clamp(low, g, high)


def new_share(g: jax.Array, c: Coefficients) -> jax.Array:
    """(1 − ρ) g², which all three equations read."""
    # (1 − ρ) (g g), not ((1 − ρ) g) g: the latter is a product of two arrays, which
    # XLA stores; this it repeats in each pass.
    if jnp.iscomplexobj(g):
        return c.one_minus_rho * (jnp.square(g.real) + jnp.square(g.imag))
    return c.one_minus_rho * jnp.square(g)


def next_e_g(share: jax.Array, s: jax.Array, c: Coefficients) -> jax.Array:
    """E[g²] after a gradient with that :func:`new_share`."""
    return c.rho * s + share


def new_share_x(
    share: jax.Array, s: jax.Array, d: jax.Array, c: Coefficients
) -> jax.Array:
    """(1 − ρ) u², given the new ``s`` and the old ``d``."""
    # The first product is at most 1, so the second cannot overflow.
    return _quotient(share, s + c.grad_eps) * (d + c.eps)


@jax.custom_jvp
def _quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """Divide by an inverse, for which GPUs need fewer instructions."""
    return x * (1 / y)


@_quotient.defjvp
def _quotient_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Without the square of 1 / y, which overflows for a small ε."""
    (x, y), (dx, dy) = primals, tangents
    quotient = _quotient(x, y)
    return quotient, (dx - quotient * dy) * (1 / y)


def next_e_x(share_x: jax.Array, d: jax.Array, c: Coefficients) -> jax.Array:
    """E[Δx²] after an update with that :func:`new_share_x`."""
    return c.rho_d * d + share_x


def relative(c: Coefficients) -> Coefficients:
    """With these, :func:`new_share` is (1 − ρ) g² / ε_g."""
    return c._replace(one_minus_rho=c.one_minus_rho / c.grad_eps)


def next_pair(
    share: jax.Array, a: jax.Array, b: jax.Array, c: Coefficients
) -> tuple[jax.Array, jax.Array]:
    """``a`` and ``b`` - 1 after a gradient, given (1 − ρ) g² / ε_g."""
    a = 1 + (c.rho * a - (c.rho - share))
    return a, b * (c.rho + share * (1 / a)) - c.rho


def update_of_pair(
    g: jax.Array, share: jax.Array, a: jax.Array, b: jax.Array, c: Coefficients
) -> jax.Array:
    """``u``, given the new ``a`` and ``b``."""
    # At ρ = 0 this would be 0 / 0 where b is 1 and g is 0.
    numerator = b - _at_most(c.one_minus_rho, 1 - float(jnp.finfo(jnp.float32).eps))
    # 2^32 above b and 2^64 above a leave room for the product.
    factor = numerator * lax.rsqrt(numerator * (c.rho_d * a + share))
    if c.grad_eps is not c.eps:
        factor *= (c.eps / c.grad_eps) ** 0.5
    return _times(g, factor)


def update(
    g: jax.Array, share: jax.Array, s: jax.Array, d: jax.Array, c: Coefficients
) -> jax.Array:
    """``u``, the update before its learning rate, given the new ``s`` and ``d``."""
    numerator = d + c.rho_d * c.eps
    denominator = c.rho_d * (s + c.grad_eps) + share
    # Two roots: the quotient of a small d and a huge s underflows in float32.
    return _times(g, jnp.sqrt(numerator) / jnp.sqrt(denominator))


def rms_ratio(s: jax.Array, d: jax.Array, c: Coefficients) -> jax.Array:
    """RMS[Δx] / RMS[g], where RMS[·] = √(E[·²] + ε), with ε_g in RMS[g]."""
    return jnp.sqrt(d + c.eps) / jnp.sqrt(s + c.grad_eps)


def _times(g: jax.Array, factor: jax.Array) -> jax.Array:
    """The product, without a promotion of the factor where ``g`` is complex."""
    return g * (factor.astype(g.dtype) if jnp.iscomplexobj(g) else factor)


def _in_dtype(x: Scalar, dtype: jnp.dtype) -> Scalar:
    return x.astype(dtype) if isinstance(x, jax.Array) else x


def _at_least(x: Scalar, floor: float) -> Scalar:
    return jnp.maximum(x, floor) if isinstance(x, jax.Array) else max(x, floor)


def _at_most(x: Scalar, ceiling: float) -> Scalar:
    return jnp.minimum(x, ceiling) if isinstance(x, jax.Array) else min(x, ceiling)
