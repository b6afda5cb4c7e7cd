"""Trains a handwritten-digit classifier with each of four optimizers.

Prints a table and draws the losses, and the effective learning rate that
Adadelta found for each layer. The data are scikit-learn's: 1797 digits of 8 x 8
pixels. Exits with an error if Adadelta misses 95 % test accuracy.
"""

import functools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import adadelta_tx
from benchmarks import _models as models
from benchmarks import _pictures as pictures
from benchmarks import _report as report

OPTIMIZERS = {
    "adadelta_tx.adadelta(rho=0.95)": adadelta_tx.adadelta(rho=0.95),
    "optax.adadelta(1.0, rho=0.95)": optax.adadelta(1.0, rho=0.95),
    "optax.sgd(0.1)": optax.sgd(0.1),
    "optax.adam(1e-3)": optax.adam(1e-3),
}
OURS = "adadelta_tx.adadelta(rho=0.95)"
LAYERS = (64, 256, 128, 10)
BATCH = 32
REQUIRED_ACCURACY = 0.95


class Run(NamedTuple):
    """One optimizer's training run."""

    accuracy: float
    """On the test digits, in [0, 1]."""
    seconds: float
    """Of training, without compilation."""
    state_bytes: int
    """Of the optimizer's state."""
    temporary_bytes: int
    """That the optimizer's step takes besides parameters, gradients and state."""
    losses: list[float]
    """Mean training loss of each epoch."""
    rates: list[list[float]]
    """Median effective learning rate of each layer's weights, by epoch."""


def digits() -> list[np.ndarray]:
    """Training images, test images, training labels, test labels; pixels in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = train_test_split(
        images, labels, test_size=360, random_state=0, stratify=labels
    )
    return [np.asarray(part) for part in split]


def initial_parameters(key: jax.Array) -> models.Layers:
    """A multilayer perceptron's weights (He) and biases (zero)."""
    keys = jax.random.split(key, len(LAYERS) - 1)
    return models.dense(keys, LAYERS, jax.nn.initializers.he_normal())


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy, in nats."""
    return models.cross_entropy(models.multilayer(params, images), labels)


def train(tx: optax.GradientTransformation, epochs: int, progress: Any) -> Run:
    """Trains from the same initial parameters, on the same batches, every time."""
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, digits())
    batches = len(train_images) // BATCH

    optimizer_step = report.step_of(tx)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def epoch(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        def step(carry: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(
                params, train_images[rows], train_labels[rows]
            )
            return optimizer_step(params, state, grads), value

        rows = jax.random.permutation(key, len(train_images))[: batches * BATCH]
        carry, losses = jax.lax.scan(
            step, (params, state), rows.reshape(batches, BATCH)
        )
        return *carry, losses.mean()

    params = initial_parameters(jax.random.key(0))
    state = tx.init(params)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    compiled_step = (
        jax.jit(optimizer_step, donate_argnums=(0, 1))
        .lower(params, state, params)
        .compile()
    )
    keys = jax.random.split(jax.random.key(1), epochs)
    compiled_epoch = epoch.lower(params, state, keys[0]).compile()
    losses, rates, seconds = [], [], 0.0
    for key in keys:
        start = time.perf_counter()
        params, state, value = jax.block_until_ready(compiled_epoch(params, state, key))
        seconds += time.perf_counter() - start
        losses.append(float(value))
        rates.append(median_rates(state))
        progress.update()
    found = models.multilayer(params, test_images)
    accuracy = jnp.mean(found.argmax(-1) == test_labels)
    return Run(
        accuracy=float(accuracy),
        seconds=seconds,
        state_bytes=state_bytes,
        temporary_bytes=report.temporary_bytes(compiled_step),
        losses=losses,
        rates=rates,
    )


def median_rates(state: optax.OptState) -> list[float]:
    """The median effective learning rate of each layer's weights, if there are any."""
    try:
        layers = adadelta_tx.effective_learning_rate(state)
    except ValueError:
        return []
    return [float(jnp.median(layer["w"])) for layer in layers]


def summary(results: dict[str, dict[str, Any]]) -> str:
    """The table of the runs."""
    header = ["optimizer", "test accuracy", "seconds", "state bytes", "temporary bytes"]
    rows = [
        [
            name,
            f"{run['accuracy']:.1%}",
            f"{run['seconds']:.2f}",
            f"{run['state_bytes']:,}",
            f"{run['temporary_bytes']:,}",
        ]
        for name, run in results.items()
    ]
    return report.table(header, rows)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the losses, and the effective learning rates of our run."""
    figure = pictures.figure(6.4, "Training on handwritten digits")
    top, bottom = figure.subplots(2, 1)
    for (name, run), style in zip(results.items(), pictures.STYLES, strict=False):
        top.plot(
            range(1, len(run["losses"]) + 1),
            run["losses"],
            color=style.color,
            linestyle=style.linestyle,
            linewidth=4 if name == OURS else 1.8,
            label=f"{name}, test accuracy {run['accuracy']:.1%}",
        )
    top.set_title("Training loss with four optimizers", loc="left", fontsize=10)
    top.set(ylabel="mean of the epoch (nats)", yscale="log")
    rates = np.array(results[OURS]["rates"])
    for i, style in zip(range(rates.shape[1]), pictures.STYLES, strict=False):
        bottom.plot(
            range(1, len(rates) + 1),
            rates[:, i],
            color="black",
            linestyle=style.linestyle,
            linewidth=1.8,
            label=f"layer {i + 1} ({LAYERS[i]} × {LAYERS[i + 1]})",
        )
    bottom.set_title(
        "Effective learning rates that Adadelta finds, ρ = 0.95, ε = 1e-6",
        loc="left",
        fontsize=10,
    )
    bottom.set(xlabel="epoch", ylabel="median RMS[Δx] / RMS[g]", ylim=(0, 1.15))
    bottom.annotate(
        "1: gradients and steps are both far below √ε",
        (len(rates), 1.0),
        (0, 5),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    for axes in (top, bottom):
        axes.legend(fontsize=9, handlelength=3.5)
    pictures.plain([top, bottom])
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the demonstration."""
    parser = report.parser("benchmarks.demo", __doc__, "half a minute")
    parser.add_argument("--epochs", type=int, default=40, help="of each optimizer")
    options = parser.parse_args(arguments)

    runs = {}
    total = options.epochs * len(OPTIMIZERS)
    with tqdm(total=total, unit="epoch", disable=None) as progress:
        for name, tx in OPTIMIZERS.items():
            progress.set_description(name)
            runs[name] = train(tx, options.epochs, progress)

    results = {name: run._asdict() for name, run in runs.items()}
    print("temporary bytes: of the optimizer's step, parameters and state donated")
    report.finish(options, summary(results), results)
    draw(results, options.out / "demo.png")
    if runs[OURS].accuracy < REQUIRED_ACCURACY:
        sys.exit(
            f"{OURS} reached {runs[OURS].accuracy:.1%} test accuracy after "
            f"{options.epochs} epochs, less than {REQUIRED_ACCURACY:.0%}."
        )


if __name__ == "__main__":
    main()
