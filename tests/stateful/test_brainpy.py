"""The Adadelta object in real BrainPy and brainstate, beside BrainPy's own."""

import brainpy as bp
import brainpy.math as bm
import brainstate
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adadelta_tx
from adadelta_tx import Adadelta


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


@pytest.mark.parametrize("trainer", [bp.BPTT, bp.BPFF])
@pytest.mark.parametrize("ours", OURS)
def test_trainers(trainer, ours):
    want, _ = losses(trainer, theirs())
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


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_brainpy_schedulers(scheduler):
    make = SCHEDULERS[scheduler]
    want, _ = losses(bp.BPTT, theirs(lr=make()))
    unscheduled, _ = losses(bp.BPTT, theirs())
    assert not np.allclose(want, unscheduled, rtol=1e-2)
    got, optimizer = losses(bp.BPTT, lambda network: Adadelta(lr=make()))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    names = {name.partition(".")[2] for name in optimizer.vars() if "Net" not in name}
    assert "last_epoch" in names


def test_optax_schedule_in_a_trainer():
    schedule = optax.exponential_decay(1.0, 5, 0.5, staircase=True)
    got, optimizer = losses(bp.BPTT, lambda network: Adadelta(lr=schedule))
    want, _ = losses(bp.BPTT, theirs(lr=bp.optim.StepLR(1.0, step_size=1, gamma=0.5)))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert optimizer.lr() == 0.5**4


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
    assert all(type(v) is bm.TrainVar for v in ours.train_vars().values())
    assert list(ours.vars("relative"))[-2:] == ["lr.last_epoch", "lr.last_call"]


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


WAYS = {
    "eager": lambda step: [step() for _ in range(12)],
    "bm.jit": lambda step: [bm.jit(step)() for _ in range(12)],
    "bm.for_loop": lambda step: bm.for_loop(step, jnp.arange(12)),
    "brainstate": lambda step: brainstate.transform.for_loop(step, jnp.arange(12)),
}


@pytest.mark.parametrize("weight_decay", [None, 0.01])
@pytest.mark.parametrize("way", WAYS)
def test_transformations(way, weight_decay):
    step, _ = training_step(
        lambda train_vars: bp.optim.Adadelta(1.0, train_vars, weight_decay)
    )
    want = WAYS["eager"](step)
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


@pytest.mark.parametrize("way", ["eager", "jit", "for_loop"])
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
        updates, tx_state = tx.update(dict(grads), tx_state, params)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_own_lr_variable_with_theirs(family):
    lr = adadelta_tx.Variable(jnp.asarray(0.5))
    opt = Adadelta(lr=lr)
    with pytest.raises(ValueError, match="Give lr as a variable of their kind"):
        opt.register_train_vars({"w": FAMILIES[family](jnp.ones(3))})
    assert not opt.vars_to_train


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
