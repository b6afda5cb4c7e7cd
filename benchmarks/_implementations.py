"""The implementations of Adadelta that ``benchmarks.step`` compares."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adadelta_tx
from benchmarks import _report as report

RHO, EPS = 0.95, 1e-6
OURS, LOW = "adadelta_tx", "adadelta_tx, bfloat16 state"
OPTAX, COMPILED = "optax", "torch.compile"

Make = Callable[[list[np.ndarray], list[np.ndarray]], report.Timed]


def of_optax(
    tx: optax.GradientTransformation, donate: tuple[int, ...] = (0, 1)
) -> Make:
    """An optax transformation; parameters and state may be donated."""

    def make(params: list[np.ndarray], grads: list[np.ndarray]) -> report.Timed:
        start, given = jax.tree.map(jnp.asarray, (params, grads))
        update = report.step_of(tx)
        return report.timed_jax(update, start, tx.init(start), given, donate)

    return make


def of_keras(params: list[np.ndarray], grads: list[np.ndarray]) -> report.Timed:
    """Keras on JAX, through its stateless interface, compiled."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras  # pyright: ignore[reportMissingImports]: not in the test extra

    optimizer = keras.optimizers.Adadelta(1.0, rho=RHO, epsilon=EPS)
    optimizer.build([keras.Variable(x) for x in params])

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        return optimizer.stateless_apply(state, grads, params)

    start, given = jax.tree.map(jnp.asarray, (params, grads))
    state = [variable.value for variable in optimizer.variables]
    return report.timed_jax(update, start, state, given)


def of_brainpy(
    compiled: bool, params: list[np.ndarray], grads: list[np.ndarray]
) -> report.Timed:
    """BrainPy's object, operation by operation or under ``bm.jit``."""
    import brainpy as bp
    import brainpy.math as bm

    variables: dict[str, Any] = {
        f"w{i}": bm.TrainVar(jnp.array(x)) for i, x in enumerate(params)
    }
    optimizer = bp.optim.Adadelta(1.0, variables, epsilon=EPS, rho=RHO)
    given = {f"w{i}": jnp.asarray(g) for i, g in enumerate(grads)}
    update = bm.jit(optimizer.update) if compiled else optimizer.update

    def step() -> None:
        update(given)
        jax.block_until_ready([variable.value for variable in variables.values()])

    return report.Timed(
        step, lambda: [variable.value for variable in variables.values()]
    )


def of_torch(
    compiled: bool, params: list[np.ndarray], grads: list[np.ndarray]
) -> report.Timed:
    """torch.optim.Adadelta, foreach, eager or under ``torch.compile``."""
    import torch  # pyright: ignore[reportMissingImports]: not in the test extra

    torch.compiler.reset()
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    variables = [torch.nn.Parameter(torch.tensor(x, device=device)) for x in params]
    for variable, g in zip(variables, grads, strict=True):
        variable.grad = torch.tensor(g, device=device)
    optimizer = torch.optim.Adadelta(variables, 1.0, RHO, EPS, foreach=True)
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step() -> None:
        update()
        if device == "cuda":
            torch.cuda.synchronize()

    return report.Timed(step, lambda: [v.detach().cpu().numpy() for v in variables])


def in_place_pass(params: list[np.ndarray]) -> report.Timed:
    """Reads and writes as many numbers as there are parameters."""
    x = jnp.concatenate([jnp.ravel(x) for x in params])
    scale = jax.jit(lambda x: x * 0.999, donate_argnums=0)

    def step() -> None:
        nonlocal x
        x = jax.block_until_ready(scale(x))

    return report.Timed(step, lambda: [])


AT_RANDOM = {
    "adadelta_tx, bfloat16 state, rho 0.99": adadelta_tx.adadelta(
        1.0, 0.99, EPS, accumulator_dtype=jnp.bfloat16
    ),
    "adadelta_tx, 8-bit state": adadelta_tx.adadelta(
        1.0, RHO, EPS, accumulator_dtype=jnp.uint8
    ),
}
"""Their state is rounded at random, so their numbers are not those of the others."""
TRANSFORMATIONS = {
    OURS: adadelta_tx.adadelta(1.0, RHO, EPS),
    LOW: adadelta_tx.adadelta(1.0, RHO, EPS, accumulator_dtype=jnp.bfloat16),
    **AT_RANDOM,
    OPTAX: optax.adadelta(1.0, RHO, EPS),
}
IMPLEMENTATIONS: dict[str, Make] = {
    **{name: of_optax(tx) for name, tx in TRANSFORMATIONS.items()},
    "Keras": of_keras,
    "BrainPy": functools.partial(of_brainpy, False),
    "bm.jit": functools.partial(of_brainpy, True),
    "torch": functools.partial(of_torch, False),
    COMPILED: functools.partial(of_torch, True),
}
