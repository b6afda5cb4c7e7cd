"""Times one optimizer step beside optax.adadelta, on one large float32 leaf.

A step is ``tx.update`` and ``optax.apply_updates`` in one compiled call, with
parameters and state donated and the gradient not. In each round, each optimizer
runs three steps, of which the last two are timed: the first one pays for what
the other left in the caches. The table shows medians. ``temporary bytes`` are
the compiled program's, beside parameters, gradient and state.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adadelta_tx
from benchmarks import _report as report

PEERS = {
    "adadelta_tx.adadelta()": adadelta_tx.adadelta(),
    "optax.adadelta(1.0, 0.95)": optax.adadelta(1.0, 0.95),
}


def summary(results: list[dict[str, Any]]) -> str:
    """The table of the times."""
    header = ["optimizer", "median ms", "range ms", "ratio", "temporary bytes"]
    fastest = min(result["median_ms"] for result in results)
    rows = [
        [
            result["optimizer"],
            f"{result['median_ms']:.1f}",
            f"{result['fastest_ms']:.1f} to {result['slowest_ms']:.1f}",
            f"{result['median_ms'] / fastest:.2f}",
            f"{result['temporary_bytes']:,}",
        ]
        for result in results
    ]
    return report.table(header, rows)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurement, prints a table and writes the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__
    )
    parser.add_argument("--size", type=int, default=30_000_000, help="parameters")
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds of two timed runs of each"
    )
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder")
    options = parser.parse_args(arguments)

    grads = jax.random.normal(jax.random.key(0), (options.size,))
    steps = {name: report.compiled_step(tx, options.size) for name, tx in PEERS.items()}
    trained = {}
    for name, tx in PEERS.items():
        params = jnp.zeros(options.size)
        trained[name] = steps[name](params, tx.init(params), grads)
    ours, theirs = (params for params, _ in trained.values())
    if not jnp.allclose(ours, theirs, rtol=1e-5):
        raise RuntimeError("The peers disagree on the parameters after one step.")

    seconds = report.interleaved(steps, trained, grads, options.rounds)
    results = [
        {
            "optimizer": name,
            "parameters": options.size,
            **report.milliseconds(seconds[name]),
            "temporary_bytes": report.temporary_bytes(step),
        }
        for name, step in steps.items()
    ]
    print(f"{options.size:,} float32 parameters, {2 * options.rounds} steps of each")
    print(summary(results))
    print(report.describe())
    print(f"written: {report.write(options.out, 'step', results)}")


if __name__ == "__main__":
    main()
