"""Many devices: the state lies where the parameters lie, and steps talk to no one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adadelta_tx
from benchmarks._report import step_of
from benchmarks.scale import collectives

SPECS = {"w": P("x", "y"), "b": P("y"), "stack": P(None, "x", "y"), "c": P()}
SHAPES = {"w": (16, 8), "b": (8,), "stack": (3, 8, 4), "c": ()}
CASES = {
    "float32": (jnp.float32, {}),
    "bfloat16": (jnp.bfloat16, {}),
    "complex64": (jnp.complex64, {}),
    "bfloat16 accumulators": (jnp.float32, {"accumulator_dtype": jnp.bfloat16}),
    "8-bit accumulators": (jnp.float32, {"accumulator_dtype": jnp.uint8}),
    "weight decay": (jnp.float32, {"weight_decay": 0.01}),
    "schedule": (jnp.float32, {"learning_rate": optax.linear_schedule(1.0, 0.0, 9)}),
}


def mesh(kind=AxisType.Auto, shape=(4, 2)):
    return jax.make_mesh(shape, ("x", "y"), (kind, kind))


def random(seed, dtype):
    rng = np.random.default_rng(seed)
    return {key: jnp.asarray(rng.normal(size=s), dtype) for key, s in SHAPES.items()}


def shardings(on):
    return {key: NamedSharding(on, spec) for key, spec in SPECS.items()}


def accumulators_of(state):
    """The accumulators' trees, wherever they are in the chain."""
    found = [optax.tree.get(state, name) for name in ("e_g", "e_x", "codes")]
    return [tree for tree in found if tree is not None]


def assert_sharded_like_parameters(state, on):
    for accumulators in accumulators_of(state):
        for key, sharding in shardings(on).items():
            leaf = accumulators[key]
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), key


def train(tx, params, state, dtype, place=lambda tree: tree):
    step = jax.jit(step_of(tx), donate_argnums=(0, 1))
    for i in range(5):
        params, state = step(params, state, place(random(i + 1, dtype)))
    return params, state


def assert_same_numbers(got, want):
    """Up to the last bits: XLA does not round alike in arrays of other shapes."""
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        rtol = 1e-2 if ours.dtype == jnp.bfloat16 else 1e-6
        wide = (np.asarray(x).astype(np.complex128) for x in (ours, theirs))
        np.testing.assert_allclose(*wide, rtol=rtol)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_state_lies_where_parameters_lie(case, jit):
    dtype, arguments = CASES[case]
    tx = adadelta_tx.adadelta(**arguments)
    params = jax.device_put(random(0, dtype), shardings(mesh()))
    state = (jax.jit(tx.init) if jit else tx.init)(params)
    assert_sharded_like_parameters(state, mesh())
    chex.assert_trees_all_equal(state, tx.init(random(0, dtype)))


def test_nan_parameters_start_from_zero():
    tx = adadelta_tx.adadelta()
    params = jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0])
    chex.assert_trees_all_equal(jax.jit(tx.init)(params), tx.init(params))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("case", CASES)
def test_steps_talk_to_no_one(case, kind):
    """No collective in the program, and the numbers of a single device."""
    dtype, arguments = CASES[case]
    tx = adadelta_tx.adadelta(**arguments)
    on = mesh(kind)

    def place(tree):
        return jax.device_put(tree, shardings(on))

    params, grads = place(random(0, dtype)), place(random(1, dtype))
    state = jax.jit(tx.init)(params)
    assert_sharded_like_parameters(state, on)
    step = jax.jit(step_of(tx)).lower(params, state, grads).compile()
    assert collectives(step) == 0
    got = train(tx, params, state, dtype, place)
    assert_sharded_like_parameters(got[1], on)
    want = train(tx, random(0, dtype), tx.init(random(0, dtype)), dtype)
    assert_same_numbers(got, want)


def test_collectives_would_be_found():
    def norm(x):
        return x / jnp.linalg.norm(x)

    x = jax.device_put(jnp.ones((16, 8)), NamedSharding(mesh(), P("x", "y")))
    assert collectives(jax.jit(norm).lower(x).compile()) > 0


@pytest.mark.parametrize("accumulator_dtype", [None, jnp.uint8])
def test_shard_map(accumulator_dtype):
    """Init and update on each device's own part."""
    tx, on = adadelta_tx.adadelta(accumulator_dtype=accumulator_dtype), mesh()
    params = random(0, jnp.float32)
    specs = optax.tree_utils.tree_map_params(
        tx,
        lambda _, spec: spec,
        tx.init(params),
        SPECS,
        transform_non_params=lambda _: P(),
    )
    with jax.set_mesh(on):
        init = jax.shard_map(tx.init, in_specs=(SPECS,), out_specs=specs)
        step = jax.shard_map(
            step_of(tx), in_specs=(SPECS, specs, SPECS), out_specs=(SPECS, specs)
        )
        got = params, jax.jit(init)(params)
        for i in range(5):
            got = jax.jit(step)(*got, random(i + 1, jnp.float32))
    tx = adadelta_tx.adadelta()
    want = train(tx, random(0, jnp.float32), tx.init(params), jnp.float32)
    if accumulator_dtype is None:
        assert_same_numbers(got, want)
    else:  # each device rounds as if its part were all
        moved, wanted = (jax.tree.map(jnp.subtract, x[0], params) for x in (got, want))
        ratios = jax.tree.leaves(jax.tree.map(jnp.divide, moved, wanted))
        assert jnp.mean(jnp.concatenate([x.ravel() for x in ratios])) == pytest.approx(
            1, abs=0.1
        )


def test_stacked_layers():
    """Layers stacked in a leaf, a stage a device: by vmap, and by a scan over them."""
    tx = adadelta_tx.adadelta()
    on = jax.make_mesh((8,), ("stage",), (AxisType.Auto,))
    place = NamedSharding(on, P("stage"))
    rng = np.random.default_rng(0)
    params, *grads = (
        jnp.asarray(rng.normal(size=(8, 4, 4)), jnp.float32) for _ in "abcd"
    )
    want = tx.init(params)
    whole = params, want
    for g in grads:
        whole = jax.jit(step_of(tx))(*whole, g)

    def by_scan(params, state, g):
        def body(_, layer):
            return None, step_of(tx)(*layer)

        return jax.lax.scan(body, None, (params, state, g))[1]

    for step in (jax.vmap(step_of(tx)), by_scan):
        params_ = jax.device_put(params, place)
        state = jax.jit(jax.vmap(tx.init))(params_)
        assert accumulators_of(state)[0].sharding.is_equivalent_to(place, 3)
        got = params_, state
        for g in grads:
            got = jax.jit(step)(*got, jax.device_put(g, place))
        assert_same_numbers(got[0], whole[0])
        assert_same_numbers(accumulators_of(got[1]), accumulators_of(whole[1]))
    vmapped = jax.jit(jax.vmap(step_of(tx))).lower(*got, got[0]).compile()
    assert collectives(vmapped) == 0


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", "y"), P(None, "x"), P()])
def test_percentiles_of_a_sharded_leaf(kind, spec):
    """As of one on one device, and only a sample of it travels."""
    x = np.random.default_rng(0).lognormal(-10, 3, (2, 1024, 256)).astype(np.float32)
    placed = [jax.device_put(a, NamedSharding(mesh(kind), spec)) for a in x]

    def percentiles(s, d):
        state = optax.ScaleByAdaDeltaState({"w": s}, {"w": d})
        return adadelta_tx.effective_learning_rate(state, percentiles=(5, 50, 95))["w"]

    compiled = jax.jit(percentiles).lower(*placed).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < x[0].nbytes // 4
    np.testing.assert_allclose(compiled(*placed), percentiles(*x), rtol=1e-6)
