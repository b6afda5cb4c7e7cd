"""A recurrent network with BrainPy, trained in a loop of one's own."""

import brainpy as bp
import brainpy.math as bm
import jax
import jax.numpy as jnp

import adadelta_tx


class Network(bp.DynamicalSystem):
    def __init__(self):
        super().__init__()
        self.rnn = bp.dyn.RNNCell(1, 32)
        self.out = bp.dnn.Dense(32, 1)

    def update(self, x):
        return self.out(self.rnn(x))


def data(key):
    """A leaky sum of the input, with noise: (sequence, time, 1)."""
    inputs, noise = jax.random.split(key)
    x = jax.random.normal(inputs, (256, 10, 1))
    age = jnp.arange(10)[:, None] - jnp.arange(10)
    sums = jnp.tril(0.5**age) @ x
    return x, sums + 0.1 * jax.random.normal(noise, x.shape)


bm.random.seed(0)
with bm.training_environment():
    network = Network()
weights = network.train_vars().unique()
lr = bp.optim.ExponentialDecayLR(1.0, decay_steps=1000, decay_rate=0.1)
optimizer = adadelta_tx.Adadelta(train_vars=weights, lr=lr)


def error(x, y):
    network.reset(len(x))
    predictions = bm.for_loop(network, jnp.swapaxes(x, 0, 1))
    return jnp.mean((bm.as_jax(predictions) - jnp.swapaxes(y, 0, 1)) ** 2)


grad = bm.grad(error, grad_vars=weights)


@bm.jit
def step(x, y):
    optimizer.update(grad(x, y))


x, y = data(jax.random.key(1))
for _ in range(2000):
    step(x, y)
rms = jnp.sqrt(error(*data(jax.random.key(2))))
print(f"RMS error on new data: {rms:.6g}, of the noise alone: 0.1")
