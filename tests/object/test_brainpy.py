"""The Adadelta object in real BrainPy and brainstate, compared with BrainPy's."""

import copy
import functools
import inspect
import subprocess
import sys

import brainpy as bp
import brainpy.math as bm
import brainstate
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from brainpy.optim import optimizer_coverage_test, optimizer_test

import adadelta_tx
import adadelta_tx.brainpy
from adadelta_tx import Adadelta
from tests.object.test_optimizer import compilations


class Recurrent(bp.DynamicalSystem):
    def __init__(self):
        super().__init__()
        self.rnn = bp.dyn.RNNCell(2, 16)
        self.out = bp.dnn.Dense(16, 1)

    def update(self, x):
        return self.out(self.rnn(x))


def sums():
    """Batches of the running sum of two inputs."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.normal(size=(8, 10, 2)).astype(np.float32)
        yield x, np.cumsum(x.sum(-1, keepdims=True), 1) / 5


def squared_error(predictions, targets):
    return jnp.mean((bm.as_jax(predictions) - targets) ** 2)


def trained_vars(network):
    return network.train_vars().unique()


@functools.cache
def losses_of_theirs(trainer):
    return losses(trainer, theirs())[0]


def losses(trainer, make_optimizer, epochs=4):
    """The loss history of a trainer with an optimizer made for the network."""
    bm.random.seed(1)
    with bm.training_environment():
        network = Recurrent()
    optimizer = make_optimizer(network)
    trainer = trainer(
        network, loss_fun=squared_error, optimizer=optimizer, progress_bar=False
    )
    data = sums if trainer.__class__ is bp.BPTT else last_steps
    trainer.fit(data, num_epoch=epochs)
    return trainer.get_hist_metric(), optimizer


def last_steps():
    return [(x[:, -1], y[:, -1]) for x, y in sums()]


def theirs(**arguments):
    return lambda network: bp.optim.Adadelta(**{"lr": 1.0, **arguments})


OURS = {
    "registered by the trainer": lambda network: Adadelta(),
    "with train_vars": lambda network: Adadelta(trained_vars(network)),
}


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [bp.BPTT, bp.BPFF])
@pytest.mark.parametrize("ours", OURS)
def test_trainers(trainer, ours):
    want = losses_of_theirs(trainer)
    got, optimizer = losses(trainer, OURS[ours])
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert want[-1] < 0.9 * want[0]
    assert optimizer.lr.last_epoch.value == 3
    assert optimizer.lr.last_call.value == 4 * 5 - 1


SCHEDULERS = {
    "each call": lambda: bp.optim.ExponentialDecayLR(
        1.0, decay_steps=3, decay_rate=0.5
    ),
    "each epoch": lambda: bp.optim.StepLR(1.0, step_size=1, gamma=0.3),
    "set to an integer": lambda: bp.optim.Constant(2),
    "variable": lambda: bm.Variable(jnp.asarray(0.3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_brainpy_schedulers(scheduler):
    make = SCHEDULERS[scheduler]
    want, _ = losses(bp.BPTT, theirs(lr=make()))
    assert not np.allclose(want, losses_of_theirs(bp.BPTT), rtol=1e-2)
    got, optimizer = losses(bp.BPTT, lambda network: Adadelta(lr=make()))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    names = {name.partition(".")[2] for name in optimizer.vars() if "Net" not in name}
    assert "last_epoch" in names


@pytest.mark.slow
def test_optax_schedule_in_a_trainer():
    schedule = optax.exponential_decay(1.0, 5, 0.5, staircase=True)
    got, optimizer = losses(bp.BPTT, lambda network: Adadelta(lr=schedule))
    want, _ = losses(bp.BPTT, theirs(lr=bp.optim.StepLR(1.0, step_size=1, gamma=0.5)))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert optimizer.lr() == 0.5**4


@pytest.mark.slow
def test_same_variables_by_the_same_names():
    _, ours = losses(bp.BPTT, lambda network: Adadelta(), epochs=1)
    _, brainpys = losses(bp.BPTT, theirs(), epochs=1)

    def names(optimizer):
        """Without the numbers of automatic names."""
        return ["".join(c for c in n if not c.isdigit()) for n in optimizer.vars()]

    assert names(ours) == [*names(brainpys), "Constant.last_call"]
    for ours_, brainpys_ in zip(
        ours.vars().values(), brainpys.vars().values(), strict=False
    ):
        assert type(ours_) is type(brainpys_) is bm.Variable
        assert ours_.shape == brainpys_.shape
    relative = list(ours.vars("relative"))
    assert relative[0].startswith(".RNNCell")
    assert relative[-2:] == ["lr.last_epoch", "lr.last_call"]


class Linear(bp.BrainPyObject):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.w = bm.TrainVar(jnp.asarray(rng.normal(size=(3, 2)), dtype=jnp.float32))
        self.b = bm.TrainVar(jnp.zeros(2))
        self.x = jnp.asarray(rng.normal(size=(16, 3)), dtype=jnp.float32)
        self.y = jnp.asarray(rng.normal(size=(16, 2)), dtype=jnp.float32)

    def loss(self):
        return squared_error(self.x @ self.w.value + self.b.value, self.y)


def training_step(make_optimizer):
    model = Linear()
    optimizer = make_optimizer(model.train_vars().unique())
    grad = bm.grad(model.loss, grad_vars=model.train_vars().unique(), return_value=True)

    def step(*_):
        grads, loss = grad()
        optimizer.update(grads)
        return loss

    return step, optimizer


def one_by_one(step):
    return [step() for _ in range(12)]


WAYS = {
    "eager": one_by_one,
    "bm.jit": lambda step: one_by_one(bm.jit(step)),
    "bm.for_loop": lambda step: bm.for_loop(step, jnp.arange(12)),
    "brainstate": lambda step: brainstate.transform.for_loop(step, jnp.arange(12)),
}


@functools.cache
def history_of_theirs(weight_decay):
    step, _ = training_step(
        lambda train_vars: bp.optim.Adadelta(1.0, train_vars, weight_decay)
    )
    return one_by_one(bm.jit(step))


@pytest.mark.parametrize("weight_decay", [None, 0.01])
@pytest.mark.parametrize("way", WAYS)
def test_transformations(way, weight_decay):
    want = history_of_theirs(weight_decay)
    step, optimizer = training_step(
        lambda train_vars: Adadelta(train_vars, weight_decay=weight_decay)
    )
    np.testing.assert_allclose(WAYS[way](step), want, rtol=1e-5)
    assert optimizer.lr.last_call.value == 11
    chex.assert_tree_all_finite(optimizer.vars().dict())
    assert np.all(
        np.asarray(optimizer.implicit_vars[next(iter(optimizer.implicit_vars))].value)
        > 0
    )


def test_lr_is_set_inside_a_compiled_step():
    """A compiled step sees the rate that is set later: it is a variable."""
    step, optimizer = training_step(Adadelta)
    step = bm.jit(step)
    step()
    optimizer.lr.set_value(0.0)
    before = np.asarray(step())
    np.testing.assert_array_equal(step(), before)
    optimizer.lr.lr = 1.0
    step()
    assert step() < before


class Spiking(bp.DynSysGroup):
    def __init__(self):
        super().__init__()
        self.inputs = bp.dnn.Dense(
            8, 20, W_initializer=bp.init.KaimingNormal(scale=20.0)
        )
        surrogate = bm.surrogate.InvSquareGrad()
        self.neurons = bp.dyn.Lif(
            20, tau=10.0, V_reset=0.0, V_rest=0.0, V_th=0.1, spk_fun=surrogate
        )
        self.outputs = bp.dnn.Dense(20, 2)
        self.readout = bp.dyn.Leaky(2, tau=5.0)

    def update(self, x):
        return x >> self.inputs >> self.neurons >> self.outputs >> self.readout


@pytest.mark.slow
def test_spiking_network():
    """Leaky integrate-and-fire neurons, trained through a surrogate gradient."""
    rng = np.random.default_rng(0)
    rates = np.where(np.arange(32)[:, None] % 2 == np.arange(8) // 4, 0.7, 0.1)
    spikes = jnp.asarray(rng.random((20, 32, 8)) < rates, dtype=jnp.float32)
    labels = jnp.arange(32) % 2

    def history(make_optimizer):
        bm.random.seed(3)
        with bm.training_environment():
            network = Spiking()
        optimizer = make_optimizer(trained_vars(network))

        def loss():
            network.reset(32)
            out = bm.for_loop(lambda i: network.step_run(i, spikes[i]), np.arange(20))
            return bp.losses.cross_entropy_loss(jnp.mean(bm.as_jax(out), 0), labels)

        grad = bm.grad(loss, grad_vars=trained_vars(network), return_value=True)

        @bm.jit
        def step():
            grads, value = grad()
            optimizer.update(grads)
            return value

        return [float(step()) for _ in range(30)]

    got = history(Adadelta)
    want = history(lambda train_vars: bp.optim.Adadelta(1.0, train_vars))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert got[-1] < 0.5 * got[0]


@pytest.mark.parametrize("way", ["jit", "for_loop"])
def test_brainstate(way):
    """States whose values are trees, as brainstate's layers have them."""
    brainstate.random.seed(0)
    network = brainstate.nn.Sequential(
        brainstate.nn.Linear(3, 8), jnp.tanh, brainstate.nn.Linear(8, 1)
    )
    states = network.states(brainstate.ParamState)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 3)).astype(np.float32)
    y = x.sum(1, keepdims=True)
    tx = adadelta_tx.adadelta()
    update = jax.jit(tx.update)
    params = {key: state.value for key, state in states.items()}
    tx_state = tx.init(params)
    optimizer = Adadelta(states)
    assert {type(v) for v in optimizer.implicit_vars.values()} == {
        brainstate.LongTermState
    }
    grad = brainstate.transform.grad(
        lambda: jnp.mean((network(x) - y) ** 2), states, return_value=True
    )

    def step(*_):
        grads, loss = grad()
        optimizer.update(grads)
        return grads, loss

    if way == "jit":
        step = brainstate.transform.jit(step)
    if way == "for_loop":
        grads, history = brainstate.transform.for_loop(step, jnp.arange(10))
        rows = [
            {k: {n: g[i] for n, g in v.items()} for k, v in grads.items()}
            for i in range(10)
        ]
    else:
        rows, history = zip(*(step() for _ in range(10)), strict=True)
    for grads in rows:
        updates, tx_state = update(dict(grads), tx_state, params)
        params = optax.apply_updates(params, updates)
    for key, state in states.items():
        chex.assert_trees_all_close(state.value, params[key], rtol=1e-5, atol=1e-7)
    assert history[-1] < history[0]


def test_brainpy_array_as_gradient():
    w = bm.TrainVar(jnp.ones(2))
    optimizer = Adadelta({"w": w})
    optimizer.update({"w": bm.ones(2)})
    np.testing.assert_allclose(w.value, 1 - 4.47e-3, rtol=1e-4)


FAMILIES = {"brainpy": bm.TrainVar, "brainstate": brainstate.ParamState}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("lr", ["number", "schedule", "variable"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lr_in_every_family(family, lr, compiled):
    kinds = {"brainpy": bm.Variable, "brainstate": brainstate.ShortTermState}
    rate = {
        "number": 0.5,
        "schedule": optax.constant_schedule(0.5),
        "variable": kinds[family](jnp.asarray(0.5)),
    }[lr]
    w = FAMILIES[family](jnp.ones(3))
    opt = Adadelta({"w": w}, lr=rate)

    def update():
        opt.update({"w": jnp.ones(3)})

    step = brainstate.transform.jit(update) if compiled else update
    step()
    # The first step is √(ε / ((1 − ρ) + ε)), times the rate.
    np.testing.assert_allclose(w.value, 1 - 0.5 * 4.4721e-3, rtol=1e-6)
    before = np.asarray(w.value)
    opt.lr.set_value(0.0)
    step()
    np.testing.assert_array_equal(w.value, before)
    opt.lr.lr = 1.0
    step()
    assert np.all(w.value < before)
    assert opt.lr.last_call.value == 2
    opt.lr = optax.constant_schedule(0.25)  # whose numbers are tracked too
    step = brainstate.transform.jit(update) if compiled else update
    step()
    assert opt.lr.last_call.value == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_own_lr_variable_with_theirs(family):
    lr = adadelta_tx.Variable(jnp.asarray(0.5))
    with pytest.raises(ValueError, match="Pass lr as a variable of their kind"):
        Adadelta({"w": FAMILIES[family](jnp.ones(3))}, lr=lr)
    opt = Adadelta({"v": adadelta_tx.TrainVar(1.0)}, lr=lr)
    with pytest.raises(ValueError, match="Pass lr as a variable of their kind"):
        opt.register_train_vars({"w": FAMILIES[family](jnp.ones(3))})
    assert list(opt.vars_to_train) == ["v"]
    assert len(opt.implicit_vars) == 2


def test_lr_shared_by_two_optimizers():
    one, two = bm.TrainVar(jnp.ones(3)), bm.TrainVar(jnp.ones(3))
    first = Adadelta({"w": one})
    step = bm.jit(lambda: first.update({"w": jnp.ones(3)}))
    step()
    second = Adadelta({"w": two}, lr=first.lr)
    first.lr.set_value(0.0)
    before = np.asarray(one.value)
    step()
    second.update({"w": jnp.ones(3)})
    np.testing.assert_array_equal(one.value, before)
    np.testing.assert_array_equal(two.value, np.ones(3))


def test_lr_variable_of_one_element_changes_nothing():
    with pytest.raises(ValueError, match="lr must hold a floating-point scalar"):
        Adadelta({"w": bm.TrainVar(jnp.ones(3))}, lr=bm.Variable(jnp.ones(1)))


def test_traced_rho():
    w = bm.TrainVar(jnp.ones(3))
    bm.jit(lambda rho: Adadelta({"w": w}, rho=rho).update({"w": jnp.ones(3)}))(0.5)
    np.testing.assert_allclose(w.value, 1 - np.sqrt(1e-6 / 0.500001), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_jit_does_not_leak(family):
    w = FAMILIES[family](jnp.ones(3))
    opt = Adadelta({"w": w})
    with pytest.raises(brainstate.TraceContextError):
        jax.jit(lambda g: opt.update({"w": g}))(jnp.ones(3))
    np.testing.assert_array_equal(w.value, 1.0)
    np.testing.assert_array_equal(opt.implicit_vars["w_cache"].value, 0.0)


def variables():
    return {"w": bm.TrainVar(jnp.ones(3)), "b": bm.TrainVar(jnp.zeros(2))}


def ones():
    return {"w": jnp.ones(3), "b": jnp.ones(2)}


def numbers_of(collection):
    return {name: np.asarray(x) for name, x in collection.dict().items()}


MADE = {
    "variables of BrainPy": (lambda: Adadelta(variables()), True),
    "no variables": (Adadelta, True),
    "variables of brainstate": (
        lambda: Adadelta({"w": brainstate.ParamState(jnp.ones(3))}),
        False,
    ),
    "our own variables": (
        lambda: Adadelta({"w": adadelta_tx.TrainVar(jnp.ones(3))}),
        False,
    ),
    "of two libraries": (
        lambda: Adadelta({**variables(), "v": brainstate.ParamState(jnp.ones(3))}),
        False,
    ),
}


@pytest.mark.parametrize("case", MADE)
def test_which_class_is_made(case):
    make, brainpys = MADE[case]
    opt = make()
    assert isinstance(opt, Adadelta)
    assert isinstance(opt, bp.optim.Optimizer) == brainpys
    assert isinstance(opt, bp.BrainPyObject) == brainpys
    assert isinstance(opt, adadelta_tx.brainpy.Adadelta) == brainpys
    assert isinstance(opt.lr, bp.optim.Scheduler) == brainpys
    assert type(opt).__name__ == "Adadelta"


def test_without_brainpy():
    code = """
import sys
import adadelta_tx
opt = adadelta_tx.Adadelta()
assert type(opt) is adadelta_tx.Adadelta
assert type(adadelta_tx.Adadelta({"w": adadelta_tx.TrainVar(1.0)})) is type(opt)
assert "brainpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_what_brainpy_has_is_brainpys():
    """All but what an optimizer of BrainPy's defines for itself."""
    opt = Adadelta(variables())
    own = {"register_train_vars", "check_grads", "update", "__init__", "__repr__"}
    own |= {"__doc__", "__module__", "__annotations__"}
    own |= {"__static_attributes__", "__firstlineno__"}
    for base in (bp.optim.Optimizer, bp.BrainPyObject):
        for name in vars(base).keys() - own:
            assert inspect.getattr_static(type(opt), name) is inspect.getattr_static(
                bp.optim.Optimizer, name
            ), name


def test_variables_of_another_kind_later():
    opt = Adadelta()
    for other in (adadelta_tx.TrainVar(1.0), brainstate.ParamState(jnp.ones(3))):
        with pytest.raises(
            TypeError, match=r"train_vars\['w'\] must be a variable of B"
        ):
            opt.register_train_vars({"w": other})
    assert not opt.vars_to_train
    assert not opt.implicit_vars


def test_nodes_and_vars_of_a_trainer():
    with bm.training_environment():
        network = Recurrent()
    opt = Adadelta(trained_vars(network), lr=optax.constant_schedule(0.5))
    trainer = bp.BPTT(network, loss_fun=squared_error, optimizer=opt)
    assert opt in trainer.nodes().values()
    assert trainer.nodes().subset(bp.optim.Scheduler) == {opt.lr.name: opt.lr}
    assert opt.vars().items() <= trainer.vars().items()
    assert trainer.train_vars().unique().keys() == trained_vars(network).keys()
    assert opt.train_vars() == {}  # as with BrainPy's
    assert opt.nodes("relative") == {"": opt, "lr": opt.lr}
    counters = opt.vars(level=-1, include_self=True).keys() - opt.vars(level=0).keys()
    assert counters == {f"{opt.lr.name}.last_epoch", f"{opt.lr.name}.last_call"}
    assert opt.vars(exclude_types=(bm.TrainVar,)) == opt.vars()


def test_variables_of_a_subclass():
    class Counting(adadelta_tx.brainpy.Adadelta):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.calls = bm.Variable(jnp.zeros((), jnp.int32))

        def update(self, grads):
            super().update(grads)
            self.calls.value += 1

    opt = Counting(variables())
    bm.for_loop(lambda i: opt.update(ones()), jnp.arange(3))
    assert opt.calls.value == 3
    assert opt.vars()[f"{opt.name}.calls"] is opt.calls
    assert opt.state_dict()[opt.name][f"{opt.name}.calls"] == 3


@pytest.mark.parametrize("lr", [1.0, optax.exponential_decay(1.0, 1, 0.5)])
def test_state_dict(lr, tmp_path):
    """By the dict itself, and by a file of BrainPy's."""
    opt = Adadelta(variables(), lr, name="saved")
    for _ in range(3):
        opt.update(ones())
    path = str(tmp_path / "run.msgpack")
    bp.checkpoints.save_pytree(path, opt.state_dict(), verbose=False)
    want, trained = numbers_of(opt.vars()), numbers_of(opt.vars_to_train)
    opt.update(ones())
    further = numbers_of(opt.vars_to_train)
    for states in (bp.checkpoints.load_pytree(path),):
        result = opt.load_state_dict(states)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        chex.assert_trees_all_equal(numbers_of(opt.vars()), want)
        for key, value in trained.items():
            opt.vars_to_train[key].value = jnp.asarray(value)
        opt.update(ones())
        chex.assert_trees_all_equal(numbers_of(opt.vars_to_train), further)


BRAINPYS = {
    f"{case.__name__}.{name}": getattr(case(), name)
    for case in (optimizer_coverage_test.TestAdadelta, optimizer_test.TestAdadeltaLR)
    for name in vars(case)
    if name.startswith("test")
}


@pytest.mark.parametrize("test", BRAINPYS)
def test_brainpys_own_tests(test, monkeypatch):
    """Those that BrainPy is installed with, of our class in place of theirs."""
    made = []

    def ours(**arguments):
        made.append(Adadelta(**arguments))
        return made[-1]

    monkeypatch.setattr(bp.optim.optimizer, "Adadelta", ours)
    BRAINPYS[test]()
    assert made


def test_slow_points():
    """A quadratic whose fixed points the finder descends to with our optimizer."""
    finder = bp.analysis.SlowPointFinder(
        f_cell=lambda x: 0.5 * x + 1.0, f_type="discrete"
    )
    start = np.linspace(1.5, 2.5, 8, dtype=np.float32)[:, None]
    finder.find_fps_with_gd_method(
        candidates=start, tolerance=1e-6, num_batch=50, optimizer=Adadelta(epsilon=1e-4)
    )
    assert np.abs(np.asarray(finder.fixed_points) - 2.0).max() < 0.05


def test_moved_to_another_device():
    train_vars = variables()
    opt = Adadelta(train_vars)
    opt.update(ones())
    device = jax.devices()[1]
    for variable in train_vars.values():
        variable.value = jax.device_put(variable.value, device)
    assert opt.to(device) is opt
    opt.update(jax.device_put(ones(), device))
    held = [v.value for v in (*opt.vars().values(), *train_vars.values())]
    assert {x.device for x in held} == {device}
    for variable in train_vars.values():
        variable.value = jax.device_put(variable.value, jax.devices()[0])
    opt.cpu().update(ones())
    assert opt.lr.last_call.value == 2
    with pytest.raises(RuntimeError):
        opt.cuda()  # where there is no GPU


@pytest.mark.parametrize("kind", [adadelta_tx.TrainVar, bm.TrainVar])
def test_variables_on_different_devices(kind):
    """It says which and where, before anything changes."""
    first, second = jax.devices()[:2]
    train_vars = {key: kind(jnp.ones(3)) for key in "abc"}
    opt = Adadelta(train_vars)
    train_vars["b"].value = jax.device_put(train_vars["b"].value, second)
    message = (
        rf"'a' is on \[.*id={first.id}.*, and 'b' on \[.*id={second.id}.*device_put"
    )
    for method in (opt.check_grads, opt.update):
        with pytest.raises(ValueError, match=message):
            method(dict.fromkeys("abc", np.ones(3, "f4")))
    assert train_vars["b"].value.device == second
    for key in "abc":
        np.testing.assert_array_equal(train_vars[key].value, 1.0)
        np.testing.assert_array_equal(opt.implicit_vars[f"{key}_cache"].value, 0.0)
    assert opt.lr.last_call.value == -1


def test_as_a_tree():
    opt = Adadelta(variables(), 0.5)
    opt.update(ones())
    leaves, structure = opt.tree_flatten()
    again = type(opt).tree_unflatten(structure, leaves)
    assert repr(again) == repr(opt)
    assert again.vars() == opt.vars()
    again.update(ones())


def test_brainpys_names():
    bm.clear_name_cache()
    first, second = Adadelta(variables()), bp.optim.Adadelta(1.0, variables())
    assert (first.name, second.name) == ("Adadelta0", "Adadelta1")  # one registry
    with pytest.raises(bp.errors.UniqueNameError):
        Adadelta(name="Adadelta1")
    with pytest.raises(bp.errors.UniqueNameError):
        bp.BrainPyObject(name="Adadelta0")
    other = copy.copy(first)  # BrainPy's variables allow no deepcopy
    assert (first.name, other.name) == ("Adadelta0", "Adadelta2")
    bm.clear_name_cache()
    assert Adadelta().name == "Adadelta0"
    adadelta_tx.clear_name_cache()
    assert Adadelta().name == "Adadelta0"


def test_each_library_names_its_own(tmp_path):
    """One name twice is an error where both are saved together."""
    adadelta_tx.clear_name_cache()
    kinds = [bm.TrainVar, adadelta_tx.TrainVar]
    one, other = (Adadelta({"w": kind(jnp.ones(3))}) for kind in kinds)
    assert one.name == other.name == "Adadelta0"
    with pytest.raises(
        ValueError, match=r"'Adadelta0\.w_cache' is another variable of"
    ):
        one.save_states(tmp_path / "run.npz", other.vars())
    other.name = "other"
    assert not one.vars().keys() & {x for x in other.vars() if x.startswith("other")}


def test_what_is_called_like_a_scheduler_is_none():
    class Mine:
        def __call__(self, count):
            return 0.5

        step_call = step_epoch = None

    opt = Adadelta(variables(), Mine())
    opt.update(ones())
    assert float(opt.lr()) == 0.5
    assert len(opt.vars()) == 6


@pytest.mark.parametrize("kind", [bp.errors.MathError, TypeError])
def test_math_error_of_a_list(kind):
    with pytest.raises(kind, match="train_vars must be a dict of variables, got list"):
        Adadelta([bm.TrainVar(jnp.ones(3))])


@pytest.mark.parametrize("kind", [bp.errors.MathError, ValueError])
@pytest.mark.parametrize("bad", [{}, {"w": 1.0}, {**ones(), "more": 1.0}])
def test_math_error_of_a_wrong_number_of_gradients(bad, kind):
    opt = Adadelta(variables())
    before = numbers_of(opt.vars_to_train)
    for method in (opt.update, opt.check_grads):
        with pytest.raises(kind, match="The gradients do not match the variables"):
            method(bad)
    chex.assert_trees_all_equal(numbers_of(opt.vars_to_train), before)


def test_network_without_variables_to_train():
    with pytest.warns(UserWarning, match=r"bm\.training_environment\(\)") as caught:
        Adadelta(bp.dnn.Dense(2, 3).train_vars().unique())
    assert caught[0].filename == __file__
    with bm.training_environment():
        Adadelta(bp.dnn.Dense(2, 3).train_vars().unique())  # a warning is an error


def test_register_vars_warns():
    opt = Adadelta()
    with pytest.warns(UserWarning, match="register_train_vars"):
        opt.register_vars(variables())
    opt.update(ones())


def test_learning_rate_as_brainpys_users_set_it():
    opt = Adadelta(variables(), 0.5)
    assert opt.lr.lr == opt.lr() == 0.5
    opt.lr.lr *= 0.5
    assert opt.lr.lr == 0.25
    opt.lr.set_value(1)
    assert opt.lr.lr == 1.0
    opt.lr.lr = bm.asarray(0.125)
    assert opt.lr.lr == 0.125
    step = bm.jit(lambda: opt.update(ones()))
    step()
    before = np.asarray(opt.vars_to_train["w"].value)
    opt.lr = 0.0  # which the compiled step sees
    step()
    np.testing.assert_array_equal(opt.vars_to_train["w"].value, before)
    opt.lr.last_epoch = 5
    opt.lr.step_epoch()
    assert opt.lr.last_epoch.value == 6
    scheduler = bp.optim.StepLR(0.5, step_size=1)
    opt.lr = scheduler
    assert opt.lr is scheduler
    assert scheduler in opt.nodes().values()


@pytest.mark.parametrize(
    "scheduler",
    [bp.optim.Constant(-0.5), bp.optim.PolynomialDecayLR(1.0, 1, -0.5, last_call=3)],
)
def test_scheduler_that_climbs_changes_nothing(scheduler):
    opt = Adadelta(variables(), scheduler)
    with pytest.raises(
        ValueError, match=r"lr must be finite and at least 0, got -0\.5"
    ):
        opt.update(ones())
    np.testing.assert_array_equal(opt.vars_to_train["w"].value, 1.0)


def test_second_network_of_the_same_shapes_compiles_nothing():
    def network_vars():
        with bm.training_environment():
            network = bp.Sequential(bp.dnn.Dense(3, 4), bp.dnn.Dense(4, 2))
        return trained_vars(network)

    def train(train_vars):
        opt = Adadelta(train_vars)
        opt.update({key: np.ones(v.shape, "f4") for key, v in train_vars.items()})

    first, second = network_vars(), network_vars()
    assert first.keys() != second.keys()
    train(first)
    with compilations() as found:
        train(second)
        assert not found


def test_optimizer_as_an_attribute():
    class Model(bp.BrainPyObject):
        def __init__(self):
            super().__init__()
            self.w = bm.TrainVar(jnp.ones(3))
            self.opt = Adadelta({"w": self.w})

    model = Model()
    assert model.opt.vars().items() <= model.vars().items()
    assert model.train_vars() == {f"{model.name}.w": model.w}
