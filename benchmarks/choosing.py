"""Compares Adadelta with Adam and SGD, and shows what ε does in noise.

First the noise: on the loss x² / 2 with gradients x + N(0, 1), how far from the minimum
x stays, by ε and ρ. Then scikit-learn's digits, with a multilayer perceptron and with a
small transformer that reads them row by row: the test error after 40 epochs of each
optimizer with learning rates from 1/100 to 100 times the usual one, and with several
batch sizes at the usual one. The tables show mean and standard deviation over seeds,
which set the initial weights and the order of the images.
"""

import functools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import adadelta_tx
from benchmarks import _pictures as pictures
from benchmarks import _report as report
from benchmarks import demo, faq
from benchmarks.low_memory import Problem, digit_rows, digits

ADADELTA = "Adadelta"
USUAL = {ADADELTA: 1.0, "Adam": 1e-3, "SGD, momentum 0.9": 0.1}
MAKE: dict[str, Callable[..., optax.GradientTransformation]] = {
    ADADELTA: adadelta_tx.adadelta,
    "Adam": optax.adam,
    "SGD, momentum 0.9": lambda rate: optax.sgd(rate, momentum=0.9),
}
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
BATCHES = (8, 32, 128, 512)
BATCH = 32
NOISE_EPS = (1e-2, 1e-4, 1e-6, 1e-8)


def multilayer() -> Problem:
    """The multilayer perceptron of benchmarks.demo."""
    return Problem(demo.initial_parameters, demo.logits, digits())


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "multilayer perceptron": multilayer,
    "transformer": digit_rows,
}


@functools.cache
def compiled(name: str, optimizer: str, batch: int, epochs: int) -> Callable[..., Any]:
    """Test errors in percent and training losses, of keys and a learning rate."""
    problem = PROBLEMS[name]()
    data = problem.data
    batches = len(data.train_images) // batch

    def train(key: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        tx = MAKE[optimizer](rate)
        step = report.step_of(tx)

        def epoch(carry: Any, key: jax.Array) -> Any:
            rows = jax.random.permutation(key, len(data.train_images))
            return jax.lax.scan(one, carry, rows[: batches * batch].reshape(-1, batch))

        def one(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            images, labels = data.train_images[rows], data.train_labels[rows]
            grads = jax.grad(problem.loss)(carry[0], images, labels)
            return step(*carry, grads), None

        initial, order = jax.random.split(key)
        params = problem.initial(initial)
        carry = params, tx.init(params)
        (params, _), _ = jax.lax.scan(epoch, carry, jax.random.split(order, epochs))
        found = problem.logits(params, data.test_images).argmax(-1)
        error = 100 * jnp.mean(found != data.test_labels)
        return error, problem.loss(params, data.train_images, data.train_labels)

    return jax.jit(train)


def train(
    problem: str, optimizer: str, rate: float, batch: int, seeds: int, epochs: int
) -> dict[str, Any]:
    """Test errors and training losses, a number a seed."""
    run = compiled(problem, optimizer, batch, epochs)
    keys = jax.random.split(jax.random.key(0), seeds)
    errors, losses = zip(*(run(key, rate) for key in keys), strict=True)
    return {
        "problem": problem,
        "optimizer": optimizer,
        "rate": rate,
        "batch": batch,
        "errors": [float(x) for x in errors],
        # JSON has no NaN: a loss that is not finite is null.
        "losses": [float(x) if math.isfinite(x) else None for x in losses],
    }


def noise(rho: float, eps: float) -> dict[str, float]:
    """How far from the minimum x stays, root mean square."""
    steps = round(60 / eps**0.375)
    tx = adadelta_tx.adadelta(rho=rho, eps=eps)
    xs, *_ = faq.run(tx, faq.noisy_quadratic, 0.0, steps, 256)
    return {"rho": rho, "eps": eps, "distance": faq.rms(faq.second_half(xs))}


def mean_and_deviation(row: dict[str, Any]) -> str:
    """Of the test errors; chance is 90 %."""
    errors = row["errors"]
    if len(errors) == 1:
        return f"{errors[0]:.1f}"
    return f"{statistics.mean(errors):.1f} ± {statistics.stdev(errors):.1f}"


def by_problem(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Rows by problem, then by optimizer."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        found.setdefault(row["problem"], {}).setdefault(row["optimizer"], []).append(
            row
        )
    return found


def noise_table(rows: list[dict[str, float]]) -> str:
    """A row an ε, a column a ρ."""
    cells = {(row["rho"], row["eps"]): f"{row['distance']:.4f}" for row in rows}
    rhos, epsilons = (dict.fromkeys(key[i] for key in cells) for i in (0, 1))
    return report.table(
        ["RMS distance from the minimum", *(f"ρ {rho:g}" for rho in rhos)],
        [[f"ε {eps:g}", *(cells[rho, eps] for rho in rhos)] for eps in epsilons],
    )


def rates_table(rows: list[dict[str, Any]]) -> str:
    """For each optimizer: the usual rate, the best one, and which ones do."""
    lines = []
    for problem, optimizers in by_problem(rows).items():
        for optimizer, tried in optimizers.items():
            means = {row["rate"]: statistics.mean(row["errors"]) for row in tried}
            best = min(tried, key=lambda row: means[row["rate"]])
            usual = next(row for row in tried if row["rate"] == USUAL[optimizer])
            good = [rate for rate, x in means.items() if x < means[best["rate"]] + 1]
            lines.append(
                [
                    f"{problem}, {optimizer}",
                    f"{USUAL[optimizer]:g}",
                    mean_and_deviation(usual),
                    f"{best['rate']:g}",
                    mean_and_deviation(best),
                    f"{min(good):g} to {max(good):g}",
                ]
            )
    return report.table(
        [
            "test error, %",
            "usual rate",
            "error at it",
            "best rate",
            "error at that",
            "rates within 1 point of it",
        ],
        lines,
    )


def batches_table(rows: list[dict[str, Any]]) -> str:
    """A row an optimizer, a column a batch size."""
    sizes = dict.fromkeys(row["batch"] for row in rows)
    return report.table(
        ["test error, %, by batch size", *map(str, sizes)],
        [
            [f"{problem}, {optimizer}", *map(mean_and_deviation, tried)]
            for problem, optimizers in by_problem(rows).items()
            for optimizer, tried in optimizers.items()
        ],
    )


def tables(results: dict[str, Any]) -> dict[str, str]:
    """A Markdown table for each part."""
    return {
        "noise": noise_table(results["noise"]),
        "rates": rates_table(results["rates"]),
        "batches": batches_table(results["batches"]),
    }


def summary(results: dict[str, Any]) -> str:
    """All tables."""
    return "\n\n".join(tables(results).values())


def draw_noise(rows: list[dict[str, float]], path: Path) -> None:
    """Draws the distance from the minimum against ε, and SGD's law."""
    figure = pictures.figure(4.2, "In gradient noise, ε is a squared learning rate")
    axes = figure.subplots()
    rhos = dict.fromkeys(row["rho"] for row in rows)
    for rho, marker, width, lift in zip(
        rhos, "vo^", (1.5, 2.5, 1.5), (-8, 0, 4), strict=True
    ):
        points = [row for row in rows if row["rho"] == rho]
        x, y = ([row[key] for row in points] for key in ("eps", "distance"))
        axes.plot(x, y, color="black", marker=marker, linewidth=width)
        axes.annotate(
            f"ρ = {rho:g}",
            (max(x), max(y)),
            (8, lift),
            textcoords="offset points",
            va="center",
        )
    x = np.array([row["eps"] for row in rows if row["rho"] == rows[0]["rho"]])
    axes.plot(x, np.sqrt(np.sqrt(x) / 2), ":", color="0.45")
    axes.annotate(
        "SGD with the learning rate √ε", (x[-2], np.sqrt(np.sqrt(x[-2]) / 2)),
        (20, -24), textcoords="offset points", color="0.35",
    )  # fmt: skip
    axes.set(
        xlabel="ε",
        ylabel="RMS distance from the minimum",
        xscale="log",
        yscale="log",
    )
    axes.set_xlim(x.min() / 2, 12 * x.max())
    pictures.plain([axes])
    pictures.save(figure, path)


def draw_rates(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws test error against learning rate, a panel a problem."""
    problems = by_problem(rows)
    title = "Adadelta at its default learning rate, 1, is near its best"
    figure = pictures.figure(4.2, title)
    panels = figure.subplots(1, len(problems), sharey=True, squeeze=False)[0]
    for axes, (problem, optimizers) in zip(panels, problems.items(), strict=True):
        for (optimizer, tried), style in zip(
            optimizers.items(), pictures.STYLES, strict=False
        ):
            factors = [row["rate"] / USUAL[optimizer] for row in tried]
            label = f"{optimizer} (usual: {USUAL[optimizer]:g})"
            means = [statistics.mean(row["errors"]) for row in tried]
            errors = [
                statistics.stdev(row["errors"]) if len(row["errors"]) > 1 else 0.0
                for row in tried
            ]
            axes.errorbar(
                factors,
                means,
                errors,
                **style._asdict(),
                capsize=2,
                label=label,
            )
        axes.axvline(1, color="0.8", zorder=0)
        axes.set(title=problem, xscale="log", yscale="log")
        axes.set_xlabel("learning rate, in units of the usual one")
        axes.set_yticks([2, 5, 10, 20, 50, 90], ["2", "5", "10", "20", "50", "90"])
        axes.minorticks_off()
    panels[0].set_ylabel("test error, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
    )
    pictures.plain(panels)
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs all parts, prints tables, writes the result and two pictures."""
    quick = "one seed, 2 epochs, few rates and sizes: about a minute"
    parser = report.parser("choosing", __doc__, "8 minutes", quick)
    options = parser.parse_args(arguments)
    seeds, epochs = (1, 2) if options.quick else (5, 40)
    factors, sizes = ((0.1, 1.0), (32,)) if options.quick else (FACTORS, BATCHES)
    epsilons = NOISE_EPS[:2] if options.quick else NOISE_EPS

    pairs = [(problem, optimizer) for problem in PROBLEMS for optimizer in MAKE]
    total = len(faq.RHOS) * len(epsilons) + len(pairs) * (len(factors) + len(sizes))
    with tqdm(total=total, unit="run", disable=None) as progress:

        def done(row: dict[str, Any]) -> dict[str, Any]:
            progress.update()
            return row

        results = {
            "noise": [done(noise(rho, eps)) for rho in faq.RHOS for eps in epsilons]
        }

        def runs(rates: tuple[float, ...], batches: tuple[int, ...]) -> list[Any]:
            run = functools.partial(train, seeds=seeds, epochs=epochs)
            return [
                done(run(problem, name, USUAL[name] * factor, batch))
                for problem, name in pairs
                for factor in rates
                for batch in batches
            ]

        results |= {"rates": runs(factors, (BATCH,)), "batches": runs((1.0,), sizes)}
    print(summary(results))
    print(report.describe())
    print(f"written: {report.write(options.out, 'choosing', results)}")
    draw_noise(results["noise"], options.out / "choosing_noise.png")
    draw_rates(results["rates"], options.out / "choosing_rates.png")


if __name__ == "__main__":
    main()
