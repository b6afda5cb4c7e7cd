"""Adadelta as optax gradient transformations: init and update over pytrees."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath, tree_map_with_path
from jax.typing import ArrayLike, DTypeLike

from adadelta_tx._core import accumulators, trees
from adadelta_tx._core.accumulators import PyTree
from adadelta_tx._core.decay import add_decayed_weights
from adadelta_tx._core.hints import for_arguments
from adadelta_tx._core.hyperparameters import (
    BELOW_1,
    BELOW_1E30,
    POSITIVE,
    scalar,
    scalar_or_schedule,
    warn_of_unusual,
)
from adadelta_tx._core.recurrence import Decayed, Hyperparameters


@for_arguments
def scale_by_adadelta(
    rho: ArrayLike = 0.95,
    eps: ArrayLike = 1e-6,
    *,
    grad_eps: ArrayLike | None = None,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescale gradients as Adadelta does.

    See :func:`adadelta_tx.adadelta` for the equations. This is the scaling alone:
    updates keep the sign of the gradients, and there is no learning rate.

    Args:
      rho: Decay rate :math:`\rho` of both running averages, in [0, 1).
      eps: :math:`\epsilon`, added to both running averages under the roots,
        above 0 and below 1e30.
      grad_eps: :math:`\epsilon_g`, added to E[g²] instead of ``eps``, at least 0 and
        below 1e30. ``None`` means ``eps``, as in the paper.
      accumulator_dtype: Dtype of both running averages: uint8, bfloat16, float32 or
        float64, see :func:`adadelta_tx.adadelta`. ``None`` takes the parameter's,
        but at least float32, and the real one for a complex parameter.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with an
      :class:`optax.ScaleByAdaDeltaState` or, with uint8, an
      :class:`adadelta_tx.CodedState`.

    Raises:
      TypeError: If a hyperparameter is not a number. In ``init`` and
        ``update``: if a leaf is neither floating-point nor complex. In ``update``:
        if the state is not Adadelta's or has arrays of other dtypes, or a gradient
        is complex and its parameter real, or the other way round.
      ValueError: If a hyperparameter is a number outside its range, unless it is
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
    scaling = _scaling(rho, eps, grad_eps, accumulator_dtype)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        trees.check(updates, params, state)
        return scaling.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(scaling.init, update_fn)


@for_arguments
def adadelta(
    learning_rate: optax.ScalarOrSchedule | None = 1.0,
    rho: ArrayLike = 0.95,
    eps: ArrayLike = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: PyTree = None,
    *,
    grad_eps: ArrayLike | None = None,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The Adadelta optimizer.

    A drop-in replacement for :func:`optax.adadelta` with the paper's defaults. For a
    network of your own, ``eps=1e-5, grad_eps=0`` and a schedule from 1 to 0 need no
    search. For a parameter :math:`x` with gradient :math:`g`, element by element:

    .. math::

      \begin{align*}
        s_t &= \rho s_{t-1} + (1 - \rho) |g_t|^2 \\
        u_t &= g_t \sqrt{(d_{t-1} + \epsilon) / (s_t + \epsilon_g)} \\
        d_t &= \rho d_{t-1} + (1 - \rho) |u_t|^2 \\
        x_t &= x_{t-1} - \alpha u_t
      \end{align*}

    where :math:`s` = E[g²] and :math:`d` = E[Δx²] start at 0 and :math:`\alpha`
    is the learning rate; :math:`\epsilon_g` is :math:`\epsilon` unless ``grad_eps`` is
    given. They are computed in another order, in which each array is
    updated in place. So a compiled step needs no temporary memory if state and
    parameters are donated and the parameters are real.

    Any finite gradient produces a finite update and state. A gradient too large for
    the accumulators, or infinite, counts as the largest that fits: about 9e18 for
    float32 and bfloat16, 7e153 for float64, 2e9 √ε_g for uint8; half of that for the
    larger part of a complex number. A NaN stays a NaN; with uint8, the update is NaN
    once, and the codes become the largest. Wrap with :func:`optax.apply_if_finite` to
    skip such steps.

    A learning rate of at most 0.01 warns if it is a Python number: it is nearly
    always a habit from Adam. NumPy or JAX numbers, as from a sweep, and schedules do
    not warn.

    Args:
      learning_rate: Global factor :math:`\alpha`, a number of at least 0 or a
        schedule. The default 1 leaves the step as the recurrence defines it;
        ``None`` means the same, unlike in ``optax.adadelta``.
      rho: Decay rate :math:`\rho` of both running averages, in [0, 1).
      eps: :math:`\epsilon`, above 0 and below 1e30, in the units of :math:`x^2`: its
        square root sets the size of the first steps. In float32, less than 8e-25
        counts as 8e-25.
      grad_eps: :math:`\epsilon_g`, at least 0 and below 1e30. ``None`` means ``eps``,
        as in the paper. It has the units of :math:`g^2`: where E[g²] is small compared
        with it, the step is gradient descent at :math:`\alpha \sqrt{\epsilon /
        \epsilon_g}`. If it is small compared with E[g²] everywhere, steps do not depend
        on the scale of the loss. Less than 8e-25 counts as 8e-25, or as 5e-277 with
        float64 accumulators, or as 1e-16 with uint8, which suits gradients from about
        1e-8 to 20. So 0 stands for the smallest safe value.
      weight_decay: λ, a number of at least 0 or a schedule. λ times the parameters
        is added to the gradients before the scaling. With ``grad_eps=0``, a parameter
        whose gradient is 0 then shrinks at a speed that does not depend on λ.
      weight_decay_mask: A tree of booleans with the parameters' structure or a
        prefix of it, or a function that returns one for the parameters: ``True``
        where weights decay. ``None`` means everywhere. Passing ``False``, or a mask
        without a decay, raises an error.
      accumulator_dtype: Dtype of both running averages: uint8, bfloat16, float32 or
        float64. ``None`` takes the parameter's, but at least float32, and the real
        one for a complex parameter. bfloat16 is rounded to nearest or, for ``rho``
        of at least 0.98, stochastically where the gradient is not 0. uint8 stores
        8 bits each of 1 + E[g²] / ε_g and 1 + E[Δx²] / ε, rounded stochastically:
        unbiased, while single elements are tens of percent off. The codes saturate at
        RMS[Δx] = 63,000 √ε, and belong to one ``eps`` and ``grad_eps``:
        with other ones they mean other numbers. A restored state keeps its dtype.

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
    decay = scalar_or_schedule("weight_decay", weight_decay)
    rate = 1.0 if learning_rate is None else learning_rate
    rate = scalar_or_schedule("learning_rate", rate)
    chain = optax.chain(
        add_decayed_weights(decay, weight_decay_mask),
        _scaling(rho, eps, grad_eps, accumulator_dtype),
        _scale_by_learning_rate(rate),
    )
    warn_of_unusual(
        learning_rate, rho, eps, ("learning_rate", "eps"), "learning_rate, rho, eps"
    )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if params is None or updates is None:
            missing = "parameters" if params is None else "gradients"
            raise ValueError(
                f"The {missing} are None. Write tx.update(grads, state, params)."
            )
        trees.check_chain(state, {"weight_decay": decay, "learning_rate": rate})
        trees.check(updates, params, state[1])
        return chain.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(chain.init, update_fn)


def _scale_by_learning_rate(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
    """Optax's, which would promote updates to the dtype of an array."""
    if not isinstance(learning_rate, jax.Array):
        return optax.scale_by_learning_rate(learning_rate)
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda u: -learning_rate.astype(u.dtype) * u, updates
        )
    )


_compiled = functools.partial(jax.jit, static_argnames="parameter_dtype")
_advance = _compiled(accumulators.advance)


def _scaling(
    rho: ArrayLike,
    eps: ArrayLike,
    grad_eps: ArrayLike | None,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    """The scaling, of updates and states that fit."""
    numbers = Hyperparameters(
        scalar("rho", rho, BELOW_1),
        scalar("eps", eps, POSITIVE),
        None if grad_eps is None else scalar("grad_eps", grad_eps, BELOW_1E30),
    )
    requested = accumulators.check_requested(accumulator_dtype)
    # Leaves of one shape are traced once. What is compiled outside of any jit belongs
    # to this transformation and goes with it; numbers that are arrays are arguments.
    if all(isinstance(x, float | None) for x in numbers):
        advance = _compiled(functools.partial(accumulators.advance, numbers))
    else:

        def advance(*leaf: Any, **dtype: Any) -> tuple[jax.Array, ...]:
            return _advance(numbers, *leaf, **dtype)

    def init_fn(params: optax.Params) -> optax.OptState:
        def zeros(path: KeyPath, leaf: Any) -> jax.Array:
            dtype = trees.inexact_dtype(path, leaf, "parameter")
            return accumulators.zeros(
                leaf, accumulators.storage_dtype(requested, dtype)
            )

        # Not the same arrays twice: a training loop donates both.
        names = accumulators.names_for(requested)
        made = {name: tree_map_with_path(zeros, params) for name in names}
        return accumulators.state_of(made, count=jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        gradients, treedef = jax.tree.flatten(updates, is_leaf=_is_gradient)
        stored = accumulators.trees_of(state)
        count = accumulators.count_of(state)
        changed = gradients if params is None else treedef.flatten_up_to(params)
        columns = map(treedef.flatten_up_to, stored.values())
        results = [
            (None, *row)
            if g is None
            else advance(g, row, count, parameter_dtype=jnp.result_type(x))
            for g, x, *row in zip(gradients, changed, *columns, strict=True)
        ]
        new, *columns = (
            treedef.unflatten([result[i] for result in results])
            for i in range(1 + len(stored))
        )
        if count is not None:
            count = jnp.asarray(count, jnp.int32) + 1  # after 2^31 - 1 comes -2^31
        return new, accumulators.state_of(
            dict(zip(stored, columns, strict=True)), count
        )

    return optax.GradientTransformation(init_fn, update_fn)


def _is_gradient(node: PyTree) -> bool:
    return node is None or isinstance(node, Decayed)
