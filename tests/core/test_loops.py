"""Training loops that the pages name without showing them; the others run there."""

import chex
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import adadelta_tx

X = jax.random.normal(jax.random.key(0), (256, 4))
Y = jnp.sin(X).sum(axis=1)


def test_haiku_transform():
    def model(x):
        return hk.Linear(1)(jnp.tanh(hk.Linear(32)(x)))[:, 0]

    network = hk.without_apply_rng(hk.transform(model))
    params = network.init(jax.random.key(1), X)
    tx = adadelta_tx.adadelta()
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.mean((network.apply(params, X) - Y) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(300):
        params, state, value = step(params, state)
    assert value < 0.05


def test_linen_with_batch_norm_and_accumulated_gradients():
    """A TrainState with more than parameters, whose gradients come in two halves."""
    dtype = jnp.bfloat16

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(32, param_dtype=dtype)(x)
            x = nn.BatchNorm(use_running_average=False, param_dtype=dtype)(x)
            return nn.Dense(1, param_dtype=dtype)(nn.tanh(x))[:, 0]

    class State(TrainState):
        averages: chex.ArrayTree

    model = Model()
    variables = model.init(jax.random.key(1), X)
    state = State.create(
        apply_fn=model.apply,
        params=variables["params"],
        averages=variables["batch_stats"],
        tx=optax.MultiSteps(adadelta_tx.adadelta(), every_k_schedule=2),
    )

    @jax.jit
    def step(state, x, y):
        def loss(params):
            both = {"params": params, "batch_stats": state.averages}
            out, new = state.apply_fn(both, x, mutable=["batch_stats"])
            return jnp.mean((out - y) ** 2), new["batch_stats"]

        (value, averages), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, averages=averages), value

    for _ in range(300):
        for half in (slice(0, 128), slice(128, 256)):
            state, value = step(state, X[half], Y[half])
    assert value < 0.1
    assert jax.tree.leaves(state.params)[0].dtype == dtype
