"""What it costs not to donate: training steps of a network of 5 million parameters.

Prints medians of interleaved rounds, in milliseconds, and writes them to
results/donation.json.
"""

import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import table
from flax import nnx
from tqdm import trange

import adadelta_tx

WIDTH, ROUNDS = 1300, 20
OPTIMIZERS = {
    "adadelta_tx.adadelta": adadelta_tx.adadelta,
    "optax.adadelta": optax.adadelta,
}


def error(model, x):
    return jnp.mean(jax.vmap(model)(x) ** 2)


def nnx_step(adadelta, donated):
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3)]
    model = nnx.Sequential(*layers)
    optimizer = nnx.Optimizer(model, adadelta(1.0, rho=0.95), wrt=nnx.Param)

    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(error)(model, x))

    step = nnx.jit(step, donate_argnums=(0, 1) if donated else ())

    def run(x):
        step(model, optimizer, x)
        jax.block_until_ready(nnx.state((model, optimizer)))

    return run


def equinox_step(adadelta, donated):
    model = eqx.nn.MLP(WIDTH, WIDTH, WIDTH, 2, key=jax.random.key(0))
    tx = adadelta(1.0, rho=0.95)
    trained = model, tx.init(eqx.filter(model, eqx.is_inexact_array))

    def step(x, model, state):
        grads = eqx.filter_grad(error)(model, x)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    step = eqx.filter_jit(step, donate="all-except-first" if donated else "none")

    def run(x):
        nonlocal trained
        trained = jax.block_until_ready(step(x, *trained))

    return run


LIBRARIES = {"Flax NNX": nnx_step, "Equinox": equinox_step}


def main():
    steps = {
        (library, name, donated): make(adadelta, donated)
        for library, make in LIBRARIES.items()
        for name, adadelta in OPTIMIZERS.items()
        for donated in (False, True)
    }
    x = jnp.ones((1, WIDTH))
    times = {case: [] for case in steps}
    for _ in trange(ROUNDS + 2, desc="rounds"):
        for case, run in steps.items():
            for _ in range(5):
                start = time.perf_counter()
                run(x)
                times[case].append(1e3 * (time.perf_counter() - start))
    # The first ones compile.
    medians = {case: statistics.median(times[case][10:]) for case in times}
    rows = [
        {
            "library": library,
            "optimizer": name,
            "copied": medians[library, name, False],
            "donated": medians[library, name, True],
        }
        for library in LIBRARIES
        for name in OPTIMIZERS
    ]
    print(table.donation(table.save("donation", rows)))


if __name__ == "__main__":
    main()
