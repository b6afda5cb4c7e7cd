"""Arguments, trees and errors of scale_by_adadelta and adadelta."""

import functools
import inspect
import re
from typing import NamedTuple

import chex
import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from equinox.internal import closure_to_pytree
from flax import nnx

import adadelta_tx
from adadelta_tx._core import hints, one_pass, recurrence, trees
from tests import textbook

MAKERS = [adadelta_tx.adadelta, adadelta_tx.scale_by_adadelta]


def test_arguments_are_optax_arguments():
    ours = list(inspect.signature(adadelta_tx.adadelta).parameters.values())
    theirs = inspect.signature(optax.adadelta).parameters.values()
    more = ["grad_eps", "accumulator_dtype"]
    assert [p.name for p in ours] == [*(p.name for p in theirs), *more]
    assert [p.default for p in ours] == [1.0, 0.95, 1e-6, 0.0, None, None, None]
    assert {p.kind for p in ours[-2:]} == {inspect.Parameter.KEYWORD_ONLY}


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


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("value", [-1e-9, float("nan"), 1e30, float("inf")])
def test_grad_eps_out_of_range(make, value):
    message = f"grad_eps must be at least 0 and below 1e30, got {value}"
    with pytest.raises(ValueError, match=re.escape(message)):
        make(grad_eps=value)
    state = make().init(1.0)
    with pytest.raises(ValueError, match=re.escape(message)):
        adadelta_tx.effective_learning_rate(state, grad_eps=value)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_learning_rate_and_weight_decay_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite .*, got {value}"):
        adadelta_tx.adadelta(**{name: value})


@pytest.mark.parametrize(
    "name", ["learning_rate", "rho", "eps", "grad_eps", "weight_decay"]
)
@pytest.mark.parametrize("value", ["0.5", True, 0.5j, np.ones(2), [0.5]])
def test_not_a_number(name, value):
    kind = "real number"
    if name in ("learning_rate", "weight_decay"):
        kind = "number or an optax schedule"
    with pytest.raises(TypeError, match=f"{name} must be a {kind}, got"):
        adadelta_tx.adadelta(**{name: value})


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "dtype",
    [
        "int8",
        jnp.uint16,
        jnp.float16,
        jnp.float8_e4m3fn,
        complex,
        "x",
        object(),
        [],
        np.ones(2),
    ],
)
def test_accumulator_dtype_not_supported(make, dtype):
    supported = "uint8, bfloat16, float32, float64"
    with pytest.raises(ValueError, match=f"accumulator_dtype must be .*{supported}"):
        make(accumulator_dtype=dtype)


@pytest.mark.parametrize("dtype", ["8bit", "int8", 8, jnp.float8_e4m3fn, "8-bit"])
def test_accumulator_dtype_of_8_bits_by_another_name(dtype):
    with pytest.raises(ValueError, match=r"For 8 bits, write uint8\.$"):
        adadelta_tx.adadelta(accumulator_dtype=dtype)


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
        ("complex64", "bfloat16", "bfloat16"),
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


@pytest.mark.parametrize("make", MAKERS)
def test_float64_where_jax_has_no_float64(make):
    tx = make(accumulator_dtype="float64")
    with pytest.raises(ValueError, match=r"accumulator_dtype is float64, but .*x64"):
        tx.init(np.ones(2))


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
    """Of optax.adadelta's: https://github.com/google-deepmind/optax/issues/1789."""
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


class Tensor:
    """What arrays of other libraries have in common with PyTorch's."""

    dtype = object()


def test_arrays_of_other_libraries():
    tx, w = adadelta_tx.adadelta(), {"w": np.ones(3)}
    state, foreign = tx.init(w), {"w": Tensor()}
    of_foreign = optax.tree.set(state, e_g=foreign)
    for call, where in (
        (lambda: tx.init(foreign), "The parameter"),
        (lambda: tx.update(foreign, state, w), "The gradient"),
        (lambda: tx.update(w, state, foreign), "The parameter"),
        (lambda: tx.update(w, of_foreign, w), "The state's e_g"),
    ):
        message = rf"{where} at \['w'\] must be an array of JAX or .*, got a .*Tensor\."
        with pytest.raises(TypeError, match=message):
            call()


def test_update_of_another_shape():
    tx = adadelta_tx.scale_by_adadelta()
    state = tx.init({"w": jnp.ones((2, 3))})
    with pytest.raises(
        ValueError, match=r"at \['w'\] has shape \(3,\).* in the s.*\(2, 3\)"
    ):
        tx.update({"w": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match=r"The gradient has shape \(3,\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(2)))


TREES = [
    ({"v": [1.0, 1.0]}, r"\['w'\] is missing, and \['v'\] is unknown\.$"),
    ({"w": [1.0]}, r"\['w'\]\[1\] is missing\.$"),
    ({"w": [1.0, 1.0], "v": 1.0}, r"\['v'\] is unknown\.$"),
    ({"w": [1.0, 1.0], **dict.fromkeys("abcd", 1.0)}, r"\['a'\].*, … are unknown\.$"),
    ({"w": (1.0, 1.0)}, r"\['w'\] is a tuple, not a list\.$"),
    ({"w": 1.0}, r"\['w'\] is an array, not a list\.$"),
    (1.0, "the root is an array, not a dict"),
    (flax.core.FrozenDict({"w": [1.0, 1.0]}), "the root is a FrozenDict, not a dict"),
    ({"w": [1.0, [1.0]]}, r"\['w'\]\[1\] is a list, not an array\.$"),
]


@pytest.mark.parametrize(("updates", "message"), TREES)
def test_update_of_another_tree(updates, message):
    """Than the state's, or, with any decay, the parameters'."""
    params = {"w": [1.0, 1.0]}
    for dtype in (None, "uint8"):
        tx = adadelta_tx.scale_by_adadelta(accumulator_dtype=dtype)
        with pytest.raises(
            ValueError, match=f"tree does not match that of the s.*{message}"
        ):
            tx.update(updates, tx.init(params))
    for decay in (0.0, 0.1, optax.constant_schedule(0.1)):
        tx = adadelta_tx.adadelta(weight_decay=decay)
        with pytest.raises(
            ValueError, match=f"tree does not match that of the p.*{message}"
        ):
            tx.update(updates, tx.init(params), params)


def test_gradient_of_a_parameter_that_was_none():
    tx = adadelta_tx.scale_by_adadelta()
    with pytest.raises(ValueError, match=r"\['a'\] is an array, not None\.$"):
        tx.update({"a": 1.0, "b": 1.0}, tx.init({"a": None, "b": 1.0}))


@pytest.mark.parametrize("decay", [0.0, 0.1, optax.constant_schedule(0.1)])
@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1), (3, 2), (1, 2, 3)])
@pytest.mark.parametrize("what", ["gradient", "parameter"])
def test_nothing_broadcasts(decay, shape, what):
    params = {"w": jnp.ones((2, 3))}
    other = {"w": jnp.ones(shape)}
    tx = adadelta_tx.adadelta(weight_decay=decay)
    grads, params = (other, params) if what == "gradient" else (params, other)
    with pytest.raises(ValueError, match=r"gradient at \['w'\] has shape .* in the pa"):
        tx.update(grads, tx.init({"w": jnp.ones((2, 3))}), params)


@pytest.mark.parametrize("learning_rate", [1.0, jnp.float32(1), lambda count: 1.0])
def test_parameters_without_a_gradient_can_be_anything(learning_rate):
    """As in an Equinox module, whose functions are leaves."""
    tx = adadelta_tx.adadelta(learning_rate, weight_decay=0.1)
    state = tx.init({"w": jnp.ones(2), "f": None})
    updates, _ = tx.update(
        {"w": jnp.ones(2), "f": None}, state, {"w": jnp.ones(2), "f": jax.nn.relu}
    )
    assert updates["f"] is None


def test_gradients_that_are_none_at_all():
    """As of a loss that forgets to return them."""
    tx = adadelta_tx.adadelta()
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"gradients are None\. Write tx\.update"):
        tx.update(None, tx.init(params), params)


def test_complex_gradient_of_a_real_parameter():
    tx = adadelta_tx.adadelta()
    state = tx.init({"w": jnp.ones(2)})
    real, imaginary = {"w": jnp.ones(2)}, {"w": jnp.ones(2, complex)}
    for g, p in ((real, imaginary), (imaginary, real)):
        with pytest.raises(TypeError, match=r"at \['w'\] is .*: both must be real, or"):
            tx.update(g, state, p)


def test_weight_decay_needs_parameters():
    tx = adadelta_tx.adadelta(weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(1.0, tx.init(1.0))


def traces(arrays):
    """How often an equation is traced for a leaf with so many arrays of state."""
    return 2 + arrays if one_pass.has_option() else 1


def test_leaves_of_one_shape_are_traced_once(monkeypatch):
    calls = []
    arithmetic = recurrence.new_share
    monkeypatch.setattr(
        recurrence, "new_share", lambda *args: calls.append(1) or arithmetic(*args)
    )
    params = {f"w{i}": jnp.ones(2 + i % 2) for i in range(10)}
    for dtype, arrays in ((None, 2), ("uint8", 1)):
        tx = adadelta_tx.adadelta(accumulator_dtype=dtype)
        jax.jit(tx.update).lower(params, tx.init(params), params)
        assert len(calls) == 2 * traces(arrays)
        calls.clear()


@pytest.mark.parametrize("part", ["e_g", "e_x"])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            jnp.zeros((1, 3)),
            ValueError,
            r"has shape \(3,\), but its shape in .* is \(1, 3\)",
        ),
        (jnp.zeros(()), ValueError, r"has shape \(3,\), but its shape in .* is \(\)"),
        (
            jnp.zeros(3, "float16"),
            TypeError,
            r"is float16; .* x\.astype\(jnp\.float32\)",
        ),
        (jnp.zeros(3, "bfloat16"), TypeError, r"two dtypes: .*bfloat16"),
        (jnp.zeros(3, "int32"), TypeError, "is int32; it must be bfloat16 or f"),
        (jnp.zeros(3, "float8_e5m2"), TypeError, "is float8_e5m2; it must be"),
        (jnp.zeros(3, complex), TypeError, "is complex64. A complex state .* |g|²"),
        ([jnp.zeros(3)], ValueError, r"\['w'\] is an array, not a list"),
        (None, ValueError, r"\['w'\] is an array, not None"),
    ],
)
def test_state_that_does_not_fit(part, wrong, error, message):
    """One accumulator or the other."""
    tx = adadelta_tx.scale_by_adadelta()
    grads = {"w": jnp.ones(3)}
    state = tx.init(grads)._replace(**{part: {"w": wrong}})
    with pytest.raises(error, match=message):
        tx.update(grads, state)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_codes_that_are_none(dtype):
    tx = adadelta_tx.scale_by_adadelta(accumulator_dtype="uint8")
    state = tx.init({"w": jnp.ones(3)})
    wrong = state._replace(codes={"w": jnp.zeros(3, dtype)})
    with pytest.raises(TypeError, match=rf"\['w'\] is {dtype}; it must be uint16"):
        tx.update({"w": jnp.ones(3)}, wrong)
    for count in (jnp.zeros(2, jnp.int32), jnp.zeros(()), jnp.uint32(3)):
        with pytest.raises(TypeError, match=r"count must be an int32 scalar, got"):
            tx.update({"w": jnp.ones(3)}, state._replace(count=count))


def test_complex_state_of_optax():
    params = jnp.ones(2, complex)
    theirs = optax.adadelta(1.0)
    _, state = theirs.update(1j * params, theirs.init(params), params)
    with pytest.raises(TypeError, match=r"e_g is complex64.*averages of g²"):
        adadelta_tx.adadelta().update(params, state, params)


class Model(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return self.w * x


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize(
    "value", [Model(jnp.ones(3)), jax.tree_util.Partial(jnp.dot, jnp.ones(3))]
)
def test_a_model_is_no_learning_rate(name, value):
    with pytest.raises(
        TypeError, match=f"{name} must be a number or an optax schedule, got a"
    ):
        adadelta_tx.adadelta(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.float32([0.5]), TypeError, "must be a real number, got"),
        (jnp.ones(2), TypeError, "must be a real number, got"),
        ("0.1", TypeError, "must be a real number, got"),
        (-0.5, ValueError, r"must be finite and at least 0, got -0\.5"),
        (jnp.float32(-1), ValueError, r"must be finite and at least 0, got -1\.0"),
        (float("nan"), ValueError, "must be finite and at least 0, got nan"),
    ],
)
def test_what_a_schedule_gives_is_checked(name, value, error, message):
    tx = adadelta_tx.adadelta(**{name: lambda count: value})
    x = jnp.ones(2)
    with pytest.raises(error, match=f"{name}, as its schedule returns it.*{message}"):
        tx.update(x, tx.init(x), x)


def test_a_schedule_that_is_traced_is_used_as_it_is():
    tx = adadelta_tx.adadelta(lambda count: -1.0 - count)
    x = jnp.ones(2)
    updates, _ = jax.jit(tx.update)(x, tx.init(x), x)
    assert (updates > 0).all()


@pytest.mark.parametrize("mask", [{"w": True}, lambda params: True])
def test_mask_without_a_decay(mask):
    with pytest.raises(
        ValueError, match="weight_decay_mask is given, but weight_decay"
    ):
        adadelta_tx.adadelta(weight_decay_mask=mask)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"w": True, "b": True, "v": True}, ValueError, r"but \['v'\] is unknown"),
        ({"w": True}, ValueError, r"prefix of it, but \['b'\] is missing"),
        ({"w": True, "b": (True,)}, ValueError, r"but \['b'\] is a tuple, not an arr"),
        ({"w": 1, "b": True}, TypeError, r"\['w'\] must be True or False, got 1"),
        ({"w": "bool", "b": True}, TypeError, r"\['w'\] must be True or False, got 'b"),
        ({"w": None, "b": True}, TypeError, r"\['w'\] must be True or False, got None"),
        ({"w": jnp.ones(2, bool), "b": True}, TypeError, r"\['w'\] must be True or Fa"),
    ],
)
@pytest.mark.parametrize("function", [False, True])
def test_mask_that_does_not_fit(mask, error, message, function):
    params = {"w": jnp.ones(2), "b": jnp.ones(())}
    given = (lambda _: mask) if function else mask
    tx = adadelta_tx.adadelta(weight_decay=0.1, weight_decay_mask=given)
    with pytest.raises(error, match=f"weight_decay_mask.*{message}"):
        tx.init(params)
    state = adadelta_tx.adadelta(weight_decay=0.1, weight_decay_mask=True).init(params)
    with pytest.raises(error, match=f"weight_decay_mask.*{message}"):
        tx.update(params, state, params)


def test_mask_that_is_a_function_of_nothing():
    tx = adadelta_tx.adadelta(weight_decay=0.1, weight_decay_mask=lambda params: None)
    with pytest.raises(TypeError, match=r"weight_decay_mask.*True or False, got None"):
        tx.init({"w": jnp.ones(2)})


ACCUMULATORS = [None, "uint8", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("accumulator_dtype", ACCUMULATORS)
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
def test_strict_promotion(dtype, accumulator_dtype):
    """Alone, with decay, schedules and arrays, and injected."""
    schedule = optax.linear_schedule(1.0, 0.1, 10)
    inject = optax.inject_hyperparams(
        adadelta_tx.adadelta,
        static_args=("accumulator_dtype", "weight_decay_mask"),
        hyperparam_dtype=jnp.float32,
    )
    arrays = [jnp.float32(x) for x in (0.5, 0.99, 1e-6, 0.1)]
    makers = [
        adadelta_tx.adadelta,
        functools.partial(adadelta_tx.adadelta, 0.5, 0.99, weight_decay=0.1),
        functools.partial(adadelta_tx.adadelta, schedule, weight_decay=schedule),
        functools.partial(adadelta_tx.adadelta, *arrays, grad_eps=arrays[2]),
        functools.partial(inject, 0.5, 0.99, weight_decay=0.1, grad_eps=1e-9),
    ]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        grads = {"w": jax.ShapeDtypeStruct((3,), dtype)}
        wider = jnp.complex128 if dtype.startswith("complex") else jnp.float64
        others = {"w": jax.ShapeDtypeStruct((3,), wider)}
        for make in makers:
            tx = make(accumulator_dtype=accumulator_dtype)
            for params in (grads, others):
                state = jax.eval_shape(tx.init, grads)
                updates, new_state = jax.eval_shape(tx.update, grads, state, params)
                assert updates["w"].dtype == dtype
                chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
            jax.eval_shape(adadelta_tx.effective_learning_rate, state)


@pytest.mark.parametrize("accumulator_dtype", [None, "bfloat16", "uint8"])
def test_derivative_by_epsilon(accumulator_dtype):
    """By finite differences of float32's; the others round."""

    def total(eps, dtype=accumulator_dtype):
        tx = adadelta_tx.scale_by_adadelta(0.99, eps, accumulator_dtype=dtype)
        g = jnp.full(2000, 1e-2)
        state = tx.init(g)
        for _ in range(3):
            u, state = tx.update(g, state)
        return jnp.mean(u)

    exact = jax.jit(functools.partial(total, dtype=None))
    want = float(exact(1.05e-4) - exact(0.95e-4)) / 1e-5
    assert float(jax.jit(jax.grad(total))(1e-4)) == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize("rho", [0.0, 0.95, 0.99])
@pytest.mark.parametrize("accumulator_dtype", [None, "bfloat16", "uint8"])
def test_nothing_raises_where_nans_and_infinities_do(accumulator_dtype, rho):
    tx = adadelta_tx.adadelta(rho=rho, accumulator_dtype=accumulator_dtype)
    x = {"empty": jnp.ones((0, 3)), "w": jnp.array([0.0, 1e-30, 1.0, 3e38])}
    with jax.debug_nans(True), jax.debug_infs(True):
        state = tx.init(x)
        for update in (tx.update, jax.jit(tx.update)):
            for _ in range(2):
                _, state = update(x, state, x)
        adadelta_tx.effective_learning_rate(state)
        adadelta_tx.effective_learning_rate(state, percentiles=(5, 50))


@pytest.mark.parametrize("accumulator_dtype", [None, "bfloat16", "uint8"])
def test_export_with_symbolic_shapes(accumulator_dtype):
    tx = adadelta_tx.adadelta(rho=0.99, accumulator_dtype=accumulator_dtype)

    def step(x, state):
        rates = adadelta_tx.effective_learning_rate(state, percentiles=(5, 50))
        return tx.update(x, state, x), rates

    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, m"), jnp.float32)
    exported = jax.export.export(jax.jit(step))(shape, jax.eval_shape(tx.init, shape))
    x = jnp.arange(12.0).reshape(3, 4)
    got, rates = exported.call(x, tx.init(x))
    chex.assert_trees_all_close(got, jax.jit(tx.update)(x, tx.init(x), x), rtol=1e-6)
    np.testing.assert_allclose(rates, 1.0)


def test_a_hyperparameter_that_is_an_array_stays_a_leaf():
    """So another value compiles nothing anew, as in Optimistix."""

    def leaves(*arguments):
        tx = adadelta_tx.adadelta(*arguments)
        closed = closure_to_pytree(tx.update)
        return [x for x in jax.tree.leaves(closed) if isinstance(x, jax.Array)]

    for i in range(4):
        arguments = [0.5, 0.9, 1e-6, 0.1]
        arguments[i] = jnp.float32(arguments[i])
        assert any(x is arguments[i] for x in leaves(*arguments)), i


def test_eager_updates_compile_a_leaf_once(monkeypatch):
    """Compiled per shape, not operation by operation."""
    calls = []
    arithmetic = recurrence.new_share
    monkeypatch.setattr(
        recurrence, "new_share", lambda *args: calls.append(1) or arithmetic(*args)
    )
    params = {f"w{i}": jnp.ones((7, 11)) for i in range(5)}
    for dtype, arrays in ((None, 2), ("uint8", 1)):
        tx = adadelta_tx.scale_by_adadelta(0.93, accumulator_dtype=dtype)
        state = tx.init(params)
        for _ in range(3):
            _, state = tx.update(params, state)
        assert len(calls) == traces(arrays)
        calls.clear()
    for value in (0.91, 0.92):  # a traced one as well, whatever its value
        tx = adadelta_tx.scale_by_adadelta(jnp.float32(value))
        tx.update(params, tx.init(params))
    assert len(calls) == traces(2)


def test_extra_arguments_are_ignored():
    for make in MAKERS:
        tx = make()
        assert isinstance(tx, optax.GradientTransformationExtraArgs)
        tx.update(1.0, tx.init(1.0), 1.0, value=3.0)


def test_arguments_that_changed_places():
    for arguments in [(1.0, 1e-6, 0.95), (1.0, 1e-8, 0.9)]:
        with pytest.warns(
            UserWarning, match=r"order\? It is learning_rate, rho, eps\. "
        ) as caught:
            adadelta_tx.adadelta(*arguments)
        assert caught[0].filename == __file__
    adadelta_tx.adadelta(eps=1.0)
    for arguments in [(), (0.0,), (1.0, 0.0), (1.0, 0.9, 0.1), (None,)]:
        adadelta_tx.adadelta(*arguments)  # a warning is an error
    jax.jit(lambda rho: adadelta_tx.adadelta(0.1, rho).init(rho))(0.001)


def test_a_learning_rate_of_another_optimizer():
    """Written down, not of a sweep or a schedule."""
    for rate in (0.001, 0.01):
        with pytest.warns(UserWarning, match=f"learning_rate={rate} makes") as caught:
            adadelta_tx.adadelta(rate)
        assert caught[0].filename == __file__
    sweep = [*np.logspace(-4, 0, 3), *map(jnp.float32, (1e-4, 1e-3)), np.float32(1e-3)]
    for rate in [*sweep, optax.constant_schedule(1e-3), 0.0, 0.011, 0, 1]:
        adadelta_tx.adadelta(rate)  # a warning is an error
    optax.inject_hyperparams(adadelta_tx.adadelta)(1e-3).init(jnp.ones(2))


class Flags(eqx.Module):
    """Booleans in a module that can be called, as an Equinox network can."""

    w: bool
    b: bool

    def __call__(self, x):
        raise AssertionError("a mask is no network")


def test_a_mask_that_is_a_callable_tree():
    """Optax calls a mask only if all its leaves are callable."""
    params, mask = Flags(jnp.ones(2), jnp.ones(())), Flags(True, False)
    ours = adadelta_tx.adadelta(weight_decay=0.1, weight_decay_mask=mask)
    theirs = optax.adadelta(1.0, 0.95, weight_decay=0.1, weight_decay_mask=mask)
    (got, _), (want, _) = (
        tx.update(params, tx.init(params), params) for tx in (ours, theirs)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-6)


def test_a_list_as_state():
    tx = adadelta_tx.adadelta()
    with pytest.raises(TypeError, match=r"must be a state, .* got list\. Write tx\.u"):
        tx.update(1.0, list(tx.init(1.0)), 1.0)


@pytest.mark.parametrize("dtype", ["float4_e2m1fn", "float8_e3m4"])
def test_dtypes_without_small_numbers(dtype):
    """In which no first step is anything but 0."""
    leaf = {"w": jnp.ones(2, dtype)}
    with pytest.raises(TypeError, match=f"The parameter at .*'w'.* {dtype}"):
        adadelta_tx.adadelta().init(leaf)
    state = adadelta_tx.scale_by_adadelta().init({"w": jnp.ones(2)})
    with pytest.raises(TypeError, match=f"The gradient at .*'w'.* {dtype}"):
        adadelta_tx.scale_by_adadelta().update(leaf, state)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_8_bit_parameters_move(dtype):
    params = jnp.ones(2, dtype)
    tx = adadelta_tx.adadelta(jnp.float32(1.0), weight_decay=0.1)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates.dtype == dtype
    assert (updates.astype(jnp.float32) < -0.003).all()


def test_a_count_from_json():
    tx = adadelta_tx.scale_by_adadelta(accumulator_dtype="uint8")
    for x64 in (False, True):
        with jax.enable_x64(x64):
            state = tx.init(jnp.ones(2))._replace(count=3)
            _, state = tx.update(jnp.ones(2), state)
            assert (state.count, state.count.dtype) == (4, jnp.int32)


def test_a_mask_function_with_a_gradient_that_is_none():
    def mask(params):
        return jax.tree.map(lambda x: x.ndim > 0, params)

    tx = adadelta_tx.adadelta(weight_decay=0.1, weight_decay_mask=mask)
    params = {"w": jnp.ones(2), "b": jnp.ones(())}
    updates, _ = tx.update({"w": jnp.ones(2), "b": None}, tx.init(params), params)
    assert updates["b"] is None
    partial = jax.tree_util.Partial(mask)  # a tree without leaves that is a function
    adadelta_tx.adadelta(weight_decay=0.1, weight_decay_mask=partial).init(params)


class Node:
    """A node of a tree that counts how often it is walked."""

    def __init__(self, leaf, walks):
        self.leaf, self.walks = leaf, walks

    def flatten(self):
        self.walks.append(1)
        return [(jax.tree_util.GetAttrKey("leaf"), self.leaf)], self.walks


jax.tree_util.register_pytree_with_keys(
    Node,
    lambda node: node.flatten(),
    lambda walks, leaves: Node(leaves[0], walks),
    lambda node: ([leaf for _, leaf in node.flatten()[0]], node.walks),
)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("accumulator_dtype", [None, "uint8"])
def test_checks_walk_each_tree_once(make, accumulator_dtype, monkeypatch):
    calls, check = [], trees.check

    def counted(*arguments):
        before = len(walks)
        check(*arguments)
        calls.append(len(walks) - before)

    monkeypatch.setattr(trees, "check", counted)
    walks: list[int] = []
    params = Node(jnp.ones(2), walks)
    tx = make(accumulator_dtype=accumulator_dtype)
    state = tx.init(params)
    walks.clear()
    tx.update(params, state, params)
    accumulators = 1 if accumulator_dtype else 2
    assert calls == [2 + accumulators]  # the gradients, the parameters, the state
    # What follows walks all of them once more, and the learning rate its updates.
    assert len(walks) == 2 * calls[0] + (make is adadelta_tx.adadelta)


def test_state_of_another_optimizer():
    params = {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"got tuple of ScaleByAdamState, EmptyState"):
        adadelta_tx.adadelta().update(params, optax.adam(1.0).init(params), params)


@pytest.mark.parametrize("argument", ["learning_rate", "weight_decay"])
def test_a_schedule_and_a_number_have_different_states(argument):
    params = {"w": jnp.ones(2)}
    tx = adadelta_tx.adadelta(**{argument: optax.constant_schedule(0.1)})
    state = adadelta_tx.adadelta(**{argument: 0.1}).init(params)
    with pytest.raises(TypeError, match=f"{argument} is a schedule.*no count"):
        tx.update(params, state, params)
    with pytest.raises(TypeError, match=f"{argument} is a number.*constant_schedule"):
        adadelta_tx.adadelta(**{argument: 0.1}).update(params, tx.init(params), params)
    adam = optax.adamw(1.0).init(params)
    with pytest.raises(TypeError, match=r"must be an optax\.ScaleByAdaDeltaState"):
        tx.update(params, adam, params)


def test_a_mask_that_masks_everything():
    mask = functools.partial(jax.tree.map, lambda x: x.ndim > 1)
    arguments = {"weight_decay": 0.1, "weight_decay_mask": mask}
    tx = optax.inject_hyperparams(adadelta_tx.adadelta)(1.0, **arguments)
    with pytest.raises(ValueError, match=r"mask is False.*static_args"):
        tx.init({"w": jnp.ones((2, 2))})


def test_a_schedule_that_is_a_tuple():
    class Half(NamedTuple):
        rate: float

        def __call__(self, count):
            return self.rate

    params = {"w": jnp.ones(2)}
    tx = adadelta_tx.adadelta(Half(0.5))
    tx.update(params, tx.init(params), params)


def test_a_mask_function_of_a_leaf():
    tx = adadelta_tx.adadelta(weight_decay=0.1, weight_decay_mask=lambda x: x.ndim > 1)
    with pytest.raises(TypeError, match=r"gets all the parameters: lambda params"):
        tx.init({"w": jnp.ones(2)})
    tx = adadelta_tx.adadelta(weight_decay=0.1, weight_decay_mask=lambda x: x["v"])
    with pytest.raises(KeyError, match="v"):
        tx.init({"w": jnp.ones(2)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": optax.constant_schedule(0.9)}, "takes no schedule.*inject_hyperpa"),
        ({"eps": optax.constant_schedule(0.9)}, "takes no schedule.*inject_hyperpa"),
        ({"grad_eps": optax.constant_schedule(0.9)}, "takes no schedule.*inject_hyper"),
        ({"learning_rate": [jnp.ones(2), jnp.ones(3)]}, "Pass parameters to init and"),
        ({"learning_rate": (jnp.ones(2), 1.0)}, "Pass parameters to init and update"),
        ({"rho": [jnp.ones(2), jnp.ones(3)]}, "rho must be a real number, got"),
    ],
)
def test_what_is_no_number(arguments, message):
    with pytest.raises(TypeError, match=message):
        adadelta_tx.adadelta(**arguments)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epsilon", "Write eps."),
        ("momentum", "Adadelta has none."),
        ("params", "Pass them to init and update: state = tx.init(params)."),
        (
            "train_vars",
            "Variables are for the object: adadelta_tx.Adadelta(train_vars)",
        ),
    ],
)
def test_arguments_as_other_libraries_call_them(make, argument, message):
    message = re.escape(f"() has no argument {argument!r}. {message}")
    with pytest.raises(TypeError, match=message):
        make(**{argument: 1.0})
    assert argument not in inspect.signature(make).parameters


def test_learning_rate_as_other_libraries_call_it():
    with pytest.raises(TypeError, match=r"'lr'\. Write learning_rate\."):
        adadelta_tx.adadelta(lr=1.0)
    with pytest.raises(TypeError, match=r"'lr'\. .*adadelta has a learning_rate\."):
        adadelta_tx.scale_by_adadelta(lr=1.0)
    with pytest.raises(TypeError, match=r"'params'\. Write train_vars\."):
        adadelta_tx.Adadelta(params={})


FOREIGN = [
    (callee, name)
    for callee in (*MAKERS, adadelta_tx.Adadelta)
    for name in sorted({*hints._INSTEAD, *sum(hints._SYNONYMS, ())})
    if name not in inspect.signature(callee).parameters
]


@pytest.mark.parametrize(("callee", "name"), FOREIGN)
def test_hints_name_what_there_is(callee, name):
    known = inspect.signature(callee).parameters
    with pytest.raises(TypeError, match=f"has no argument '{name}'. .") as error:
        callee(**{name: 1.0})
    if found := re.search(r"' *\. Write (\w+)\.$", str(error.value)):
        assert found[1] in known or hasattr(callee, found[1])


@pytest.mark.parametrize("state", [None, {"w": 1.0}, (), optax.EmptyState()])
def test_another_state(state):
    with pytest.raises(
        TypeError, match=r"must be a state, .* got [\w, ]+\. Write tx\.u"
    ):
        adadelta_tx.adadelta().update({"w": 1.0}, state, {"w": 1.0})


def loss(params):
    return jnp.sum(params["w"] ** 2)


def from_value_and_grad(tx):
    params = {"w": jnp.ones(2)}
    tx.update(jax.value_and_grad(loss)(params), tx.init(params), params)


def from_flax(tx):
    params = flax.core.freeze({"w": jnp.ones(2)})
    tx.update({"w": jnp.ones(2)}, tx.init(params), params)


def from_nnx(tx):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones(2))))(model)
    tx.update(grads, tx.init(nnx.state(model, nnx.Param)), model)


def averages_not_of_nnx(tx):
    """A dict, as another library's checkpoint has it."""
    params = nnx.state(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), nnx.Param)
    averages = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
    decay, _, rate = tx.init(params)
    state = decay, optax.ScaleByAdaDeltaState(averages, averages), rate
    tx.update(params, state, params)


def test_averages_of_nnx_are_copied_as_the_error_says():
    params = nnx.state(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), nnx.Param)
    averages = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
    tx = adadelta_tx.adadelta(rho=0.5)
    state = tx.init(params)
    nnx.replace_by_pure_dict(state[1].e_g, averages)
    grads = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(grads, state, params)
    for x in jax.tree.leaves(state[1].e_g):
        np.testing.assert_array_equal(x, 0.5)


def from_equinox(tx):
    tx.init(eqx.nn.MLP(1, 1, 2, 1, key=jax.random.key(0)))


def parameters_first(_):
    adadelta_tx.adadelta({"w": jnp.ones(200)})


def test_parameters_that_are_a_tuple():
    tx, params = adadelta_tx.adadelta(), (jnp.ones(2), {"a": jnp.ones(2)})
    with pytest.raises(
        ValueError, match=r"\['a'\] is missing, and .*\['b'\] is unknown\.$"
    ):
        tx.update((jnp.ones(2), {"b": jnp.ones(2)}), tx.init(params), params)


def integers(tx):
    tx.init({"w": jnp.arange(3)})


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (from_value_and_grad, "a tuple, not a dict. Write loss, gradients = jax.val"),
        (from_flax, "a dict, not a FrozenDict. flax.core.unfreeze makes a dict"),
        (from_nnx, "With flax.nnx, pass nnx.state(model, nnx.Param) as the param"),
        (
            averages_not_of_nnx,
            "e_g: the root is a State, not a dict. With flax.nnx, gradients "
            "and averages are an nnx.State. To copy averages from a dict, write "
            "nnx.replace_by_pure_dict(",
        ),
        (from_equinox, "For an Equinox model, pass eqx.filter(model, eqx.is_inexact_"),
        (
            parameters_first,
            "got a dict. Pass parameters to init and update",
        ),
        (integers, "dtype int32; Adadelta needs floating-point or complex numbers. K"),
    ],
)
def test_what_to_write_instead(use, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        use(adadelta_tx.adadelta())
