"""Small tasks of different kinds, for benchmarks.choosing."""

import functools
import itertools
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import brainpy.math as bm
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from benchmarks import _mnist as mnist
from benchmarks import _models as models

Arrays = tuple[jax.Array, ...]


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
        return models.cross_entropy(found, wanted)
    return jnp.mean((found - wanted) ** 2) / 2


def error(task: Task, params: Any, rows: Arrays) -> jax.Array:
    """Percent of wrong labels; NaN where there are none."""
    *inputs, wanted = rows
    if not jnp.issubdtype(wanted.dtype, jnp.integer):
        return jnp.array(jnp.nan)
    return 100 * jnp.mean(task.outputs(params, *inputs).argmax(-1) != wanted)


def dense(*sizes: int) -> Callable[[jax.Array], models.Layers]:
    """Initial parameters of a multilayer perceptron."""

    def initial(key: jax.Array) -> models.Layers:
        # Every second key, as benchmarks/results/choosing.json was drawn.
        return models.dense(jax.random.split(key, 2 * len(sizes) - 2)[::2], sizes)

    return initial


def gru(inputs: int, width: int, outputs: int) -> Callable[[jax.Array], Any]:
    """Initial parameters of :func:`last_state`."""
    return lambda key: models.weights(
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
    return Task(dense(64, 128, 64, 10), models.multilayer, *digits(), steps=400)


def digits_gru() -> Task:
    """Rows as time, width 64."""

    def outputs(p: Any, images: jax.Array) -> jax.Array:
        return last_state(p, images.reshape(-1, 8, 8))

    return Task(gru(8, 64, 10), outputs, *digits(), steps=400)


def digits_transformer() -> Task:
    """That of benchmarks.low_memory."""
    return Task(models.row_reader, models.read_rows, *digits(), steps=400)


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
    return Task(made, models.multilayer, *data, steps=400, at_once=False)


def mnist_cnn(folder: Path | None) -> Task:
    """Two strided convolutions and two dense layers."""

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        return models.weights(
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
    width, length = 64, 32
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

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        shapes = {"embed": (128, width), "position": (length, width)}
        shapes |= models.attention_shapes(width)
        made = models.weights(key, **shapes, out=(width, 128))
        return made | {name: made[name] * 2 for name in ("embed", "position")}

    def outputs(p: Any, codes: jax.Array) -> jax.Array:
        x = p["embed"][codes] + p["position"]
        x = models.attention_layer(p, x, causal=True)
        return models.standardised(x) @ p["out"]

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
    return Task(dense(32, 300, 1), models.multilayer, *data, steps=1500, batch=64)


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


def autoencoder() -> Task:
    """64-128-16-128-64, of the digits' pixels."""
    data = [(images, images) for images, _ in digits()]
    return Task(dense(64, 128, 16, 128, 64), models.multilayer, *data, steps=400)


def spiking() -> Task:
    """Recurrent integrate-and-fire neurons, with BrainPy's gradient of a spike.

    Channels of one of 4 groups are active first; which one is told 20 steps later.
    """
    draw = np.random.default_rng(0)
    groups, channels, width, times, count = 4, 20, 100, 30, 6000
    labels = draw.integers(groups, size=count)
    often = np.full((count, times, channels), 0.05)
    active = np.arange(channels) % groups == labels[:, None]
    often[:, :10] += 0.3 * active[:, None]
    spikes = (draw.random(often.shape) < often).astype(np.float32)
    noise = draw.random(count) < 0.1
    told = np.where(noise, draw.integers(groups, size=count), labels)

    def outputs(p: Any, spikes: jax.Array) -> jax.Array:
        def one(carry: Arrays, x: jax.Array) -> tuple[Arrays, None]:
            v, fired, slow = carry
            v = 0.9 * v * (1 - fired) + x @ p["in"] + fired @ p["again"]
            fired = bm.surrogate.sigmoid(v - 1.0, alpha=4.0)
            return (v, fired, 0.95 * slow + fired), None

        start = (jnp.zeros((len(spikes), width)),) * 3
        (_, _, slow), _ = jax.lax.scan(one, start, jnp.swapaxes(spikes, 0, 1))
        return slow @ p["out"] + p["out_bias"]

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        made = models.weights(
            key, again=(width, width), out=(width, groups), out_bias=(groups,),
            **{"in": (channels, width)},
        )  # fmt: skip
        return made | {"in": made["in"] * 2}

    data = split((spikes, told.astype(np.int32)), 4000, 1000, 1000)
    return Task(initial, outputs, *data, steps=400)


def authors() -> Task:
    """A convolution tells from which of 8 modules 48 characters are."""
    paths = Path(sysconfig.get_path("stdlib")).glob("*.py")
    longest = sorted(paths, key=lambda path: (-path.stat().st_size, path.name))[:8]
    length, sizes = 48, (800, 150, 250)
    draw = np.random.default_rng(0)
    parts: list[list[Any]] = [[], [], []]
    for label, path in enumerate(longest):
        codes = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32)
        codes = np.where(codes < 128, codes, 0)
        codes = codes[: len(codes) // length * length].reshape(-1, length)
        chosen = draw.permutation(codes)[: sum(sizes)]
        ends = np.cumsum([0, *sizes])
        for part, (a, b) in zip(parts, itertools.pairwise(ends), strict=True):
            labels = np.full(len(chosen[a:b]), label, np.int32)
            part.append((chosen[a:b], labels))
    data = [
        tuple(jnp.asarray(np.concatenate(x)) for x in zip(*part, strict=True))
        for part in parts
    ]

    def initial(key: jax.Array) -> dict[str, jax.Array]:
        return models.weights(
            key, embed=(128, 16), window=(5, 16, 64), bias=(64,), out=(64, 8),
            out_bias=(8,),
        )  # fmt: skip

    def outputs(p: Any, codes: jax.Array) -> jax.Array:
        x = 16**0.5 * p["embed"][codes]
        x = jax.lax.conv_general_dilated(
            x, p["window"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jax.nn.relu(x + p["bias"]).max(1) @ p["out"] + p["out_bias"]

    return Task(initial, outputs, *data, steps=400)


def mnist_wide(folder: Path | None) -> Task:
    """784-2048-2048-10."""
    made = dense(784, 2048, 2048, 10)
    data = mnist_split(folder)
    return Task(made, models.multilayer, *data, steps=200, at_once=False)


def tasks(folder: Path | None) -> dict[str, Callable[[], Task]]:
    """All of them; the last four had no part in any choice."""
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
        "autoencoder": autoencoder,
        "authors": authors,
        "spiking": spiking,
        "MNIST, wide": lambda: mnist_wide(folder),
    }
