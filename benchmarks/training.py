"""Times whole training steps: the same model with each optimizer.

A step is the loss's gradient, the update and the new parameters, in one compiled call;
parameters and state are donated, float32. Only the optimizer differs. In each round,
each takes three steps, of which the last two are timed. The table shows medians, and
the total bytes of the compiled program: arguments, results and temporaries.

All is measured without and with XLA's option for several results in one loop
(``xla_cpu_use_multi_output_fusion``): each in its own process, five of each kind, one
after the other. "Times as fast as optax" compares with optax without the option.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import adadelta_tx
from benchmarks import _models as models
from benchmarks import _pictures as pictures
from benchmarks import _report as report

OPTIMIZERS = {
    "adadelta_tx": adadelta_tx.adadelta(1.0, 0.95, 1e-6),
    "adadelta_tx, bfloat16 state": adadelta_tx.adadelta(
        1.0, 0.95, 1e-6, accumulator_dtype=jnp.bfloat16
    ),
    "adadelta_tx, 8-bit state": adadelta_tx.adadelta(
        1.0, 0.95, 1e-6, accumulator_dtype=jnp.uint8
    ),
    "optax": optax.adadelta(1.0, 0.95, 1e-6),
    "SGD": optax.sgd(1e-3),
}
OURS, OPTAX, SGD = "adadelta_tx", "optax", "SGD"


class Model(NamedTuple):
    """What is trained."""

    description: str
    initial: Callable[[jax.Array], Any]
    """Parameters from a key."""
    scores: Callable[[Any, Any], jax.Array]
    """Of parameters and inputs."""
    batch: tuple[np.ndarray, np.ndarray]
    """Inputs and labels."""

    def loss(self, params: Any, batch: Any) -> jax.Array:
        """Mean cross-entropy, in nats."""
        inputs, labels = batch
        return models.cross_entropy(self.scores(params, inputs), labels)


def mlp(width: int, batch: int) -> Model:
    """Two hidden layers on images of 28 x 28."""
    sizes = (784, width, width, 10)
    rng = np.random.default_rng(0)
    images = rng.random((batch, 784), np.float32)
    labels = rng.integers(10, size=batch)
    return Model(
        f"784-{width}-{width}-10, {batch} images",
        lambda key: models.dense(jax.random.split(key, 3), sizes),
        models.multilayer,
        (images, labels),
    )


def embedding(words: int, width: int, batch: int) -> Model:
    """The mean of 8 words' vectors tells the next one of 1000 classes."""
    rng = np.random.default_rng(0)
    found = rng.integers(words, size=(batch, 8))
    labels = rng.integers(1000, size=batch)
    return Model(
        f"{words:,} × {width}, {batch} examples of 8 words",
        lambda key: models.weights(key, table=(words, width), out=(width, 1000)),
        lambda p, words: p["table"][words].mean(1) @ p["out"],
        (found, labels),
    )


def transformer(layers: int, width: int, length: int, batch: int) -> Model:
    """A causal language model of 1000 words, its layers one after the other."""
    words = 1000

    def initial(key: jax.Array) -> Any:
        first, *keys = jax.random.split(key, layers + 1)
        shapes = models.attention_shapes(width)
        return {
            **models.weights(first, embed=(words, width), position=(length, width)),
            "layers": [models.weights(key, **shapes) for key in keys],
        }

    def scores(p: Any, words: jax.Array) -> jax.Array:
        x = p["embed"][words] + p["position"]
        for layer in p["layers"]:
            x = models.attention_layer(layer, x, causal=True)
        return models.standardised(x) @ p["embed"].T

    text = np.random.default_rng(0).integers(words, size=(batch, length + 1))
    description = f"{layers} layers of {width}, {batch} × {length} words"
    return Model(description, initial, scores, (text[:, :-1], text[:, 1:]))


MODELS = {
    "MLP": mlp(2048, 32),
    "embedding": embedding(50_000, 128, 32),
    "transformer": transformer(4, 256, 64, 8),
}
SMALL = {
    "MLP": mlp(64, 8),
    "embedding": embedding(1000, 16, 8),
    "transformer": transformer(1, 32, 16, 2),
}


def training_step(
    loss: Callable[[Any, Any], jax.Array], tx: optax.GradientTransformation
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """What a training loop compiles."""
    step = report.step_of(tx)
    return lambda params, state, batch: step(
        params, state, jax.grad(loss)(params, batch)
    )


def measure(
    names: Iterable[str], chosen: Iterable[str], small: bool, rounds: int
) -> list[dict[str, Any]]:
    """One row a model and optimizer; ``seconds`` of each step."""
    found = SMALL if small else MODELS
    return [
        {"model": model, **row}
        for model in chosen
        for row in measure_one(names, found[model], rounds)
    ]


def measure_one(
    names: Iterable[str], model: Model, rounds: int
) -> list[dict[str, Any]]:
    """One row an optimizer."""
    params = model.initial(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, model.batch)
    made = {}
    for name in names:
        tx = OPTIMIZERS[name]
        step = training_step(model.loss, tx)
        made[name] = report.timed_jax(step, params, tx.init(params), batch)
    for _ in range(2):
        for timed in made.values():
            timed.step()
    for ours, theirs in zip(made[OURS].params(), made[OPTAX].params(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    with tqdm(disable=True) as progress:
        seconds = report.interleaved(made, rounds, progress)
    return [
        {
            "description": model.description,
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
            "optimizer": name,
            "seconds": seconds[name],
            "total_bytes": timed.total_bytes,
        }
        for name, timed in made.items()
    ]


def by_model(
    rows: list[dict[str, Any]],
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By model, then by optimizer: the row without the option, and that with it."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        model = found.setdefault(row["model"], {})
        model.setdefault(row["optimizer"], []).append(row)
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    """One row a model and optimizer."""
    lines = []
    for model, cells in by_model(rows).items():
        optax = cells[OPTAX][0]["median_ms"]
        for optimizer, both in cells.items():
            ms = [row["median_ms"] for row in both]
            lines.append(
                [
                    f"{model}, {optimizer}",
                    *(f"{x:.2f}" for x in ms),
                    f"{ms[1] / ms[0]:.2f}",
                    *(f"{optax / x:.2f}" for x in ms),
                    *(f"{row['total_bytes'] / row['parameters']:.1f}" for row in both),
                ]
            )
    return report.table(
        [
            "training step",
            "ms",
            report.WITH,
            "with / without",
            "times as fast as optax",
            report.WITH,
            "bytes per parameter",
            report.WITH,
        ],
        lines,
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws bars: the time of a step without and with the option, a panel a model."""
    found = by_model(rows)
    names = [*next(iter(found.values()))]
    figure = pictures.figure(
        1.2 + 0.45 * len(names) * len(found),
        "Time of a whole training step, on a CPU",
    )
    panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, (model, cells) in zip(panels, found.items(), strict=True):
        for i, (name, both) in enumerate(cells.items()):
            ours = name.startswith(OURS)
            for option, row in enumerate(both):
                y = i + (0.2 if option else -0.2)
                low, high = row["quartiles_ms"]
                median = row["median_ms"]
                axes.barh(
                    y,
                    median,
                    height=0.36,
                    xerr=[[median - low], [high - median]],
                    color=pictures.OURS if ours else pictures.OTHERS,
                    edgecolor="white",
                    hatch="////" if option else None,
                    error_kw={"ecolor": "0.5", "capsize": 2},
                )
                axes.annotate(
                    f"{median:.3g}",
                    (high, y),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        axes.set_title(model, fontsize=10)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        highest = (row["quartiles_ms"][1] for both in cells.values() for row in both)
        axes.set_xlim(0, 1.3 * max(highest))
    figure.supxlabel(
        "milliseconds, median and quartiles; hatched: with XLA's option",
        fontsize=10,
    )
    pictures.plain(panels)
    for axes in panels:
        axes.grid(axis="y", visible=False)
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements, prints a table, writes the result and a picture."""
    parser = report.parser(
        "benchmarks.training", __doc__, "6 minutes", "5 rounds, no transformer"
    )
    parser.add_argument(
        "--rounds", type=int, default=6, help="of two timed steps, in each process"
    )
    parser.add_argument("--small", action="store_true", help="small models, for a test")
    options = parser.parse_args(arguments)
    rounds, chosen, pairs = options.rounds, [*MODELS], 5
    if options.quick:
        rounds, chosen, pairs = 5, ["MLP", "embedding"], 1

    with tqdm(total=2 * pairs, unit="process", disable=None) as progress:
        found = report.without_and_with(
            measure,
            [*OPTIMIZERS],
            chosen,
            options.small,
            rounds,
            pairs=pairs,
            progress=progress,
        )
    rows = [report.in_milliseconds(row) for row in found]
    note = "Parameters and state are donated."
    report.finish(options, summary(rows), rows, note=note)
    draw(rows, options.out / "training.png")


if __name__ == "__main__":
    main()
