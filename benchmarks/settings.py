"""Trains small tasks of different kinds, each setting the same way on all of them.

What is asked: how much is lost by a setting that nobody searched for, the same one on
every task and at every scale of the loss. The tasks (N parameters):

- digits: scikit-learn's, an MLP, a GRU that reads rows, and a transformer; 1077 images
  to train, 360 to validate, 360 to test (one image is 0.28 % of the error);
- MNIST: an MLP of a million parameters and a small CNN; 50,000 images, 2000, 5000
  (one image is 0.02 %);
- characters: a transformer on Python's standard library, split by files; 500 and 1000
  pieces of 32 characters to validate and to test;
- unequal scales: a regression whose inputs have scales from 0.03 to 30;
- sparse: a matrix factorisation with Zipf popularity, a step reads 128 of 4000 rows;
- recall: a GRU tells the first of 12 symbols. A tenth of the labels is random, in all
  splits, so that no loss is near 0 and ratios of losses mean something.

The settings, in the order in which they run, five seeds each:

1. loss × 1: Adadelta with the paper's defaults; with two ε (``grad_eps=0``); with two
   ε, ρ 0.99, ε 1e-5 and another start of E[g²]; Adam at 1e-3, 3e-3, 1e-2; SGD at 1 with
   the gradient's norm clipped to 1; Prodigy; schedule-free AdamW.
2. The same, loss × 0.001 and × 1000.
3. loss × 1: the candidates with clipping, other rates of Adam and SGD, two more pairs
   of ρ and ε, SGD with momentum, the other optimizers without a rate, then one change
   at a time of the four Adadeltas: ε, ρ, the schedule, other clipping, ``grad_eps``.

The starts of E[g²]: "paper" is 0; "bias" divides E[g²] by 1 - ρ^t; "first" takes g² for
E[g²] where that was 0. The schedule is a cosine to 0, but for what its authors
recommend: a line to 0 for Prodigy and D-Adaptation, warm-up and cosine for Mechanic,
none for DoG, DoWG and the schedule-free one, whose averaged parameters are evaluated.

Settings are compared on the validation loss; the test set is only reported. What is
finished is in the result at once, and a second start with the same ``--out`` goes on.
"""

import functools
import itertools
import json
import math
import statistics
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from tqdm import tqdm

import adadelta_tx
from benchmarks import _mnist as mnist
from benchmarks import _report as report
from benchmarks import low_memory

Arrays = tuple[jax.Array, ...]
SEEDS = 5
SCALES = (1.0, 1e-3, 1e3)
EPSILONS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
RHOS = (0.9, 0.95, 0.98, 0.99)
STARTS = ("paper", "bias", "first")
SCHEDULES = ("constant", "cosine", "linear", "warm-up, cosine")
TINY = 1e-24
"""What stands beside E[g²] for ``grad_eps=0``: 0 / 0 is no update."""


class Task(NamedTuple):
    """What is trained, and how long."""

    initial: Callable[[jax.Array], Any]
    """Parameters from a key."""
    outputs: Callable[..., jax.Array]
    """Of parameters and inputs."""
    train: Arrays
    """Inputs, and labels (integers) or values last."""
    validation: Arrays
    test: Arrays
    steps: int
    batch: int = 32
    at_once: bool = True
    """Whether the seeds are trained together, by vmap."""


def loss(task: Task, params: Any, rows: Arrays) -> jax.Array:
    """Mean cross-entropy in nats, or half the mean squared error."""
    *inputs, wanted = rows
    found = task.outputs(params, *inputs)
    if jnp.issubdtype(wanted.dtype, jnp.integer):
        return report.cross_entropy(found, wanted)
    return jnp.mean((found - wanted) ** 2) / 2


def error(task: Task, params: Any, rows: Arrays) -> jax.Array:
    """Percent of wrong labels; NaN where there are none."""
    *inputs, wanted = rows
    if not jnp.issubdtype(wanted.dtype, jnp.integer):
        return jnp.array(jnp.nan)
    return 100 * jnp.mean(task.outputs(params, *inputs).argmax(-1) != wanted)


def weights(key: jax.Array, /, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Normal, of variance 1 / fan-in; vectors are 0."""
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) / math.prod(shape[:-1]) ** 0.5
        if len(shape) > 1
        else jnp.zeros(shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def dense(*sizes: int) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Initial parameters of :func:`multilayer`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"w{i}": (n, m), f"b{i}": (m,)}
    return lambda key: weights(key, **shapes)


def multilayer(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Layers with ReLU between them."""
    layers = len(p) // 2
    for i in range(layers):
        x = (jax.nn.relu(x) if i else x) @ p[f"w{i}"] + p[f"b{i}"]
    return x


def gru(inputs: int, width: int, outputs: int) -> Callable[[jax.Array], Any]:
    """Initial parameters of :func:`last_state`."""
    return lambda key: weights(
        key,
        gates=(inputs + width, 2 * width),
        gates_bias=(2 * width,),
        new=(inputs + width, width),
        new_bias=(width,),
        out=(width, outputs),
        out_bias=(outputs,),
    )


def last_state(p: Any, x: jax.Array) -> jax.Array:
    """What a GRU tells after the last of ``(batch, time, inputs)``."""

    def one(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        both = jnp.concatenate([x, h], -1)
        reset, keep = jnp.split(
            jax.nn.sigmoid(both @ p["gates"] + p["gates_bias"]), 2, -1
        )
        both = jnp.concatenate([x, reset * h], -1)
        new = jnp.tanh(both @ p["new"] + p["new_bias"])
        return keep * h + (1 - keep) * new, None

    start = jnp.zeros((len(x), p["out"].shape[0]))
    h, _ = jax.lax.scan(one, start, jnp.swapaxes(x, 0, 1))
    return h @ p["out"] + p["out_bias"]


def split(arrays: Sequence[Any], *sizes: int) -> list[Arrays]:
    """The first rows of each array, then the next, ..."""
    ends = np.cumsum([0, *sizes])
    return [
        tuple(jnp.asarray(x[a:b]) for x in arrays) for a, b in itertools.pairwise(ends)
    ]


def digits() -> list[Arrays]:
    """Training, validation and test images in [0, 1], with labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels = (images[order] / 16).astype(np.float32)
    return split((pixels, labels[order].astype(np.int32)), 1077, 360, 360)


def digits_mlp() -> Task:
    """64-128-64-10."""
    return Task(dense(64, 128, 64, 10), multilayer, *digits(), steps=400)


def digits_gru() -> Task:
    """Rows as time, width 64."""

    def outputs(p: Any, images: jax.Array) -> jax.Array:
        return last_state(p, images.reshape(-1, 8, 8))

    return Task(gru(8, 64, 10), outputs, *digits(), steps=400)


def digits_transformer() -> Task:
    """That of benchmarks.low_memory."""
    problem = low_memory.digit_rows()
    return Task(problem.initial, problem.logits, *digits(), steps=400)


@functools.cache
def mnist_split(folder: Path | None) -> list[Arrays]:
    """Validation is the end of the training images."""
    data = mnist.load(folder)
    train, validation = split((data.train_images, data.train_labels), 50_000, 2000)
    return [train, validation, (data.test_images[:5000], data.test_labels[:5000])]


def mnist_mlp(folder: Path | None) -> Task:
    """784-1024-256-10."""
    made = dense(784, 1024, 256, 10)
    data = mnist_split(folder)
    return Task(made, multilayer, *data, steps=400, at_once=False)


def mnist_cnn(folder: Path | None) -> Task:
    """Two strided convolutions and two dense layers."""

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        return weights(
            key, a=(5, 5, 1, 8), b=(3, 3, 8, 16), c=(784, 64), d=(64, 10),
            a_bias=(8,), b_bias=(16,), c_bias=(64,), d_bias=(10,),
        )  # fmt: skip

    def outputs(p: Any, images: jax.Array) -> jax.Array:
        x = images.reshape(-1, 28, 28, 1)
        for name in "ab":
            x = jax.lax.conv_general_dilated(
                x, p[name], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + p[f"{name}_bias"])
        x = jax.nn.relu(x.reshape(len(x), -1) @ p["c"] + p["c_bias"])
        return x @ p["d"] + p["d_bias"]

    return Task(initial, outputs, *mnist_split(folder), steps=200, at_once=False)


def characters() -> Task:
    """A transformer of one layer, width 64, that reads 32 characters."""
    width, heads, length = 64, 4, 32
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_bytes() for path in paths]
    pieces = []
    for part in (texts[2::3] + texts[::3], texts[1::6], texts[4::6]):
        codes = np.frombuffer(b"".join(part), np.uint8).astype(np.int32)
        codes = np.where(codes < 128, codes, 0)
        codes = codes[: len(codes) // (length + 1) * (length + 1)]
        pieces.append(codes.reshape(-1, length + 1))
    order = np.random.default_rng(0)
    chosen = [
        order.permutation(x)[:n]
        for x, n in zip(pieces, (40_000, 500, 1000), strict=True)
    ]
    data = [(jnp.asarray(x[:, :-1]), jnp.asarray(x[:, 1:])) for x in chosen]
    head = (width, heads, width // heads)

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        made = weights(
            key, embed=(128, width), position=(length, width), query=head, key=head,
            value=head, join=(heads, width // heads, width), up=(width, 4 * width),
            down=(4 * width, width), out=(width, 128),
        )  # fmt: skip
        return made | {name: made[name] * 2 for name in ("embed", "position")}

    def outputs(p: Any, codes: jax.Array) -> jax.Array:
        x = p["embed"][codes] + p["position"]
        y = jax.nn.standardize(x, epsilon=1e-5)
        q, k, v = (
            jnp.einsum("bte,ehd->bthd", y, p[name])
            for name in ("query", "key", "value")
        )
        seen = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x += jnp.einsum("bthd,hde->bte", seen, p["join"])
        y = jax.nn.standardize(x, epsilon=1e-5)
        x += jax.nn.gelu(y @ p["up"]) @ p["down"]
        return jax.nn.standardize(x, epsilon=1e-5) @ p["out"]

    return Task(initial, outputs, *data, steps=300, batch=16, at_once=False)


def unequal() -> Task:
    """32-300-1; the values come from a network that sees inputs of one scale."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(22_000, 32))
    first, second = draw.normal(size=(32, 4)) / 32**0.5, np.array([1, -1, 1, -1])
    y = np.tanh(x @ first) @ second + 0.3 * draw.normal(size=len(x))
    scales = 10 ** draw.uniform(-1.5, 1.5, 32)
    arrays = ((x * scales).astype(np.float32), y.astype(np.float32)[:, None])
    data = split(arrays, 20_000, 1000, 1000)
    return Task(dense(32, 300, 1), multilayer, *data, steps=1500, batch=64)


def sparse() -> Task:
    """Rows of two tables of 2000 × 16, popular as Zipf says; the values have rank 4."""
    draw = np.random.default_rng(0)
    rows, width = 2000, 16
    popular = 1 / np.arange(1, rows + 1)
    count = 84_000
    pairs = draw.choice(rows, (2, count), p=popular / popular.sum()).astype(np.int32)
    left, right = draw.normal(size=(2, rows, 4))
    values = (left[pairs[0]] * right[pairs[1]]).sum(1) / 2
    values = (values + 0.3 * draw.normal(size=count)).astype(np.float32)

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        both = jax.random.normal(key, (2, rows, width)) / width**0.5
        return {"left": both[0], "right": both[1]}

    def outputs(p: Any, i: jax.Array, j: jax.Array) -> jax.Array:
        return (p["left"][i] * p["right"][j]).sum(-1)

    data = split((*pairs, values), 80_000, 2000, 2000)
    return Task(initial, outputs, *data, steps=500, batch=128)


def recall() -> Task:
    """8 symbols, width 56."""
    draw = np.random.default_rng(0)
    symbols = draw.integers(8, size=(10_000, 12))
    noise = draw.random(len(symbols)) < 0.1
    told = np.where(noise, draw.integers(8, size=len(symbols)), symbols[:, 0])

    def outputs(p: Any, symbols: jax.Array) -> jax.Array:
        return last_state(p, jax.nn.one_hot(symbols, 8))

    arrays = (symbols.astype(np.int32), told.astype(np.int32))
    return Task(gru(8, 56, 8), outputs, *split(arrays, 8000, 1000, 1000), steps=400)


def tasks(folder: Path | None) -> dict[str, Callable[[], Task]]:
    """All of them, the quick ones first."""
    return {
        "digits, MLP": digits_mlp,
        "unequal scales": unequal,
        "sparse": sparse,
        "digits, GRU": digits_gru,
        "recall": recall,
        "digits, transformer": digits_transformer,
        "MNIST, CNN": lambda: mnist_cnn(folder),
        "characters": characters,
        "MNIST, MLP": lambda: mnist_mlp(folder),
    }


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
BIAS = Setting(rho=0.99, eps=1e-5, grad_eps=0.0, start="bias")
FIRST = BIAS._replace(start="first")
PRODIGY = Setting("Prodigy", schedule="linear")
SCHEDULE_FREE = Setting("schedule-free AdamW", 0.0025, schedule="constant")
FIRST_TRIED = [
    PAPER,
    TWO,
    BIAS,
    FIRST,
    *(Setting("Adam", rate) for rate in (1e-3, 3e-3, 1e-2)),
    Setting("SGD", 1.0, clip="norm"),
    PRODIGY,
    SCHEDULE_FREE,
]
ADADELTA = FIRST_TRIED[:4]
OTHERS = [
    [
        *(s._replace(clip="norm") for s in ADADELTA),
        *(Setting("Adam", rate) for rate in (3e-4, 3e-2)),
        *(Setting("SGD", rate) for rate in (0.03, 0.1, 0.3, 1.0)),
    ],
    [
        s._replace(rho=rho, eps=eps)
        for rho, eps in ((0.98, 1e-5), (0.99, 1e-6))
        for s in (BIAS, FIRST)
    ],
    [Setting("SGD, momentum 0.9", rate) for rate in (0.003, 0.01, 0.03, 0.1, 0.3)],
    [
        Setting("DoWG", schedule="constant"),
        Setting("D-Adapt AdamW", schedule="linear"),
        Setting("Mechanic, Adam", schedule="warm-up, cosine"),
        Setting("DoG", schedule="constant"),
    ],
    [
        *(s._replace(eps=eps) for eps in EPSILONS for s in ADADELTA),
        *(s._replace(rho=rho) for rho in RHOS for s in ADADELTA),
    ],
    [s._replace(schedule="constant") for s in FIRST_TRIED[:8]],
    [
        *(s._replace(clip="norm", limit=5.0) for s in ADADELTA),
        *(s._replace(clip="value", limit=0.1) for s in ADADELTA),
    ],
    [
        s._replace(grad_eps=grad_eps)
        for grad_eps in (None, 1e-12, 1e-16)
        for s in ADADELTA[1:]
    ],
]
"""Those of each list run on all tasks before the next."""


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


def plan(quick: bool) -> list[tuple[float, list[Setting]]]:
    """Loss scales and settings, in the order of work."""
    if quick:
        return [(1.0, FIRST_TRIED)]
    return [
        *((scale, FIRST_TRIED) for scale in SCALES),
        *((1.0, settings) for settings in OTHERS),
    ]


def mean(row: dict[str, Any], name: str) -> float:
    """Over seeds; infinite if one is not finite."""
    values = row[name]
    return math.inf if None in values else statistics.mean(values)


def cell(row: dict[str, Any] | None, name: str) -> str:
    """Mean and standard deviation."""
    if row is None:
        return ""
    values = row[name]
    if None in values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def searched(rows: list[dict[str, Any]], optimizer: str) -> dict[str, Any] | None:
    """The best rate of an optimizer on the validation loss, if there are several."""
    same = [
        row
        for row in rows
        if row["label"].rpartition(", ")[0] == optimizer and row["scale"] == 1
    ]
    if len(same) < 4:
        return None
    return min(same, key=lambda row: mean(row, "validation"))


def ratios(rows: list[dict[str, Any]]) -> dict[tuple[str, float, str], float]:
    """By label, scale and task: the validation loss over the best of all tried."""
    best: dict[str, float] = {}
    for row in rows:
        task = row["task"]
        best[task] = min(best.get(task, math.inf), mean(row, "validation"))
    return {
        (row["label"], row["scale"], row["task"]): mean(row, "validation")
        / best[row["task"]]
        for row in rows
    }


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Markdown tables, those of lost ratios first."""
    labels = [s.label for s in FIRST_TRIED]
    labels += [s for s in dict.fromkeys(r["label"] for r in rows) if s not in labels]
    names = list(dict.fromkeys(row["task"] for row in rows))
    lost = ratios(rows)
    by_key = {(row["label"], row["scale"], row["task"]): row for row in rows}
    found: dict[str, str] = {}
    for scale in dict.fromkeys(row["scale"] for row in rows):
        lines, losses, errors, spreads = [], [], [], []
        for label in labels:
            keys = [(label, scale, name) for name in names]
            cells = [by_key.get(key) for key in keys]
            values = [lost[key] for key in keys if key in lost]
            if not values:
                continue
            complete = len(values) == len(names)
            lines.append(
                [
                    label,
                    *(f"{lost[key]:.2f}" if key in lost else "" for key in keys),
                    f"{statistics.mean(values):.2f}" if complete else "",
                    f"{max(values):.2f}" if complete else "",
                ]
            )
            losses.append([label, *(cell(row, "test") for row in cells)])
            errors.append([label, *(cell(row, "error") for row in cells)])
            if all(row is None or "spread" in row for row in cells):
                spreads.append([label, *(cell(row, "spread") for row in cells)])
        title = f"loss × {scale:g}"
        header = [f"{title}: validation loss over the best", *names, "mean", "worst"]
        found[f"lost, {title}"] = report.table(header, lines)
        found[f"test, {title}"] = report.table([f"{title}: test loss", *names], losses)
        header = [f"{title}: test error, %", *names]
        found[f"error, {title}"] = report.table(header, errors)
        header = [f"{title}: spread of the rates", *names]
        found[f"spread, {title}"] = report.table(header, spreads)
    lines = []
    for optimizer in ("SGD", "SGD, momentum 0.9", "Adam"):
        line = [f"{optimizer}, searched"]
        for name in names:
            row = searched([row for row in rows if row["task"] == name], optimizer)
            rate = row["label"].rpartition(", ")[2] if row else ""
            line.append(f"{cell(row, 'test')} at {rate}" if row else "")
        lines.append(line)
    found["searched"] = report.table(["test loss", *names], lines)
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    """All tables."""
    return "\n\n".join(tables(rows).values())


def main(arguments: list[str] | None = None) -> None:
    """Runs what is not in the result yet, and prints the tables."""
    quick = "one seed, a tenth of the steps, the first settings at loss × 1"
    parser = report.parser("settings", __doc__, "hours", quick)
    mnist.add_option(parser)
    options = parser.parse_args(arguments)
    seeds, part = (1, 10) if options.quick else (SEEDS, 1)
    name = "settings_quick" if options.quick else "settings"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    done = {(row["task"], row["label"], row["scale"]) for row in rows}
    todo = [
        (task, setting, scale)
        for scale, settings in plan(options.quick)
        for task in tasks(options.data)
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
                report.write(Path(folder), "settings", rows).replace(path)
    print(summary(rows))
    print(report.describe())
    print(f"written: {path}")


if __name__ == "__main__":
    main()
