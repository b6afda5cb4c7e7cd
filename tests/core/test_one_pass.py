"""With XLA's option: one pass, no memory of its own, and the numbers of without it.

XLA reads its flags once, so these tests have a process with the option: ``make
test-one-pass``. The first one shows what the option does to other programs.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adadelta_tx
from adadelta_tx._core import one_pass
from adadelta_tx._object import step as object_step
from benchmarks._report import step_of
from tests import textbook

pytestmark = pytest.mark.one_pass

SIZE = 1 << 20
ADADELTA = adadelta_tx.adadelta


def lowered(tx, params, grads=None, wrap=lambda step: step):
    """The step as a training loop runs it, on shapes of these dtypes."""
    grads = params if grads is None else grads
    state = jax.eval_shape(tx.init, params)
    return jax.jit(wrap(step_of(tx)), donate_argnums=(0, 1)).lower(params, state, grads)


def array(dtype=jnp.float32, shape=(SIZE,)):
    return jax.ShapeDtypeStruct(shape, dtype)


def array_kernels(compiled):
    """The loops of a program that make arrays, and copies of arrays."""
    shapes = re.findall(r" = (\S+|\(.*?\)) (?:fusion|copy|call)\(", compiled.as_text())
    return [shape for shape in shapes if re.search(r"\[\d", shape)]


def test_the_option_is_on():
    """And a program that does not know it needs temporary memory then."""
    assert one_pass.has_option()
    theirs = lowered(optax.adadelta(1.0, 0.95), array()).compile()
    assert theirs.memory_analysis().temp_size_in_bytes >= 4 * SIZE


ALONE = {
    "float32": (jnp.float32, {}),
    "all bfloat16": (jnp.bfloat16, {"accumulator_dtype": "bfloat16"}),
    "all bfloat16 at random": (
        jnp.bfloat16,
        {"accumulator_dtype": "bfloat16", "rho": 0.99},
    ),
    "all float64": (jnp.float64, {}),
}
MIXED = {
    "bfloat16 parameters": (jnp.bfloat16, {}),
    "float16 parameters": (jnp.float16, {}),
    "bfloat16 state": (jnp.float32, {"accumulator_dtype": "bfloat16"}),
    "bfloat16 state at random": (
        jnp.float32,
        {"accumulator_dtype": "bfloat16", "rho": 0.99},
    ),
    "8-bit state": (jnp.float32, {"accumulator_dtype": "uint8"}),
    "8-bit state of bfloat16": (jnp.bfloat16, {"accumulator_dtype": "uint8"}),
    "complex": (jnp.complex64, {}),
}
WITH = {
    "alone": {},
    "learning rate": {"learning_rate": 0.1},
    "two epsilons": {"grad_eps": 0.0},
    "schedule": {"learning_rate": optax.linear_schedule(1.0, 0.1, 9)},
    "decay": {"weight_decay": 1e-4},
    "decay by schedule": {"weight_decay": optax.linear_schedule(1.0, 0.1, 9)},
}


@pytest.mark.parametrize("more", WITH)
@pytest.mark.parametrize("case", ALONE | MIXED)
def test_kernels(case, more):
    dtype, arguments = (ALONE | MIXED)[case]
    with jax.enable_x64(dtype == jnp.float64):
        tx = ADADELTA(**arguments, **WITH[more])
        compiled = lowered(tx, array(dtype)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024
    assert len(array_kernels(compiled)) == (1 if case in ALONE else 2)


@pytest.mark.parametrize("accumulators", ["float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("grads", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("params", [jnp.float32, jnp.bfloat16])
def test_kernels_with_gradients_of_any_dtype(params, grads, accumulators):
    """One pass if the parameters have the dtype of the accumulators."""
    tx = ADADELTA(accumulator_dtype=accumulators)
    compiled = lowered(tx, array(params), array(grads)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024
    one = jnp.dtype(params) == accumulators
    assert len(array_kernels(compiled)) == (1 if one else 2)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "uint8"])
def test_kernels_with_injected_hyperparameters(dtype):
    static, decay = ["accumulator_dtype"], 1e-4
    if dtype == "bfloat16":  # XLA fuses loops of less than 20 inputs, scalars too
        static, decay = [*static, "weight_decay"], 0.0
    make = optax.inject_hyperparams(ADADELTA, static_args=static)
    tx = make(0.1, 0.9, 1e-6, weight_decay=decay, accumulator_dtype=dtype)
    compiled = lowered(tx, array()).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024
    assert len(array_kernels(compiled)) == (1 if dtype is None else 2)


def test_kernels_after_clipping():
    """What is made of a gradient element by element is stored, once."""
    tx = optax.chain(optax.clip(1.0), ADADELTA(weight_decay=1e-4))
    compiled = lowered(tx, array()).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 4 * SIZE + 256
    assert len(array_kernels(compiled)) == 2


def test_kernels_of_several_leaves():
    shapes = [(SIZE,), (SIZE,), (2048, 512), (1000,)]
    params = {f"w{i}": array(shape=shape) for i, shape in enumerate(shapes)}
    compiled = lowered(ADADELTA(weight_decay=1e-4), params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024
    assert len(array_kernels(compiled)) <= len(shapes)


def test_kernels_in_vmap_and_scan():
    tx = ADADELTA()
    params = array(shape=(4, SIZE // 4))
    state = jax.eval_shape(jax.vmap(tx.init), params)
    step = jax.jit(jax.vmap(step_of(tx)), donate_argnums=(0, 1))
    compiled = step.lower(params, state, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024
    assert len(array_kernels(compiled)) == 1

    def steps(params, state, many):
        def body(carry, grads):
            return step_of(tx)(*carry, grads), None

        return jax.lax.scan(body, (params, state), many)[0]

    state = jax.eval_shape(tx.init, array())
    many = array(shape=(8, SIZE))
    compiled = jax.jit(steps, donate_argnums=(0, 1)).lower(array(), state, many)
    found = array_kernels(compiled.compile())
    kernels = [shape for shape in found if f"f32[8,{SIZE}]" not in shape]
    in_one_pass = [x for x in kernels if x.count(f"f32[{SIZE}]") == 3]
    # XLA writes the loop's body out more than once, and stores a step's gradient.
    assert in_one_pass
    assert all(x.count(f"f32[{SIZE}]") in (1, 3) for x in kernels)
    assert len(kernels) == 2 * len(in_one_pass)


def test_kernels_of_the_object(monkeypatch):
    """Nothing is donated there: one pass makes new arrays."""
    lowered, compiled = [], object_step._compiled

    def step(*arguments):
        lowered.append(compiled.lower(*arguments))
        return compiled(*arguments)

    monkeypatch.setattr(object_step, "_compiled", step)
    for dtype, kernels in ((None, 1), ("uint8", 2)):
        w = adadelta_tx.TrainVar(jnp.ones(SIZE))
        opt = adadelta_tx.Adadelta({"w": w}, accumulator_dtype=dtype)
        opt.update({"w": jnp.ones(SIZE)})
        program = lowered.pop().compile()
        assert program.memory_analysis().temp_size_in_bytes < 1024
        assert len(array_kernels(program)) == kernels


@pytest.mark.parametrize("case", ALONE | MIXED)
def test_numbers(case):
    """Those of the passes that other programs have, but for the last bits."""
    dtype, arguments = (ALONE | MIXED)[case]
    with jax.enable_x64(dtype == jnp.float64):
        tx = ADADELTA(weight_decay=0.1, **arguments)
        rng = np.random.default_rng(0)
        grads = [jnp.asarray(rng.normal(size=(33, 7)), dtype) for _ in range(20)]
        params, state = grads[0], tx.init(grads[0])
        want = params, state
        one = jax.jit(step_of(tx))
        with jax.disable_jit():  # each operation is a program of its own
            for g in grads:
                want = step_of(tx)(*want, g)
        for g in grads:
            params, state = one(params, state, g)
    info = jnp.finfo(dtype)
    rtol = 8 * float(info.eps) if case in ALONE and "random" not in case else 0.02
    np.testing.assert_allclose(
        *(np.asarray(x[0]).astype(np.complex128) for x in ((params,), want)),
        rtol=rtol,
        atol=rtol,
    )


def test_infinite_and_huge_gradients():
    """The copies of the inputs are the inputs."""
    gradients = np.float32([[np.inf, -np.inf, np.nan, 3e38, -0.0, 1.0]] * 3)
    tx = adadelta_tx.scale_by_adadelta()
    state = tx.init(jnp.zeros(6))
    step = jax.jit(tx.update)
    want = textbook.adadelta(np.nan_to_num(gradients, nan=1.0), 0.95, 1e-6, "float32")
    for g, (u, s, d) in zip(gradients, want, strict=True):
        updates, state = step(jnp.asarray(g), state)
        known = ~np.isnan(g)
        for got, expected in ((updates, u), (state.e_g, s), (state.e_x, d)):
            np.testing.assert_allclose(got[known], expected[known], rtol=1e-5)
            assert np.isnan(np.asarray(got)[2])


def test_derivatives():
    g = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)

    def last(grads, rho):
        tx = adadelta_tx.scale_by_adadelta(rho)
        state = tx.init(grads[0])
        for x in grads:
            updates, state = tx.update(x, state)
        return jnp.sum(updates**2)

    by_g, by_rho = jax.jit(jax.grad(last, argnums=(0, 1)))(g, 0.9)
    for by, i in ((by_g[1, 2], (1, 2)), (by_rho, None)):
        h = 1e-3

        def moved(sign, i=i, h=h):
            grads = np.asarray(g, np.float64)
            if i is not None:
                grads[i] += sign * h
            rho = 0.9 + (sign * h if i is None else 0)
            *_, (u, _, _) = textbook.adadelta(grads, rho, 1e-6)
            return np.sum(u**2)

        np.testing.assert_allclose(by, (moved(1) - moved(-1)) / (2 * h), rtol=1e-3)


@pytest.mark.parametrize("platforms", [("tpu",), ("cuda",), ("cpu", "cuda")])
def test_programs_for_other_platforms(platforms):
    """On TPUs and GPUs, a program has no trace of it."""
    tx = ADADELTA()
    export = functools.partial(jax.export.export, platforms=platforms)
    shape = array(shape=(8,))
    exported = export(jax.jit(step_of(tx)))(
        shape, jax.eval_shape(tx.init, shape), shape
    )
    assert ("optimization_barrier" in exported.mlir_module()) == ("cpu" in platforms)
