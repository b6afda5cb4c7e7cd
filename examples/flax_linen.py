"""A regression with Flax Linen and its TrainState."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import adadelta_tx


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(32)(x)))[:, 0]


def data(key):
    inputs, noise = jax.random.split(key)
    x = jax.random.uniform(inputs, (1024, 1), minval=-2, maxval=2)
    return x, jnp.sin(x[:, 0]) + 0.1 * jax.random.normal(noise, (1024,))


@functools.partial(jax.jit, donate_argnums=0)
def step(state, x, y):
    def error(params):
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    return state.apply_gradients(grads=jax.grad(error)(state.params))


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 2000))
model = Model()
x, y = data(jax.random.key(1))
params = model.init(jax.random.key(0), x)["params"]
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
for _ in range(2000):
    state = step(state, x, y)
x, y = data(jax.random.key(2))
predictions = state.apply_fn({"params": state.params}, x)
rms = jnp.sqrt(jnp.mean((predictions - y) ** 2))
print(f"RMS error on new data: {rms:.6g}, of the noise alone: 0.1")
