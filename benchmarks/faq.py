"""Prints the figures in the answers to frequently asked questions.

Thirteen small experiments in float64, each a table: twelve with the optimizer itself
on one number or a few thousand, one with a small network. "Noise" is a gradient drawn
anew from N(0, 1) in each step.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import adadelta_tx
from benchmarks import _models as models
from benchmarks import _report as report

Table = dict[str, list[Any]]
Gradient = Callable[[jax.Array, jax.Array], jax.Array]

SETTINGS: dict[str, dict[str, Any]] = {
    "adadelta_tx": {},
    "torch, optax with lr 1: ρ 0.9": {"rho": 0.9},
    "ε 1e-7": {"eps": 1e-7},
    "ε 1e-8": {"eps": 1e-8},
    "Keras: lr 0.001, ε 1e-7": {"learning_rate": np.float64(0.001), "eps": 1e-7},
}
RHOS = (0.9, 0.95, 0.99)


def run(
    tx: optax.GradientTransformation,
    gradient: Gradient,
    start: float,
    steps: int,
    elements: int = 1,
    state: Any = None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Parameters after each step, the updates, and the last state.

    ``gradient(x, n)`` gives the gradient at ``x``, of shape ``(elements,)``, with ``n``
    normal noise of that shape.
    """

    @jax.jit
    def train(x: jax.Array, state: Any) -> Any:
        def step(carry: Any, key: jax.Array) -> Any:
            x, state = carry
            g = gradient(x, jax.random.normal(key, x.shape))
            updates, state = tx.update(g, state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), (x, updates)

        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, (x, state), keys)

    x = jnp.full(elements, start)
    (_, state), (xs, updates) = train(x, tx.init(x) if state is None else state)
    return np.asarray(xs), np.asarray(updates), state


def rms(x: np.ndarray) -> float:
    """Root mean square of all elements."""
    return float(np.sqrt(np.mean(np.square(x))))


def second_half(x: np.ndarray) -> np.ndarray:
    """Without the first half of the steps."""
    return x[len(x) // 2 :]


def constant(x: jax.Array, _: jax.Array) -> jax.Array:
    """A slope of 1 everywhere."""
    return jnp.ones_like(x)


def noise(_: jax.Array, n: jax.Array) -> jax.Array:
    """Noise, and nothing to learn."""
    return n


def noisy_quadratic(x: jax.Array, n: jax.Array) -> jax.Array:
    """Of the loss x² / 2, with noise."""
    return x + n


@functools.cache
def distance(eps: float = 1e-6, learning_rate: float = 1.0) -> float:
    """From the minimum of x² / 2, where noise keeps x: root mean square."""
    tx = adadelta_tx.adadelta(learning_rate, eps=eps)
    steps = round(60 / (learning_rate**2 * eps) ** 0.375)
    return rms(second_half(run(tx, noisy_quadratic, 0.0, steps, 256)[0]))


def learning_rate_1() -> Table:
    """How long a distance of 1 takes with a constant gradient."""
    rows: Table = {"setting": [], "first step": [], "steps for a distance of 1": []}
    for name, numbers in SETTINGS.items():
        steps = 100_000 if "Keras" in name else 5_000
        xs, updates, _ = run(adadelta_tx.adadelta(**numbers), constant, 0.0, steps)
        arrived = int(np.argmax(-xs[:, 0] >= 1)) + 1
        cells = name, f"{-updates[0, 0]:.2g}", f"{arrived:,}"
        for column, cell in zip(rows.values(), cells, strict=True):
            column.append(cell)
    return rows


def first_step() -> Table:
    """The first step for gradients of several lengths."""
    gradients = (1e-4, 1e-3, 1e-2, 1.0, 1e3)
    steps = [
        run(adadelta_tx.adadelta(), lambda x, _, g=g: g + 0 * x, 0.0, 1)[1][0, 0]
        for g in gradients
    ]
    return {
        "gradient": [f"{g:g}" for g in gradients],
        "first step": [f"{-u:.2g}" for u in steps],
    }


def epsilon() -> Table:
    """What ε does in noise."""
    rows: Table = {
        "ε": [],
        "RMS of the steps": [],
        "… in units of √ε": [],
        "RMS distance from the minimum": [],
    }
    for eps in (1e-4, 1e-6, 1e-8):
        tx = adadelta_tx.adadelta(eps=eps)
        step = rms(second_half(run(tx, noise, 0.0, 20_000, 256)[1]))
        cells = (
            f"{eps:g}",
            f"{step:.2g}",
            f"{step / math.sqrt(eps):.2f}",
            f"{distance(eps):.4f}",
        )
        for column, cell in zip(rows.values(), cells, strict=True):
            column.append(cell)
    return rows


def decay() -> Table:
    """How a smaller ε and a smaller learning rate end, with and without noise."""
    settings: dict[str, dict[str, Any]] = {
        "adadelta_tx.adadelta()": {},
        "eps=1e-8": {"eps": 1e-8},
        "learning_rate=0.1": {"learning_rate": 0.1},
    }
    rows: Table = {
        "setting": list(settings),
        "loss x² / 2, noise": [],
        "loss 10 x² / 2, no noise": [],
    }
    for numbers in settings.values():
        tx = adadelta_tx.adadelta(**numbers)
        steep = run(tx, lambda x, _: 10 * x, 1.0, 60_000)[0]
        rows["loss x² / 2, noise"].append(f"{distance(**numbers):.4f}")
        rows["loss 10 x² / 2, no noise"].append(f"{rms(second_half(steep)):.2g}")
    return rows


def curvature() -> Table:
    """Where quadratics of several curvatures end, without noise."""
    rows: Table = {"curvature h of the loss h x² / 2": []}
    rates = (1.0, 0.1)
    rows |= {f"learning rate {rate:g}": [] for rate in rates}
    for h in (0.5, 1.5, 3.0, 10.0, 30.0):
        rows["curvature h of the loss h x² / 2"].append(f"{h:g}")
        for rate in rates:
            xs, *_ = run(
                adadelta_tx.adadelta(rate), lambda x, _, h=h: h * x, 1.0, 40_000
            )
            rows[f"learning rate {rate:g}"].append(f"{rms(xs[-1000:]):.2g}")
    return rows


def rate_inside() -> Table:
    """How far a constant gradient goes, with the rate outside of E[Δx²] or inside."""

    def inside(rate: float) -> optax.GradientTransformation:
        """With E[Δx²] of steps that have the rate in them."""
        scaling = adadelta_tx.scale_by_adadelta()

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            old = state.e_x
            updates, state = scaling.update(updates, state, params)
            step = jnp.multiply(rate, updates)
            averages = {"e_g": state.e_g, "e_x": 0.95 * old + 0.05 * step**2}
            return -step, optax.ScaleByAdaDeltaState(**averages)

        return optax.GradientTransformation(scaling.init, update)

    rows: Table = {"learning rate": [], "outside, as here": [], "inside": []}
    for rate in (0.1, 1.0, 1.1):
        rows["learning rate"].append(f"{rate:g}")
        for name, tx in (
            ("outside, as here", adadelta_tx.adadelta(rate)),
            ("inside", inside(rate)),
        ):
            rows[name].append(f"{-run(tx, constant, 0.0, 1000)[0][-1, 0]:,.3g}")
    return rows


def largest_step() -> Table:
    """The most that one gradient can do, after noise."""
    steps, bounds = [], []
    for rho in RHOS:
        tx = adadelta_tx.adadelta(rho=rho)
        *_, state = run(tx, noise, 0.0, 5_000, 256)
        before = np.sqrt(np.asarray(state[1].e_x) + 1e-6)
        updates = run(tx, lambda x, _: 1e6 + 0 * x, 0.0, 1, 256, state)[1][0]
        steps.append(f"{np.mean(-updates / before):.2f}")
        bounds.append(f"{1 / math.sqrt(1 - rho):.2f}")
    return {
        "ρ": [f"{rho:g}" for rho in RHOS],
        "1 / (1 − ρ) steps of memory": [f"{1 / (1 - rho):.0f}" for rho in RHOS],
        "1 / √(1 − ρ)": bounds,
        "largest step / RMS[Δx]": steps,
    }


def huge_gradient() -> Table:
    """How long steps stay short after one gradient 1000 times as long as the others."""
    rows: Table = {"ρ": [], "steps until half the length": []}
    for rho in RHOS:
        tx = adadelta_tx.adadelta(rho=rho)
        _, before, state = run(tx, noise, 0.0, 1_000, 4096)
        usual = rms(before[-10:])
        *_, state = run(tx, lambda _, n: 1000 * n, 0.0, 1, 4096, state)
        _, after, _ = run(tx, noise, 0.0, 8_000, 4096, state)
        lengths = np.sqrt(np.mean(np.square(after), axis=1))
        rows["ρ"].append(f"{rho:g}")
        back = int(np.argmax(lengths >= usual / 2)) + 1
        rows["steps until half the length"].append(f"{back:,}")
    return rows


def loss_scale() -> Table:
    """How far 250 steps with a constant gradient go, by the loss's factor."""
    scales = (1e3, 1.0, 0.1, 0.01, 1e-3, 1e-4)
    rows: Table = {"loss ×": [f"{scale:g}" for scale in scales]}
    for name, grad_eps in (("defaults", None), ("grad_eps=0", 0.0)):
        tx = adadelta_tx.adadelta(grad_eps=grad_eps)
        rows[f"distance after 250 steps, {name}"] = [
            f"{-run(tx, lambda x, _, c=c: c + 0 * x, 0.0, 250)[0][-1, 0]:.3f}"
            for c in scales
        ]
    return rows


def float16() -> Table:
    """A gradient of zero in float16, with an ε that float16 does not have."""
    x = jnp.ones(1, jnp.float16)
    rows: Table = {"float16 parameters, ε 1e-8": [], "update for a gradient of 0": []}
    for name, tx in (
        ("adadelta_tx.adadelta", adadelta_tx.adadelta(eps=1e-8)),
        ("optax.adadelta", optax.adadelta(1.0, eps=1e-8)),
    ):
        updates, _ = tx.update(jnp.zeros_like(x), tx.init(x), x)
        rows["float16 parameters, ε 1e-8"].append(name)
        value = abs(float(jnp.asarray(updates)[0]))  # −0 is 0
        rows["update for a gradient of 0"].append(f"{value:g}")
    return rows


def sign() -> Table:
    """The first update for a gradient of 1, without a learning rate."""
    rows: Table = {"no argument given": [], "update for a gradient of 1": []}
    for name, tx in (
        ("adadelta_tx.adadelta()", adadelta_tx.adadelta()),
        ("optax.adadelta()", optax.adadelta()),
    ):
        x = jnp.ones(1)
        updates, _ = tx.update(jnp.ones(1), tx.init(x), x)
        rows["no argument given"].append(name)
        value = float(jnp.asarray(updates)[0])
        rows["update for a gradient of 1"].append(f"{value:+.4f}")
    return rows


def weight_decay() -> Table:
    """Steps until a weight without a gradient has half its size, with decay 0.01."""
    ways = {
        "coupled: adadelta(weight_decay=0.01)": adadelta_tx.adadelta(weight_decay=0.01),
        "decoupled": optax.chain(
            adadelta_tx.scale_by_adadelta(),
            optax.add_decayed_weights(0.01),
            optax.scale_by_learning_rate(1.0),
        ),
    }
    rows: Table = {"from a weight of": []} | {name: [] for name in ways}
    for start in (100.0, 1.0, 0.1):
        rows["from a weight of"].append(f"{start:g}")
        for name, tx in ways.items():
            xs, *_ = run(tx, lambda x, _: 0 * x, start, 10_000)
            half = int(np.argmax(xs[:, 0] <= start / 2)) + 1
            rows[name].append(f"{half:,}")
    return rows


def scaled_data() -> Table:
    """Test error of a small network over the variance, by what was scaled before.

    20 inputs with scales from 0.03 to 30, and values with a deviation of 0.007.
    The means of three seeds.
    """
    steps, size = 2000, 3000
    draw = np.random.default_rng(0)
    x = draw.normal(size=(size, 20))
    y = np.sin(x[:, :4].sum(1, keepdims=True)) + 0.1 * draw.normal(size=(size, 1))
    inputs, values = x * 10 ** draw.uniform(-1.5, 1.5, 20), 0.01 * y
    falling = optax.cosine_decay_schedule(1.0, steps)
    optimizers = {
        "adadelta, recommended": adadelta_tx.adadelta(falling, eps=1e-5, grad_eps=0),
        "adadelta, defaults": adadelta_tx.adadelta(falling),
        "adam, 0.001": optax.adam(optax.cosine_decay_schedule(1e-3, steps)),
        "adam, 0.03": optax.adam(optax.cosine_decay_schedule(0.03, steps)),
    }

    def error(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((models.multilayer(params, x) - y) ** 2)

    def trained(tx: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        update = report.step_of(tx)

        def step(carry: Any, rows: jax.Array) -> Any:
            return update(*carry, jax.grad(error)(carry[0], x[rows], y[rows])), None

        def of_seed(key: jax.Array) -> jax.Array:
            first, *keys = jax.random.split(key, 3)
            rows = jax.random.randint(first, (steps, 64), 0, 2000)
            params = models.dense(jnp.stack(keys), (20, 128, 1))
            (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), rows)
            return error(params, x[2000:], y[2000:]) / jnp.var(y[2000:])

        return jax.vmap(of_seed)(jax.random.split(jax.random.key(0), 3)).mean()

    def scaled(x: np.ndarray) -> np.ndarray:
        return (x - x[:2000].mean(0)) / x[:2000].std(0)

    rows: Table = {"scaled before": []} | {name: [] for name in optimizers}
    for name, data in (
        ("nothing", (inputs, values)),
        ("the inputs", (scaled(inputs), values)),
        ("inputs and values", (scaled(inputs), scaled(values))),
    ):
        rows["scaled before"].append(name)
        for column, tx in optimizers.items():
            found = float(
                jax.jit(functools.partial(trained, tx))(*map(jnp.asarray, data))
            )
            rows[column].append(f"{found:.2g}" if found < 10 else f"{found:.0f}")
    return rows


QUESTIONS: dict[str, Callable[[], Table]] = {
    "learning rate 1": learning_rate_1,
    "first step": first_step,
    "epsilon": epsilon,
    "decay": decay,
    "curvature": curvature,
    "rate inside": rate_inside,
    "largest step": largest_step,
    "huge gradient": huge_gradient,
    "loss scale": loss_scale,
    "scaled data": scaled_data,
    "float16": float16,
    "sign": sign,
    "weight decay": weight_decay,
}


def tables(results: dict[str, Table]) -> dict[str, str]:
    """A Markdown table for each question."""
    return {
        name: report.table([*columns], [*zip(*columns.values(), strict=True)])
        for name, columns in results.items()
    }


def summary(results: dict[str, Table]) -> str:
    """All tables."""
    return "\n\n".join(tables(results).values())


def main(arguments: list[str] | None = None) -> None:
    """Runs the experiments, prints the tables, writes the result."""
    parser = report.parser("benchmarks.faq", __doc__, "a minute")
    options = parser.parse_args(arguments)
    results = {}
    with tqdm(QUESTIONS.items(), unit="question", disable=None) as progress:
        for name, answer in progress:
            progress.set_description(name)
            with jax.enable_x64(True):
                results[name] = answer()
    report.finish(options, summary(results), results)


if __name__ == "__main__":
    main()
