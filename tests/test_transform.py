"""Arguments, trees and errors of scale_by_adadelta and adadelta."""

import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adadelta_tx
from adadelta_tx import _recurrence as recurrence
from tests import textbook

MAKERS = [adadelta_tx.adadelta, adadelta_tx.scale_by_adadelta]


def test_arguments_are_optax_arguments():
    ours = list(inspect.signature(adadelta_tx.adadelta).parameters.values())
    theirs = inspect.signature(optax.adadelta).parameters.values()
    assert [p.name for p in ours] == [*(p.name for p in theirs), "accumulator_dtype"]
    assert [p.default for p in ours] == [1.0, 0.95, 1e-6, 0.0, None, None]
    assert ours[-1].kind is inspect.Parameter.KEYWORD_ONLY


def test_state_is_optax_state():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(())}
    for arguments in [(), (0.1,), (optax.constant_schedule(0.1), 0.9, 1e-5, 1e-4)]:
        chex.assert_trees_all_equal(
            adadelta_tx.adadelta(*arguments).init(params),
            optax.adadelta(*arguments).init(params),
        )


@pytest.mark.parametrize("learning_rate", [1.0, None, 1, np.float32(1), jnp.ones(())])
def test_default_descends(learning_rate):
    tx = adadelta_tx.adadelta(learning_rate)
    params = jnp.array([3.0, -3.0])
    updates, _ = tx.update(params, tx.init(params), params)
    *_, (u, _, _) = textbook.adadelta([params], 0.95, 1e-6)
    np.testing.assert_allclose(updates, -u, rtol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("value", [-0.1, 1.0, 2, float("nan"), float("inf"), "array"])
def test_rho_out_of_range(make, value):
    value = jnp.ones(()) if value == "array" else value
    with pytest.raises(ValueError, match=rf"rho must be in \[0, 1\), got {value}"):
        make(rho=value)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("value", [0, -1e-6, float("nan"), float("inf"), 1e39])
def test_eps_out_of_range(make, value):
    with pytest.raises(ValueError, match=re.escape(f"below 1e30, got {value}")):
        make(eps=value)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_learning_rate_and_weight_decay_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite .*, got {value}"):
        adadelta_tx.adadelta(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "rho", "eps", "weight_decay"])
@pytest.mark.parametrize("value", ["0.5", True, 0.5j, np.ones(2), [0.5]])
def test_not_a_number(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a real number, got"):
        adadelta_tx.adadelta(**{name: value})


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "dtype",
    ["int8", jnp.uint16, jnp.float8_e4m3fn, complex, "x", object(), [], np.ones(2)],
)
def test_accumulator_dtype_not_supported(make, dtype):
    supported = "uint8, float16, bfloat16, float32, float64"
    with pytest.raises(ValueError, match=f"accumulator_dtype must be .*{supported}"):
        make(accumulator_dtype=dtype)


@pytest.mark.parametrize("rho", [-3.0, 7.0])
def test_traced_hyperparameter_is_used_as_it_is(rho):
    g = jnp.array([0.25, -0.25])

    @jax.jit
    def e_g(rho):
        tx = adadelta_tx.scale_by_adadelta(rho)
        return tx.update(g, tx.init(g))[1].e_g

    np.testing.assert_allclose(e_g(rho), (1 - rho) * np.square(g))


@pytest.mark.parametrize(
    ("parameter", "requested", "stored"),
    [
        ("float16", None, "float32"),
        ("bfloat16", None, "float32"),
        ("float32", None, "float32"),
        ("float64", None, "float64"),
        ("complex64", None, "float32"),
        ("complex128", None, "float64"),
        ("float8_e4m3fn", None, "float32"),
        ("float64", "bfloat16", "bfloat16"),
        ("complex64", "float16", "float16"),
        ("bfloat16", jnp.float64, "float64"),
    ],
)
def test_dtypes(parameter, requested, stored):
    with jax.enable_x64(True):
        tx = adadelta_tx.adadelta(accumulator_dtype=requested)
        params = jnp.zeros(3, parameter)
        state = tx.init(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(stored)}
        updates, new_state = tx.update(jnp.ones(3, parameter), state, params)
        assert updates.dtype == params.dtype
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
        chex.assert_tree_all_finite((updates, new_state))


def test_float64_is_float32_where_jax_has_no_float64():
    state = adadelta_tx.scale_by_adadelta(accumulator_dtype="float64").init(np.ones(2))
    assert state.e_g.dtype == state.e_x.dtype == jnp.float32


def test_gradient_of_another_dtype_keeps_the_state():
    """Float32 gradients for bfloat16 parameters, and Python numbers."""
    tx = adadelta_tx.scale_by_adadelta()
    state = tx.init({"a": jnp.ones(2, jnp.bfloat16), "b": 1.0})
    gradients = {"a": jnp.full(2, 0.5), "b": 2.0}
    updates, new_state = tx.update(gradients, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
    assert updates["a"].dtype == updates["b"].dtype == jnp.float32
    *_, (u, _, _) = textbook.adadelta([2.0], 0.95, 1e-6)
    np.testing.assert_allclose(updates["b"], u, rtol=1e-6)


def test_no_nan_on_a_zero_float16_gradient():
    """Of optax.adadelta's: https://github.com/google-deepmind/optax/issues/1552."""
    params = jnp.zeros(3, jnp.float16)
    for eps in (1e-6, 1e-8, 1e-300):
        tx = adadelta_tx.adadelta(eps=eps)
        updates, state = tx.update(params, tx.init(params), params)
        np.testing.assert_array_equal(updates, 0)
        chex.assert_tree_all_finite(state)


def test_trees():
    """Nothing, nested, of size 0, scalars, None and MaskedNode."""
    params = {
        "nested": [(jnp.ones(2),), {}],
        "size 0": jnp.ones((0, 3)),
        "scalar": jnp.ones(()),
        "none": None,
        "masked": optax.MaskedNode(),
    }
    tx = adadelta_tx.adadelta()
    for tree in (params, {}, (), jnp.ones(3)):
        state = tx.init(tree)
        updates, new_state = jax.jit(tx.update)(tree, state, tree)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, tree)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
        new_tree = optax.apply_updates(tree, updates)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_tree, tree)


def test_no_gradient_changes_nothing():
    tx = adadelta_tx.scale_by_adadelta()
    _, state = tx.update({"a": 1.0, "b": 1.0}, tx.init({"a": 1.0, "b": 1.0}))
    updates, new_state = tx.update({"a": None, "b": 1.0}, state)
    assert updates["a"] is None
    assert new_state.e_g["a"] == state.e_g["a"]
    assert new_state.e_x["a"] == state.e_x["a"]
    assert new_state.e_g["b"] > state.e_g["b"]


def test_accumulators_can_be_donated():
    """They are two arrays, neither of them a parameter."""
    params = jnp.ones(4)
    tx = adadelta_tx.adadelta()
    update = jax.jit(tx.update, donate_argnums=1)
    state = tx.init(params)
    for _ in range(2):
        _, state = update(params, state, params)
    chex.assert_tree_all_finite((params, state))


def test_initialise_from_shapes():
    params = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    tx = adadelta_tx.adadelta()
    state = tx.init(params)
    chex.assert_trees_all_equal(state, tx.init({"w": jnp.ones((2, 3), jnp.bfloat16)}))
    shapes = jax.eval_shape(tx.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)


def test_state_of_another_transformation():
    tx = adadelta_tx.scale_by_adadelta()
    with pytest.raises(TypeError, match=r"optax\.ScaleByAdaDeltaState.*tuple"):
        tx.update(1.0, adadelta_tx.adadelta().init(1.0))


@pytest.mark.parametrize(
    "leaf", [jnp.arange(3), True, jax.random.key(0), np.int8(1), "x", len]
)
def test_leaf_is_not_floating_point(leaf):
    tx = adadelta_tx.adadelta()
    with pytest.raises(
        TypeError, match=r"The parameter at \['layer'\]\[1\] has d?type"
    ):
        tx.init({"layer": [jnp.ones(2), leaf]})
    state = tx.init({"layer": [1.0, 1.0]})
    with pytest.raises(TypeError, match=r"The gradient at \['layer'\]\[1\] has d?type"):
        tx.update({"layer": [1.0, leaf]}, state, {"layer": [1.0, 1.0]})


def test_update_of_another_shape():
    tx = adadelta_tx.scale_by_adadelta()
    state = tx.init({"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"at \['w'\] has shape \(3,\).*had \(2, 3\)"):
        tx.update({"w": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match=r"The gradient has shape \(3,\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(2)))


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        (
            {"v": [1.0, 1.0]},
            r"none at \['w'\]\[0\], .* and unknown ones at \['v'\]\[0\]",
        ),
        ({"w": [1.0]}, r"none at \['w'\]\[1\]\.$"),
        ({"w": [1.0, 1.0], "v": 1.0}, r"init: unknown ones at \['v'\]\.$"),
        ({"w": (1.0, 1.0)}, "the containers differ"),
        ({"w": 1.0}, r"none at \['w'\]\[0\], .* and unknown ones at \['w'\]\.$"),
        (1.0, r"none at \['w'\]\[0\], .* and unknown ones at the root"),
    ],
)
def test_update_of_another_tree(updates, message):
    tx = adadelta_tx.scale_by_adadelta()
    state = tx.init({"w": [1.0, 1.0]})
    with pytest.raises(ValueError, match=f"tree is not that of .*{message}"):
        tx.update(updates, state)


def test_gradient_of_a_parameter_that_was_none():
    tx = adadelta_tx.scale_by_adadelta()
    with pytest.raises(ValueError, match=r"init: unknown ones at \['a'\]\.$"):
        tx.update({"a": 1.0, "b": 1.0}, tx.init({"a": None, "b": 1.0}))


def test_weight_decay_needs_parameters():
    tx = adadelta_tx.adadelta(weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(1.0, tx.init(1.0))


def test_leaves_of_one_shape_are_traced_once(monkeypatch):
    calls = []
    arithmetic = recurrence.update
    monkeypatch.setattr(
        recurrence, "update", lambda *args: calls.append(1) or arithmetic(*args)
    )
    params = {f"w{i}": jnp.ones(2 + i % 2) for i in range(10)}
    for tx in (adadelta_tx.adadelta(), adadelta_tx.adadelta(accumulator_dtype="uint8")):
        jax.jit(tx.update).lower(params, tx.init(params), params)
        assert len(calls) == 2
        calls.clear()


@pytest.mark.parametrize("narrow", [0, 1])
def test_state_of_two_dtypes(narrow):
    """As a program may restore it."""
    s, d = (jnp.zeros(3, jnp.bfloat16 if i == narrow else None) for i in range(2))
    tx = adadelta_tx.scale_by_adadelta(0.99)
    updates, state = tx.update(jnp.ones(3), optax.ScaleByAdaDeltaState(s, d))
    np.testing.assert_allclose(updates, np.sqrt(1e-6 / (0.01 + 1e-6)), rtol=0.02)
    assert [x.dtype for x in state] == [s.dtype, d.dtype]
