"""A regression in plain JAX: the whole training loop is one compiled program."""

import functools

import jax
import jax.numpy as jnp
import optax

import adadelta_tx


def data(key):
    inputs, noise = jax.random.split(key)
    x = jax.random.uniform(inputs, (1024, 1), minval=-2, maxval=2)
    return x, jnp.sin(x[:, 0]) + 0.1 * jax.random.normal(noise, (1024,))


def error(params, x, y):
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - y) ** 2)


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 2000))
params = {
    "w": jax.random.normal(jax.random.key(0), (1, 32)),
    "b": jnp.zeros(32),
    "v": jnp.zeros(32),
}


@functools.partial(jax.jit, donate_argnums=(0, 1))
def train(params, state, x, y):
    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(error)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, state), length=2000)


(params, _), _ = train(params, tx.init(params), *data(jax.random.key(1)))
rms = jnp.sqrt(error(params, *data(jax.random.key(2))))
print(f"RMS error on new data: {rms:.6g}, of the noise alone: 0.1")
