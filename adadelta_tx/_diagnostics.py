"""What a run looks like from inside: the effective learning rate."""

import functools
from typing import Any

import chex
import jax
import optax

from adadelta_tx import _accumulators as accumulators
from adadelta_tx import _recurrence as recurrence
from adadelta_tx._transform import POSITIVE, number


def effective_learning_rate(state: optax.OptState, eps: chex.Numeric = 1e-6) -> Any:
    r"""The factor between gradient and update, element by element.

    .. math::

      \frac{\mathrm{RMS}[\Delta x]}{\mathrm{RMS}[g]}
        = \sqrt{\frac{E[\Delta x^2] + \epsilon}{E[g^2] + \epsilon}}

    It is what a learning rate is to plain gradient descent, one for each element
    of each parameter (Zeiler 2012, section 4.2). It does not include the global
    ``learning_rate``.

    Args:
      state: A state of :func:`adadelta_tx.adadelta`,
        :func:`adadelta_tx.scale_by_adadelta` or ``optax.adadelta``, by itself or
        anywhere inside the state of a chain or a wrapper. Where
        :func:`optax.partition` or :func:`optax.masked` gave each of several
        Adadeltas its own parameters, their rates are put together.
      eps: The :math:`\epsilon` that the transformation was made with, one for all
        that are in ``state``. Codes, which are relative to it, do not need it.

    Returns:
      A tree like the parameters: arrays of their shapes, in the accumulators'
      dtypes but at least float32, and float32 for codes. A leaf that no Adadelta
      updates is an :class:`optax.MaskedNode`.

    Raises:
      ValueError: If there is no Adadelta in ``state``, if two of them have the
        same parameter or trees that do not fit, or if ``eps`` is out of its range.

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
    """
    epsilon = number("eps", eps, *POSITIVE)
    found = [
        node
        for node in jax.tree.leaves(state, is_leaf=accumulators.is_state)
        if accumulators.is_state(node)
    ]
    if not found:
        raise ValueError(
            "There is no Adadelta in this state: nothing in it is a state of "
            "scale_by_adadelta. Pass what init or update returned."
        )

    def rate(*stored: jax.Array) -> jax.Array:
        dtype = accumulators.arithmetic_dtype(stored[0].dtype)
        c = recurrence.coefficients(0.0, epsilon, dtype)
        return recurrence.rms_ratio(*accumulators.read(stored, dtype, c.eps), c)

    rates = [jax.tree.map(rate, *accumulators.parts(node)[0]) for node in found]
    return functools.reduce(_merge, rates)


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
