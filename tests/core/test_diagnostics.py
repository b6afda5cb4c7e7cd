"""effective_learning_rate against its formula in NumPy float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adadelta_tx
from tests import textbook

PARAMS = {"w": np.ones((2, 2), np.float32), "b": [np.float32(1.0), None]}
GRADS = [jax.tree.map(lambda p, k=k: p * k, PARAMS) for k in (3.0, -0.1, 2.0)]


def run(tx):
    state = tx.init(PARAMS)
    for grads in GRADS:
        _, state = tx.update(grads, state, PARAMS)
    return state


def expected(rho=0.95, eps=1e-6):
    *_, (_, s, d) = textbook.adadelta([3.0, -0.1, 2.0], rho, eps)
    rate = np.sqrt((d + eps) / (s + eps))
    return jax.tree.map(lambda p: np.full(np.shape(p), rate), PARAMS)


WRAPPERS = {
    "scale_by_adadelta": lambda tx: adadelta_tx.scale_by_adadelta(),
    "adadelta": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip(10.0), optax.chain(tx)),
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": True}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(adadelta_tx.adadelta)(),
    "optax.adadelta": lambda tx: optax.adadelta(1.0, 0.95),
    "partition": lambda tx: optax.partition({1: tx, 2: tx}, {"w": 1, "b": 2}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_found_inside(wrapper):
    rates = adadelta_tx.effective_learning_rate(
        run(WRAPPERS[wrapper](adadelta_tx.adadelta()))
    )
    chex.assert_trees_all_close(rates, expected(), rtol=1e-5)


def test_eps_and_accumulator_dtype():
    tx = adadelta_tx.adadelta(eps=1e-3, accumulator_dtype="bfloat16")
    rates = jax.jit(adadelta_tx.effective_learning_rate)(run(tx), 1e-3)
    assert rates["w"].dtype == jnp.float32
    chex.assert_trees_all_close(rates, expected(eps=1e-3), rtol=0.02)


@pytest.mark.parametrize("percentiles", [None, (50,)])
def test_two_epsilons(percentiles):
    g = np.float32([1e-3])
    tx = adadelta_tx.adadelta(eps=1e-4, grad_eps=1e-12)
    _, state = tx.update(jnp.asarray(g), tx.init(g), g)
    *_, (_, s, d) = textbook.adadelta([g], 0.95, 1e-4, grad_eps=1e-12)
    got = adadelta_tx.effective_learning_rate(
        state, 1e-4, grad_eps=1e-12, percentiles=percentiles
    )
    np.testing.assert_allclose(got, np.sqrt((d + 1e-4) / (s + 1e-12)), rtol=1e-5)
    assert got[0] > 10 * adadelta_tx.effective_learning_rate(state, 1e-4)[0]


def test_partition_with_frozen_parameters():
    tx = optax.partition(
        {"a": adadelta_tx.adadelta(), "frozen": optax.set_to_zero()},
        {"w": "a", "b": "frozen"},
    )
    rates = adadelta_tx.effective_learning_rate(run(tx))
    np.testing.assert_allclose(rates["w"], expected()["w"], rtol=1e-5)
    assert jax.tree.leaves(rates["b"]) == []


def test_partition_by_a_prefix_and_several_groups():
    groups = {key: adadelta_tx.adadelta(rho=rho) for key, rho in ((0, 0.95), (1, 0.9))}
    tx = optax.partition(groups, {"w": 0, "b": [1, None]})
    rates = adadelta_tx.effective_learning_rate(run(tx))
    np.testing.assert_allclose(rates["w"], expected()["w"], rtol=1e-5)
    np.testing.assert_allclose(rates["b"][0], expected(rho=0.9)["b"][0], rtol=1e-5)


def test_no_adadelta():
    with pytest.raises(ValueError, match="There is no Adadelta in this state"):
        adadelta_tx.effective_learning_rate(optax.adam(1e-3).init(PARAMS))
    with pytest.raises(ValueError, match="There is no Adadelta in this state"):
        adadelta_tx.effective_learning_rate(())


def test_two_for_one_parameter():
    tx = optax.chain(adadelta_tx.adadelta(), adadelta_tx.adadelta())
    with pytest.raises(ValueError, match="Several Adadeltas in this state have"):
        adadelta_tx.effective_learning_rate(tx.init(PARAMS))


def test_two_for_different_trees():
    tx = adadelta_tx.adadelta()
    for other in ({"a": 1.0}, [1.0], 1.0):
        states = [tx.init(PARAMS), tx.init(other)]
        with pytest.raises(ValueError, match="or different trees"):
            adadelta_tx.effective_learning_rate(states)


def test_extreme_accumulators():
    for s, d, rate in ((1e38, 1e-10, 1e-22), (1e-10, 1e38, 1e22), (np.inf, 0, 5.4e-23)):
        state = optax.ScaleByAdaDeltaState(jnp.float32(s), jnp.float32(d))
        got = adadelta_tx.effective_learning_rate(state)
        np.testing.assert_allclose(got, rate, rtol=0.01)


def test_eps_out_of_range():
    state = adadelta_tx.adadelta().init(PARAMS)
    with pytest.raises(ValueError, match="eps must be above 0 and below 1e30, got 0"):
        adadelta_tx.effective_learning_rate(state, 0)


def adadelta_state(s, d):
    return optax.ScaleByAdaDeltaState({"w": jnp.asarray(s)}, {"w": jnp.asarray(d)})


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (100, 100)])
def test_percentiles_of_small_leaves(shape):
    rng = np.random.default_rng(1)
    s, d = rng.lognormal(-8, 3, (2, *shape)).astype(np.float32)
    rates = adadelta_tx.effective_learning_rate(
        adadelta_state(s, d), 1e-4, percentiles=(0, 5, 50, 95, 100)
    )
    exact = np.sqrt((d + 1e-4) / (s + np.float64(1e-4)))
    assert rates["w"].dtype == jnp.float32
    expected = np.percentile(exact, (0, 5, 50, 95, 100))
    np.testing.assert_allclose(rates["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1_000_003,), (1000, 1000), (3, 3, 200, 400)])
def test_percentiles_of_large_leaves_come_from_all_of_it(shape):
    """Each within three standard errors of its rank, also where axes matter."""
    rng = np.random.default_rng(2)
    exponent = sum(
        np.expand_dims(np.linspace(-2, 2, n), [j for j in range(len(shape)) if j != i])
        for i, n in enumerate(shape)
    )
    d = (10.0 ** (exponent + rng.normal(0, 0.1, shape))).astype(np.float32)
    state = adadelta_state(np.ones(shape, np.float32), d)
    asked = (5, 50, 95)
    rates = adadelta_tx.effective_learning_rate(state, 1e-9, percentiles=asked)["w"]
    exact = np.sqrt(d.astype(np.float64))
    for percentile, rate in zip(asked, rates, strict=True):
        error = np.sqrt(percentile * (100 - percentile) / 10_000)
        assert abs(100 * np.mean(exact <= rate) - percentile) < 3 * error


def test_percentiles_are_of_the_same_elements_at_each_call():
    d = jnp.linspace(0, 1, 50_000)
    first, second = (
        adadelta_tx.effective_learning_rate(
            adadelta_state(jnp.zeros(50_000), k * d), 1e-12, percentiles=(1, 50)
        )["w"]
        for k in (1, 4)
    )
    np.testing.assert_allclose(second, 2 * first, rtol=1e-5)


def test_percentiles_keep_the_tree():
    tx = optax.partition(
        {"a": adadelta_tx.adadelta(), "frozen": optax.set_to_zero()},
        {"w": "a", "b": "frozen"},
    )
    params = {"w": {"x": jnp.ones((2, 3)), "empty": jnp.ones((0, 3))}, "b": [1.0, None]}
    rates = adadelta_tx.effective_learning_rate(tx.init(params), percentiles=[50, 90])
    chex.assert_shape(rates["w"]["x"], (2,))
    assert rates["w"]["empty"] == optax.MaskedNode()
    assert jax.tree.leaves(rates["b"]) == []
    np.testing.assert_array_equal(rates["w"]["x"], 1.0)


@pytest.mark.parametrize(
    ("e_x", "error", "message"),
    [
        (jnp.zeros(3), ValueError, r"at \['w'\] has two shapes: e_g has \(2,\) and"),
        (jnp.zeros(2, int), TypeError, r"e_x at \['w'\] is int32; it must be"),
        (jnp.zeros(2, complex), TypeError, r"e_x at \['w'\] is complex64\. A complex"),
    ],
)
def test_state_that_no_adadelta_has(e_x, error, message):
    state = optax.ScaleByAdaDeltaState({"w": jnp.zeros(2)}, {"w": e_x})
    with pytest.raises(error, match=message):
        adadelta_tx.effective_learning_rate(state)


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", None])
def test_percentiles_are_those_of_the_rates(dtype):
    tx = adadelta_tx.adadelta(eps=1e-3, accumulator_dtype=dtype)
    params = {"w": jax.random.normal(jax.random.key(0), (30, 40))}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    rates = adadelta_tx.effective_learning_rate(state, 1e-3)["w"]
    asked = (5, 50, 95)

    def percentiles(state):
        return adadelta_tx.effective_learning_rate(state, 1e-3, percentiles=asked)["w"]

    for function in (percentiles, jax.jit(percentiles)):
        np.testing.assert_allclose(
            function(state), np.percentile(rates, asked), rtol=1e-5
        )


def test_percentiles_of_each_member_of_a_population():
    params = jnp.ones((4, 20_000)) * jnp.arange(1.0, 5.0)[:, None]
    tx = adadelta_tx.adadelta()
    state = jax.vmap(tx.init)(params)
    _, state = jax.vmap(tx.update)(params, state, params)
    rates = jax.vmap(
        lambda s: adadelta_tx.effective_learning_rate(s, percentiles=(50,))
    )(state)
    every = jax.vmap(adadelta_tx.effective_learning_rate)(state)
    np.testing.assert_allclose(rates, every[:, :1], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [50, (50, 101), (-1,), (float("nan"),), [(5, 50)], (), "abc", {5, 50}],
)
def test_percentiles_out_of_range(wrong):
    state = adadelta_tx.adadelta().init(PARAMS)
    with pytest.raises(ValueError, match=r"percentiles must be a sequence of numbers"):
        adadelta_tx.effective_learning_rate(state, percentiles=wrong)
