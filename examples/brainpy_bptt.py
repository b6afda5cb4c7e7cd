"""A recurrent network with BrainPy, trained by its trainer for BPTT."""

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


def error(predictions, y):
    return jnp.mean((bm.as_jax(predictions) - y) ** 2)


bm.random.seed(0)
with bm.training_environment():
    network = Network()
lr = bp.optim.ExponentialLR(1.0, gamma=0.85)  # an epoch
optimizer = adadelta_tx.Adadelta(train_vars=network.train_vars().unique(), lr=lr)
trainer = bp.BPTT(network, error, optimizer, progress_bar=False)
trainer.fit([data(jax.random.key(1))] * 100, num_epoch=20)
x, y = data(jax.random.key(2))
rms = jnp.sqrt(error(trainer.predict(x, reset_state=True), y))
print(f"RMS error on new data: {rms:.6g}, of the noise alone: 0.1")
