"""What a run looks like from inside: the effective learning rate."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import KeyPath, tree_map_with_path
from jax.typing import ArrayLike

from adadelta_tx._core import accumulators, trees
from adadelta_tx._core.hyperparameters import BELOW_1E30, POSITIVE, number
from adadelta_tx._core.recurrence import Hyperparameters

SAMPLE = 10_000
"""So many elements stand for a larger leaf in its percentiles."""


def effective_learning_rate(
    state: optax.OptState,
    eps: ArrayLike = 1e-6,
    *,
    grad_eps: ArrayLike | None = None,
    percentiles: Sequence[float] | None = None,
) -> Any:
    r"""The effective learning rate of each element of the parameters.

    .. math::

      \frac{\mathrm{RMS}[\Delta x]}{\mathrm{RMS}[g]}
        = \sqrt{\frac{E[\Delta x^2] + \epsilon}{E[g^2] + \epsilon_g}}

    This is about the factor from a gradient to its update: what the learning rate is
    in plain gradient descent (Zeiler 2012, section 4.2). It is computed from the
    averages after the last step, and does not include the global ``learning_rate``.
    Without ``grad_eps``, :math:`\epsilon_g` is :math:`\epsilon`, and the rate is 1 at
    first, and wherever gradients and steps are small compared with
    :math:`\sqrt{\epsilon}`.

    Args:
      state: A state of :func:`adadelta_tx.adadelta`,
        :func:`adadelta_tx.scale_by_adadelta` or ``optax.adadelta``, by itself or
        anywhere inside the state of a chain or a wrapper. Where
        :func:`optax.partition` or :func:`optax.masked` gave each of several
        Adadeltas its own parameters, their rates are merged.
      eps: The :math:`\epsilon` of the transformation; another one gives wrong rates.
        It applies to every Adadelta in ``state``: if they have different ones, pass
        their states one at a time. 8-bit states without ``grad_eps`` do not need it.
      grad_eps: That of the transformation, which stands beside :math:`E[g^2]` then.
      percentiles: Numbers from 0 to 100. If given, each leaf is summarized by these
        percentiles of its rates: ``(5, 50, 95)`` for the median and the central 90 %.
        For a leaf of more than 10,000 elements, they are those of a random sample of
        10,000, the same in each call. That is accurate to about one percentile, and
        cheap enough to log every 100 steps. If a rate is NaN, all are NaN.

    Returns:
      A tree like the parameters. Its arrays have the parameters' shapes or, with
      percentiles, the shape ``(len(percentiles),)``; and the accumulators' dtypes,
      but at least float32. A leaf that no Adadelta updates is an
      :class:`optax.MaskedNode`, and so are the percentiles of an empty leaf.

    Raises:
      TypeError: If ``eps`` is not a number, or an accumulator has an unsupported
        dtype, such as the complex ones of ``optax.adadelta``.
      ValueError: If there is no Adadelta in ``state``, if two of them have the
        same parameter or trees that do not match, or if ``eps`` or a percentile is
        out of its range.

    Examples:
      >>> import adadelta_tx
      >>> import jax.numpy as jnp
      >>> tx = adadelta_tx.adadelta()
      >>> params = {"w": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> adadelta_tx.effective_learning_rate(state)
      {'w': Array([1., 1.], dtype=float32)}
      >>> _, state = tx.update({"w": jnp.array([1.0, 100.0])}, state, params)
      >>> [f"{rate:.1e}" for rate in adadelta_tx.effective_learning_rate(state)["w"]]
      ['6.3e-03', '6.3e-05']
      >>> rates = adadelta_tx.effective_learning_rate(state, percentiles=(5, 50, 95))
      >>> [f"{rate:.1e}" for rate in rates["w"]]
      ['3.8e-04', '3.2e-03', '6.0e-03']
    """
    numbers = Hyperparameters(
        rho=0.0,
        eps=number("eps", eps, POSITIVE),
        grad_eps=None if grad_eps is None else number("grad_eps", grad_eps, BELOW_1E30),
    )
    asked = None if percentiles is None else _percentile_numbers(percentiles)
    found = [
        node
        for node in jax.tree.leaves(state, is_leaf=accumulators.is_state)
        if accumulators.is_state(node)
    ]
    if not found:
        raise ValueError(
            "There is no Adadelta in this state: nothing in it is a state of "
            "scale_by_adadelta. Pass what init or update returned; an Adadelta object "
            "has a method of this name."
        )

    def rates_of(names: Sequence[str], path: KeyPath, *stored: jax.Array) -> Any:
        trees.check_stored(path, dict(zip(names, stored, strict=True)))
        if asked is None:
            return accumulators.rates(stored, numbers)
        if 0 in stored[0].shape:
            return optax.MaskedNode()
        return _percentiles(stored, numbers, asked)

    return functools.reduce(
        _merge,
        [
            tree_map_with_path(functools.partial(rates_of, [*named]), *named.values())
            for named in map(accumulators.trees_of, found)
        ],
    )


@jax.jit
def _percentiles(
    stored: accumulators.Stored, numbers: Hyperparameters, asked: np.ndarray
) -> jax.Array:
    stored = tuple(_sample(jnp.atleast_1d(x)) for x in stored)
    rates = accumulators.rates(stored, numbers)
    return jnp.percentile(rates, asked).astype(rates.dtype)


def _sample(x: jax.Array) -> jax.Array:
    draw = np.random.default_rng(0)
    if not all(isinstance(length, int) for length in x.shape):  # as in jax.export
        draws = draw.random((x.ndim, SAMPLE), np.float32)
        positions = tuple(
            (u * length).astype(jnp.int32)
            for u, length in zip(jnp.asarray(draws), x.shape, strict=True)
        )
    elif x.size > SAMPLE:
        positions = tuple(draw.integers(length, size=SAMPLE) for length in x.shape)
    else:
        positions = np.unravel_index(np.arange(x.size), x.shape)
    # An index for each axis: to flatten a sharded array would move all of it.
    everywhere = NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(None))
    return x.at[positions].get(out_sharding=everywhere)


def _percentile_numbers(percentiles: Sequence[float]) -> np.ndarray:
    try:
        asked = np.asarray(percentiles, np.float64)
    except (TypeError, ValueError):
        asked = np.array(np.nan)
    if asked.ndim != 1 or not asked.size or not np.all((asked >= 0) & (asked <= 100)):
        raise ValueError(
            f"percentiles must be a sequence of numbers in [0, 100], got {percentiles}."
        )
    return asked.astype(np.float32)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _merge(left: Any, right: Any) -> Any:
    if _is_masked(left):
        return right
    if _is_masked(right):
        return left
    # One level at a time: a MaskedNode may stand for a whole subtree.
    children, treedef = jax.tree.flatten(left, is_leaf=lambda x: x is not left)
    if any(child is left for child in children):
        raise ValueError(_SEVERAL)
    try:
        others = treedef.flatten_up_to(right)
    except ValueError:
        raise ValueError(_SEVERAL) from None
    return treedef.unflatten(map(_merge, children, others))


_SEVERAL = (
    "Several Adadeltas in this state have the same parameter or different trees of "
    "parameters; pass the state of one of them alone."
)
