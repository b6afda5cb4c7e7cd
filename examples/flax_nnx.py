"""A regression with Flax NNX."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import adadelta_tx


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(1, 32, rngs=rngs)
        self.out = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))[:, 0]


def data(key):
    inputs, noise = jax.random.split(key)
    x = jax.random.uniform(inputs, (1024, 1), minval=-2, maxval=2)
    return x, jnp.sin(x[:, 0]) + 0.1 * jax.random.normal(noise, (1024,))


def error(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@functools.partial(nnx.jit, donate_argnums=(0, 1))
def step(model, optimizer, x, y):
    optimizer.update(model, nnx.grad(error)(model, x, y))


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 2000))
model = Model(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
x, y = data(jax.random.key(1))
for _ in range(2000):
    step(model, optimizer, x, y)
rms = jnp.sqrt(error(model, *data(jax.random.key(2))))
print(f"RMS error on new data: {rms:.6g}, of the noise alone: 0.1")
