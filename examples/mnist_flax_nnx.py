"""A convolutional network of Flax NNX learns to read handwritten digits: MNIST.

    python mnist_flax_nnx.py --data DIR

DIR has MNIST's four IDX files, gzipped; without it, scikit-learn downloads MNIST. Orbax
saves every epoch: end the script, run it again, and it goes on. After one epoch 98.65 %
of the test images are right, after two 99.10 %. That takes 82 seconds on two CPU cores.
"""

import argparse
import functools
import gzip
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

import adadelta_tx

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", type=Path, help="folder of MNIST's four IDX files")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--folder", type=Path, default="results/mnist", help="of the run")
args = parser.parse_args()
BATCH = 64


def read(file, header):
    """The bytes after those that tell format and shape."""
    return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header)


def load(folder):
    """Images, rows × columns × 1 in [0, 1], and labels: to train on, and to test on."""
    if folder is None:
        from sklearn.datasets import fetch_openml

        pixels, labels = fetch_openml(
            "mnist_784", return_X_y=True, as_frame=False, parser="liac-arff"
        )
        parts = [(pixels[:60000], labels[:60000]), (pixels[60000:], labels[60000:])]
    else:
        parts = [
            (
                read(folder / f"{part}-images-idx3-ubyte.gz", 16),
                read(folder / f"{part}-labels-idx1-ubyte.gz", 8),
            )
            for part in ("train", "t10k")
        ]
    return [
        (np.float32(pixels).reshape(-1, 28, 28, 1) / 255, labels.astype(np.int32))
        for pixels, labels in parts
    ]


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(7 * 7 * 64, 128, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        for conv in self.first, self.second:
            images = nnx.max_pool(nnx.relu(conv(images)), (2, 2), (2, 2))
        return self.out(nnx.relu(self.hidden(images.reshape(len(images), -1))))


@functools.partial(nnx.jit, donate_argnums=(0, 1))
def step(network, optimizer, images, labels):
    def loss(network):
        scores = network(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    value, grads = nnx.value_and_grad(loss)(network)
    optimizer.update(network, grads)
    return value


@nnx.jit
def right(network, images, labels):
    return jnp.sum(network(images).argmax(-1) == labels)


(images, labels), test = load(args.data)
steps = len(images) // BATCH
schedule = optax.cosine_decay_schedule(1.0, args.epochs * steps)
tx = adadelta_tx.adadelta(schedule, eps=1e-5, grad_eps=0)
network = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)

with ocp.CheckpointManager(args.folder.resolve()) as manager:
    done = manager.latest_step() or 0
    if done:
        print(f"resumed after epoch {done}")
        shapes = ocp.args.StandardRestore(nnx.state((network, optimizer)))
        nnx.update((network, optimizer), manager.restore(done, args=shapes))
    for epoch in range(done + 1, args.epochs + 1):
        order = np.random.default_rng(epoch).permutation(len(images))
        batches = tqdm(order[: steps * BATCH].reshape(steps, BATCH), f"epoch {epoch}")
        losses = [step(network, optimizer, images[i], labels[i]) for i in batches]
        parts = zip(*(np.array_split(part, 20) for part in test), strict=True)
        accuracy = 100 * sum(right(network, *part) for part in parts) / len(test[0])
        print(
            f"epoch {epoch}, training loss {jnp.mean(jnp.stack(losses)):.6g}, "
            f"accuracy on new images: {accuracy:.2f} %"
        )
        state = nnx.state((network, optimizer))
        manager.save(epoch, args=ocp.args.StandardSave(state))
