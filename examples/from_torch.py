"""A convolutional network of PyTorch's, trained with StepLR, goes on in Flax NNX.

The checkpoint is PyTorch's. Both libraries train on from it, on the same batches.
"""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch.nn.functional import cross_entropy, max_pool2d

import adadelta_tx

FILE = Path("results/from_torch.pt")
EPOCHS, SAVED_AFTER, BATCHES = 4, 2, 50


def batches(epoch):
    """Noisy images with a bright spot in one of four quarters, which is the label."""
    rng = np.random.default_rng(epoch)
    for _ in range(BATCHES):
        labels = rng.integers(4, size=32)
        images = rng.normal(size=(32, 8, 8)).astype(np.float32)
        images[np.arange(32), 2 + 4 * (labels // 2), 2 + 4 * (labels % 2)] += 3
        yield images, labels


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3)
        self.out = torch.nn.Linear(8 * 3 * 3, 4)

    def forward(self, images):  # a batch of channels, rows, columns
        x = max_pool2d(torch.relu(self.conv(images[:, None])), 2)
        return self.out(x.flatten(1))


def in_torch(file):
    """Trains, saves a checkpoint on the way, and returns the last epoch's loss."""
    torch.manual_seed(0)
    net = TorchNet()
    optimizer = torch.optim.Adadelta(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    losses = []
    for epoch in range(EPOCHS):
        for images, labels in batches(epoch):
            loss = cross_entropy(net(torch.tensor(images)), torch.tensor(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
        if epoch + 1 == SAVED_AFTER:
            file.parent.mkdir(exist_ok=True)
            parts = {"net": net, "optimizer": optimizer, "scheduler": scheduler}
            torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    return np.mean(losses[-BATCHES:])


class FlaxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), padding="VALID", rngs=rngs)
        self.out = nnx.Linear(3 * 3 * 8, 4, rngs=rngs)

    def __call__(self, images):  # a batch of rows, columns, channels
        x = nnx.max_pool(nnx.relu(self.conv(images[..., None])), (2, 2), (2, 2))
        return self.out(x.reshape(len(x), -1))


def to_flax(tensors):
    """Weights, or averages of them: other axes, and another order when flattened."""
    conv, bias, out, out_bias = (x.numpy() for x in tensors)
    kernel = conv.transpose(2, 3, 1, 0)  # OIHW to HWIO
    # Torch's columns are channels × rows × columns, as its images are.
    out = out.reshape(4, 8, 3, 3).transpose(2, 3, 1, 0).reshape(3 * 3 * 8, 4)
    return {
        "conv": {"kernel": kernel, "bias": bias},
        "out": {"kernel": out, "bias": out_bias},
    }


def from_torch(file):
    """The network and its optimizer, where torch's were."""
    saved = torch.load(file)
    group, scheduler = saved["optimizer"]["param_groups"][0], saved["scheduler"]
    schedule = optax.exponential_decay(
        group["initial_lr"],  # group["lr"] has fallen already
        scheduler["step_size"] * BATCHES,
        scheduler["gamma"],
        staircase=True,
    )
    tx = adadelta_tx.adadelta(
        schedule, group["rho"], group["eps"], group["weight_decay"]
    )
    net = FlaxNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)

    slots = saved["optimizer"]["state"].values()
    _, averages, rate = optimizer.opt_state
    for state, tensors in [
        (net, saved["net"].values()),
        (averages.e_g, [slot["square_avg"] for slot in slots]),
        (averages.e_x, [slot["acc_delta"] for slot in slots]),
    ]:
        nnx.update(state, nnx.State(to_flax(tensors)))
    rate.count[...] = scheduler["last_epoch"] * BATCHES  # or it begins again at 1.0
    return net, optimizer


@functools.partial(nnx.jit, donate_argnums=(0, 1))
def step(net, optimizer, images, labels):
    def loss(net):
        scores = net(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    value, grads = nnx.value_and_grad(loss)(net)
    optimizer.update(net, grads)
    return value


theirs = in_torch(FILE)
net, optimizer = from_torch(FILE)
for epoch in range(SAVED_AFTER, EPOCHS):
    losses = [step(net, optimizer, *batch) for batch in batches(epoch)]
loss = jnp.mean(jnp.stack(losses))
print(f"loss in the last epoch: {loss:.6g}, in PyTorch: {theirs:.6g}")
