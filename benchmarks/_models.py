"""The networks that the benchmarks train: initial parameters, and what they give."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any
Layers = list[dict[str, jax.Array]]


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Its mean, in nats, of unnormalised scores."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def fan_in_normal(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Weights from N(0, 1 / fan-in); all axes but the last are inputs."""
    return jax.random.normal(key, shape) / math.prod(shape[:-1]) ** 0.5


def weights(key: jax.Array, /, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Arrays by name: :func:`fan_in_normal`, and vectors of 0."""
    keys = jax.random.split(key, len(shapes))
    return {
        name: fan_in_normal(k, shape) if len(shape) > 1 else jnp.zeros(shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def dense(
    keys: jax.Array,
    sizes: Sequence[int],
    draw: Callable[..., jax.Array] = fan_in_normal,
) -> Layers:
    """Of each layer, weights from ``draw(key, shape)`` and biases of 0."""
    shapes = itertools.pairwise(sizes)
    return [
        {"w": draw(key, shape), "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys, shapes, strict=True)
    ]


def multilayer(
    params: Layers,
    x: jax.Array,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> jax.Array:
    """The layers of :func:`dense`, with an activation between them."""
    *hidden, last = params
    for layer in hidden:
        x = activation(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def standardised(x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 along the last axis."""
    return jax.nn.standardize(x, epsilon=1e-5)


def attention_shapes(width: int, heads: int = 4) -> dict[str, tuple[int, ...]]:
    """What :func:`attention_layer` needs, for :func:`weights`."""
    each = width // heads
    return {
        **dict.fromkeys(("query", "key", "value"), (width, heads, each)),
        "join": (heads, each, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }


def attention_layer(p: Params, x: jax.Array, *, causal: bool) -> jax.Array:
    """A layer of a transformer, of ``(batch, time, width)``."""
    y = standardised(x)
    q, k, v = (
        jnp.einsum("bte,ehd->bthd", y, p[name]) for name in ("query", "key", "value")
    )
    seen = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    x += jnp.einsum("bthd,hde->bte", seen, p["join"])
    return x + jax.nn.gelu(standardised(x) @ p["up"]) @ p["down"]


def row_reader(key: jax.Array) -> dict[str, jax.Array]:
    """Initial parameters of :func:`read_rows`."""
    shapes = {"embed": (8, 32), "position": (8, 32), **attention_shapes(32)}
    return weights(key, **shapes, out=(32, 10))


def read_rows(p: Params, images: jax.Array) -> jax.Array:
    """Scores of images of 8 x 8 pixels, by a transformer that reads their rows."""
    x = images.reshape(-1, 8, 8) @ p["embed"] + p["position"]
    return standardised(attention_layer(p, x, causal=False)).mean(1) @ p["out"]
