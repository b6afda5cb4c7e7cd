"""Compares the Adadelta object with BrainPy's: eager updates, and a training run.

An eager update is ``update(grads)`` outside of any transformation, for variables
of 64 x 64 float32 numbers. In each round, each optimizer runs three, of which the
last two are timed; the table shows medians. The run trains a recurrent network
with ``brainpy.BPTT``; the losses of each epoch are printed in one table.
"""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import brainpy as bp
import brainpy.math as bm
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import adadelta_tx
from benchmarks import _report as report

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adadelta_tx.Adadelta": adadelta_tx.Adadelta,
    "brainpy.optim.Adadelta": lambda train_vars: bp.optim.Adadelta(1.0, train_vars),
}
OWN = "adadelta_tx.Adadelta, its own variables"


def eager_times(variables: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each eager update; ours also with variables of our own."""
    grads = {f"w{i}": jnp.full((64, 64), 0.1 * (i + 1)) for i in range(variables)}

    def ones(kind: Any) -> dict[str, Any]:
        return {key: kind(jnp.ones((64, 64))) for key in grads}

    train_vars = {name: ones(bm.TrainVar) for name in OPTIMIZERS}
    optimizers = {name: make(train_vars[name]) for name, make in OPTIMIZERS.items()}
    train_vars[OWN] = ones(adadelta_tx.TrainVar)
    optimizers[OWN] = adadelta_tx.Adadelta(train_vars[OWN])
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for i in tqdm(range(rounds + 3), unit="round", disable=None):
        for name, optimizer in optimizers.items():
            for repetition in range(3):
                start = time.perf_counter()
                optimizer.update(grads)
                jax.block_until_ready([v.value for v in train_vars[name].values()])
                if i >= 3 and repetition:  # as in benchmarks.step
                    seconds[name].append(time.perf_counter() - start)
    ours, *others = (
        np.stack([v.value for v in many.values()]) for many in train_vars.values()
    )
    for other in others:
        np.testing.assert_allclose(ours, other, rtol=1e-5)
    return seconds


class Network(bp.DynamicalSystem):
    """A recurrent layer and a linear readout."""

    def __init__(self) -> None:
        """Makes both."""
        super().__init__()
        self.rnn = bp.dyn.RNNCell(2, 16)
        self.out = bp.dnn.Dense(16, 1)

    def update(self, x: Any) -> Any:
        """One step in time."""
        return self.out(self.rnn(x))


def loss_history(make: Callable[[Any], Any], epochs: int) -> list[float]:
    """Mean squared error of each epoch, learning the running sum of two inputs."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 8, 10, 2)).astype(np.float32)
    targets = np.cumsum(inputs.sum(-1, keepdims=True), 2) / 5
    bm.random.seed(1)
    with bm.training_environment():
        network = Network()
    trainer = bp.BPTT(
        network,
        loss_fun=lambda out, target: jnp.mean((bm.as_jax(out) - target) ** 2),
        optimizer=make(network.train_vars().unique()),
    )

    def batches() -> Any:
        yield from zip(inputs, targets, strict=True)

    trainer.fit(batches, num_epoch=epochs)
    return np.asarray(trainer.get_hist_metric(), dtype=float).tolist()


def summary(results: dict[str, Any]) -> str:
    """The two tables."""
    theirs = results["eager"]["brainpy.optim.Adadelta"]["median_ms"]
    times = report.table(
        ["optimizer", "median ms", "range ms", "times as fast"],
        [
            [
                name,
                f"{row['median_ms']:.2f}",
                f"{row['fastest_ms']:.2f} to {row['slowest_ms']:.2f}",
                f"{theirs / row['median_ms']:.1f}",
            ]
            for name, row in results["eager"].items()
        ],
    )
    losses = report.table(
        ["epoch", *results["losses"]],
        [
            [str(i + 1), *(f"{loss:.6f}" for loss in row)]
            for i, row in enumerate(zip(*results["losses"].values(), strict=True))
        ],
    )
    return f"{times}\n\n{losses}"


def main(arguments: list[str] | None = None) -> None:
    """Runs both comparisons, prints the tables and writes the result."""
    parser = report.parser(
        "benchmarks.stateful", __doc__, "half a minute", "few rounds and epochs"
    )
    parser.add_argument("--variables", type=int, default=40, help="of 64 x 64")
    parser.add_argument("--rounds", type=int, default=100, help="of two updates")
    parser.add_argument("--epochs", type=int, default=8, help="of the training run")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.epochs = 10, 2

    times = eager_times(options.variables, options.rounds)
    results = {
        "brainpy": version("brainpy"),
        "eager": {name: report.milliseconds(times[name]) for name in times},
        "losses": {
            name: loss_history(make, options.epochs)
            for name, make in OPTIMIZERS.items()
        },
    }
    print(f"{options.variables} variables, {2 * options.rounds} eager updates of each")
    print(f"brainpy {results['brainpy']}")
    report.finish(options, summary(results), results)


if __name__ == "__main__":
    main()
