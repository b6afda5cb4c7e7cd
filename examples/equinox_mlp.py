"""A regression with Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import adadelta_tx


def data(key):
    inputs, noise = jax.random.split(key)
    x = jax.random.uniform(inputs, (1024, 1), minval=-2, maxval=2)
    return x, jnp.sin(x[:, 0]) + 0.1 * jax.random.normal(noise, (1024,))


def error(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 2000))


@eqx.filter_jit(donate="all-except-first")
def step(batch, model, state):
    grads = eqx.filter_grad(error)(model, batch)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = tx.update(grads, state, params)
    return eqx.apply_updates(model, updates), state


model = eqx.nn.MLP(1, "scalar", 32, 1, jnp.tanh, key=jax.random.key(0))
state = tx.init(eqx.filter(model, eqx.is_inexact_array))
batch = data(jax.random.key(1))
for _ in range(2000):
    model, state = step(batch, model, state)
rms = jnp.sqrt(error(model, data(jax.random.key(2))))
print(f"RMS error on new data: {rms:.6g}, of the noise alone: 0.1")
