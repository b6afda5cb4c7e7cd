"""Adadelta as optax gradient transformations: init and update over pytrees."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.tree_util import KeyPath, keystr, tree_flatten_with_path
from jax.typing import DTypeLike

from adadelta_tx import _accumulators as accumulators
from adadelta_tx import _recurrence as recurrence

BELOW_1 = (lambda x: 0 <= x < 1, "in [0, 1)")
POSITIVE = (lambda x: 0 < x < 1e30, "above 0 and below 1e30")
AT_LEAST_0 = (lambda x: 0 <= x < math.inf, "finite and at least 0")
UP_TO_1 = (lambda x: 0 <= x <= 1, "in [0, 1]")
NUMBERS = {"rho": BELOW_1, "epsilon": POSITIVE, "weight_decay": UP_TO_1}
_REAL = (jnp.floating, jnp.integer)


def scale_by_adadelta(
    rho: chex.Numeric = 0.95,
    eps: chex.Numeric = 1e-6,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""Rescale gradients as Adadelta does.

    See :func:`adadelta_tx.adadelta` for the equations. This is its middle part:
    the updates have the sign of the gradients and no learning rate.

    Args:
      rho: Decay rate :math:`\rho` of both running averages, in [0, 1).
      eps: :math:`\epsilon`, added to both running averages under the roots,
        above 0 and below 1e30.
      accumulator_dtype: Dtype of both running averages: uint8, float16,
        bfloat16, float32 or float64, see :func:`adadelta_tx.adadelta`. ``None``
        takes the parameter's, but at least float32, and the real one for a
        complex parameter.

    Returns:
      An :class:`optax.GradientTransformation` with an
      :class:`optax.ScaleByAdaDeltaState` or, with uint8, an
      :class:`adadelta_tx.CodedState`.

    Raises:
      TypeError: If ``rho`` or ``eps`` is not a number. In ``init`` and
        ``update``: if a leaf is neither floating-point nor complex.
      ValueError: If ``rho`` or ``eps`` is a number outside its range, or
        ``accumulator_dtype`` is none of the above. A traced value is used as it
        is. In ``update``: if the updates' tree or a leaf's shape is not that of
        the parameters given to ``init``.

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
    rho = number("rho", rho, *BELOW_1)
    eps = number("eps", eps, *POSITIVE)
    requested_dtype = accumulators.check_requested(accumulator_dtype)
    plain = functools.partial(_arithmetic, rho, eps)
    # Leaves of one shape are traced once. What is compiled outside of any jit, as by
    # an eager vmap, belongs to this transformation and goes with it.
    fixed = isinstance(rho, float) and isinstance(eps, float)
    traced = jax.jit(plain) if fixed else plain

    def init_fn(params: Any) -> accumulators.State:
        def zeros(path: KeyPath, leaf: Any) -> jax.Array:
            dtype = _inexact_dtype(path, leaf, "parameter")
            return accumulators.zeros(
                leaf, accumulators.storage_dtype(requested_dtype, dtype)
            )

        coded = requested_dtype == jnp.uint8
        # Not the same arrays twice: a training loop donates both.
        trees = [
            jax.tree_util.tree_map_with_path(zeros, params)
            for _ in range(1 if coded else 2)
        ]
        return accumulators.as_state(trees, jnp.zeros([], jnp.int32) if coded else None)

    def update_fn(
        updates: Any, state: Any, params: Any = None
    ) -> tuple[Any, accumulators.State]:
        del params
        leaves, treedef = tree_flatten_with_path(updates, is_leaf=_is_none)
        if not accumulators.is_state(state):
            raise TypeError(
                "The state must be an optax.ScaleByAdaDeltaState or, for uint8, a "
                f"CodedState, as init returns it, got {type(state).__name__}."
            )
        trees, count = accumulators.parts(state)
        try:
            columns = [treedef.flatten_up_to(tree) for tree in trees]
        except ValueError:
            raise ValueError(_other_tree(leaves, trees[0])) from None
        stored = [
            s for (_, g), s in zip(leaves, columns[0], strict=True) if g is not None
        ]
        if not jax.tree_util.all_leaves(stored):
            raise ValueError(_other_tree(leaves, trees[0]))
        steps = [
            _leaf_step(path, g, tuple(stored), count, plain, traced)
            for (path, g), *stored in zip(leaves, *columns, strict=True)
        ]
        updates, *trees = (
            treedef.unflatten([step[i] for step in steps])
            for i in range(1 + len(trees))
        )
        if count is not None:
            count = jnp.asarray(count) + 1  # after 2^31 - 1 comes -2^31
        return updates, accumulators.as_state(trees, count)

    return optax.GradientTransformation(init_fn, update_fn)


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

    A drop-in for :func:`optax.adadelta` with the paper's defaults. For a
    parameter :math:`x` with gradient :math:`g`, element by element:

    .. math::

      \begin{align*}
        s_t &= \rho s_{t-1} + (1 - \rho) |g_t|^2 \\
        u_t &= g_t \sqrt{(d_{t-1} + \epsilon) / (s_t + \epsilon)} \\
        d_t &= \rho d_{t-1} + (1 - \rho) |u_t|^2 \\
        x_t &= x_{t-1} - \alpha u_t
      \end{align*}

    where :math:`s` = E[g²] and :math:`d` = E[Δx²] start at 0 and :math:`\alpha`
    is the learning rate. The same numbers are calculated in another order, one
    in which each array overwrites its input. So where the step is compiled with
    real parameters and the state donated, it needs no memory of its own.

    Any finite gradient gives a finite update and state. A longer one than the
    accumulators have room for counts as the longest, and so does an infinite
    one: about 9e18 for float32 and bfloat16, 7e153 for float64, 128 for float16,
    2e9 √ε for uint8; half of that for the longer part of a complex number. A NaN
    stays one, or in uint8 becomes the largest code after an update of NaN; wrap
    with :func:`optax.apply_if_finite` to skip such steps.

    Args:
      learning_rate: Global factor :math:`\alpha`, a number of at least 0 or a
        schedule. The default 1 leaves the step as the recurrence gives it;
        ``None`` means the same. (``optax.adadelta`` with ``None``, its default,
        does not flip the sign, so its updates climb the loss.)
      rho: Decay rate :math:`\rho` of both running averages, in [0, 1).
      eps: :math:`\epsilon`, above 0 and below 1e30. It has the units of
        :math:`g^2` in one place and of :math:`x^2` in the other; its root sets
        the first steps. In float32, less than 8e-25 counts as 8e-25.
      weight_decay: Factor of at least 0, or a schedule, with which the
        parameters are added to the gradients before the scaling.
      weight_decay_mask: A tree of booleans with the parameters' structure or a
        prefix of it, or a function from parameters to one: ``True`` where
        weights decay. ``None`` means everywhere.
      accumulator_dtype: Dtype of both running averages: uint8, float16,
        bfloat16, float32 or float64. ``None`` takes the parameter's, but at
        least float32, and the real one for a complex parameter. bfloat16 is
        rounded to the nearest, and for ``rho`` from 0.98 on at random, where the
        gradient is not 0; float16 wants ``eps`` of at least 1e-6. uint8 stores 8 bits
        each of 1 + E[g²] / ε and 1 + E[Δx²] / ε, rounded at random: right in the
        mean, while those of one element are tens of percent off. They end at
        RMS[Δx] = 65,000 √ε, and belong to one ``eps``: with another one they
        mean other numbers. A state that was restored keeps the dtype it has.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`. Its state has the
      structure of ``optax.adadelta``'s, two accumulators of the parameter's
      shape a leaf; with uint8, a count and one uint16 array a leaf. Updates
      have the gradients' shapes, and their dtypes unless weight decay or a
      traced learning rate of a wider dtype promote them. ``update`` needs
      ``params``.

    Raises:
      TypeError: If a hyperparameter is not a number. In ``init`` and
        ``update``: if a leaf is neither floating-point nor complex.
      ValueError: If a hyperparameter is a number outside its range, or
        ``accumulator_dtype`` is none of the above. A traced value is used as it
        is. In ``update``: if the updates' tree or a leaf's shape is not that of
        the parameters given to ``init``.

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
    if learning_rate is None:
        learning_rate = 1.0
    if not callable(learning_rate):
        learning_rate = number("learning_rate", learning_rate, *AT_LEAST_0)
    if not callable(weight_decay):
        weight_decay = number("weight_decay", weight_decay, *AT_LEAST_0)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps, accumulator_dtype=accumulator_dtype),
        optax.scale_by_learning_rate(learning_rate),
    )


def number(
    name: str, value: Any, in_range: Callable[[float], bool], range_: str
) -> Any:
    """Return a number as a float if it is in range, and a traced value as it is.

    Raises:
      TypeError: If the value is not a real number.
      ValueError: If it is out of range.
    """
    if isinstance(value, jax.Array) and jnp.iscomplexobj(value):
        value = value.real  # optax.inject_hyperparams casts to the parameters' dtype
    if isinstance(value, Tracer):
        return value
    array = np.asarray(value)
    if array.ndim or not any(jnp.issubdtype(array.dtype, kind) for kind in _REAL):
        raise TypeError(f"{name} must be a real number, got {value!r}.")
    if not in_range(float(array)):
        raise ValueError(f"{name} must be {range_}, got {value}.")
    return float(array)


def _leaf_step(
    path: KeyPath,
    g: Any,
    stored: tuple[Any, ...],
    count: Any,
    plain: Callable[..., tuple[Any, ...]],
    traced: Callable[..., tuple[Any, ...]],
) -> tuple[Any, ...]:
    """The update and what is stored of one leaf; without a gradient, no change."""
    if g is None:
        return None, *stored
    _inexact_dtype(path, g, "gradient")  # or a TypeError
    g, stored = jnp.asarray(g), tuple(map(jnp.asarray, stored))
    if g.shape != stored[0].shape:
        raise ValueError(
            f"The gradient{_at(path)} has shape {g.shape}, but its parameter had "
            f"{stored[0].shape} in init."
        )
    if len(stored) == 1 and stored[0].dtype != jnp.uint16:
        raise TypeError(f"The codes{_at(path)} are {stored[0].dtype}, not uint16.")
    step = traced if isinstance(g, Tracer) else plain
    return step(g, stored, accumulators.salt(path, stored), count)


def _arithmetic(
    rho: Any,
    eps: Any,
    g: jax.Array,
    stored: accumulators.Stored,
    salt: accumulators.Salt,
    count: Any,
) -> tuple[jax.Array, ...]:
    real = accumulators.arithmetic_dtype(g.dtype, stored[0].dtype)
    c = recurrence.coefficients(rho, eps, real)
    exact = g.astype(
        jnp.promote_types(real, jnp.complex64) if jnp.iscomplexobj(g) else real
    )
    exact = recurrence.bounded(exact, accumulators.largest_gradient(stored, c.eps))
    share = recurrence.new_share(exact, c)
    stored, s, d = accumulators.advance(stored, share, exact == 0, c, salt, count)
    u = recurrence.update(exact, share, s, d, c)
    return u.astype(g.dtype), *stored


def _inexact_dtype(path: KeyPath, leaf: Any, what: str) -> jnp.dtype:
    number_dtype = jnp.result_type(leaf) if isinstance(leaf, float | complex) else None
    dtype = getattr(leaf, "dtype", number_dtype)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        kind = f"dtype {dtype}" if dtype is not None else f"type {type(leaf).__name__}"
        raise TypeError(
            f"The {what}{_at(path)} has {kind}; Adadelta needs floating-point or "
            "complex numbers. Leave it out with optax.masked or optax.partition."
        )
    return jax.dtypes.canonicalize_dtype(dtype)


def _other_tree(leaves: Sequence[tuple[KeyPath, Any]], stored: Any) -> str:
    got = {keystr(path) or "the root" for path, _ in leaves}
    want = {keystr(path) or "the root" for path, _ in tree_flatten_with_path(stored)[0]}

    def some(names: set[str]) -> str:
        return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")

    differences = [
        f"{what} at {some(names)}"
        for what, names in (("none", want - got), ("unknown ones", got - want))
        if names
    ]
    return (
        "The gradients' tree is not that of the parameters given to init: "
        f"{' and '.join(differences) or 'the containers differ'}."
    )


def _at(path: KeyPath) -> str:
    return f" at {keystr(path)}" if path else ""


def _is_none(x: Any) -> bool:
    return x is None
