"""adadelta_tx inside optax, as its users combine it."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adadelta_tx
from tests import textbook
from tests.steps import compiled

PARAMS = {"w": np.array([1.0, -2.0, 3.0], np.float32), "b": np.float32(0.5)}
STEPS = 6


def gradients(seed=1):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda p: rng.normal(size=np.shape(p)).astype(np.float32), PARAMS)
        for _ in range(STEPS)
    ]


def train(tx, params=PARAMS, grads=None, state=None):
    """Parameters and state after some jitted steps."""
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params) if state is None else state
    for g in gradients() if grads is None else grads:
        params, state = compiled(tx)(params, state, g)
    return params, state


def expected(key, learning_rate=1.0, rho=0.95, eps=1e-6, grads=None):
    """The parameter at this key after the same steps of the textbook form."""
    grads = [g[key] for g in (gradients() if grads is None else grads)]
    x = np.float64(PARAMS[key])
    for i, (u, _, _) in enumerate(textbook.adadelta(grads, rho, eps)):
        rate = learning_rate(i) if callable(learning_rate) else learning_rate
        x = x - rate * u
    return x


def assert_params(params, **arguments):
    for key in PARAMS:
        np.testing.assert_allclose(params[key], expected(key, **arguments), rtol=1e-5)


def test_schedule():
    schedule = optax.linear_schedule(2.0, 0.0, STEPS)
    params, _ = train(adadelta_tx.adadelta(schedule))
    assert_params(params, learning_rate=lambda i: 2.0 * (1 - i / STEPS))


def test_weight_decay_by_mask():
    """Decayed weights go through the scaling, as in optax.adadelta."""
    mask = {"w": True, "b": False}
    arguments = (0.7, 0.9, 1e-5, 0.1, mask)
    ours, _ = train(adadelta_tx.adadelta(*arguments))
    theirs, _ = train(optax.adadelta(*arguments))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(
        ours["b"], expected("b", learning_rate=0.7, rho=0.9, eps=1e-5), rtol=1e-5
    )
    scheduled, _ = train(
        adadelta_tx.adadelta(0.7, 0.9, 1e-5, optax.constant_schedule(0.1), mask)
    )
    chex.assert_trees_all_close(scheduled, ours, rtol=1e-6)


def test_chain():
    params, _ = train(optax.chain(optax.clip(0.5), adadelta_tx.adadelta()))
    clipped = [jax.tree.map(lambda g: np.clip(g, -0.5, 0.5), g) for g in gradients()]
    assert_params(params, grads=clipped)


def test_masked():
    tx = optax.masked(adadelta_tx.adadelta(), {"w": True, "b": False})
    params, _ = train(tx)
    np.testing.assert_allclose(params["w"], expected("w"), rtol=1e-5)
    # A mask leaves the other gradients as they are.
    total = PARAMS["b"] + sum(g["b"] for g in gradients())
    np.testing.assert_allclose(params["b"], total, rtol=1e-5)


def test_partition():
    tx = optax.partition(
        {"slow": adadelta_tx.adadelta(0.1, 0.99), "frozen": optax.set_to_zero()},
        {"w": "slow", "b": "frozen"},
    )
    params, _ = train(tx)
    w = expected("w", learning_rate=0.1, rho=0.99)
    np.testing.assert_allclose(params["w"], w, rtol=1e-5)
    assert params["b"] == PARAMS["b"]


def test_multi_steps():
    params, _ = train(optax.MultiSteps(adadelta_tx.adadelta(), 2))
    many = gradients()
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *pair)
        for pair in zip(many[::2], many[1::2], strict=True)
    ]
    assert_params(params, grads=means)


def test_apply_if_finite():
    many = gradients()
    broken = jax.tree.map(lambda g: g * np.float32("nan"), many[0])
    with_broken = [*many[:2], broken, *many[2:]]
    params, state = train(
        optax.apply_if_finite(adadelta_tx.adadelta(), 3), grads=with_broken
    )
    assert_params(params)
    assert state.total_notfinite == 1


@pytest.mark.parametrize("accumulator_dtype", [None, "float32", jnp.bfloat16])
def test_inject_hyperparams(accumulator_dtype):
    """Hyperparameters are data: changed between steps, without a compilation."""
    tx = optax.inject_hyperparams(
        adadelta_tx.adadelta, static_args=("accumulator_dtype",)
    )(1.0, rho=0.9, eps=1e-4, accumulator_dtype=accumulator_dtype)
    params, state = train(tx)
    rtol = 0.02 if accumulator_dtype == jnp.bfloat16 else 1e-5
    for key in PARAMS:
        want = expected(key, rho=0.9, eps=1e-4)
        np.testing.assert_allclose(params[key], want, rtol=rtol)
    state.hyperparams["learning_rate"] = jnp.zeros_like(
        state.hyperparams["learning_rate"]
    )
    still, _ = train(tx, params, state=state)
    chex.assert_trees_all_equal(still, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_inject_hyperparams_for_other_dtypes(dtype):
    """With hyperparam_dtype, since optax rounds hyperparameters to the parameters'."""
    tx = optax.inject_hyperparams(adadelta_tx.adadelta, hyperparam_dtype=jnp.float32)(
        rho=0.999, eps=1e-8
    )
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)
    plain = adadelta_tx.adadelta(rho=0.999, eps=1e-8)
    grads = [params] * STEPS
    got, _ = train(tx, params, grads)
    want, _ = train(plain, params, grads)
    chex.assert_trees_all_equal_dtypes(got, want)
    chex.assert_trees_all_close(got, want, rtol=1e-2)


@pytest.mark.parametrize("jit", [False, True])
def test_complex_hyperparameters_of_inject_hyperparams(jit):
    params = jnp.ones(2, jnp.complex64)
    tx = optax.inject_hyperparams(adadelta_tx.adadelta)(0.5)
    state = (jax.jit(tx.init) if jit else tx.init)(params)
    updates, _ = (jax.jit(tx.update) if jit else tx.update)(params, state, params)
    *_, (u, _, _) = textbook.adadelta([np.ones(2)], 0.95, 1e-6)
    np.testing.assert_allclose(updates, -0.5 * u, rtol=1e-5)


def test_infinite_accumulators_of_optax_decay():
    theirs, ours = optax.adadelta(1.0, 0.95), adadelta_tx.adadelta()
    params, state = train(theirs, {"w": np.ones(2)}, [{"w": np.float32([1e30, 1.0])}])
    assert np.isinf(optax.tree.get(state, "e_g")["w"][0])
    steps = [{"w": np.ones(2, np.float32)}] * 2500
    _, state = train(ours, params, steps, state)
    np.testing.assert_allclose(optax.tree.get(state, "e_g")["w"], 1.0, rtol=1e-4)


def test_injected_schedule_of_rho():
    tx = optax.inject_hyperparams(adadelta_tx.scale_by_adadelta)(
        rho=lambda count: jnp.where(count < 3, 0.0, 0.95)
    )
    g = jnp.array([2.0, -3.0])
    state = tx.init(g)
    for _ in range(3):
        _, state = tx.update(g, state)
    np.testing.assert_allclose(optax.tree.get(state, "e_g"), g**2, rtol=1e-6)
    _, state = tx.update(g * 2, state)
    e_g = 0.95 * g**2 + 0.05 * 4 * g**2
    np.testing.assert_allclose(optax.tree.get(state, "e_g"), e_g, rtol=1e-6)


def test_tree_get_and_set():
    tx = optax.chain(optax.clip(1.0), adadelta_tx.adadelta())
    state = tx.init(PARAMS)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    state = optax.tree.set(state, e_x=ones)
    chex.assert_trees_all_equal(optax.tree.get(state, "e_x"), ones)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    chex.assert_trees_all_equal(optax.tree.get(state, "e_g"), zeros)


def test_map_params():
    """Optax knows the accumulators as trees of the parameters' structure."""
    tx = adadelta_tx.adadelta(optax.constant_schedule(1.0))
    names = {"w": "weight", "b": "bias"}
    named = optax.tree.map_params(
        tx,
        lambda _, name: name,
        tx.init(PARAMS),
        names,
        transform_non_params=lambda _: 0,
    )
    assert named[1] == optax.ScaleByAdaDeltaState(e_g=names, e_x=names)
    assert named[2].count == 0


def test_state_moves_between_optax_and_here():
    arguments = (0.5, 0.9, 1e-5, 0.01)
    ours, theirs = adadelta_tx.adadelta(*arguments), optax.adadelta(*arguments)
    straight = train(theirs, *train(theirs)[:1], state=train(theirs)[1])
    for first, then in ((ours, theirs), (theirs, ours)):
        params, state = train(first)
        moved = train(then, params, state=state)
        chex.assert_trees_all_close(moved, straight, rtol=1e-5)


def test_float16_state_of_optax_continues_after_a_cast():
    """Which the error for such a state says how to write."""
    params = jax.tree.map(np.float16, PARAMS)
    grads = [jax.tree.map(np.float16, g) for g in gradients()]
    arguments = (1.0, 0.9, 1e-3)
    params, state = train(optax.adadelta(*arguments), params, grads)
    ours = adadelta_tx.adadelta(*arguments)
    with pytest.raises(TypeError, match=r"e_g at .*\['b'\] is float16.* Cast") as error:
        train(ours, params, grads, state=state)
    line = re.search(r"Cast the state: (.*)\.$", str(error.value))[1]
    cast = eval(line, {"jax": jax, "jnp": jnp, "state": state})
    continued, _ = train(ours, params, grads, state=cast)
    theirs, _ = train(optax.adadelta(*arguments), params, grads, state=state)
    chex.assert_trees_all_close(continued, theirs, rtol=0.02)


MESH = ((4, 2), ("x", "y"))


@pytest.mark.parametrize("jit_init", [False, True])
def test_explicit_sharding_types(jit_init):
    mesh = jax.make_mesh(*MESH, axis_types=(AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, P("x", "y"))
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((8, 4)), sharding)
        tx = adadelta_tx.adadelta(weight_decay=1e-2)
        state = (jax.jit(tx.init) if jit_init else tx.init)(params)

        @jax.jit
        def step(params, state):
            updates, state = tx.update(jnp.sin(params), state, params)
            assert jax.typeof(updates).sharding.spec == P("x", "y")
            return optax.apply_updates(params, updates), state

        for _ in range(2):
            params, state = step(params, state)
        for leaf in (params, state[1].e_g, state[1].e_x):
            assert leaf.sharding == sharding
    tx = optax.adadelta(1.0, 0.95, weight_decay=1e-2)
    params_one = jnp.ones((8, 4))
    state = tx.init(params_one)
    for _ in range(2):
        updates, state = tx.update(jnp.sin(params_one), state, params_one)
        params_one = optax.apply_updates(params_one, updates)
    np.testing.assert_allclose(params, params_one, rtol=1e-6)


def test_sharded_parameters():
    """The state lies where the parameters lie, and no step talks."""
    mesh = jax.make_mesh(*MESH, axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P("x", "y"))
    params = jax.device_put(jnp.ones((8, 4)), sharding)
    tx = adadelta_tx.adadelta()
    state = tx.init(params)
    assert state[1].e_g.sharding == state[1].e_x.sharding == sharding
    compiled = jax.jit(tx.update).lower(params, state, params).compile()
    updates, _ = compiled(params, state, params)
    assert updates.sharding.is_equivalent_to(sharding, 2)
    for word in ("all-", "collective", "reduce-scatter"):
        assert word not in compiled.as_text()


INJECT = optax.inject_hyperparams(
    adadelta_tx.adadelta,
    static_args=("accumulator_dtype", "weight_decay_mask"),
    hyperparam_dtype=jnp.float32,
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize("accumulator_dtype", [None, "bfloat16", "uint8"])
def test_apply_if_finite_around_inject_hyperparams(dtype, accumulator_dtype):
    """As docs/recipes.md has it: its two branches have the same dtypes."""
    inner = INJECT(0.5, weight_decay=0.1, accumulator_dtype=accumulator_dtype)
    tx = optax.apply_if_finite(inner, max_consecutive_errors=1000)
    grads = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)
    params = PARAMS if dtype != "complex64" else grads
    broken = jax.tree.map(lambda g: g * jnp.nan, grads)
    once, state = train(tx, params, [grads])
    twice, state = train(tx, once, [broken], state)
    chex.assert_trees_all_equal(once, twice)
    assert state.total_notfinite == 1


def test_maximising_with_weight_decay():
    """As torch's maximize: the gradient changes its sign, not the decay."""
    decay = 0.1
    tx = optax.chain(optax.scale(-1.0), adadelta_tx.adadelta(weight_decay=decay))
    x, state = np.float64([2.0, -3.0]), tx.init(jnp.zeros(2))
    s = d = 0.0
    for g in ([1.0, 2.0], [0.5, -1.0], [0.0, 0.0]):
        updates, state = tx.update(jnp.array(g), state, jnp.asarray(x, jnp.float32))
        total = -np.float64(g) + decay * x
        s = 0.95 * s + 0.05 * total**2
        u = np.sqrt((d + 1e-6) / (s + 1e-6)) * total
        d = 0.95 * d + 0.05 * u**2
        np.testing.assert_allclose(updates, -u, rtol=1e-5)
        x = x - u


def test_real_and_imaginary_part_as_two_numbers():
    """As torch treats a complex parameter."""
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(STEPS, 5)) + 1j * rng.normal(size=(STEPS, 5))
    grads = grads.astype(np.complex64)
    tx = optax.contrib.split_real_and_imaginary(adadelta_tx.scale_by_adadelta())
    state = tx.init(jnp.asarray(grads[0]))
    parts = (textbook.adadelta(x, 0.95, 1e-6) for x in (grads.real, grads.imag))
    for g, (real, _, _), (imag, _, _) in zip(grads, *parts, strict=True):
        u, state = tx.update(jnp.asarray(g), state)
        np.testing.assert_allclose(u, real + 1j * imag, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_injected_numbers_of_too_few_digits(dtype):
    """Under jit they are traced: 0.999 is 1 in bfloat16, and nothing else tells."""
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)
    inject = optax.inject_hyperparams(adadelta_tx.scale_by_adadelta)
    with pytest.warns(UserWarning, match=f"rho is traced.*, {dtype}.*hyperparam_dtype"):
        jax.jit(inject(rho=0.5).init)(params)
    with pytest.raises(ValueError, match=f"rho must be .*{dtype}.*hyperparam_dtype"):
        inject(rho=0.99999).init(params)
    wide = optax.inject_hyperparams(
        adadelta_tx.scale_by_adadelta, hyperparam_dtype=jnp.float32
    )(rho=0.5, eps=1e-6)
    jax.jit(wide.init)(params)  # a warning is an error


def test_traced_learning_rate_keeps_the_dtype_of_updates():
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)

    @jax.jit
    def updates(rate, decay):
        tx = adadelta_tx.adadelta(rate, weight_decay=decay)
        return tx.update(params, tx.init(params), params)[0]

    chex.assert_trees_all_equal_dtypes(updates(0.5, 0.1), params)
