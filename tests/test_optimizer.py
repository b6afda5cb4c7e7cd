"""The Adadelta object with adadelta_tx's own variables: interface and behaviour."""

import gc
import inspect

import chex
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adadelta_tx
from adadelta_tx import Adadelta, TrainVar, Variable
from tests import textbook

GRADS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _fresh_names():
    adadelta_tx.clear_name_cache()


def variables():
    return {"w": TrainVar(jnp.array([1.0, -2.0, 3.0])), "b": TrainVar(jnp.array(0.5))}


def grads(i):
    return {"w": GRADS[i], "b": jnp.asarray(GRADS[i, 0])}


def snapshot(opt):
    return {
        name: np.asarray(v.value) for name, v in (opt.vars() | opt.train_vars()).items()
    }


def expected(key, lr=1.0, weight_decay=0.0, steps=6, **hyperparameters):
    x = np.float64({"w": [1.0, -2.0, 3.0], "b": 0.5}[key])
    gradients = [np.asarray(grads(i)[key]) for i in range(steps)]
    hyperparameters = {"rho": 0.95, "eps": 1e-6, **hyperparameters}
    for i, (u, _, _) in enumerate(textbook.adadelta(gradients, **hyperparameters)):
        x = (1 - weight_decay) * x - (lr(i) if callable(lr) else lr) * u
    return x


def test_arguments():
    parameters = inspect.signature(Adadelta).parameters
    assert [(p.name, p.default) for p in parameters.values()] == [
        ("train_vars", None),
        ("lr", 1.0),
        ("epsilon", 1e-6),
        ("rho", 0.95),
        ("name", None),
        ("weight_decay", None),
        ("accumulator_dtype", None),
    ]
    kinds = [p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values()]
    assert kinds == [False] * 5 + [True] * 2


@pytest.mark.parametrize("weight_decay", [None, 0.0, 0.1, 1.0])
def test_updates(weight_decay):
    train_vars = variables()
    opt = Adadelta(train_vars, 0.5, 1e-4, 0.9, weight_decay=weight_decay)
    for i in range(6):
        opt.update(grads(i))
    for key, variable in train_vars.items():
        want = expected(key, 0.5, weight_decay or 0.0, rho=0.9, eps=1e-4)
        np.testing.assert_allclose(variable.value, want, rtol=1e-5)
    for key in train_vars:
        *_, (_, s, d) = textbook.adadelta([grads(i)[key] for i in range(6)], 0.9, 1e-4)
        np.testing.assert_allclose(opt.vars()[f"Adadelta0.{key}_cache"].value, s, 1e-5)
        np.testing.assert_allclose(opt.vars()[f"Adadelta0.{key}_delta"].value, d, 1e-5)


def test_hyperparameters_can_be_set():
    opt = Adadelta(variables(), epsilon=1e-2, rho=0.5, weight_decay=0.5)
    opt.epsilon, opt.rho, opt.weight_decay = 1e-4, 0.9, 0.1
    for i in range(6):
        opt.update(grads(i))
    want = expected("w", weight_decay=0.1, rho=0.9, eps=1e-4)
    np.testing.assert_allclose(opt.vars_to_train["w"].value, want, rtol=1e-5)
    opt.rho = 1.5
    before = snapshot(opt)
    with pytest.raises(ValueError, match="rho must be in"):
        opt.update(grads(0))
    chex.assert_trees_all_equal(snapshot(opt), before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64"])
def test_dtypes(dtype):
    w = TrainVar(jnp.ones(3, dtype))
    opt = Adadelta({"w": w}, accumulator_dtype="float32")
    opt.update({"w": jnp.ones(3, dtype)})
    assert w.dtype == dtype
    assert opt.implicit_vars["w_cache"].dtype == jnp.float32
    assert np.all(np.asarray(w.value) != 1)
    assert (
        Adadelta({"w": w}, accumulator_dtype="bfloat16").implicit_vars["w_delta"].dtype
        == jnp.bfloat16
    )


@pytest.mark.parametrize("lr", [0.01, 1, np.float32(1), jnp.ones(()), lambda i: 1.0])
def test_learning_rate_as_first_argument(lr):
    """BrainPy 2.8 has the two in the other order."""
    with pytest.raises(TypeError, match=r"The learning rate comes second here"):
        Adadelta(lr)
    with pytest.raises(TypeError, match=r"The variables come first here"):
        Adadelta(lr, {"w": TrainVar(1.0)})


@pytest.mark.parametrize("bad", [[1], "w", (TrainVar(1.0),), TrainVar(1.0)])
def test_train_vars_is_not_a_dict(bad):
    with pytest.raises(TypeError, match="train_vars must be a dict of variables"):
        Adadelta(bad)


@pytest.mark.parametrize("bad", [jnp.ones(3), 1.0, None])
def test_train_vars_are_not_variables(bad):
    with pytest.raises(
        TypeError, match=r"train_vars\['w'\] must be a variable of Brain"
    ):
        Adadelta({"w": bad})


def test_integer_variable():
    opt = Adadelta()
    with pytest.raises(TypeError, match=r"\['i'\] has dtype int32"):
        opt.register_train_vars({"w": TrainVar(1.0), "i": TrainVar(1)})
    assert not opt.vars_to_train
    assert not opt.implicit_vars


def test_hyperparameters_out_of_range():
    for arguments, message in [
        ({"rho": 1.0}, "rho must be in"),
        ({"epsilon": 0.0}, "^epsilon must be above 0"),
        ({"lr": -1.0}, "lr must be finite and at least 0"),
        ({"weight_decay": 1.5}, r"weight_decay must be in \[0, 1\]"),
        ({"weight_decay": -0.5}, r"weight_decay must be in \[0, 1\]"),
        ({"accumulator_dtype": "int8"}, "accumulator_dtype must be"),
        ({"name": "no name"}, "valid identifier"),
    ]:
        with pytest.raises(ValueError, match=message):
            Adadelta(variables(), **arguments)


def test_register_in_steps():
    train_vars = variables()
    opt = Adadelta()
    assert opt.vars_to_train == {}
    opt.update({})
    opt.register_train_vars({"w": train_vars["w"]})
    opt.update({"w": GRADS[0]})
    cache = opt.implicit_vars["w_cache"]
    opt.register_vars(train_vars)  # adds b, keeps w's accumulators
    assert opt.implicit_vars["w_cache"] is cache
    assert list(opt.vars_to_train) == ["w", "b"]
    opt.register_train_vars()
    opt.update(grads(1))
    np.testing.assert_allclose(train_vars["w"].value, expected("w", steps=2), rtol=1e-5)


def test_register_conflicts():
    train_vars = variables()
    opt = Adadelta(train_vars)
    with pytest.raises(ValueError, match="'w' stands for another object already"):
        opt.register_train_vars({"n": TrainVar(1.0), "w": TrainVar(1.0)})
    with pytest.raises(ValueError, match=r"\['again'\] are second names of variables"):
        opt.register_train_vars({"n": TrainVar(1.0), "again": train_vars["w"]})
    assert list(opt.vars_to_train) == ["w", "b"]
    assert len(opt.implicit_vars) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": None}, r"missing \['w'\], unknown \[\]"),
        ({"v": np.ones(3)}, r"missing \[\], unknown \['v'\]"),
        ({"w": np.ones(2)}, r"'w' has shape \(2,\), not \(3,\)"),
        ({"b": np.ones(1)}, r"'b' has shape \(1,\), not \(\)"),
    ],
)
def test_wrong_gradients_change_nothing(changes, message):
    opt = Adadelta(variables())
    opt.update(grads(0))
    before = snapshot(opt)
    wrong = {k: v for k, v in {**grads(1), **changes}.items() if v is not None}
    for method in (opt.check_grads, opt.update):
        with pytest.raises(ValueError, match=message):
            method(wrong)
    with pytest.raises(TypeError, match="grads must be a dict"):
        opt.update([1.0])
    chex.assert_trees_all_equal(snapshot(opt), before)
    opt.check_grads(grads(0))


def test_gradient_that_is_no_number_changes_nothing():
    opt = Adadelta(variables())
    before = snapshot(opt)
    with pytest.raises(TypeError, match=r"gradient at \['w'\] has dtype int32"):
        opt.update({"b": 1.0, "w": np.ones(3, np.int32)})
    chex.assert_trees_all_equal(snapshot(opt), before)


def test_names():
    first, second = Adadelta(), Adadelta()
    assert (first.name, second.name) == ("Adadelta0", "Adadelta1")
    assert first.unique_name() == "Adadelta2"
    assert first.unique_name(type_="Other") == "Other0"
    assert first.unique_name("mine") == "mine"
    assert first.unique_name("Adadelta0") == "Adadelta0"
    third = Adadelta(name="Adadelta3")
    assert Adadelta().name == "Adadelta4"
    first.name = "mine"
    assert first.name == "mine"
    for taken in ("mine", "Adadelta3"):
        with pytest.raises(ValueError, match=rf"{taken}.* in use by.*clear_name_cache"):
            second.name = taken
    with pytest.raises(ValueError, match=r"in use by .*name='Adadelta3'"):
        Adadelta(name="Adadelta3")
    for bad in ("1st", "a b", "", 3):
        with pytest.raises(ValueError, match="valid identifier"):
            second.name = bad
    assert (second.name, third.name) == ("Adadelta1", "Adadelta3")


def test_old_name_is_free_after_a_change():
    opt = Adadelta(name="old")
    opt.name = "new"
    assert Adadelta(name="old").name == "old"


def test_names_of_dead_objects_are_free():
    opt = Adadelta(variables(), name="mine")
    opt.update(grads(0))
    del opt
    gc.collect()
    assert Adadelta(name="mine").name == "mine"


def test_clear_name_cache():
    opt = Adadelta(name="mine")
    adadelta_tx.clear_name_cache()
    assert Adadelta(name="mine").name == opt.name
    assert Adadelta().name == "Adadelta0"


def test_nodes():
    opt = Adadelta(variables(), name="opt")
    assert opt.nodes() == {"opt": opt, "Constant0": opt.lr}
    assert opt.nodes("relative") == {"": opt, "lr": opt.lr}
    assert opt.nodes(level=0) == {"opt": opt}
    assert opt.nodes(include_self=False) == {"Constant0": opt.lr}
    with pytest.raises(ValueError, match="absolute or relative, got 'both'"):
        opt.nodes("both")


def test_vars():
    train_vars = variables()
    opt = Adadelta(train_vars, name="opt")
    own = ["w_cache", "b_cache", "w_delta", "b_delta"]
    counters = ["last_epoch", "last_call"]
    assert list(opt.vars()) == [
        *(f"opt.{key}" for key in own),
        *(f"Constant0.{key}" for key in counters),
    ]
    assert list(opt.vars("relative")) == [*own, *(f"lr.{key}" for key in counters)]
    assert list(opt.vars(level=0)) == [f"opt.{key}" for key in own]
    assert opt.train_vars() == opt.vars_to_train == train_vars
    assert opt.vars().subset(TrainVar) == {}
    assert opt.vars().subset(Variable) == opt.vars()
    assert opt.vars()["opt.w_cache"] is opt.implicit_vars["w_cache"]
    values = opt.vars("relative", level=0).dict()
    chex.assert_trees_all_equal(values["w_cache"], jnp.zeros(3))
    train_vars["again"] = train_vars["w"]
    collected = type(opt.vars())(train_vars)
    assert list(collected.unique()) == ["w", "b"]


def test_repr():
    opt = Adadelta(variables(), 0.5, name="opt")
    assert repr(opt) == (
        "Adadelta(lr=Constant(lr=0.5), epsilon=1e-06, rho=0.95, name='opt')"
    )
    assert "Schedule(lr=<function" in repr(Adadelta(lr=optax.linear_schedule(1, 0, 5)))


def test_effective_learning_rate():
    opt = Adadelta(variables(), epsilon=1e-3)
    for i in range(3):
        opt.update(grads(i))
    rates = opt.effective_learning_rate()
    *_, (_, s, d) = textbook.adadelta(GRADS[:3], 0.95, 1e-3)
    np.testing.assert_allclose(rates["w"], np.sqrt((d + 1e-3) / (s + 1e-3)), rtol=1e-5)
    assert rates.keys() == {"w", "b"}
    percentiles = opt.effective_learning_rate((5, 50, 95))
    expected = np.percentile(rates["w"], (5, 50, 95))
    np.testing.assert_allclose(percentiles["w"], expected, rtol=1e-6)


def test_lr_is_set_without_a_compilation():
    opt = Adadelta(variables(), lr=0.0)
    opt.update(grads(0))
    opt.lr.set_value(0.5)
    opt.update(grads(0))
    start = np.asarray(opt.vars_to_train["w"].value)
    compilations = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for i in range(1000):
            if i % 2:
                opt.lr.set_value(1.0 / (i + 1))
            else:
                opt.lr.lr = np.float32(i / 1000)
            assert opt.lr() == pytest.approx(1.0 / (i + 1) if i % 2 else i / 1000)
            opt.update(grads(i % 6))
        assert compilations == []
        jax.jit(lambda x: x + 12345)(1.0)
        assert compilations  # the listener does hear of compilations
    finally:
        jax.monitoring.clear_event_listeners()
    assert np.all(opt.vars_to_train["w"].value != start)
    assert opt.lr.last_call.value == 1001


def test_lr_of_zero_moves_nothing():
    opt = Adadelta(variables(), lr=0)
    opt.update(grads(0))
    np.testing.assert_array_equal(opt.vars_to_train["w"].value, [1.0, -2.0, 3.0])
    assert np.all(opt.implicit_vars["w_cache"].value > 0)


@pytest.mark.parametrize("value", [-1.0, float("nan"), "fast", None])
def test_lr_is_set_wrongly(value):
    opt = Adadelta(variables(), lr=0.5)
    with pytest.raises((ValueError, TypeError), match="lr must be"):
        opt.lr.set_value(value)
    with pytest.raises((ValueError, TypeError), match="lr must be"):
        opt.lr.lr = value
    assert opt.lr() == 0.5
    with pytest.raises((ValueError, TypeError), match="lr must be"):
        Adadelta(lr=value)


def test_optax_schedule():
    schedule = optax.exponential_decay(2.0, 1, 0.5)
    opt = Adadelta(variables(), lr=schedule)
    for i in range(6):
        assert opt.lr() == schedule(i)
        opt.update(grads(i))
    assert opt.lr(1) == 1.0
    want = expected("w", lr=lambda i: 2.0 * 0.5**i)
    np.testing.assert_allclose(opt.vars_to_train["w"].value, want, rtol=1e-5)
    opt.lr.set_value(0.25)
    assert opt.lr() == 0.25
    opt.lr.step_epoch()
    assert opt.lr.last_epoch.value == 0


def test_lr_as_a_variable():
    rate = Variable(0.5)
    opt = Adadelta(variables(), lr=rate)
    opt.update(grads(0))
    rate.value = jnp.asarray(0.0)
    opt.update(grads(1))
    np.testing.assert_allclose(
        opt.vars_to_train["w"].value, expected("w", 0.5, steps=1), rtol=1e-5
    )
    assert opt.vars()["Constant0.lr"] is rate


def test_arrays_that_a_caller_holds_stay_valid():
    opt = Adadelta(variables())
    held = [v.value for v in (opt.vars() | opt.train_vars()).values()]
    gradients = {key: jnp.asarray(g) for key, g in grads(0).items()}
    opt.update(gradients)
    opt.update(gradients)
    for x in [*held, *gradients.values()]:
        assert not x.is_deleted()
        assert np.isfinite(np.asarray(x)).all()


@pytest.mark.parametrize("transformation", [jax.jit, jax.vmap, jax.grad])
def test_inside_plain_transformations(transformation):
    opt = Adadelta({"w": TrainVar(1.0)})
    before = snapshot(opt)

    def step(g):
        opt.update({"w": jnp.asarray(1.0) if transformation is jax.jit else g})
        return opt.vars_to_train["w"].value

    example = jnp.ones(2) if transformation is jax.vmap else jnp.ones(())
    with pytest.raises(
        RuntimeError, match=r"Use the .* adadelta_tx\.adadelta\(\) there"
    ):
        transformation(step)(example)
    chex.assert_trees_all_equal(snapshot(opt), before)
    opt.update({"w": 1.0})


def test_variable():
    v = Variable([1.0, 2.0])
    v.value = np.float32([3.0, 4.0])
    assert isinstance(v.value, jax.Array)
    with pytest.raises(ValueError, match=r"Variable of shape \(2,\) and dtype float32"):
        v.value = jnp.ones(3)
    with pytest.raises(ValueError, match="and dtype int32"):
        v.value = jnp.ones(2, jnp.int32)
    np.testing.assert_array_equal(v.value, [3.0, 4.0])
    assert repr(TrainVar(1)) == "TrainVar(1, dtype=int32, weak_type=True)"


def test_names_that_are_written_alike():
    opt = Adadelta()
    with pytest.raises(ValueError, match="written alike"):
        opt.register_train_vars({1: TrainVar(1.0), "1": TrainVar(2.0)})
    with pytest.raises(ValueError, match="written alike"):
        opt.register_train_vars({"w": TrainVar(1.0), ".w": TrainVar(2.0)})
    assert not opt.implicit_vars
    mixed = {("a", 0, "w"): TrainVar(1.0), ("a", "x"): TrainVar(2.0)}
    opt.register_train_vars(mixed)
    opt.update(dict.fromkeys(mixed, 1.0))


def test_traced_hyperparameters():
    """As they are used inside a function that builds its own optimizer."""

    def step(rho, epsilon, weight_decay):
        opt = Adadelta(variables(), 1.0, epsilon, rho, weight_decay=weight_decay)
        with pytest.raises(RuntimeError, match="does not track"):
            opt.update(grads(0))
        return rho

    assert jax.jit(step)(0.9, 1e-4, 0.1) == np.float32(0.9)


def test_numbers_of_the_learning_rate_do_not_leak():
    opt = Adadelta(variables())

    def count(method):
        method()
        return 0

    for method in (opt.lr.step_call, opt.lr.step_epoch):
        with pytest.raises(RuntimeError, match="does not track it"):
            jax.jit(lambda method=method: count(method))()
    with pytest.raises(RuntimeError, match="does not track it"):
        jax.jit(opt.lr.set_value)(0.5)
    assert opt.lr() == 1.0
    assert opt.lr.last_call.value == opt.lr.last_epoch.value == -1


@pytest.mark.parametrize("lr", [Variable(np.ones(1)), Variable(1), Variable(True)])
def test_lr_variable_is_no_scalar(lr):
    with pytest.raises(ValueError, match="lr must hold a floating-point scalar"):
        Adadelta(variables(), lr=lr)


def test_schedule_that_gives_no_scalar_changes_nothing():
    opt = Adadelta(variables(), lr=lambda count: jnp.full(1, 0.5))
    before = snapshot(opt)
    with pytest.raises(ValueError, match=r"must give a scalar, got .* shape \(1,\)"):
        opt.update(grads(0))
    chex.assert_trees_all_equal(snapshot(opt), before)


def test_collections_add_up():
    one, two = Adadelta(variables()), Adadelta(variables())
    assert len(one.vars() + two.vars()) == len(one.vars()) + len(two.vars())
    with pytest.raises(ValueError, match="stands for another object"):
        one.vars("relative") + two.vars("relative")
