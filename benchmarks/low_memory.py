"""Compares training with accumulators in float32, bfloat16 and 8 bits.

MNIST, with the network 784-500-300-10 of Zeiler (2012) and batches of 100; and a small
transformer that reads scikit-learn's digits row by row. Each with the defaults and
three values of ρ, and with the settings that benchmarks.choosing recommends, for these
also with the loss multiplied by 0.001 and 1000. Then what the accumulators cost: bytes,
temporaries and the time of a step; and whether their codes are unbiased. The seeds are
those of the initial weights; the batches are the same for all.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import adadelta_tx
from adadelta_tx._core import rounding
from benchmarks import _mnist as mnist
from benchmarks import _models as models
from benchmarks import _pictures as pictures
from benchmarks import _report as report
from benchmarks import demo

KINDS = {"float32": None, "bfloat16": jnp.bfloat16, "uint8": jnp.uint8}
RHOS = ({"rho": 0.9}, {"rho": 0.95}, {"rho": 0.99})
RECOMMENDED = {"eps": 1e-5, "grad_eps": 0.0}
"""With a cosine as learning rate."""
SCALES = (1.0, 1e-3, 1e3)
BATCH = 100
EPS = 1e-6
PROBLEMS = {"mnist": "MNIST", "digits": "transformer"}


class Problem(NamedTuple):
    """What is trained."""

    initial: Callable[[jax.Array], Any]
    """Parameters from a key."""
    logits: Callable[..., jax.Array]
    """Of parameters and images."""
    data: mnist.Data

    def loss(self, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean cross-entropy, in nats."""
        return models.cross_entropy(self.logits(params, images), labels)


def train(
    problem: Problem,
    kind: str,
    numbers: dict[str, float],
    scales: tuple[float, ...],
    seeds: int,
    epochs: int,
    progress: Any,
) -> list[dict[str, Any]]:
    """Final losses and test errors of all scales and seeds, trained at once."""
    data = problem.data
    batches = len(data.train_images) // BATCH
    falling = optax.cosine_decay_schedule(1.0, epochs * batches)
    tx = adadelta_tx.adadelta(
        falling if numbers == RECOMMENDED else 1.0,
        accumulator_dtype=KINDS[kind],
        **numbers,
    )
    step = report.step_of(tx)

    def member(params: Any, state: Any, scale: jax.Array, rows: jax.Array) -> Any:
        images, labels = data.train_images[rows], data.train_labels[rows]
        grads = jax.grad(lambda p: scale * problem.loss(p, images, labels))(params)
        return step(params, state, grads)

    members = jax.vmap(member, in_axes=(0, 0, 0, None))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def epoch(params: Any, state: Any, scale: jax.Array, rows: jax.Array) -> Any:
        return jax.lax.scan(
            lambda carry, r: (members(*carry, scale, r), None), (params, state), rows
        )[0]

    @jax.jit
    @jax.vmap
    def evaluate(params: Any) -> tuple[jax.Array, jax.Array]:
        found = problem.logits(params, data.test_images).argmax(-1)
        error = jnp.mean(found != data.test_labels)
        loss = problem.loss(params, data.train_images, data.train_labels)
        return loss, error

    keys = jnp.tile(jax.random.split(jax.random.key(0), seeds), len(scales))
    scale = jnp.repeat(jnp.asarray(scales), seeds)
    params = jax.vmap(problem.initial)(keys)
    state = jax.vmap(tx.init)(params)
    for i in range(epochs):
        rows = jax.random.permutation(jax.random.key(i), len(data.train_images))
        rows = rows[: batches * BATCH].reshape(batches, BATCH)
        params, state = jax.block_until_ready(epoch(params, state, scale, rows))
        progress.update()
    losses, errors = (
        np.asarray(x).reshape(len(scales), seeds) for x in evaluate(params)
    )
    return [
        {
            "kind": kind,
            **numbers,
            "scale": scale,
            "losses": losses[i].tolist(),
            "errors": errors[i].tolist(),
        }
        for i, scale in enumerate(scales)
    ]


def digits() -> mnist.Data:
    """scikit-learn's digits."""
    train_images, test_images, train_labels, test_labels = map(
        jnp.asarray, demo.digits()
    )
    return mnist.Data(train_images, train_labels, test_images, test_labels)


def costs(size: int, rounds: int) -> list[dict[str, Any]]:
    """Bytes, temporaries and the time of a step, compared with optax.adadelta."""
    transformations = {
        "float32": adadelta_tx.adadelta(),
        "bfloat16, rho 0.95": adadelta_tx.adadelta(accumulator_dtype=jnp.bfloat16),
        "bfloat16, rho 0.99": adadelta_tx.adadelta(
            rho=0.99, accumulator_dtype=jnp.bfloat16
        ),
        "uint8": adadelta_tx.adadelta(accumulator_dtype=jnp.uint8),
        "optax.adadelta(1.0, 0.95)": optax.adadelta(1.0, 0.95),
    }
    grads = jax.random.normal(jax.random.key(0), (size,))
    params = jnp.zeros(size)
    made = {
        name: report.timed_jax(report.step_of(tx), params, tx.init(params), grads)
        for name, tx in transformations.items()
    }
    with tqdm(total=rounds, unit="round", disable=None) as progress:
        seconds = report.interleaved(made, rounds, progress)
    return [
        {
            "optimizer": name,
            "parameters": size,
            "state_bytes": timed.state_bytes,
            "temporary_bytes": timed.temporary_bytes,
            **report.milliseconds(seconds[name]),
        }
        for name, timed in made.items()
    ]


def code_means(samples: int) -> list[dict[str, Any]]:
    """How far the mean of what codes hold is from what was to be stored.

    For each octave of v / ε, in standard errors of the mean over the samples.
    """
    results = []
    for octave in range(-10, 31):
        value = EPS * 2.0 ** (octave + 0.3)
        above = jnp.full(samples, value / EPS, jnp.float32)
        _, *pair = rounding.round_pair(1 + above, above, octave + 10)
        row = {"octave": octave}
        for name, x in zip(("E[g²]", "E[Δx²]"), pair, strict=True):
            x = (np.asarray(x, np.float64) - 1) * EPS
            error = x.std() / samples**0.5
            row[name] = (x.mean() - float(above[0]) * EPS) / error
        results.append(row)
    return results


def summary(results: dict[str, Any]) -> str:
    """The tables."""
    parts = [
        *(training(results[name]) for name in ("mnist", "digits") if name in results),
        report.table(
            [
                "accumulators",
                "bytes per parameter",
                "temporary bytes",
                "step ms",
                "times as fast",
            ],
            [
                [
                    row["optimizer"],
                    f"{row['state_bytes'] / row['parameters']:.2f}",
                    f"{row['temporary_bytes']:,}",
                    f"{row['median_ms']:.1f}",
                    f"{results['costs'][0]['median_ms'] / row['median_ms']:.2f}",
                ]
                for row in results["costs"]
            ],
        ),
    ]
    return "\n\n".join(parts)


def name_of(run: dict[str, Any]) -> str:
    """The setting of a run, in a few words."""
    if "rho" in run:
        return f"ρ {run['rho']:g}"
    return f"recommended, loss × {run['scale']:g}"


def training(runs: list[dict[str, Any]]) -> str:
    """Final losses and test errors: mean and standard deviation of the seeds."""
    kinds = list(KINDS)
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        cells.setdefault(name_of(run), {})[run["kind"]] = run
    rows = []
    for name, by_kind in cells.items():
        means = {kind: np.mean(by_kind[kind]["losses"]) for kind in kinds}
        deviation = np.std(by_kind["float32"]["losses"])
        row = [name, f"{means['float32']:.4f} ± {deviation:.4f}"]
        row += [f"{means[kind] / means['float32']:.2f}" for kind in kinds[1:]]
        for kind in kinds:
            errors = 100 * np.asarray(by_kind[kind]["errors"])
            row.append(f"{errors.mean():.2f} ± {errors.std():.2f}")
        rows.append(row)
    return report.table(
        [
            "settings",
            "loss, float32",
            *(f"{kind} / float32" for kind in kinds[1:]),
            *(f"test error %, {kind}" for kind in kinds),
        ],
        rows,
    )


def draw(problems: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draws how test errors differ from those with float32, seed by seed."""
    figure = pictures.figure(
        5.6, "Test error with small accumulators, minus that with float32"
    )
    panels = figure.subplots(len(problems), 1, sharex=True, squeeze=False)
    for (axes,), (problem, runs) in zip(panels, problems.items(), strict=True):
        axes.use_sticky_edges = False
        names = list(dict.fromkeys(map(name_of, runs)))
        errors = {
            (run["kind"], name_of(run)): 100 * np.asarray(run["errors"]) for run in runs
        }
        for x, name in enumerate(names):
            exact = errors["float32", name]
            axes.bar(x, 2 * exact.std(), 0.9, -exact.std(), color="0.88")
            for kind, style, shift in zip(
                [*KINDS][1:], pictures.STYLES, (-0.18, 0.18), strict=False
            ):
                axes.plot(
                    np.full(len(exact), x + shift),
                    errors[kind, name] - exact,
                    style.marker,
                    color=style.color,
                    markerfacecolor="none",
                    label=kind if not x else "_",
                )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(PROBLEMS[problem], fontsize=9)
        axes.set_xticks(
            range(len(names)),
            [x.replace("recommended, loss", "ε 1e-5,\nε_g 0,\n") for x in names],
        )
        axes.set_ylabel("percentage points")
    panels[0, 0].legend(title="one mark per seed", fontsize=9)
    figure.supxlabel("grey: ± standard deviation of the float32 runs", fontsize=10)
    pictures.plain(panels.flat)
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs all cases, prints the tables and writes the result and a picture."""
    parser = report.parser(
        "benchmarks.low_memory",
        __doc__,
        "about half an hour",
        "one epoch, ρ = 0.95 only",
    )
    mnist.add_option(parser)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each case")
    parser.add_argument(
        "--epochs", type=int, default=6, help="of MNIST; ten times as many of digits"
    )
    parser.add_argument(
        "--size", type=int, default=30_000_000, help="of the timed leaf"
    )
    parser.add_argument(
        "--costs", action="store_true", help="no training, only what a step costs"
    )
    options = parser.parse_args(arguments)
    epochs = 1 if options.quick else options.epochs
    settings: list[Any] = [(numbers, SCALES[:1]) for numbers in RHOS]
    settings.append((RECOMMENDED, SCALES))
    settings = settings[1:2] if options.quick else settings

    results: dict[str, Any] = {"seeds": options.seeds, "epochs": epochs}
    if not options.costs:
        data = mnist.load(options.data)
        problems = {
            "mnist": Problem(mnist.initial_parameters, mnist.logits, data),
            "digits": Problem(models.row_reader, models.read_rows, digits()),
        }
        for name, problem in problems.items():
            its_epochs = epochs if name == "mnist" else 10 * epochs
            total = len(settings) * len(KINDS) * its_epochs
            with tqdm(total=total, unit="epoch", disable=None, desc=name) as progress:
                results[name] = [
                    run
                    for numbers, scales in settings
                    for kind in KINDS
                    for run in train(
                        problem,
                        kind,
                        numbers,
                        scales,
                        options.seeds,
                        its_epochs,
                        progress,
                    )
                ]
    results["costs"] = costs(options.size, 3 if options.quick else 15)
    results["means"] = code_means(1 << (12 if options.quick else 20))
    worst = max(abs(x) for row in results["means"] for x in list(row.values())[1:])
    print(f"codes: their means are at most {worst:.1f} standard errors off")
    report.finish(options, summary(results), results)
    if not options.costs:
        draw({k: results[k] for k in PROBLEMS}, options.out / "low_memory.png")


if __name__ == "__main__":
    main()
