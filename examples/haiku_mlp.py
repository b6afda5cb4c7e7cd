"""A regression with Haiku."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import adadelta_tx


def data(key):
    inputs, noise = jax.random.split(key)
    x = jax.random.uniform(inputs, (1024, 1), minval=-2, maxval=2)
    return x, jnp.sin(x[:, 0]) + 0.1 * jax.random.normal(noise, (1024,))


@hk.without_apply_rng
@hk.transform
def network(x):
    return hk.nets.MLP([32, 1], activation=jnp.tanh)(x)[:, 0]


def error(params, x, y):
    return jnp.mean((network.apply(params, x) - y) ** 2)


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 2000))


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, x, y):
    updates, state = tx.update(jax.grad(error)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


x, y = data(jax.random.key(1))
params = network.init(jax.random.key(0), x)
state = tx.init(params)
for _ in range(2000):
    params, state = step(params, state, x, y)
rms = jnp.sqrt(error(params, *data(jax.random.key(2))))
print(f"RMS error on new data: {rms:.6g}, of the noise alone: 0.1")
