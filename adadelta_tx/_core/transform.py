"""Adadelta as optax gradient transformations: init and update over pytrees."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath
from jax.typing import DTypeLike

from adadelta_tx._core import accumulators, trees
from adadelta_tx._core.hyperparameters import (
    BELOW_1,
    POSITIVE,
    explained,
    rate,
    scalar,
    warn_of_exchange,
)

_ELSEWHERE = {
    "epsilon": "Write eps.",
    "momentum": "Adadelta has none.",
    "params": "Pass them to init and update: state = tx.init(params).",
    "train_vars": "Variables are for the object: adadelta_tx.Adadelta(train_vars).",
}


@explained(_ELSEWHERE)
def scale_by_adadelta(
    rho: chex.Numeric = 0.95,
    eps: chex.Numeric = 1e-6,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescale gradients as Adadelta does.

    See :func:`adadelta_tx.adadelta` for the equations. This is the scaling alone:
    updates keep the sign of the gradients, and there is no learning rate.

    Args:
      rho: Decay rate :math:`\rho` of both running averages, in [0, 1).
      eps: :math:`\epsilon`, added to both running averages under the roots,
        above 0 and below 1e30.
      accumulator_dtype: Dtype of both running averages: uint8, float16,
        bfloat16, float32 or float64, see :func:`adadelta_tx.adadelta`. ``None``
        takes the parameter's, but at least float32, and the real one for a
        complex parameter.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with an
      :class:`optax.ScaleByAdaDeltaState` or, with uint8, an
      :class:`adadelta_tx.CodedState`.

    Raises:
      TypeError: If ``rho`` or ``eps`` is not a number. In ``init`` and
        ``update``: if a leaf is neither floating-point nor complex. In ``update``:
        if the state is not Adadelta's or has arrays of other dtypes, or a gradient
        is complex and its parameter real, or the other way round.
      ValueError: If ``rho`` or ``eps`` is a number outside its range, unless it is
        traced, or ``accumulator_dtype`` is none of the above. In ``init``: if it is
        float64 and JAX has none. In ``update``: if gradients, state and, if given,
        parameters have different trees or shapes.

    Examples:
      >>> import adadelta_tx
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = optax.chain(adadelta_tx.scale_by_adadelta(), optax.scale(-1.0))
      >>> params = {"w": jnp.array([1.0, -2.0])}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.array([10.0, -0.1])}, state)
      >>> [f"{u:.5f}" for u in updates["w"]]
      ['-0.00447', '0.00447']
    """
    numbers = scalar("rho", rho, *BELOW_1), scalar("eps", eps, *POSITIVE)
    requested_dtype = accumulators.check_requested(accumulator_dtype)
    fixed = all(isinstance(number, float) for number in numbers)
    # Leaves of one shape are traced once. What is compiled outside of any jit belongs
    # to this transformation and goes with it; numbers that are arrays are arguments.
    own = functools.partial(accumulators.advance, *numbers)
    compiled = jax.jit(own) if fixed else _advance

    def step(g: Any, stored: Any, count: Any) -> tuple[jax.Array, ...]:
        arrays = jnp.asarray(g), tuple(map(jnp.asarray, stored)), count
        return compiled(*(() if fixed else numbers), *arrays)

    def init_fn(params: Any) -> accumulators.State:
        def zeros(path: KeyPath, leaf: Any) -> jax.Array:
            dtype = trees.inexact_dtype(path, leaf, "parameter")
            return accumulators.zeros(
                leaf, accumulators.storage_dtype(requested_dtype, dtype)
            )

        coded = requested_dtype == jnp.uint8
        # Not the same arrays twice: a training loop donates both.
        averages = [
            jax.tree_util.tree_map_with_path(zeros, params)
            for _ in range(1 if coded else 2)
        ]
        count = jnp.zeros([], jnp.int32) if coded else None
        return accumulators.as_state(averages, count)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, accumulators.State]:
        del extra_args
        if not accumulators.is_state(state):
            raise TypeError(
                "The state must be an optax.ScaleByAdaDeltaState or, for uint8, a "
                f"CodedState, as init returns it, got {type(state).__name__}."
            )
        trees.check_params(updates, params)
        averages, count = accumulators.parts(state)
        names = accumulators.names(state)
        leaves, treedef, columns = trees.aligned(
            updates,
            {f"the state's {key}": x for key, x in zip(names, averages, strict=True)},
        )
        for (path, g), *stored in zip(leaves, *columns, strict=True):
            if g is not None:
                trees.check_stored(path, dict(zip(names, stored, strict=True)))
        if count is not None:
            count = jnp.asarray(count, jnp.int32 if isinstance(count, int) else None)
            if count.shape or count.dtype != jnp.int32:
                raise TypeError(
                    "The state's count must be an int32 scalar, got "
                    f"{count.dtype} of shape {count.shape}."
                )
        steps = [
            (None, *stored) if g is None else step(g, stored, count)
            for (_, g), *stored in zip(leaves, *columns, strict=True)
        ]
        updates, *averages = (
            treedef.unflatten([step[i] for step in steps])
            for i in range(1 + len(averages))
        )
        if count is not None:
            count = count + 1  # after 2^31 - 1 comes -2^31
        return updates, accumulators.as_state(averages, count)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


_advance = jax.jit(accumulators.advance)


@explained({"lr": "Write learning_rate.", **_ELSEWHERE})
def adadelta(
    learning_rate: optax.ScalarOrSchedule | None = 1.0,
    rho: chex.Numeric = 0.95,
    eps: chex.Numeric = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The Adadelta optimizer.

    A drop-in replacement for :func:`optax.adadelta` with the paper's defaults. For a
    parameter :math:`x` with gradient :math:`g`, element by element:

    .. math::

      \begin{align*}
        s_t &= \rho s_{t-1} + (1 - \rho) |g_t|^2 \\
        u_t &= g_t \sqrt{(d_{t-1} + \epsilon) / (s_t + \epsilon)} \\
        d_t &= \rho d_{t-1} + (1 - \rho) |u_t|^2 \\
        x_t &= x_{t-1} - \alpha u_t
      \end{align*}

    where :math:`s` = E[g²] and :math:`d` = E[Δx²] start at 0 and :math:`\alpha`
    is the learning rate. They are computed in another order, in which each array is
    updated in place. So a compiled step needs no temporary memory if state and
    parameters are donated and the parameters are real.

    Any finite gradient produces a finite update and state. A gradient too large for
    the accumulators, or infinite, counts as the largest that fits: about 9e18 for
    float32 and bfloat16, 7e153 for float64, 128 for float16, 2e9 √ε for uint8; half
    of that for the larger part of a complex number. A NaN stays a NaN; with uint8,
    the update is NaN once, and the codes become the largest. Wrap with
    :func:`optax.apply_if_finite` to skip such steps.

    Args:
      learning_rate: Global factor :math:`\alpha`, a number of at least 0 or a
        schedule. The default 1 leaves the step as the recurrence defines it;
        ``None`` means the same. (``optax.adadelta`` with ``None``, its default,
        does not flip the sign, so its updates climb the loss.)
      rho: Decay rate :math:`\rho` of both running averages, in [0, 1).
      eps: :math:`\epsilon`, above 0 and below 1e30. It has the units of
        :math:`g^2` in one place and of :math:`x^2` in the other; its square root
        sets the size of the first steps. In float32, less than 8e-25 counts as 8e-25.
      weight_decay: A number of at least 0 or a schedule. This times the parameters
        is added to the gradients before the scaling.
      weight_decay_mask: A tree of booleans with the parameters' structure or a
        prefix of it, or a function that returns one for the parameters: ``True``
        where weights decay. ``None`` means everywhere. A mask is an error if it is
        ``False`` or if ``weight_decay`` is 0.
      accumulator_dtype: Dtype of both running averages: uint8, float16,
        bfloat16, float32 or float64. ``None`` takes the parameter's, but at
        least float32, and the real one for a complex parameter. bfloat16 is
        rounded to nearest or, for ``rho`` of at least 0.98, stochastically where the
        gradient is not 0. float16 needs ``eps`` of at least 1e-6, and after many
        gradients of 0 its averages below 6e-7 no longer decay. uint8 stores 8 bits
        each of 1 + E[g²] / ε and 1 + E[Δx²] / ε, rounded stochastically: unbiased,
        while single elements are tens of percent off. The codes saturate at
        RMS[Δx] = 63,000 √ε, and belong to one ``eps``: with another one they
        mean other numbers. A restored state keeps its dtype.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`. Its state has the
      structure of ``optax.adadelta``'s: per leaf, two accumulators of the
      parameter's shape. With uint8 it has a count and one uint16 array per leaf.
      Updates have the gradients' shapes and dtypes. ``update`` needs ``params``.

    Raises:
      TypeError: If a hyperparameter is not a number, or a schedule returns none.
        In ``init`` and ``update``: if a leaf is neither floating-point nor complex,
        or a leaf of a mask is not a boolean. In ``update``: if the state is not
        Adadelta's or has arrays of other dtypes, or a gradient is complex and its
        parameter real, or the other way round.
      ValueError: If a hyperparameter, or what a schedule returns, is outside its
        range, unless it is traced; if ``accumulator_dtype`` is none of the above; if
        there is a mask without a decay. In ``init``: if ``accumulator_dtype`` is
        float64 and JAX has none. In ``update``: if ``params`` are missing, or
        gradients, parameters, state and mask have different trees or shapes.

    Examples:
      >>> import adadelta_tx
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> def loss(x):
      ...     return jnp.sum(x**2)
      >>> tx = adadelta_tx.adadelta()
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(3):
      ...     params, state = step(params, state)
      ...     print(f"{loss(params):.3f}")
      13.946
      13.892
      13.838

    References:
      Zeiler, `ADADELTA: An Adaptive Learning Rate Method
      <https://arxiv.org/abs/1212.5701>`_, 2012
    """
    learning_rate = rate(
        "learning_rate", 1.0 if learning_rate is None else learning_rate
    )
    tx = optax.chain(
        _add_decayed_weights(rate("weight_decay", weight_decay), weight_decay_mask),
        scale_by_adadelta(rho, eps, accumulator_dtype=accumulator_dtype),
        _scale_by_learning_rate(learning_rate),
    )
    warn_of_exchange("eps", eps, rho, "learning_rate, rho, eps")

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        trees.check_chain(state, weight_decay, learning_rate)
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)


def _scale_by_learning_rate(learning_rate: Any) -> optax.GradientTransformation:
    """Optax's, which would promote updates to the dtype of an array."""
    if not isinstance(learning_rate, jax.Array):
        return optax.scale_by_learning_rate(learning_rate)

    def scaled(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u: -learning_rate.astype(u.dtype) * u, updates)

    return optax.stateless(scaled)


def _add_decayed_weights(weight_decay: Any, mask: Any) -> optax.GradientTransformation:
    """Optax's, which would broadcast, and promote updates to the dtype of an array."""
    theirs = optax.add_decayed_weights(weight_decay)  # for its state
    if mask is False:
        raise ValueError(
            "weight_decay_mask is False: nothing would decay. If it was a function, "
            'use optax.inject_hyperparams(…, static_args=("weight_decay_mask",)).'
        )
    if mask is not None and isinstance(weight_decay, float) and not weight_decay:
        raise ValueError(
            "weight_decay_mask is given, but weight_decay is 0: nothing would decay. "
            "Pass both, or neither."
        )

    def add(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        decay = weight_decay(state.count) if callable(weight_decay) else weight_decay

        def decayed_leaf(g: Any, p: Any) -> Any:
            if g is None:
                return None
            dtype = jnp.result_type(g)
            return g + jnp.asarray(decay, dtype) * jnp.asarray(p).astype(dtype)

        decayed = jax.tree.map(decayed_leaf, updates, params, is_leaf=trees.is_none)
        _, state = theirs.update((), state, ())
        return decayed, state

    inner = optax.GradientTransformation(theirs.init, add)
    tx = inner if mask is None else optax.masked(inner, mask)

    def init_fn(params: Any) -> Any:
        if jax.tree.leaves(params):  # optax.tree.map_params comes without any
            trees.check_mask(mask, params)
        return tx.init(params)

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "update needs the parameters. Write tx.update(grads, state, params)."
            )
        if trees.is_none(updates):
            raise ValueError(
                "The gradients are None. Write tx.update(grads, state, params)."
            )
        trees.check_params(updates, params)
        if isinstance(weight_decay, float) and not weight_decay:
            return updates, state
        trees.check_mask(mask, updates)
        return tx.update(updates, state, params)

    return optax.GradientTransformation(init_fn, update_fn)
