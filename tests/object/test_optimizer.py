"""The Adadelta object with adadelta_tx's own variables: interface and behaviour."""

import contextlib
import copy
import gc
import inspect
import json
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import brainpy as bp
import brainpy.math as bm
import brainstate
import braintools
import chex
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adadelta_tx
from adadelta_tx import Adadelta, TrainVar, Variable
from adadelta_tx._object import schedules
from tests import textbook

GRADS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _fresh_names():
    adadelta_tx.clear_name_cache()


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
}


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
        ("grad_epsilon", None),
        ("accumulator_dtype", None),
    ]
    kinds = [p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values()]
    assert kinds == [False] * 5 + [True] * 3


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
    opt.weight_decay = None
    assert (opt.rho, opt.epsilon, opt.weight_decay) == (0.9, 1e-4, 0.0)


def test_hyperparameters_do_not_leak():
    """An optimizer from outside a transformation takes no traced number."""
    opt = Adadelta(variables())
    before = repr(opt)
    for key in ("rho", "epsilon", "weight_decay", "grad_epsilon", "lr"):
        with pytest.raises(RuntimeError, match="inside a JAX transformation"):
            jax.jit(lambda x, key=key: setattr(opt, key, x))(0.5)
    assert repr(opt) == before


def test_accumulator_dtype_stays():
    opt = Adadelta({"w": TrainVar(1.0)}, accumulator_dtype="float32")
    for dtype in ("uint8", "float32"):
        with pytest.raises(AttributeError, match=f"float32.*{dtype}, make a new optim"):
            opt.accumulator_dtype = dtype
    assert opt.accumulator_dtype == jnp.float32
    with pytest.raises(ValueError, match="accumulator_dtype must be None or one of"):
        Adadelta(variables(), accumulator_dtype="int8")
    opt.register_train_vars({"b": TrainVar(2.0)})
    opt.update({"w": 1.0, "b": 1.0})
    assert [*opt.implicit_vars] == ["w_cache", "w_delta", "b_cache", "b_delta"]


def test_subclass_with_an_attribute_of_its_own():
    class Mine(Adadelta):
        eps = learning_rate = None

    opt = Mine({"w": TrainVar(1.0)})
    opt.eps = opt.learning_rate = opt.whatever = 3.0
    assert (opt.eps, opt.learning_rate, opt.epsilon) == (3.0, 3.0, 1e-6)
    assert copy.copy(opt).whatever == 3.0


WRONG = {
    "rho": (1.0, 1.5, -0.1, "0.9", None, float("nan")),
    "epsilon": (0.0, -1.0, None, float("inf")),
    "grad_epsilon": (-1.0, "no"),
    "weight_decay": (1.5, -0.1, "no"),
    "lr": (-1.0, float("nan"), "fast", None, {}),
}
SETTERS = {
    "by its name": setattr,
    "lr.lr": lambda opt, _, value: setattr(opt.lr, "lr", value),
    "lr.set_value": lambda opt, _, value: opt.lr.set_value(value),
    "from the start": lambda _, key, value: Adadelta(variables(), **{key: value}),
}


@pytest.mark.parametrize(
    ("key", "way"),
    [(key, x) for key in WRONG for x in SETTERS if key == "lr" or "lr." not in x],
)
def test_numbers_are_set_wrongly(key, way):
    opt = Adadelta(variables(), 0.5)
    before = repr(opt)
    for bad in WRONG[key]:
        with pytest.raises((ValueError, TypeError), match=f"{key} must be|{key}=None"):
            SETTERS[way](opt, key, bad)
        assert repr(opt) == before
    opt.update(grads(0))


def test_a_gradient_of_another_library():
    class Tensor:
        dtype, shape = object(), (3,)

    opt = Adadelta(variables())
    with pytest.raises(TypeError, match=r"Gradient 'w' must be an array of .*Tensor\."):
        opt.update({**grads(0), "w": Tensor()})


def test_lr_is_set_by_assignment():
    opt = Adadelta(variables())
    schedule = opt.lr
    opt.lr = 0.5
    assert opt.lr is schedule  # whose numbers compiled steps read
    assert opt.lr() == 0.5
    opt.update(grads(0))
    opt.lr = lambda count: 0.25
    opt.update(grads(1))
    assert opt.lr() == 0.25
    want = expected("w", lr=lambda i: [0.5, 0.25][i], steps=2)
    np.testing.assert_allclose(opt.vars_to_train["w"].value, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "way"),
    [*[(TrainVar, way) for way in COPIES], (bm.TrainVar, "copy")],  # which theirs allow
)
def test_misspelt_attributes(kind, way):
    opt = Adadelta({"w": kind(jnp.ones(3))})
    copied = COPIES[way](opt)
    for owner, key, instead in [
        *((x.lr, "valeu", "") for x in (opt, copied)),
        *((x, "epislon", "") for x in (opt, copied)),
        (opt, "eps", " Write epsilon."),
        (opt, "learning_rate", " Write lr."),
        (opt, "init", r" .* want the transformation adadelta_tx\.adadelta\(\)"),
    ]:
        message = rf"has no attribute '{key}'\.{instead}"
        with pytest.raises(AttributeError, match=message):
            setattr(owner, key, 1e-5)
        with pytest.raises(AttributeError, match=message):
            getattr(owner, key)


def test_the_last_epoch_is_set():
    opt = Adadelta(variables())
    opt.lr.last_epoch = 5
    opt.lr.step_epoch()
    assert opt.vars()["Constant0.last_epoch"].value == 6
    assert opt.lr.last_epoch.dtype == jnp.int32


def test_setting_a_rate_calls_no_schedule():
    def schedule(count):
        raise AssertionError

    opt = Adadelta(variables())
    opt.lr = schedule
    opt.lr.lr = 0.5


@pytest.mark.parametrize(
    "arguments", [(1.0, 0.95, 1e-6), (1.0, 0.95), (1.0, 1e-4, 1e-6)]
)
def test_rho_and_epsilon_in_each_others_place(arguments):
    with pytest.warns(UserWarning, match=r"another order.*train_vars, lr") as caught:
        Adadelta(variables(), *arguments)
    assert caught[0].filename == __file__


def test_lr_by_habit():
    with pytest.warns(
        UserWarning, match=r"lr=0\.001 makes every step 1000 times smaller"
    ) as caught:
        opt = Adadelta(variables(), 0.001)
    assert caught[0].filename == __file__
    opt.lr = 0.001  # at the end of a run it is no habit
    Adadelta(variables(), 0.0)


def test_warns_once(recwarn):
    """By Python's own rule: once for each line."""
    import warnings

    warnings.simplefilter("default")
    for _ in range(3):
        Adadelta(variables(), 0.001)
    assert len(recwarn) == 1


@pytest.mark.parametrize("arguments", [(1.0, None), (1.0, 1e-6, 0.9, 0.95)])
def test_arguments_in_brainpys_order(arguments):
    with pytest.raises(TypeError, match="weight_decay is keyword-only"):
        Adadelta(variables(), *arguments)


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


class Module(nnx.Module):
    pass


@pytest.mark.parametrize(
    ("bad", "instead"),
    [
        (
            Module(),
            r"nnx\.Optimizer\(model, adadelta_tx\.adadelta\(\), wrt=nnx\.Param\)",
        ),
        (brainstate.nn.Linear(2, 3), r"module\.states\(brainstate\.ParamState\)"),
        (bp.dnn.Dense(2, 3), r"network\.train_vars\(\)\.unique\(\)"),
    ],
)
def test_networks_as_train_vars(bad, instead):
    with pytest.raises(TypeError, match=f"{type(bad).__name__}. Write .*{instead}"):
        Adadelta(bad)


def test_in_an_nnx_optimizer():
    with pytest.raises(AttributeError, match=r"want .* adadelta_tx\.adadelta\(\)"):
        nnx.Optimizer(Module(), Adadelta(variables()), wrt=nnx.Param)


@pytest.mark.parametrize(
    "lr", [braintools.optim.StepLR(0.5, 10), braintools.optim.CosineAnnealingLR(0.5, 9)]
)
def test_schedulers_of_braintools(lr):
    with pytest.raises(TypeError, match=r"braintools' .* negative .*get_last_lr"):
        Adadelta(variables(), lr)


def test_what_a_type_checker_finds(tmp_path):
    """Errors in the lines that say so, and no others."""
    file = tmp_path / "use.py"
    file.write_text(
        "import jax.numpy as jnp\n"
        "import adadelta_tx\n"
        'opt = adadelta_tx.Adadelta({"w": adadelta_tx.TrainVar(1.0)}, 0.5)\n'
        'adadelta_tx.Adadelta(accumulator_dtype="uint8")\n'
        "adadelta_tx.Adadelta(accumulator_dtype=jnp.bfloat16)\n"
        "opt.lr = 0.25\n"
        'opt.update({"w": 1.0})\n'
        'adadelta_tx.Adadelta(accumulator_dtype="int8")  # error\n'
        "opt.eps  # error\n"
        "adadelta_tx.Adadelta(learning_rate=1.0)  # error\n"
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", str(file)]
    command += ["--pythonpath", sys.executable]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    found = json.loads(output)["generalDiagnostics"]
    lines = {one["range"]["start"]["line"] for one in found}
    assert lines == {7, 8, 9}, output


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


@pytest.mark.parametrize("bad", [TrainVar(1), TrainVar(True)])
def test_variables_that_are_no_floats(bad):
    w = TrainVar(1.0)
    opt = Adadelta({"w": w})
    with pytest.raises(TypeError, match=r"\['i'\] has dtype .*Leave it out"):
        opt.register_train_vars({"v": TrainVar(1.0), "i": bad})
    assert opt.vars_to_train == {"w": w}
    assert len(opt.implicit_vars) == 2


def test_register_in_steps():
    train_vars = variables()
    opt = Adadelta({"w": train_vars["w"]})
    opt.update({"w": GRADS[0]})
    cache = opt.implicit_vars["w_cache"]
    opt.register_train_vars(train_vars)  # adds b, keeps w's accumulators
    assert opt.implicit_vars["w_cache"] is cache
    assert list(opt.vars_to_train) == ["w", "b"]
    opt.register_train_vars()
    opt.update(grads(1))
    np.testing.assert_allclose(train_vars["w"].value, expected("w", steps=2), rtol=1e-5)


def test_nothing_to_train():
    with pytest.warns(UserWarning, match=r"bm\.training_environment\(\)") as caught:
        empty = Adadelta({})
    assert caught[0].filename == __file__
    for opt in (Adadelta(), empty):
        for given in ({}, grads(0)):
            with pytest.raises(ValueError, match=r"no variables.*register_train_vars"):
                opt.update(given)


def test_register_conflicts():
    train_vars = variables()
    opt = Adadelta(train_vars)
    with pytest.raises(ValueError, match="'w' is the name of another object"):
        opt.register_train_vars({"n": TrainVar(1.0), "w": TrainVar(1.0)})
    with pytest.raises(
        ValueError, match="'again' is a second name of the variable 'w'"
    ):
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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones(3, np.int32), "'w' has dtype int32"),
        (np.zeros(3, jax.dtypes.float0), r"'w' has dtype .*float0"),
        (np.ones(3, np.complex64), "'w' is complex64, but its variable is float32"),
        (None, "'w' is None. Pass zeros"),
    ],
)
def test_gradient_that_is_no_number_changes_nothing(bad, message):
    opt = Adadelta(variables())
    before = snapshot(opt)
    with pytest.raises(TypeError, match=message):
        opt.update({"b": 1.0, "w": bad})
    chex.assert_trees_all_equal(snapshot(opt), before)


def test_names():
    first, second = Adadelta(variables()), Adadelta(variables())
    assert (first.name, second.name) == ("Adadelta0", "Adadelta1")
    assert first.unique_name() == "Adadelta2"
    assert first.unique_name(type_="Other") == "Other0"
    assert first.unique_name("Adadelta0") == "Adadelta0"
    third = Adadelta(variables(), name="Adadelta3")
    assert Adadelta(variables()).name == "Adadelta4"
    first.name = "mine"
    assert first.name == "mine"
    for taken in ("mine", "Adadelta3"):
        with pytest.raises(ValueError, match=rf"{taken}.* in use by.*clear_name_cache"):
            second.name = taken
    with pytest.raises(ValueError, match=r"in use by .*name='Adadelta3'"):
        Adadelta(variables(), name="Adadelta3")
    for bad in ("1st", "a b", "", 3):
        with pytest.raises(ValueError, match="valid identifier"):
            second.name = bad
    assert (second.name, third.name) == ("Adadelta1", "Adadelta3")


@pytest.mark.parametrize("kind", [TrainVar, bm.TrainVar])
def test_names_in_threads(kind):
    if kind is bm.TrainVar and version("brainpy").startswith("2.8."):
        pytest.skip("BrainPy 2.8 makes nothing outside the main thread")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(Adadelta, [{"w": kind(1.0)} for _ in range(200)]))
    finally:
        sys.setswitchinterval(interval)
    assert len({opt.name for opt in made}) == len({opt.lr.name for opt in made}) == 200


@pytest.mark.parametrize("way", COPIES)
def test_copies_have_names_of_their_own(way):
    opt = Adadelta(variables(), 0.5, rho=0.9, name="mine")
    opt.update(grads(0))
    other = COPIES[way](opt)
    assert type(other) is type(opt)
    assert (opt.name, other.name) == ("mine", "mine0")
    for one in (opt, other):
        with pytest.raises(ValueError, match=f"{one.name}' is in use"):
            Adadelta(variables(), name=one.name)
    if way == "copy":  # which shares what it holds
        assert other.lr is opt.lr
        return
    assert (opt.lr.name, other.lr.name) == ("Constant0", "Constant1")
    held = [*other.vars().values(), *other.vars_to_train.values()]
    originals = [*opt.vars().values(), *opt.vars_to_train.values()]
    assert not {map(id, held)} & {map(id, originals)}
    opt.update(grads(1))
    other.update(grads(1))
    for one, original in zip(held, originals, strict=True):
        np.testing.assert_array_equal(one.value, original.value)


def test_unpickling_keeps_a_name_that_is_free():
    opt = Adadelta(variables(), name="mine")
    data = pickle.dumps(opt)
    del opt
    gc.collect()
    assert pickle.loads(data).name == "mine"


def test_old_name_is_free_after_a_change():
    opt = Adadelta(variables(), name="old")
    opt.name = "new"
    assert Adadelta(variables(), name="old").name == "old"


def test_names_of_dead_objects_are_free():
    opt = Adadelta(variables(), name="mine")
    opt.update(grads(0))
    del opt
    gc.collect()
    assert Adadelta(variables(), name="mine").name == "mine"


def test_clear_name_cache():
    opt = Adadelta(variables(), name="mine")
    adadelta_tx.clear_name_cache()
    assert Adadelta(variables(), name="mine").name == opt.name
    assert Adadelta(variables()).name == "Adadelta0"


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
    assert opt.vars()["opt.w_cache"] is opt.implicit_vars["w_cache"]
    np.testing.assert_array_equal(opt.vars("relative")["w_cache"].value, np.zeros(3))


def test_repr():
    opt = Adadelta(
        variables(), 0.5, name="opt", weight_decay=0.1, accumulator_dtype="bfloat16"
    )
    assert repr(opt) == (
        "Adadelta(lr=Constant(lr=0.5), epsilon=1e-06, rho=0.95, name='opt', "
        "weight_decay=0.1, grad_epsilon=None, accumulator_dtype=dtype(bfloat16))"
    )
    opt.lr = optax.linear_schedule(1, 0, 5)
    assert "lr=Schedule(lr=<function" in repr(opt)
    opt.lr = 0.25
    assert "lr=Schedule(lr=0.25)" in repr(opt)


@pytest.mark.parametrize("accumulator_dtype", [None, "bfloat16"])
def test_two_epsilons(accumulator_dtype):
    """The object's grad_epsilon, from the start and set later."""
    opt = Adadelta(variables(), grad_epsilon=1e-10, accumulator_dtype=accumulator_dtype)
    scale = np.float32(1e-4)  # where one epsilon would not adapt
    x = np.float64([1.0, -2.0, 3.0])
    for i in range(3):
        opt.update({key: scale * g for key, g in grads(i).items()})
    steps = [*textbook.adadelta(scale * GRADS[:3], 0.95, 1e-6, grad_eps=1e-10)]
    x -= sum(u for u, _, _ in steps)
    _, s, d = steps[-1]
    rtol = 1e-5 if accumulator_dtype is None else 0.02
    np.testing.assert_allclose(opt.vars_to_train["w"].value, x, rtol=1e-3 * rtol**0.5)
    rates = opt.effective_learning_rate()["w"]
    np.testing.assert_allclose(rates, np.sqrt((d + 1e-6) / (s + 1e-10)), rtol=rtol)
    opt.grad_epsilon = None
    rates = opt.effective_learning_rate()["w"]
    np.testing.assert_allclose(rates, np.sqrt((d + 1e-6) / (s + 1e-6)), rtol=rtol)
    with pytest.raises(ValueError, match=r"grad_epsilon must be at least 0 and .*-1"):
        opt.grad_epsilon = -1.0
    assert opt.grad_epsilon is None


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


@contextlib.contextmanager
def compilations():
    """A list that gets an entry for each compilation."""
    found = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
        before = len(found)
        jax.jit(lambda x: x + 12345)(1.0)
        assert len(found) > before  # it does hear of compilations
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("start", [1.0, jnp.asarray(1.0), np.float64(1.0)])
def test_a_number_compiles_once(start):
    w = TrainVar(start)
    opt = Adadelta({"w": w})
    g = jnp.ones(())
    opt.update({"w": g})
    with compilations() as found:
        w.value = 2.0
        opt.update({"w": g})
        assert not found


def test_lr_is_set_without_a_compilation():
    opt = Adadelta(variables(), lr=0.0)
    opt.update(grads(0))
    opt.lr.set_value(0.5)
    opt.update(grads(0))
    start = np.asarray(opt.vars_to_train["w"].value)
    with compilations() as found:
        for i in range(1000):
            if i % 2:
                opt.lr.set_value(1.0 / (i + 1))
            else:
                opt.lr.lr = np.float32(i / 1000)
            assert opt.lr() == pytest.approx(1.0 / (i + 1) if i % 2 else i / 1000)
            opt.update(grads(i % 6))
        assert not found
    assert np.all(opt.vars_to_train["w"].value != start)
    assert opt.lr.last_call.value == 1001


@pytest.mark.parametrize("lr", [1.0, optax.constant_schedule(0.5)])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "uint8"])
def test_second_network_of_the_same_shapes_compiles_nothing(dtype, lr):
    def train(prefix):
        train_vars = {prefix + key: v for key, v in variables().items()}
        opt = Adadelta(train_vars, lr, rho=0.99, accumulator_dtype=dtype)
        for i in range(2):
            opt.update({prefix + key: g for key, g in grads(i).items()})

    train("first.")
    with compilations() as found:
        train("second.")
        assert not found


@pytest.mark.parametrize("rate", [-0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["schedule", "variable"])
def test_rate_that_climbs_changes_nothing(kind, rate):
    lr = (lambda count: rate) if kind == "schedule" else Variable(rate)
    opt = Adadelta(variables(), lr)
    before = snapshot(opt)
    with pytest.raises(
        ValueError, match=f"lr must be finite and at least 0, got {rate}"
    ):
        opt.update(grads(0))
    chex.assert_trees_all_equal(snapshot(opt), before)


def test_schedule_with_debug_nans():
    with jax.debug_nans(True):
        opt = Adadelta(variables(), optax.constant_schedule(0.5))
        assert opt.lr.lr == 0.5
        opt.update(grads(0))
        opt.lr.set_value(0.25)
        opt.update(grads(1))
    want = expected("w", lr=lambda i: [0.5, 0.25][i], steps=2)
    np.testing.assert_allclose(opt.vars_to_train["w"].value, want, rtol=1e-5)


RATES = {
    "number": lambda _: 0.5,
    "zero": lambda _: 0.0,
    "optax": lambda _: optax.constant_schedule(0.5),
    "variable": lambda kind: kind(jnp.asarray(0.5)),
    "Constant": lambda _: bp.optim.Constant(0.5),
    "Constant of a variable": lambda _: bp.optim.Constant(
        bm.Variable(jnp.asarray(0.5))
    ),
    "StepLR": lambda _: bp.optim.StepLR(0.5, step_size=1),
}


@pytest.mark.parametrize("kind", [TrainVar, bm.TrainVar])
@pytest.mark.parametrize("rate", RATES)
def test_rate_and_back(rate, kind):
    """What files store of a learning rate."""
    opt = Adadelta({"w": kind(jnp.ones(3))}, RATES[rate](kind))
    first = 0.0 if rate == "zero" else 0.5
    before = schedules.rate(opt.lr)
    assert before == (None if rate == "optax" else first)
    schedules.restore_rate(opt.lr, 0.125)
    assert schedules.rate(opt.lr) == np.asarray(opt.lr()) == 0.125
    schedules.restore_rate(opt.lr, before)
    assert schedules.rate(opt.lr) == before
    assert np.asarray(opt.lr()) == first
    if rate in ("number", "zero", "variable"):
        with pytest.raises(ValueError, match="no schedule"):
            schedules.restore_rate(opt.lr, None)


def test_lr_of_zero_moves_nothing():
    opt = Adadelta(variables(), lr=0)
    opt.update(grads(0))
    np.testing.assert_array_equal(opt.vars_to_train["w"].value, [1.0, -2.0, 3.0])
    assert np.all(opt.implicit_vars["w_cache"].value > 0)


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
    with pytest.raises(RuntimeError, match=r"or use the .* adadelta_tx\.adadelta\(\)"):
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
    assert repr(TrainVar(1)) == "TrainVar(1, dtype=int32)"
    assert Variable(jax.random.key(0)).shape == ()


def test_names_that_are_written_alike():
    opt = Adadelta({"v": TrainVar(1.0)})
    with pytest.raises(ValueError, match="become the same in a file"):
        opt.register_train_vars({1: TrainVar(1.0), "1": TrainVar(2.0)})
    with pytest.raises(ValueError, match="become the same in a file"):
        opt.register_train_vars({"w": TrainVar(1.0), ".w": TrainVar(2.0)})
    assert len(opt.implicit_vars) == 2
    opt = Adadelta({"v": TrainVar(1.0)})
    mixed = {("a", 0, "w"): TrainVar(1.0), ("a", "x"): TrainVar(2.0)}
    opt.register_train_vars(mixed)
    opt.update(dict.fromkeys([*mixed, "v"], 1.0))


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
    with pytest.raises(TypeError, match=r"lr must be a real number, got .*\[0\.5\]"):
        opt.update(grads(0))
    chex.assert_trees_all_equal(snapshot(opt), before)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: Adadelta(Adadelta(variables()).train_vars), "Write train_vars(), wi"),
        (lambda: Adadelta([TrainVar(1.0)]), 'Give each a name: {"w": w, "b": b}.'),
        (lambda: Adadelta(TrainVar(1.0)), 'Give it a name: {"w": variable}.'),
        (lambda: Adadelta({"w": jnp.ones(2)}), "got Array. Write adadelta_tx.TrainVar"),
        (lambda: Adadelta({"w": 1.0}), "got float. Write adadelta_tx.TrainVar(array)"),
        (
            lambda: Adadelta({"a": variables()}),
            'one dict of all variables: {"a.w": var',
        ),
        (lambda: Adadelta(variables(), eps=1e-3), "no argument 'eps'. Write epsilon."),
        (lambda: Adadelta(learning_rate=1.0), "argument 'learning_rate'. Write lr."),
        (
            lambda: Adadelta(variables()).update((grads(0), 1.0)),
            "got tuple. Pass the gradients ",
        ),
        (
            lambda: Adadelta(variables()).step(),
            "attribute 'step'. An Adadelta object has update(grads).",
        ),
        (lambda: Adadelta(variables()).register_vars({}), "has register_train_vars(tr"),
        (lambda: Adadelta(variables()).zero_grad(), "there is nothing to reset."),
        (lambda: Adadelta(variables(), momentum=0.9), "Adadelta has none."),
        (lambda: setattr(Adadelta(variables()), "momentum", 0.9), "Adadelta has none."),
        (
            lambda: Adadelta(variables(), weight_decay_mask={}),
            "adadelta_tx.adadelta has",
        ),
        (lambda: Adadelta(variables(), rho=lambda i: 0.9), "It takes no schedule"),
        (lambda: Adadelta({"w": bm.ones(3)}), "or with BrainPy bm.TrainVar(array)."),
        (
            lambda: Adadelta(variables()).save_states({}, "f"),
            "variables, after the path, must be a dict",
        ),
        (lambda: Adadelta(variables()).save_states({}), "path of a file, got dict"),
        (lambda: Adadelta(variables()).load_states({}), "path of a file, got dict"),
        (lambda: Adadelta(variables()).state_dict(), "Write save_states(file)"),
        (lambda: Adadelta(variables()).load_state_dict({}), "Write load_states(file)."),
        (
            lambda: Adadelta(variables()).update({"W": 1.0, "b": 1.0}),
            "missing ['w'], unknown ['W']. Use the names that the variables have",
        ),
        (lambda: Adadelta(variables()).update({"w": 1.0}), "unknown []. Pass zeros"),
        (
            lambda: Adadelta(variables()).update({**grads(0), "c": 1.0}),
            "unknown ['c']. register_train_vars adds variables.",
        ),
        (
            lambda: jax.jit(Adadelta(variables()).update)(grads(0)),
            "Call update, which compiles itself, and setters outside",
        ),
    ],
)
def test_what_to_write_instead(use, message):
    errors = (TypeError, ValueError, AttributeError, RuntimeError)
    with pytest.raises(errors, match=re.escape(message)):
        use()
