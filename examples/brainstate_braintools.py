"""A regression with brainstate; braintools' OptaxOptimizer takes the transformation."""

import brainstate
import braintools
import jax
import jax.numpy as jnp
import optax

import adadelta_tx


class Model(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = brainstate.nn.Linear(1, 32)
        self.out = brainstate.nn.Linear(32, 1)

    def update(self, x):
        return self.out(jnp.tanh(self.hidden(x)))[:, 0]


def data(key):
    inputs, noise = jax.random.split(key)
    x = jax.random.uniform(inputs, (1024, 1), minval=-2, maxval=2)
    return x, jnp.sin(x[:, 0]) + 0.1 * jax.random.normal(noise, (1024,))


brainstate.random.seed(0)
model = Model()
weights = model.states(brainstate.ParamState)
tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 2000))
optimizer = braintools.optim.OptaxOptimizer(tx)
optimizer.register_trainable_weights(weights)


def error(x, y):
    return jnp.mean((model(x) - y) ** 2)


@brainstate.transform.jit
def train(x, y):
    def step(_):
        optimizer.step(brainstate.transform.grad(error, weights)(x, y))

    brainstate.transform.for_loop(step, jnp.arange(2000))


train(*data(jax.random.key(1)))
rms = jnp.sqrt(error(*data(jax.random.key(2))))
print(f"RMS error on new data: {rms:.6g}, of the noise alone: 0.1")
