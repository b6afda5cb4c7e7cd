"""What it costs not to donate: training steps of a layer of 5 million parameters.

Without donation each step writes its results to memory that it has to get first, and
memory that is new to the process is mapped page by page. What is new depends on what
else the process has freed, so each case runs in processes of its own, as in training.
"""

import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import table
from flax import nnx
from tqdm import tqdm

import adadelta_tx

WIDTH, STEPS, ROUNDS = 2236, 40, 3


def error(model, x):
    return jnp.mean(jax.vmap(model)(x) ** 2)


def nnx_step(donated):
    model = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adadelta_tx.adadelta(), wrt=nnx.Param)

    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(error)(model, x))

    step = nnx.jit(step, donate_argnums=(0, 1) if donated else ())

    def run(x):
        step(model, optimizer, x)
        jax.block_until_ready(nnx.state((model, optimizer)))

    return run


def equinox_step(donated):
    model = eqx.nn.Linear(WIDTH, WIDTH, key=jax.random.key(0))
    tx = adadelta_tx.adadelta()
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
CASES = [(library, donated) for library in LIBRARIES for donated in (False, True)]


def measure(case):
    """Milliseconds of each step, and megabytes that were mapped in a step."""
    library, donated = case
    run, x = LIBRARIES[library](donated), jnp.ones((1, WIDTH))
    for _ in range(5):  # the first ones compile
        run(x)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        run(x)
        times.append(1e3 * (time.perf_counter() - start))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return times, faults / STEPS * resource.getpagesize() / 1e6


def main():
    spawn = multiprocessing.get_context("spawn")
    results = {case: [] for case in CASES}
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        runs = CASES * ROUNDS
        measured = tqdm(pool.map(measure, runs), total=len(runs))
        for case, result in zip(runs, measured, strict=True):
            results[case].append(result)
    rows = [
        {
            "library": library,
            "donated": donated,
            "median_ms": statistics.median(ms for times, _ in rounds for ms in times),
            "mapped_mb": statistics.median(mapped for _, mapped in rounds),
        }
        for (library, donated), rounds in results.items()
    ]
    table.save("donation", rows)
    table.main()


if __name__ == "__main__":
    main()
