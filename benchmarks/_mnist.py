"""MNIST, and the network that Zeiler (2012) trains on it."""

import argparse
import functools
import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _models as models

LAYERS = (784, 500, 300, 10)
FILES = (
    "train-images-idx3",
    "train-labels-idx1",
    "t10k-images-idx3",
    "t10k-labels-idx1",
)


class Data(NamedTuple):
    """Images of shape ``(n, 784)``, float32 in [0, 1], and labels, int32."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def add_option(parser: argparse.ArgumentParser) -> None:
    """Where to :func:`load` from, for commands that train on MNIST."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with MNIST's four IDX files, gzipped or not; without it, "
        "scikit-learn downloads MNIST",
    )


def load(folder: Path | None) -> Data:
    """Reads IDX files, gzipped or not, or else scikit-learn's mnist_784.

    Raises:
      FileNotFoundError: If a file is missing in the folder; its name is said.
      ValueError: If a file is not IDX.
    """
    if folder is not None:
        arrays = [read_idx(find(folder, name)) for name in FILES]
    else:
        from sklearn.datasets import fetch_openml

        images, labels = fetch_openml(
            "mnist_784", return_X_y=True, as_frame=False, parser="liac-arff"
        )
        arrays = [images[:60000], labels[:60000], images[60000:], labels[60000:]]
    images = [
        jnp.asarray(a.reshape(len(a), -1) / 255, jnp.float32) for a in arrays[::2]
    ]
    labels = [jnp.asarray(a.astype(np.int32)) for a in arrays[1::2]]
    return Data(images[0], labels[0], images[1], labels[1])


def find(folder: Path, name: str) -> Path:
    """The file of that name, with whichever ending."""
    for path in (folder / f"{name}-ubyte", folder / f"{name}-ubyte.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(f"There is no {name}-ubyte or {name}-ubyte.gz in {folder}.")


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the format of http://yann.lecun.com/exdb/mnist."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes.")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}i", data[4:start])
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def initial_parameters(
    key: jax.Array, weights: Callable[..., jax.Array] = models.fan_in_normal
) -> models.Layers:
    """Of the network, its weights drawn by ``weights(key, shape)``."""
    return models.dense(jax.random.split(key, len(LAYERS) - 1), LAYERS, weights)


logits = functools.partial(models.multilayer, activation=jnp.tanh)
"""Of parameters and images, class scores of shape ``(n, 10)``."""
