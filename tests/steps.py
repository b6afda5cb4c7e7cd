"""Steps of a transformation, compiled once for all tests of a process."""

import functools

import jax

from benchmarks._report import step_of


@functools.cache
def compiled(tx):
    """``step(params, state, grads)``."""
    return jax.jit(step_of(tx))
