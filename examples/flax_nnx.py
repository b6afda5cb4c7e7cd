"""A regression with Flax NNX, saved by Orbax: kill it, run it again, and it goes on."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx

import adadelta_tx

EXPECTED = 0.1  # the noise's standard deviation; nothing predicts better


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


def main(adadelta=adadelta_tx.adadelta, folder="results/flax_nnx"):
    tx = adadelta(optax.cosine_decay_schedule(1.0, 2000), rho=0.95)
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x, y = data(jax.random.key(1))
    with ocp.CheckpointManager(Path(folder).resolve()) as manager:
        done = manager.latest_step() or 0
        if done:
            saved = ocp.args.StandardRestore(nnx.state((model, optimizer)))
            nnx.update((model, optimizer), manager.restore(done, args=saved))
        print(f"from step {done}")
        for i in range(done + 1, 2001):
            step(model, optimizer, x, y)
            if i % 100 == 0:
                now = ocp.args.StandardSave(nnx.state((model, optimizer)))
                manager.save(i, args=now)
    return float(jnp.sqrt(error(model, *data(jax.random.key(2)))))


if __name__ == "__main__":
    print(f"RMS error on new data: {main():.6g}, expected: {EXPECTED}")
