"""What the compiler makes of one step: no memory of its own, one pass an array."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import adadelta_tx
from benchmarks._report import step_of

SIZE = 1 << 22


def compile_step(tx, params, grads):
    """One step as a training loop runs it: parameters and state donated."""
    jitted = jax.jit(step_of(tx), donate_argnums=(0, 1))
    return jitted.lower(params, jax.eval_shape(tx.init, params), grads).compile()


def instructions(compiled):
    """Opcodes of the entry computation, without its parameters and result tuple."""
    text = compiled.as_text()
    entry = text[text.index("\nENTRY ") :]
    opcodes = re.findall(
        r"^  (?:ROOT )?%\S+ = .*? ([a-z][\w\-]*)\(", entry, re.MULTILINE
    )
    return [code for code in opcodes if code not in ("parameter", "tuple")]


def array(dtype=jnp.float32, shape=(SIZE,)):
    return jax.ShapeDtypeStruct(shape, dtype)


CHAINS = {
    "alone": adadelta_tx.adadelta(),
    "two epsilons": adadelta_tx.adadelta(grad_eps=0.0),
    "small learning rate": adadelta_tx.adadelta(0.1),
    "clipped and decayed": optax.chain(
        optax.clip(1.0), adadelta_tx.adadelta(0.1, weight_decay=1e-4)
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_one_large_leaf(chain):
    compiled = compile_step(CHAINS[chain], array(), array())
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes == 0
    # x, E[g²] and E[Δx²], each written over its input in one pass of its own.
    assert memory.alias_size_in_bytes == 3 * 4 * SIZE
    assert instructions(compiled) == ["fusion"] * 3


def test_optax_for_comparison():
    """The counters above do see copies where there are some."""
    compiled = compile_step(optax.adadelta(1.0, 0.95), array(), array())
    assert compiled.memory_analysis().temp_size_in_bytes >= 2 * 4 * SIZE
    assert len(instructions(compiled)) > 3


def test_several_leaves():
    params = {"a": array(), "b": [array(shape=(2048, 512)), array(shape=(1000,))]}
    compiled = compile_step(CHAINS["clipped and decayed"], params, params)
    assert compiled.memory_analysis().temp_size_in_bytes == 0
    assert instructions(compiled) == ["fusion"] * 9


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_parameters(dtype):
    compiled = compile_step(adadelta_tx.adadelta(), array(dtype), array(dtype))
    assert compiled.memory_analysis().temp_size_in_bytes == 0


def test_complex_parameters():
    compiled = compile_step(
        adadelta_tx.adadelta(), array(jnp.complex64), array(jnp.complex64)
    )
    # One real factor a parameter, by which a huge gradient is shortened.
    assert compiled.memory_analysis().temp_size_in_bytes <= 4 * SIZE


@pytest.mark.parametrize("rho", [0.95, 0.99])  # to the nearest, and at random
def test_bfloat16_accumulators(rho):
    tx = adadelta_tx.adadelta(rho=rho, accumulator_dtype=jnp.bfloat16)
    memory = compile_step(tx, array(), array()).memory_analysis()
    assert memory.alias_size_in_bytes == (4 + 2 + 2) * SIZE
    # Before jax 0.10, XLA keeps float32 copies of both, as it does for optax.
    copies = 0 if jax.__version_info__ >= (0, 10) else 2 * 4 * SIZE
    assert memory.temp_size_in_bytes <= copies


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_8_bit_accumulators(dtype):
    """Two passes over 2 bytes of state, and nothing but the old count beside them."""
    tx = adadelta_tx.adadelta(accumulator_dtype=jnp.uint8)
    compiled = compile_step(tx, array(dtype), array(dtype))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == (jnp.dtype(dtype).itemsize + 2) * SIZE + 4
    assert memory.temp_size_in_bytes <= 64
    assert instructions(compiled).count("fusion") == 3  # with the count's


def test_traced_hyperparameters():
    tx = optax.inject_hyperparams(
        adadelta_tx.adadelta, static_args=("accumulator_dtype",)
    )(0.1, 0.9, 1e-6)
    memory = compile_step(tx, array(), array()).memory_analysis()
    assert memory.temp_size_in_bytes < 1024
