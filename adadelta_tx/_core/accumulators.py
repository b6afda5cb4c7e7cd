"""How E[g²] and E[Δx²] are stored: in floats of some dtype, or in 8 bits each.

Both are at least 0, and both are only ever used as v + ε, where E[g²] may have another
ε. So 8 bits hold 1 + v / ε with the sign and the bits that a float would have no use
for cut off: the upper bits of its exponent, the lower ones of its mantissa. One 16-bit
word holds both codes of an element.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from adadelta_tx._core import one_pass, recurrence, rounding

FLOATS = ("bfloat16", "float32", "float64")
_SUPPORTED = ("uint8", *FLOATS)
_STOCHASTIC_FROM = 0.98  # ρ from which bfloat16 loses more by rounding to nearest
_GROWTH = 62  # 8 bits hold E[g²] up to 2^62 ε_g, with room for rounding
_LEAST_CODED = 1e-16  # ε_g of 8 bits: so they hold RMS[g] from about 1e-8 to 20

# From jax 0.12 on, jnp.bfloat16 is a callable that is no type.
AccumulatorDType = (
    Literal["uint8", "bfloat16", "float32", "float64"] | Callable[..., Any] | np.dtype
)
PyTree = Any
Stored = tuple[jax.Array, ...]
"""E[g²] and E[Δx²] of one parameter, or the codes of both."""
_Gradient = jax.Array | recurrence.Decayed
_Inputs = tuple[_Gradient, Stored]
_Stored = tuple[jax.Array, list[jax.Array]]


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
    codes: PyTree


State = optax.ScaleByAdaDeltaState | CodedState


def is_coded(stored: Stored) -> bool:
    """Whether this is the codes of a parameter, not its two accumulators."""
    return len(stored) == 1


def is_state(node: object) -> bool:
    """Whether this is the state of an Adadelta."""
    return isinstance(node, State)


def trees_of(state: State) -> dict[str, PyTree]:
    """The trees of a state that are like the parameters, by their names in it."""
    return {key: tree for key, tree in state._asdict().items() if key != "count"}


def count_of(state: State) -> jax.Array | None:
    """The number of updates so far, which only a state of codes has."""
    return state.count if isinstance(state, CodedState) else None


def state_of(trees: Mapping[str, PyTree], count: Any) -> State:
    """A state of trees by their names; only one of codes has a count."""
    if "codes" in trees:
        return CodedState(count, **trees)
    return optax.ScaleByAdaDeltaState(**trees)


def names_for(accumulator_dtype: DTypeLike | None) -> tuple[str, ...]:
    """The names of the trees of a state with these accumulators."""
    if accumulator_dtype == jnp.uint8:
        return ("codes",)
    return optax.ScaleByAdaDeltaState._fields


def storage_dtype(requested: DTypeLike | None, parameter_dtype: DTypeLike) -> jnp.dtype:
    """The dtype of a parameter's accumulators: as requested, or at least float32."""
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
    """The dtype, if accumulators can be stored in it."""
    if accumulator_dtype is None:
        return None
    name = None
    if not isinstance(accumulator_dtype, np.ndarray | jax.Array | list | tuple):
        with contextlib.suppress(TypeError, ValueError):
            name = jnp.dtype(accumulator_dtype).name
    if name not in _SUPPORTED:
        instead = ""
        if isinstance(accumulator_dtype, jax.Array):
            instead = " Name it in the static_args of optax.inject_hyperparams."
        elif "8" in str(accumulator_dtype):
            instead = " For 8 bits, write uint8."
        raise ValueError(
            f"accumulator_dtype must be None or one of {', '.join(_SUPPORTED)}; "
            f"got {accumulator_dtype!r}.{instead}"
        )
    return jnp.dtype(name)


def arithmetic_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """The real dtype to calculate in, given the dtypes of the arrays involved."""
    floats = [jnp.finfo(x).dtype for x in dtypes if jnp.issubdtype(x, jnp.inexact)]
    return jnp.dtype(jnp.float64 if jnp.float64 in floats else jnp.float32)


def widened(x: jax.Array, real: jnp.dtype) -> jax.Array:
    """An array in that real dtype or, if it is complex, in the complex one of it."""
    wide = jnp.complex128 if real == jnp.float64 else jnp.complex64
    return x.astype(wide if jnp.iscomplexobj(x) else real)


def zeros(parameter: ArrayLike | jax.ShapeDtypeStruct, dtype: DTypeLike) -> jax.Array:
    """An accumulator of zeros with the parameter's shape and sharding."""
    if isinstance(parameter, Tracer):
        # XLA shards a value as what it is calculated from. Plain zeros would come
        # from nothing, and jit would put all of them on one device.
        return (jnp.abs(parameter) < 0).astype(dtype)
    return jnp.zeros_like(parameter, dtype=dtype)


def advance(
    numbers: recurrence.Hyperparameters,
    g: _Gradient,
    stored: Stored,
    count: Any,
    parameter_dtype: DTypeLike,
) -> tuple[jax.Array, ...]:
    """The update for a gradient, and what is stored after it.

    The update is calculated from what is stored: so an accumulator overwrites the old
    one without a copy, even where XLA makes one array after the other.
    """

    def in_passes(inputs: _Inputs) -> tuple[jax.Array, ...]:
        u, stored = _results(numbers, *inputs, count)
        return u, *(array for array, _ in stored)

    def in_one_pass(inputs: _Inputs) -> tuple[jax.Array, ...]:
        *firsts, last = one_pass.copies(inputs, 1 + len(inputs[1]))
        apart = [_results(numbers, *x, count, repeated=False)[1] for x in firsts]
        stored = [arrays[i] for i, arrays in enumerate(apart)]
        # XLA fuses results of one dtype. A parameter of another one is calculated from
        # what that pass has stored.
        values = None if parameter_dtype == stored[0][0].dtype else _values(stored)
        u, _ = _results(numbers, *last, count, repeated=False, values=values)
        return u, *(array for array, _ in stored)

    inputs = jax.tree.map(jnp.asarray, (g, stored))
    return one_pass.where_possible(in_one_pass, in_passes, inputs)


def _results(
    numbers: recurrence.Hyperparameters,
    g: _Gradient,
    stored: Stored,
    count: Any,
    repeated: bool = True,
    values: Sequence[jax.Array] | None = None,
) -> tuple[jax.Array, list[_Stored]]:
    """The update, and each array that is stored with the values that it stands for.

    The update is calculated from these values, or from given ones.
    """
    real = arithmetic_dtype(g.dtype, stored[0].dtype)
    c = _coefficients(numbers, stored, real)
    exact = widened(recurrence.total(g), real)
    if is_coded(stored):
        exact = recurrence.bounded(exact, _largest_coded(c.grad_eps), repeated)
        share = recurrence.new_share(exact, recurrence.relative(c))
        pair = recurrence.next_pair(share, *rounding.pair(stored[0], real), c)
        codes, *values_of_codes = rounding.round_pair(*pair, count)
        new = [(codes, values_of_codes)]
        update: Any = recurrence.update_of_pair
    else:
        exact = recurrence.bounded(exact, _largest(stored[0].dtype), repeated)
        share = recurrence.new_share(exact, c)
        s, d = _read_floats(stored, real)
        write = functools.partial(
            _write, stored[0].dtype, numbers.rho, exact.real, stored[1]
        )
        new_s = write(recurrence.next_e_g(share, s, c), share)
        share_x = recurrence.new_share_x(share, new_s.astype(real), d, c)
        new_d = write(recurrence.next_e_x(share_x, d, c), share_x)
        new = [(x, [x.astype(real)]) for x in (new_s, new_d)]
        update = recurrence.update
    u = update(exact, share, *(values or _values(new)), c)
    return u.astype(g.dtype), new


def _values(stored: Sequence[_Stored]) -> list[jax.Array]:
    return [value for _, values in stored for value in values]


def rates(stored: Stored, numbers: recurrence.Hyperparameters) -> jax.Array:
    """RMS[Δx] / RMS[g], at least in float32."""
    dtype = arithmetic_dtype(stored[0].dtype)
    c = _coefficients(numbers, stored, dtype)
    if is_coded(stored):
        a, b = rounding.pair(stored[0], dtype)
        return recurrence.rms_ratio((a - 1) * c.grad_eps, (b - 1) * c.eps, c)
    return recurrence.rms_ratio(*_read_floats(stored, dtype), c)


def _coefficients(
    numbers: recurrence.Hyperparameters, stored: Stored, dtype: jnp.dtype
) -> recurrence.Coefficients:
    # Averages in fewer bits than the arithmetic underflow where they are stored.
    wide = stored[0].dtype == jnp.float64
    least = recurrence.least_eps(jnp.dtype(jnp.float64 if wide else jnp.float32))
    least_grad_eps = _LEAST_CODED if is_coded(stored) else least
    return recurrence.coefficients(numbers, dtype, least, least_grad_eps)


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


def _largest_coded(grad_eps: recurrence.Scalar) -> recurrence.Scalar:
    bound, largest = 2.0 ** (_GROWTH // 2) * grad_eps**0.5, _largest(jnp.float32)
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
) -> jax.Array:
    """Values as they are stored.

    The state of floats is optax's, which counts no steps. So the noise of bfloat16
    comes from the values, the gradient and the old E[Δx²]. A gradient that repeats
    itself may hold both averages still, but not E[g²] alone: below g², it would make
    E[Δx²] grow exponentially. Without a share of a gradient, they are rounded to the
    nearest.
    """
    fixed = isinstance(rho, float)
    if dtype != jnp.bfloat16 or (fixed and rho < _STOCHASTIC_FROM):
        return values.astype(dtype)
    at_random = share > float(jnp.finfo(jnp.float32).tiny)
    if not fixed:
        at_random &= rho >= _STOCHASTIC_FROM
    seed = rounding.seed(rounding.bits(g), rounding.bits(old_d))
    return rounding.to_bfloat16(values, seed, at_random)
