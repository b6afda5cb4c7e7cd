"""Repeats the experiments of Zeiler (2012, arXiv:1212.5701), to compare the figures.

Tables 1 and 2 of its section 4: MNIST, a network 784-500-300-10 of tanh units with a
softmax, batches of 100, 6 epochs; SGD, Momentum, ADAGRAD and ADADELTA, each cell from
several seeds. A seed sets the initial weights and the order of the images. Then one
run of ADADELTA is inspected every 10 batches, as in Figure 2.

The paper does not say how it initialised the network or scaled the images. With
``--choices``, all cells of Table 2 are trained with one seed for each way to do both,
and the table shows how far the test errors are from the paper's. One choice was made
for all cells.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import adadelta_tx
from benchmarks import _mnist as mnist
from benchmarks import _models as models
from benchmarks import _pictures as pictures
from benchmarks import _report as report

BATCH = 100
CHUNK = 100
"""Batches between two signs of progress."""
LOOK = 10
"""Batches between two looks into a run."""
PERCENTILES = (5, 50, 95)
RATE = "learning rate"
HYPERPARAMETERS = (RATE, "ρ", "ε")


class Method(NamedTuple):
    """A table's column: how to make it, and what the paper says of it."""

    make: Callable[..., optax.GradientTransformation]
    cells: dict[tuple[tuple[str, float], ...], float]
    """The paper's test error in per cent, by hyperparameters."""


def by_rate(*errors: float) -> dict[tuple[tuple[str, float], ...], float]:
    """A column of Table 1. The paper calls the learning rate ε there."""
    rates = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    return {((RATE, x),): error for x, error in zip(rates, errors, strict=True)}


def by_rho_and_eps(
    table: dict[float, tuple[float, ...]],
) -> dict[tuple[tuple[str, float], ...], float]:
    """Table 2, its columns given."""
    return {
        (("ρ", rho), ("ε", eps)): error
        for rho, errors in table.items()
        for eps, error in zip((1e-2, 1e-4, 1e-6, 1e-8), errors, strict=True)
    }


ADADELTA = "ADADELTA"
METHODS = {
    "SGD": Method(
        lambda h: optax.sgd(h[RATE]), by_rate(2.26, 2.51, 7.02, 17.01, 58.10)
    ),
    "Momentum": Method(
        lambda h: optax.sgd(h[RATE], momentum=0.9),
        by_rate(89.68, 2.03, 2.68, 6.98, 16.98),
    ),
    "ADAGRAD": Method(
        lambda h: optax.adagrad(h[RATE], initial_accumulator_value=0.0, eps=1e-30),
        by_rate(43.76, 2.82, 1.79, 5.21, 12.59),
    ),
    ADADELTA: Method(
        lambda h: adadelta_tx.adadelta(rho=h["ρ"], eps=h["ε"]),
        by_rho_and_eps(
            {
                0.9: (2.59, 2.05, 1.90, 2.29),
                0.95: (2.58, 1.99, 1.83, 2.13),
                0.99: (2.32, 2.28, 2.05, 2.00),
            }
        ),
    ),
}
LOOKED_INTO = (("ρ", 0.95), ("ε", 1e-6))
SMOOTHED = 10
"""Looks that one point of Figure 2's updates is the mean of."""

INITIALISERS = {
    "N(0, 1/fan-in)": jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
    "U(±1/√fan-in)": jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "Glorot uniform": jax.nn.initializers.glorot_uniform(),
    "N(0, 0.01²)": jax.nn.initializers.normal(0.01),
}
"""Of weights; biases are 0."""

SCALINGS = {
    "[0, 1]": lambda x, of: x,
    "mean and deviation of all": lambda x, of: (x - of.mean()) / of.std(),
    "mean of each pixel, deviation of all": lambda x, of: (x - of.mean(0)) / of.std(),
}
"""Of images ``x``, by those ``of`` the training set."""

CHOSEN = "Glorot uniform", "mean of each pixel, deviation of all"


def scaled(data: mnist.Data, scaling: str) -> mnist.Data:
    """The data, the images scaled."""
    train_images, test_images = (
        SCALINGS[scaling](x, data.train_images)
        for x in (data.train_images, data.test_images)
    )
    return data._replace(train_images=train_images, test_images=test_images)


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch, in nats."""
    return models.cross_entropy(mnist.logits(params, images), labels)


def order(seed: int, epoch: int, images: int) -> jax.Array:
    """The rows of each batch of an epoch, of shape ``(batches, BATCH)``."""
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    batches = images // BATCH
    rows = jax.random.permutation(key, images)[: batches * BATCH]
    return rows.reshape(batches, BATCH)


def step_of(
    make: Callable[..., optax.GradientTransformation],
) -> Callable[..., tuple[Any, Any]]:
    """A step on a batch, as a function of hyperparameters too."""

    def step(
        h: dict[str, Any], params: Any, state: Any, images: Any, labels: Any
    ) -> tuple[Any, Any]:
        grads = jax.grad(loss)(params, images, labels)
        return report.step_of(make(h))(params, state, grads)

    return step


def train(
    name: str,
    initialiser: str,
    data: mnist.Data,
    seeds: int,
    epochs: int,
    progress: Any,
) -> list[dict[str, Any]]:
    """All cells of a method, which train together.

    Returns:
      For each cell, what it is, the paper's figure, and in per cent the test
      errors of each seed after each epoch.
    """
    method = METHODS[name]
    names = [name for name, _ in next(iter(method.cells))]
    hyperparameters = {
        name: jnp.asarray([dict(cell)[name] for cell in method.cells]) for name in names
    }
    cells = jax.vmap(step_of(method.make), in_axes=(0, 0, 0, None, None))
    cells_and_seeds = jax.vmap(cells, in_axes=(None, 0, 0, 0, 0))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params: Any, state: Any, rows: jax.Array) -> tuple[Any, Any]:
        def body(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            batch = data.train_images[rows], data.train_labels[rows]
            return cells_and_seeds(hyperparameters, *carry, *batch), None

        return jax.lax.scan(body, (params, state), rows)[0]

    @jax.jit
    def errors(params: Any) -> jax.Array:
        def error(params: Any) -> jax.Array:
            found = mnist.logits(params, data.test_images).argmax(-1)
            return 100 * jnp.mean(found != data.test_labels)

        return jax.lax.map(jax.vmap(error), params)

    def start(h: dict[str, Any], key: jax.Array) -> tuple[Any, Any]:
        params = mnist.initial_parameters(key, INITIALISERS[initialiser])
        return params, method.make(h).init(params)

    starts = jax.vmap(jax.vmap(start, in_axes=(0, None)), in_axes=(None, 0))
    params, state = starts(
        hyperparameters, jnp.stack([jax.random.key(seed) for seed in range(seeds)])
    )
    found = []
    for epoch in range(epochs):
        images = len(data.train_images)
        rows = jnp.stack([order(seed, epoch, images) for seed in range(seeds)], 1)
        for i in range(0, len(rows), CHUNK):
            chunk = rows[i : i + CHUNK]
            params, state = jax.block_until_ready(run(params, state, chunk))
            progress.update(len(chunk) * seeds * len(method.cells))
        found.append(np.asarray(errors(params)))
    by_cell = np.stack(found, -1).swapaxes(0, 1).tolist()
    return [
        {"method": name, **dict(cell), "paper": paper, "errors": its}
        for (cell, paper), its in zip(method.cells.items(), by_cell, strict=True)
    ]


def look(data: mnist.Data, epochs: int, progress: Any) -> dict[str, Any]:
    """What one run of ADADELTA, of seed 0, looks like from inside.

    Returns:
      The batches after which it was looked at and, for each, by layer, the
      percentiles of the weights' effective learning rates and the RMS of their
      updates. And what a look costs, compared with 100 steps.
    """
    hyperparameters = dict(LOOKED_INTO)
    method = METHODS[ADADELTA]
    rates_of = functools.partial(
        adadelta_tx.effective_learning_rate,
        eps=hyperparameters["ε"],
        percentiles=PERCENTILES,
    )

    def step(carry: Any, rows: jax.Array) -> tuple[Any, Any]:
        batch = data.train_images[rows], data.train_labels[rows]
        new = step_of(method.make)(hyperparameters, *carry, *batch)
        return new, jax.tree.map(jnp.subtract, new[0], carry[0])

    @jax.jit
    def steps(carry: Any, rows: jax.Array) -> Any:
        return jax.lax.scan(lambda c, r: (step(c, r)[0], None), carry, rows)[0]

    @jax.jit
    def until_look(carry: Any, rows: jax.Array) -> tuple[Any, Any]:
        carry, updates = step(steps(carry, rows[:-1]), rows[-1])
        rates = [layer["w"] for layer in rates_of(carry[1])]
        return carry, (rates, [jnp.sqrt(jnp.mean(u["w"] ** 2)) for u in updates])

    params = mnist.initial_parameters(jax.random.key(0), INITIALISERS[CHOSEN[0]])
    carry = params, method.make(hyperparameters).init(params)
    rows = jnp.concatenate([order(0, i, len(data.train_images)) for i in range(epochs)])
    looks = max(len(rows) // LOOK, 1)
    blocks = rows[: looks * LOOK].reshape(looks, -1, BATCH)
    seen = []
    for block in blocks:
        carry, found = jax.block_until_ready(until_look(carry, block))
        seen.append(found)
        progress.update(len(block))
    rates, updates = jax.tree.map(lambda *x: np.stack(x).tolist(), *seen)
    return {
        "batches": [LOOK * (i + 1) for i in range(len(updates[0]))],
        "rates": rates,
        "updates": updates,
        "look_ms": median_ms(rates_of, carry[1]),
        "100_steps_ms": median_ms(steps, carry, jnp.tile(rows[0], (100, 1))),
    }


def median_ms(function: Callable[..., Any], *arguments: Any) -> float:
    """The median of 5 calls, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return report.milliseconds(times)["median_ms"]


def final(cell: dict[str, Any]) -> list[float]:
    """The test errors of a cell's seeds after the last epoch."""
    return [epochs[-1] for epochs in cell["errors"]]


def summary(results: dict[str, Any]) -> str:
    """The table of the cells or of the choices, whichever there is."""
    if "choices" in results:
        return summary_of_choices(results["choices"])
    return summary_of_cells(results)


def summary_of_choices(rows: list[dict[str, Any]]) -> str:
    """The root mean square of the differences from the paper, by both choices."""
    distances = {
        (row["weights"], row["images"]): f"{from_the_paper(row['cells']):.2f}"
        for row in rows
    }
    return report.table(
        ["weights", *(f"images: {scaling}" for scaling in SCALINGS)],
        [
            [weights, *(distances[weights, scaling] for scaling in SCALINGS)]
            for weights in INITIALISERS
        ],
    )


def summary_of_cells(results: dict[str, Any]) -> str:
    """One row a cell: mean and standard deviation, and how far the paper is."""
    rows = []
    for cell in results["cells"]:
        errors = final(cell)
        difference = statistics.mean(errors) - cell["paper"]
        row = [
            cell["method"],
            *(f"{cell[name]:g}" if name in cell else "" for name in HYPERPARAMETERS),
            f"{statistics.mean(errors):.2f}",
            f"{cell['paper']:.2f}",
            f"{difference:+.2f}",
            "",
        ]
        if len(set(errors)) > 1:
            deviation = statistics.stdev(errors)
            row[4] += f" ± {deviation:.2f}"
            row[7] = f"{difference / deviation:+.1f}"
        rows.append(row)
    header = ["method", *HYPERPARAMETERS, "test error, %", "paper", "difference"]
    return report.table([*header, "in standard deviations"], rows)


def look_cost(results: dict[str, Any]) -> str:
    """In words."""
    look_ms, steps_ms = (results["look"][key] for key in ("look_ms", "100_steps_ms"))
    return f"{look_ms:.1f} ms, and 100 training steps take {steps_ms:.0f} ms"


def from_the_paper(cells: list[dict[str, Any]]) -> float:
    """The root mean square of the cells' differences, in per cent."""
    differences = [statistics.mean(final(cell)) - cell["paper"] for cell in cells]
    return math.sqrt(statistics.mean(x**2 for x in differences))


def draw_errors(results: dict[str, Any], path: Path) -> None:
    """Figure 1: the test error by epoch, each method at its best cell."""
    figure = pictures.figure(4, "MNIST: test error of each method at its best setting")
    axes = figure.subplots()
    for i, (method, style) in enumerate(
        zip(reversed(METHODS), pictures.STYLES, strict=True)
    ):
        best = min(
            (cell for cell in results["cells"] if cell["method"] == method),
            key=lambda cell: sum(final(cell)),
        )
        errors = np.asarray(best["errors"])
        means = errors.mean(0)
        epochs = np.arange(1, len(means) + 1)
        numbers = ", ".join(f"{k} = {best[k]:g}" for k in HYPERPARAMETERS if k in best)
        axes.errorbar(
            epochs + 0.05 * (i - 1.5),
            means,
            (means - errors.min(0), errors.max(0) - means),
            **style._asdict(),
            capsize=2,
            elinewidth=0.8,
            label=f"{method}, {numbers}",
        )
    axes.set(
        xlabel="epoch",
        xticks=range(1, results["epochs"] + 1),
        ylabel=f"%, mean and range of {results['seeds']} seeds",
    )
    axes.legend()
    pictures.plain([axes])
    pictures.save(figure, path)


def draw_steps(results: dict[str, Any], path: Path) -> None:
    """Figure 2: effective learning rates and updates of each layer, by batch."""
    seen = results["look"]
    numbers = ", ".join(f"{name} = {value:g}" for name, value in LOOKED_INTO)
    figure = pictures.figure(5, f"One run of ADADELTA on MNIST, {numbers}")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for i, style in zip(range(len(seen["rates"])), pictures.STYLES, strict=False):
        low, median, high = np.asarray(seen["rates"][i]).T
        label = f"layer {i + 1}: {mnist.LAYERS[i]} × {mnist.LAYERS[i + 1]}"
        upper.fill_between(
            seen["batches"], low, high, color=style.color, alpha=0.2, linewidth=0
        )
        upper.plot(
            seen["batches"], median, linestyle=style.linestyle, color=style.color
        )
        squares = np.asarray(seen["updates"][i]) ** 2
        window = min(SMOOTHED, len(squares))
        smooth = np.sqrt(np.convolve(squares, np.ones(window) / window, "valid"))
        lower.plot(
            seen["batches"][window - 1 :],
            smooth,
            linestyle=style.linestyle,
            color=style.color,
            label=label,
        )
    upper.set(ylabel="effective learning rate\n(shaded: 5 % to 95 %)", ylim=(0, 1.05))
    lower.set(
        xlabel=f"batches of {BATCH} images",
        ylabel=f"RMS of the updates\nover {LOOK * SMOOTHED} batches",
        yscale="log",
    )
    lower.legend()
    pictures.plain([upper, lower])
    pictures.save(figure, path)


def progress_bar(steps: int) -> tqdm:
    """One that tells the time left."""
    return tqdm(total=steps, unit="step", unit_scale=True, disable=None)


def try_choices(data: mnist.Data, epochs: int) -> list[dict[str, Any]]:
    """Table 2 with one seed, for each initialiser and each scaling of the images."""
    choices = [(weights, images) for weights in INITIALISERS for images in SCALINGS]
    runs = len(choices) * len(METHODS[ADADELTA].cells)
    rows = []
    with progress_bar(epochs * (len(data.train_images) // BATCH) * runs) as progress:
        for weights, images in choices:
            progress.set_description(f"{weights}; {images}")
            cells = train(ADADELTA, weights, scaled(data, images), 1, epochs, progress)
            rows.append({"weights": weights, "images": images, "cells": cells})
    return rows


def repeat(data: mnist.Data, seeds: int, epochs: int) -> dict[str, Any]:
    """Both tables and a look inside."""
    batches = epochs * (len(data.train_images) // BATCH)
    runs = 1 + seeds * sum(len(method.cells) for method in METHODS.values())
    results: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "cells": []}
    start = time.perf_counter()
    with progress_bar(batches * runs) as progress:
        for name in METHODS:
            progress.set_description(name)
            results["cells"] += train(name, CHOSEN[0], data, seeds, epochs, progress)
        progress.set_description("a look inside")
        results["look"] = look(data, epochs, progress)
    return results | {"minutes": (time.perf_counter() - start) / 60}


def main(arguments: list[str] | None = None) -> None:
    """Trains all cells, prints the table and writes results and pictures."""
    parser = report.parser(
        "benchmarks.zeiler2012",
        __doc__,
        "25 minutes, with --choices too; with --quick, one minute",
        "one seed, one epoch",
    )
    mnist.add_option(parser)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each cell")
    parser.add_argument(
        "--choices", action="store_true", help="compare initial weights and scalings"
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1.")
    if options.choices and options.seeds != parser.get_default("seeds"):
        parser.error("--choices has one seed: leave out --seeds.")
    seeds, epochs = (1, 1) if options.quick else (options.seeds, 6)

    data = mnist.load(options.data)
    if options.choices:
        results = {"choices": try_choices(data, epochs)}
        report.finish(options, summary(results), results, "zeiler2012_choices")
        return
    results = repeat(scaled(data, CHOSEN[1]), seeds, epochs)
    distance = from_the_paper([c for c in results["cells"] if c["method"] == ADADELTA])
    print(f"""\
Seeds 0 to {seeds - 1}; {epochs} epochs, the paper has 6; {results["minutes"]:.1f} min.
Weights: {CHOSEN[0]}. Images: {CHOSEN[1]}.
Root mean square of the differences from Table 2: {distance:.2f} %.
A look inside takes {look_cost(results)}.""")
    report.finish(options, summary(results), results)
    draw_errors(results, options.out / "zeiler2012_errors.png")
    draw_steps(results, options.out / "zeiler2012_steps.png")


if __name__ == "__main__":
    main()
