"""Times whole training steps: the same model with each optimizer.

A step is the loss's gradient, the update and the new parameters, in one compiled call;
parameters and state are donated, float32. Only the optimizer differs. In each round,
each takes three steps, of which the last two are timed. The table shows medians, and
the total bytes of the compiled program: arguments, results and temporaries.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import adadelta_tx
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
    shapes: dict[str, tuple[int, ...]]
    loss: Callable[[Any, Any], jax.Array]
    batch: dict[str, np.ndarray]


def mlp(width: int, batch: int) -> Model:
    """Two hidden layers on images of 28 x 28."""
    shapes = {
        "w1": (784, width),
        "b1": (width,),
        "w2": (width, width),
        "b2": (width,),
        "w3": (width, 10),
        "b3": (10,),
    }

    def loss(p: Any, batch: Any) -> jax.Array:
        x = jax.nn.relu(batch["images"] @ p["w1"] + p["b1"])
        x = jax.nn.relu(x @ p["w2"] + p["b2"])
        return report.cross_entropy(x @ p["w3"] + p["b3"], batch["labels"])

    rng = np.random.default_rng(0)
    images = rng.random((batch, 784), np.float32)
    labels = rng.integers(10, size=batch)
    description = f"784-{width}-{width}-10, {batch} images"
    return Model(description, shapes, loss, {"images": images, "labels": labels})


def embedding(words: int, width: int, batch: int) -> Model:
    """The mean of 8 words' vectors tells the next one of 1000 classes."""
    shapes = {"table": (words, width), "out": (width, 1000)}

    def loss(p: Any, batch: Any) -> jax.Array:
        return report.cross_entropy(
            p["table"][batch["words"]].mean(1) @ p["out"], batch["labels"]
        )

    rng = np.random.default_rng(0)
    found = rng.integers(words, size=(batch, 8))
    labels = rng.integers(1000, size=batch)
    description = f"{words:,} × {width}, {batch} examples of 8 words"
    return Model(description, shapes, loss, {"words": found, "labels": labels})


def transformer(layers: int, width: int, length: int, batch: int) -> Model:
    """A causal language model of 1000 words, its layers one after the other."""
    heads, words = 4, 1000
    shapes = {"embed": (words, width), "position": (length, width)}
    for i in range(layers):
        shapes |= {
            f"qkv{i}": (width, 3, heads, width // heads),
            f"join{i}": (width, width),
            f"up{i}": (width, 4 * width),
            f"down{i}": (4 * width, width),
        }

    def normal(x: jax.Array) -> jax.Array:
        return jax.nn.standardize(x, epsilon=1e-5)

    def loss(p: Any, batch: Any) -> jax.Array:
        x = p["embed"][batch["words"]] + p["position"]
        for i in range(layers):
            q, k, v = jnp.einsum("bte,eahd->abthd", normal(x), p[f"qkv{i}"])
            seen = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x += seen.reshape(x.shape) @ p[f"join{i}"]
            x += jax.nn.gelu(normal(x) @ p[f"up{i}"]) @ p[f"down{i}"]
        return report.cross_entropy(normal(x) @ p["embed"].T, batch["next"])

    rng = np.random.default_rng(0)
    text = rng.integers(words, size=(batch, length + 1))
    description = f"{layers} layers of {width}, {batch} × {length} words"
    batches = {"words": text[:, :-1], "next": text[:, 1:]}
    return Model(description, shapes, loss, batches)


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
    name: str, model: Model, rounds: int, progress: Any
) -> list[dict[str, Any]]:
    """One row an optimizer."""
    progress.set_description(name)
    keys = jax.random.split(jax.random.key(0), len(model.shapes))
    params = {
        name: jax.random.normal(key, shape) / math.sqrt(math.prod(shape[:1]))
        for key, (name, shape) in zip(keys, model.shapes.items(), strict=True)
    }
    batch = jax.tree.map(jnp.asarray, model.batch)
    made = {
        name: report.timed_jax(
            training_step(model.loss, tx), params, tx.init(params), batch
        )
        for name, tx in OPTIMIZERS.items()
    }
    for _ in range(2):
        for timed in made.values():
            timed.step()
    for ours, theirs in zip(made[OURS].params(), made[OPTAX].params(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    seconds = report.interleaved(made, rounds, progress)
    return [
        {
            "model": name,
            "description": model.description,
            "parameters": sum(math.prod(shape) for shape in model.shapes.values()),
            "optimizer": optimizer,
            **report.milliseconds(seconds[optimizer]),
            "total_bytes": timed.total_bytes,
        }
        for optimizer, timed in made.items()
    ]


def by_model(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows by model, then by optimizer."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["model"], {})[row["optimizer"]] = row
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    """One row a model and optimizer."""
    lines = []
    for model, cells in by_model(rows).items():
        for optimizer, row in cells.items():
            n = row["parameters"]
            less = (cells[OPTAX]["total_bytes"] - row["total_bytes"]) / n
            more = (row["total_bytes"] - cells[SGD]["total_bytes"]) / n
            lines.append(
                [
                    f"{model}, {optimizer}",
                    f"{row['median_ms']:.2f}",
                    f"{row['fastest_ms']:.2f} to {row['slowest_ms']:.2f}",
                    f"{cells[OPTAX]['median_ms'] / row['median_ms']:.2f}",
                    f"{row['total_bytes']:,}",
                    f"{less:.1f}",
                    f"{more:.1f}",
                ]
            )
    return report.table(
        [
            "training step",
            "median ms",
            "range ms",
            "times as fast as optax",
            "bytes in all",
            "less than optax, per parameter",
            "more than SGD",
        ],
        lines,
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws bars: the time of a step, a panel a model."""
    models = by_model(rows)
    figure = pictures.figure(
        3.3, "A whole training step: time, and speed compared with optax.adadelta"
    )
    panels = figure.subplots(1, len(models), sharey=True)
    for axes, (model, cells) in zip(panels, models.items(), strict=True):
        for name, row in cells.items():
            low, high = row["quartiles_ms"]
            median = row["median_ms"]
            axes.barh(
                name,
                median,
                xerr=[[median - low], [high - median]],
                color="black" if name == OURS else "white",
                edgecolor="black",
                hatch="////" if name == OPTAX else None,
                error_kw={"ecolor": "0.5", "capsize": 3},
            )
            axes.annotate(
                f"{median:.3g}",
                (high, name),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        times = cells[OPTAX]["median_ms"] / cells[OURS]["median_ms"]
        axes.set_title(f"{model}:\n{times:.1f} times as fast", fontsize=10)
        axes.set_xlim(0, 1.3 * max(row["quartiles_ms"][1] for row in cells.values()))
    panels[0].invert_yaxis()
    figure.supxlabel("milliseconds, median and quartiles", fontsize=10)
    pictures.plain(panels)
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements, prints a table, writes the result and a picture."""
    parser = report.parser("training", __doc__, "3 minutes", "5 rounds, no transformer")
    parser.add_argument(
        "--rounds", type=int, default=50, help="of two timed steps each"
    )
    parser.add_argument("--small", action="store_true", help="small models, for a test")
    options = parser.parse_args(arguments)
    models = SMALL if options.small else MODELS
    rounds = options.rounds
    if options.quick:
        rounds = 5
        models = {name: models[name] for name in ("MLP", "embedding")}

    with tqdm(total=rounds * len(models), unit="round", disable=None) as progress:
        rows = [
            row
            for name, model in models.items()
            for row in measure(name, model, rounds, progress)
        ]
    print(summary(rows))
    print(report.describe())
    print(f"written: {report.write(options.out, 'training', rows)}")
    draw(rows, options.out / "training.png")


if __name__ == "__main__":
    main()
