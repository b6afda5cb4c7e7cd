"""Trains small tasks of different kinds, each setting the same way on all of them.

What is asked: how much is lost by a setting that nobody searched for, the same one on
every task and at every scale of the loss. The tasks (N parameters):

- digits: scikit-learn's, an MLP (17,226), a GRU that reads rows (14,666) and a
  transformer (13,120); 1077 images to train, 360 to validate, 360 to test (one image is
  0.28 percentage points of error);
- MNIST: a small CNN (52,266), an MLP (1,068,810) and a wide one (5,824,522); 50,000
  images, 2000, 5000 (one image is 0.02 points);
- characters: a transformer on Python's standard library, split by files (67,584); 500
  and 1000 pieces of 32 characters to validate and to test;
- unequal scales: a regression whose inputs have scales from 0.03 to 30 (10,201);
- sparse: a matrix factorisation with Zipf popularity, a step reads 128 of 4000 rows
  (64,000);
- recall: a GRU tells the first of 12 symbols (11,376);
- autoencoder: of the digits' pixels (20,816);
- authors: a convolution tells from which module of the standard library 48 characters
  are (7,752); 2000 pieces to test;
- spiking: integrate-and-fire neurons remember which group of channels was active, with
  BrainPy's gradient of a spike (12,404).

In recall and spiking a tenth of the labels is random, in all splits, so that no loss is
near 0 and ratios of losses mean something. The recommended ρ and ε were chosen on the
validation losses of the first nine tasks. The last three and the wide MLP were added
afterwards, and changed nothing.

The settings, in the order in which they run, five seeds each:

1. loss × 1: Adadelta with the paper's defaults, with two ε (``grad_eps=0``) at ε 1e-6
   and 1e-5, and with two other starts of E[g²]; Adam at 1e-3, 3e-3, 1e-2; SGD at 1 with
   the gradient's norm clipped to 1; Prodigy; schedule-free AdamW.
2. The same, loss × 0.001 and × 1000.
3. loss × 1: other rates of Adam and SGD, SGD with momentum, each ε with one and two ε,
   each ρ, the other optimizers without a rate, clipping, schedules, ``grad_eps``. But
   for the rates, these run on the first nine tasks only.

The starts of E[g²]: "paper" is 0; "bias" divides E[g²] by 1 - ρ^t; "first" takes g² for
E[g²] where that was 0. The schedule is a cosine to 0, but for what its authors
recommend: a line to 0 for Prodigy and D-Adaptation, warm-up and cosine for Mechanic,
none for DoG, DoWG and the schedule-free one, whose averaged parameters are evaluated.

A setting's loss is the ratio of test losses, its own over that of the setting with the
best validation loss, both means over seeds. What is finished is in the result at once,
and a second start with the same ``--out`` goes on.
"""

import functools
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import adadelta_tx
from benchmarks import _mnist as mnist
from benchmarks import _pictures as pictures
from benchmarks import _report as report
from benchmarks._tasks import Arrays, Task, error, loss, tasks

SEEDS = 5
SCALES = (1.0, 1e-3, 1e3)
EPSILONS = (1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 1e-7, 1e-8)
RHOS = (0.9, 0.95, 0.98, 0.99)
STARTS = ("paper", "bias", "first")
SCHEDULES = ("constant", "cosine", "linear", "warm-up, cosine")
TINY = 1e-24
"""What stands beside E[g²] for ``grad_eps=0``: 0 / 0 is no update."""


class Setting(NamedTuple):
    """An optimizer with its numbers, the paper's by default."""

    optimizer: str = "Adadelta"
    rate: float = 1.0
    rho: float = 0.95
    eps: float = 1e-6
    grad_eps: float | None = None
    start: str = "paper"
    schedule: str = "cosine"
    clip: str = ""
    """norm or value; of the gradients."""
    limit: float = 1.0

    @property
    def label(self) -> str:
        """One name a setting."""
        parts = [self.optimizer]
        if self.optimizer != "Adadelta" or self.rate != 1:
            parts.append(f"{self.rate:g}")
        if self.optimizer == "Adadelta":
            parts.append(f"ρ {self.rho:g}, ε {self.eps:g}")
            if self.grad_eps is not None:
                parts.append(f"ε_g {self.grad_eps:g}")
            parts += [self.start] * (self.start != "paper")
        parts += [self.schedule] * (self.schedule != "cosine")
        parts += [f"{self.clip} ≤ {self.limit:g}"] * bool(self.clip)
        return ", ".join(parts)


PAPER = Setting()
TWO = Setting(grad_eps=0.0)
CHOSEN = TWO._replace(eps=1e-5)
ADADELTA = [PAPER, TWO, CHOSEN]
STARTED = [CHOSEN._replace(rho=0.99, start=start) for start in STARTS[1:]]
ADAM = [Setting("Adam", rate) for rate in (1e-3, 3e-3, 1e-2)]
CLIPPED_SGD = Setting("SGD", 1.0, clip="norm")
PRODIGY = Setting("Prodigy", schedule="linear")
SCHEDULE_FREE = Setting("schedule-free AdamW", 0.0025, schedule="constant")
FIRST_TRIED = [*ADADELTA, *STARTED, *ADAM, CLIPPED_SGD, PRODIGY, SCHEDULE_FREE]
SEARCHED = {
    "SGD": (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "SGD, momentum 0.9": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "Adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
OTHERS = [
    [
        *(Setting(name, rate) for name, rates in SEARCHED.items() for rate in rates),
        CHOSEN._replace(clip="norm"),
        *(CHOSEN._replace(start=start) for start in STARTS[1:]),
    ],
    [
        *(s._replace(eps=eps) for eps in EPSILONS for s in (PAPER, TWO)),
        *(s._replace(rho=rho) for rho in RHOS for s in (PAPER, CHOSEN)),
    ],
    [s._replace(clip="norm") for s in (PAPER, TWO)],
    [
        Setting("DoWG", schedule="constant"),
        Setting("D-Adapt AdamW", schedule="linear"),
        Setting("Mechanic, Adam", schedule="warm-up, cosine"),
        Setting("DoG", schedule="constant"),
    ],
    [s._replace(rho=0.98) for s in STARTED],
    [
        *(s._replace(schedule="constant") for s in (*ADADELTA, *ADAM, CLIPPED_SGD)),
        CHOSEN._replace(schedule=SCHEDULES[-1]),
        *(s._replace(clip="norm", limit=5.0) for s in (PAPER, CHOSEN)),
        *(s._replace(clip="value", limit=0.1) for s in (PAPER, CHOSEN)),
        *(CHOSEN._replace(grad_eps=grad_eps) for grad_eps in (1e-12, 1e-16)),
    ],
]
"""Those of each list run on all their tasks before the next."""
USED = 9
"""Tasks on whose validation losses ρ and ε were chosen, the first ones."""


class Textbook(NamedTuple):
    """State of :func:`textbook`."""

    step: jax.Array
    averages: optax.ScaleByAdaDeltaState


def textbook(
    rho: Any, eps: Any, grad_eps: Any, start: Any = 0
) -> optax.GradientTransformation:
    """Adadelta's scaling as the paper writes it, but for ε_g and the start of E[g²].

    ``start`` is a number of :data:`STARTS`. All may be traced.
    """

    def init(params: Any) -> Textbook:
        zeros, others = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        averages = optax.ScaleByAdaDeltaState(zeros, others)
        return Textbook(jnp.zeros([], jnp.int32), averages)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        step = state.step + 1
        kind = jnp.asarray(start)
        part = jnp.where(kind == STARTS.index("bias"), 1 - rho**step, 1.0)

        def average(g: jax.Array, s: jax.Array) -> jax.Array:
            first = (kind == STARTS.index("first")) & (s == 0)
            return jnp.where(first, g**2, rho * s + (1 - rho) * g**2)

        def scaled(g: jax.Array, s: jax.Array, d: jax.Array) -> jax.Array:
            beside = jnp.maximum(grad_eps, TINY)
            return g * jnp.sqrt((d + eps) / (s / part + beside))

        e_g = jax.tree.map(average, updates, state.averages.e_g)
        updates = jax.tree.map(scaled, updates, e_g, state.averages.e_x)
        e_x = jax.tree.map(
            lambda u, d: rho * d + (1 - rho) * u**2, updates, state.averages.e_x
        )
        return updates, Textbook(step, optax.ScaleByAdaDeltaState(e_g, e_x))

    return optax.GradientTransformation(init, update)


class Numbers(NamedTuple):
    """A setting as arguments of a compiled program."""

    rate: Any
    rho: Any
    eps: Any
    grad_eps: Any
    start: Any
    schedule: Any
    norm: Any
    value: Any


def numbers(setting: Setting) -> Numbers:
    """As they are used."""
    s = setting
    return Numbers(
        s.rate,
        s.rho,
        s.eps,
        s.eps if s.grad_eps is None else s.grad_eps,
        STARTS.index(s.start),
        SCHEDULES.index(s.schedule),
        s.limit if s.clip == "norm" else math.inf,
        s.limit if s.clip == "value" else math.inf,
    )


def transformation(optimizer: str, given: Numbers, steps: int) -> Any:
    """Clipping and an optimizer with these numbers, which may be traced."""
    shapes = (
        optax.constant_schedule(1.0),
        optax.cosine_decay_schedule(1.0, steps),
        optax.linear_schedule(1.0, 0.0, steps),
        optax.warmup_cosine_decay_schedule(0.0, 1.0, max(steps // 10, 1), steps),
    )

    def rate(count: Any) -> Any:
        factors = jnp.stack([jnp.asarray(f(count), jnp.float32) for f in shapes])
        return given.rate * factors[given.schedule]

    made = {
        "Adadelta": lambda: optax.chain(
            textbook(given.rho, given.eps, given.grad_eps, given.start),
            optax.scale_by_learning_rate(rate),
        ),
        "Adam": lambda: optax.adam(rate),
        "SGD": lambda: optax.sgd(rate),
        "SGD, momentum 0.9": lambda: optax.sgd(rate, momentum=0.9),
        "Prodigy": lambda: optax.contrib.prodigy(rate),
        "D-Adapt AdamW": lambda: optax.contrib.dadapt_adamw(rate),
        "DoG": optax.contrib.dog,
        "DoWG": optax.contrib.dowg,
        "Mechanic, Adam": lambda: optax.contrib.mechanize(optax.adam(rate)),
        SCHEDULE_FREE.optimizer: lambda: optax.contrib.schedule_free_adamw(
            SCHEDULE_FREE.rate, max(steps // 20, 1)
        ),
    }
    return optax.chain(
        optax.clip_by_global_norm(given.norm),
        optax.clip(given.value),
        made[optimizer](),
    )


class Runner:
    """Trains one task. Settings that differ in numbers only share a program."""

    def __init__(self, task: Task, steps: int) -> None:
        """Compiles nothing yet."""
        self.task, self.steps = task, steps
        self.advance = jax.jit(self._advance, static_argnums=0)
        self.start = jax.jit(jax.vmap(self._start))
        self.evaluate = jax.jit(self._evaluate)

    def _start(self, key: jax.Array) -> tuple[Any, jax.Array]:
        """Parameters, and which rows each step of each tenth reads."""
        initial, order = jax.random.split(key)
        task, shape = self.task, (10, self.steps // 10, self.task.batch)
        rows = jax.random.randint(order, shape, 0, len(task.train[0]))
        return task.initial(initial), rows

    def _seeds(self, run: Callable[..., Any], *each: Any) -> Any:
        """Together, or one after the other."""
        if self.task.at_once:
            return jax.vmap(run)(*each)
        return jax.lax.map(lambda one: run(*one), each)

    def _advance(
        self,
        optimizer: str,
        given: Numbers,
        scale: Any,
        carry: Any,
        rows: jax.Array,
        train: Arrays,
    ) -> Any:
        """A tenth of the steps."""
        step = report.step_of(transformation(optimizer, given, self.steps))

        def one(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            batch = tuple(x[rows] for x in train)
            grads = jax.grad(lambda p: scale * loss(self.task, p, batch))(carry[0])
            return step(*carry, grads), None

        return self._seeds(lambda c, r: jax.lax.scan(one, c, r)[0], carry, rows)

    def _evaluate(self, params: Any, validation: Arrays, test: Arrays) -> Any:
        """Losses of both and the error of the second, a row a seed."""

        def one(params: Any) -> tuple[jax.Array, ...]:
            found = loss(self.task, params, validation), loss(self.task, params, test)
            return *found, error(self.task, params, test)

        return self._seeds(one, params)

    def __call__(self, setting: Setting, scale: float, seeds: int) -> dict[str, Any]:
        """What is kept of a setting: a number a seed, null if it is not finite."""
        optimizer, given, task = setting.optimizer, numbers(setting), self.task
        params, rows = self.start(jax.random.split(jax.random.key(0), seeds))
        state = jax.vmap(transformation(optimizer, given, self.steps).init)(params)
        carry, row = (params, state), {}
        for tenth in range(10):
            carry = self.advance(
                optimizer, given, scale, carry, rows[:, tenth], task.train
            )
            if not tenth and optimizer == PAPER.optimizer:
                row["spread"] = spreads(carry[1], given, seeds)
                row["not adapting"] = not_adapting(carry[1], given)
        params, state = carry
        if optimizer == SCHEDULE_FREE.optimizer:
            averaged = optax.contrib.schedule_free_eval_params
            params = jax.vmap(averaged)(state[-1], params)
        found = self.evaluate(params, task.validation, task.test)
        names = ("validation", "test", "error")
        row |= {
            name: [float(v) for v in values]
            for name, values in zip(names, found, strict=True)
        }
        return {
            name: [x if math.isfinite(x) else None for x in values]
            for name, values in row.items()
        }


def not_adapting(states: Any, given: Numbers) -> list[float]:
    """Percent of the parameters whose E[g²] is below what stands beside it."""
    e_g = optax.tree.get(states, "e_g")
    beside = max(given.grad_eps, TINY)
    below = [(x < beside).reshape(len(x), -1) for x in jax.tree.leaves(e_g)]
    return (100 * jnp.concatenate(below, 1).mean(1)).tolist()


def spreads(states: Any, given: Numbers, seeds: int) -> list[float]:
    """95th over 5th percentile of effective rates, median over leaves."""
    found = []
    for seed in range(seeds):
        one = jax.tree.map(lambda x, i=seed: x[i], states)
        rates = adadelta_tx.effective_learning_rate(
            one, given.eps, grad_eps=max(given.grad_eps, TINY), percentiles=(5, 95)
        )
        found.append(
            statistics.median(float(x[1] / x[0]) for x in jax.tree.leaves(rates))
        )
    return found


def plan(quick: bool) -> list[tuple[float, list[Setting], int | None]]:
    """Loss scales, settings, and on how many tasks, in the order of work."""
    if quick:
        return [(1.0, FIRST_TRIED, None)]
    return [
        *((scale, FIRST_TRIED, None) for scale in SCALES),
        *((1.0, settings, USED if i else None) for i, settings in enumerate(OTHERS)),
    ]


def mean(row: dict[str, Any], name: str) -> float:
    """Over seeds; infinite if one is not finite."""
    values = row[name]
    return math.inf if None in values else statistics.mean(values)


def cell(row: dict[str, Any], name: str, digits: int = 3) -> str:
    """Mean and standard deviation, where there are several finite numbers."""
    values = row[name]
    if None in values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


class Results:
    """Rows by setting, loss scale and task, and what each loses."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows as they are written."""
        self.tasks = list(dict.fromkeys(row["task"] for row in rows))
        self.scales = list(dict.fromkeys(row["scale"] for row in rows))
        self.rows = {(row["label"], row["scale"], row["task"]): row for row in rows}
        self.best = {
            name: min(
                (row for row in rows if row["task"] == name),
                key=lambda row: mean(row, "validation"),
            )
            for name in self.tasks
        }

    def row(self, label: str, task: str, scale: float = 1.0) -> dict[str, Any] | None:
        """What is kept of a setting, if it has run."""
        return self.rows.get((label, scale, task))

    def ratio(self, row: dict[str, Any]) -> float:
        """A test loss over that of the best setting."""
        return mean(row, "test") / mean(self.best[row["task"]], "test")

    def lost(self, label: str, scale: float = 1.0) -> list[float]:
        """A setting's test loss over that of the best, if all tasks have run."""
        return self._lost(label, scale, self.tasks)

    def used(self, label: str) -> list[float]:
        """The same for the tasks that were used for choices."""
        return self._lost(label, 1.0, self.tasks[:USED])

    def _lost(self, label: str, scale: float, tasks: list[str]) -> list[float]:
        found = [self.row(label, name, scale) for name in tasks]
        lost = [self.ratio(row) for row in found if row]
        return lost if len(lost) == len(tasks) else []


def shown(ratio: float) -> str:
    """Two digits behind the point."""
    return f"{ratio:.2f}" if ratio < 100 else "> 100" if ratio < math.inf else "–"


def mean_and_worst(lost: Sequence[float]) -> list[str]:
    """Over tasks, if there are any."""
    return [shown(statistics.mean(lost)), shown(max(lost))] if lost else ["", ""]


NAMES = {
    PAPER.label: "Adadelta, the paper's defaults",
    TWO.label: "Adadelta, ε 1e-6, ε_g 0",
    CHOSEN.label: "**Adadelta, ε 1e-5, ε_g 0**",
    PRODIGY.label: "Prodigy",
    SCHEDULE_FREE.label: "schedule-free AdamW",
    CLIPPED_SGD.label: "SGD, 1, norm ≤ 1",
}
"""Those of a column each in tables of one row a task."""
SHORT = NAMES | {
    STARTED[0].label: "ρ 0.99, E[g²] without its bias",
    STARTED[1].label: "ρ 0.99, E[g²] starts at g²",
    CHOSEN._replace(clip="norm").label: "**Adadelta, ε 1e-5, ε_g 0**, norm ≤ 1",
}
"""Those and more, in other tables."""


def overview(results: Results) -> str:
    """Mean and worst at each scale of the loss."""
    header = ["test loss over that of the best", "mean", "worst", "last four tasks"]
    for scale in results.scales[1:]:
        header += [f"mean, loss × {scale:g}", "worst"]
    lines = []
    for label in (setting.label for setting in FIRST_TRIED):
        line = [SHORT.get(label, label), *mean_and_worst(results.lost(label))]
        later = results.lost(label)[USED:]
        line.append(shown(statistics.mean(later)) if later else "")
        for scale in results.scales[1:]:
            line += mean_and_worst(results.lost(label, scale))
        lines.append(line)
    return report.table(header, lines)


def by_task(
    results: Results,
    title: str,
    labels: Sequence[str],
    cell: Callable[[dict[str, Any]], str],
) -> str:
    """A row a task, a column a setting."""
    lines = []
    for task in results.tasks:
        rows = [results.row(label, task) for label in labels]
        lines.append([task, *(cell(row) if row else "" for row in rows)])
    return report.table([title, *(SHORT.get(x, x) for x in labels)], lines)


def changed(results: Results) -> str:
    """The recommended setting with one change."""
    changes = {
        "ε 1e-5, ε_g 0, as recommended": CHOSEN,
        "one ε, 1e-5": CHOSEN._replace(grad_eps=None),
        "ε_g 1e-12": CHOSEN._replace(grad_eps=1e-12),
        **{f"ε {x:g}": CHOSEN._replace(eps=x) for x in EPSILONS if x != CHOSEN.eps},
        **{f"ρ {x:g}": CHOSEN._replace(rho=x) for x in RHOS if x != CHOSEN.rho},
        "E[g²] without its bias": CHOSEN._replace(start="bias"),
        "E[g²] starts at the first g²": CHOSEN._replace(start="first"),
        "a warm-up before the cosine": CHOSEN._replace(schedule="warm-up, cosine"),
        "a constant learning rate": CHOSEN._replace(schedule="constant"),
        "norm of the gradient ≤ 1": CHOSEN._replace(clip="norm"),
        "norm of the gradient ≤ 5": CHOSEN._replace(clip="norm", limit=5.0),
        "each element of it ≤ 0.1": CHOSEN._replace(clip="value", limit=0.1),
    }
    return report.table(
        ["recommended, with one change", "mean", "worst"],
        [
            [name, *mean_and_worst(results.used(setting.label))]
            for name, setting in changes.items()
        ],
    )


def others(results: Results) -> str:
    """One setting of each other optimizer for all tasks."""
    settings = dict.fromkeys(
        s for s in itertools.chain(FIRST_TRIED, *OTHERS) if s.optimizer != "Adadelta"
    )
    lines = [
        [setting.label, *mean_and_worst(results.used(setting.label))]
        for setting in sorted(settings)
    ]
    return report.table(["other optimizers", "mean", "worst"], lines)


def searched(results: Results) -> str:
    """The best rate for each task."""
    lines = []
    for task in results.tasks:
        line = [task]
        for optimizer, rates in SEARCHED.items():
            rows = {x: results.row(Setting(optimizer, x).label, task) for x in rates}
            tried = {x: row for x, row in rows.items() if row}
            if not tried:
                line.append("")
                continue
            rate = min(tried, key=lambda x: mean(tried[x], "validation"))
            line.append(f"{shown(results.ratio(tried[rate]))} at {rate:g}")
        row = results.row(CHOSEN.label, task)
        lines.append([*line, shown(results.ratio(row)) if row else ""])
    header = ["best rate for each task", *SEARCHED, NAMES[CHOSEN.label]]
    return report.table(header, lines)


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Markdown tables. Means of changes and others are over the first nine tasks."""
    results = Results(rows)
    labels = [*NAMES]
    descent = Setting("SGD", 1.0)
    pairs = [CHOSEN, descent, CHOSEN._replace(clip="norm"), CLIPPED_SGD]
    return {
        "overview": overview(results),
        "tasks": by_task(
            results,
            "test loss over that of the best",
            labels,
            lambda row: shown(results.ratio(row)),
        ),
        "losses": by_task(results, "test loss", labels, lambda row: cell(row, "test")),
        "errors": by_task(
            results, "test error, %", labels, lambda row: cell(row, "error", 1)
        ),
        "descent": by_task(
            results,
            "test loss",
            [setting.label for setting in pairs],
            lambda row: cell(row, "test"),
        ),
        "changes": changed(results),
        "others": others(results),
        "searched": searched(results),
        "adapting": adapting(results),
    }


def spread(row: dict[str, Any]) -> str:
    """Mean over seeds. Rows of a matrix that no step has read have the largest rate."""
    found = mean(row, "spread")
    return f"{found:.1f}" if found < 1000 else "> 1000"


def adapting(results: Results) -> str:
    """After a tenth of the run, with the paper's defaults and as recommended."""
    header = ["after a tenth of the run", *(f"loss × {x:g}" for x in results.scales)]
    lines = []
    for task in results.tasks:
        line = [task]
        for scale in results.scales:
            row = results.row(PAPER.label, task, scale)
            line.append(cell(row, "not adapting", 0) if row else "")
        for label in (PAPER.label, CHOSEN.label):
            row = results.row(label, task)
            line.append(spread(row) if row else "")
        lines.append(line)
    header += ["95th / 5th percentile", "the same, recommended"]
    return report.table(header, lines)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """All tables."""
    return "\n\n".join(tables(rows).values())


def draw_lost(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A row a setting, a point a task."""
    results = Results(rows)
    figure = pictures.figure(4.2, "Test loss, over that of the best setting of all")
    axes = figure.subplots()
    for place, setting in enumerate(FIRST_TRIED):
        lost = results.lost(setting.label)
        if not lost:
            continue
        mark, color = ("o", pictures.OURS) if setting == CHOSEN else ("^", "0.5")
        axes.plot(lost, [place] * len(lost), mark, color=color, alpha=0.5)
        axes.plot(
            statistics.mean(lost), place, "|", color="black", markersize=18, mew=2.5
        )
        axes.annotate(
            SHORT.get(setting.label, setting.label).replace("**", ""),
            (0, place), (-6, 0), va="center", ha="right",
            xycoords=("axes fraction", "data"), textcoords="offset points",
            fontweight="bold" if setting == CHOSEN else None,
        )  # fmt: skip
    axes.set(xscale="log", xlabel="one point a task; the bar is their mean")
    axes.set_yticks([])
    axes.invert_yaxis()
    ticks = (1, 2, 3, 5, 10)
    axes.set_xticks(ticks, [f"{x:g} ×" for x in ticks])
    axes.minorticks_off()
    pictures.plain([axes])
    pictures.save(figure, path)


def draw_range(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Means over tasks, against the size of the steps."""
    results = Results(rows)
    lines = {
        "Adadelta with two ε (ε_g 0), against √ε": {
            eps**0.5: TWO._replace(eps=eps) for eps in EPSILONS
        },
        "Adadelta with one ε, against √ε": {
            eps**0.5: PAPER._replace(eps=eps) for eps in EPSILONS
        },
        "Adam, against the learning rate": {
            rate: Setting("Adam", rate) for rate in SEARCHED["Adam"]
        },
    }
    figure = pictures.figure(3.6, "Test loss over the best, mean of nine tasks")
    axes = figure.subplots()
    for (name, points), style in zip(lines.items(), pictures.STYLES, strict=False):
        lost = {x: results.used(setting.label) for x, setting in points.items()}
        means = {x: statistics.mean(its) for x, its in lost.items() if its}
        places = sorted(means)
        axes.plot(
            places,
            [min(means[x], 50.0) for x in places],  # which may be infinite
            label=name,
            **style._asdict(),
        )
    ticks = (1, 1.5, 2, 3, 5, 10)
    axes.set(xscale="log", yscale="log", ylim=(1, 10), xlabel="√ε, or learning rate")
    axes.set_yticks(ticks, [f"{x:g} ×" for x in ticks])
    axes.minorticks_off()
    figure.legend(loc="outside lower left", frameon=False)
    pictures.plain([axes])
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is not in the result yet, and prints the tables."""
    quick = "one seed, a tenth of the steps, the first settings at loss × 1"
    parser = report.parser("benchmarks.choosing", __doc__, "two hours", quick)
    mnist.add_option(parser)
    options = parser.parse_args(arguments)
    seeds, part = (1, 10) if options.quick else (SEEDS, 1)
    name = "choosing_quick" if options.quick else "choosing"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    done = {(row["task"], row["label"], row["scale"]) for row in rows}
    todo = [
        (task, setting, scale)
        for scale, settings, count in plan(options.quick)
        for task in [*tasks(options.data)][:count]
        for setting in settings
    ]

    @functools.cache
    def runner(name: str) -> Runner:
        task = tasks(options.data)[name]()
        return Runner(task, task.steps // part)

    with tqdm(todo, unit="setting", disable=None) as progress:
        for task, setting, scale in progress:
            if (task, setting.label, scale) in done:
                continue
            done.add((task, setting.label, scale))
            progress.set_description(f"{task}: {setting.label}")
            key = {"task": task, "label": setting.label, "scale": scale}
            rows.append(key | runner(task)(setting, scale, seeds))
            # A stop while it is written loses nothing.
            with tempfile.TemporaryDirectory(dir=options.out) as folder:
                new = Path(folder) / path.name
                report.write(new, options.module, rows).replace(path)
    print(summary(rows))
    print(report.describe())
    print(f"written: {path}")
    draw_lost(rows, options.out / f"{name}_lost.png")
    draw_range(rows, options.out / f"{name}_range.png")


if __name__ == "__main__":
    main()
