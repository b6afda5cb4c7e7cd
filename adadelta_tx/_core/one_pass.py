"""One pass over memory on a CPU, where XLA has the option for it.

With ``XLA_FLAGS=--xla_backend_extra_options=xla_cpu_use_multi_output_fusion``, XLA
calculates several results in one loop on a CPU, if they have one dtype and need only
what is there before the loop. But then it repeats no operation for two results: what
they have in common becomes an array, which a loop before stores. So here each result is
calculated from copies of the inputs, which XLA cannot tell to be copies.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

_Inputs = TypeVar("_Inputs")
_Results = TypeVar("_Results")


@functools.cache
def has_option() -> bool:
    """Whether XLA has the option. It reads its flags once, when a backend starts."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # then it is the path of a file of flags
        flags = Path(flags).read_text()
    return "xla_cpu_use_multi_output_fusion" in flags and jax.__version_info__ >= (
        0,
        10,
    )


def where_possible(
    one_pass: Callable[[_Inputs], _Results],
    otherwise: Callable[[_Inputs], _Results],
    inputs: _Inputs,
) -> _Results:
    """Call the first function in a program for a CPU if XLA has the option."""
    if not has_option():
        return otherwise(inputs)
    return lax.platform_dependent(inputs, cpu=one_pass, default=otherwise)


def copies(inputs: _Inputs, number: int) -> list[_Inputs]:
    """Inputs as they are, and copies of them that XLA takes for other numbers."""
    found = [inputs]
    # x + -0.0 is x, also where x is a zero, is infinite or is complex. XLA merges equal
    # operations, but sees nothing behind a barrier; that of a scalar costs nothing.
    # One for each dtype: XLA fuses only loops of less than 20 inputs.
    zeros = {x.dtype.name: _negative_zero(x) for x in jax.tree.leaves(inputs)}
    for _ in range(number - 1):
        zeros = lax.optimization_barrier(zeros)
        found.append(jax.tree.map(functools.partial(_plus, zeros), inputs))
    return found


def _negative_zero(x: jax.Array) -> jax.Array:
    zero = complex(-0.0, -0.0) if jnp.iscomplexobj(x) else -0.0
    return jnp.asarray(zero, x.dtype)


def _plus(zeros: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x + zeros[x.dtype.name] if x.ndim else x
