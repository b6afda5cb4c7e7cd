"""Times one optimizer step beside what a user would pick instead.

A step takes gradients that are there and changes float32 parameters and state, which
are donated, or changed in place, where the library does that. In each round, each peer
takes three steps, of which the last two are timed: the first one pays for what the
others left in the caches. The tables show medians. The gradients are not donated, but
for the rows that say so. To trace and to compile a step is timed once in each of
several new processes, as it happens once in a training run.

The limit is what a step has to move, 28 bytes a parameter (it reads g, s, d and x, and
writes s, d and x), at the speed of a pass over as many numbers in place, which is
measured in the same rounds. Arrays that fit in a cache have none.
"""

import argparse
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import adadelta_tx
from benchmarks import _report as report

RHO, EPS = 0.95, 1e-6
OURS, LOW, OPTAX = "adadelta_tx", "adadelta_tx, bfloat16 state", "optax"
SIZES = (10**4, 10**5, 10**6, 10**7, 3 * 10**7, 10**8)
LEAVES = (10, 100, 500)
OF_LEAVES = 2_000_000
REFERENCE = 3 * 10**7
MOST_COMPILED = 100
"""Leaves; for 500, torch.compile takes minutes on a CPU."""
LIMIT, LIMIT_FROM = "limit", 10**7
STEP_BYTES, PASS_BYTES = 28, 8


Make = Callable[[list[np.ndarray], list[np.ndarray]], report.Peer]


def optax_peer(
    tx: optax.GradientTransformation, donate_gradients: bool = False
) -> Make:
    """An optax transformation."""

    def make(params: list[np.ndarray], grads: list[np.ndarray]) -> report.Peer:
        start, given = jax.tree.map(jnp.asarray, (params, grads))
        update = report.step_of(tx)
        return report.jax_peer(update, start, tx.init(start), given, donate_gradients)

    return make


def keras_peer(params: list[np.ndarray], grads: list[np.ndarray]) -> report.Peer:
    """Keras on JAX, through its stateless interface, compiled."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras  # pyright: ignore[reportMissingImports]: not in the test extra

    optimizer = keras.optimizers.Adadelta(1.0, rho=RHO, epsilon=EPS)
    optimizer.build([keras.Variable(x) for x in params])

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        return optimizer.stateless_apply(state, grads, params)

    start, given = jax.tree.map(jnp.asarray, (params, grads))
    state = [variable.value for variable in optimizer.variables]
    return report.jax_peer(update, start, state, given)


def brainpy_peer(
    compiled: bool, params: list[np.ndarray], grads: list[np.ndarray]
) -> report.Peer:
    """BrainPy's object, operation by operation or under ``bm.jit``."""
    import brainpy as bp
    import brainpy.math as bm

    variables: dict[str, Any] = {
        f"w{i}": bm.TrainVar(jnp.array(x)) for i, x in enumerate(params)
    }
    optimizer = bp.optim.Adadelta(1.0, variables, epsilon=EPS, rho=RHO)
    given = {f"w{i}": jnp.asarray(g) for i, g in enumerate(grads)}
    update = bm.jit(optimizer.update) if compiled else optimizer.update

    def step() -> None:
        update(given)
        jax.block_until_ready([variable.value for variable in variables.values()])

    return report.Peer(
        step, lambda: [variable.value for variable in variables.values()]
    )


def torch_peer(
    compiled: bool, params: list[np.ndarray], grads: list[np.ndarray]
) -> report.Peer:
    """torch.optim.Adadelta, foreach, as it is or under ``torch.compile``."""
    import torch  # pyright: ignore[reportMissingImports]: not in the test extra

    torch.compiler.reset()
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    variables = [torch.nn.Parameter(torch.tensor(x, device=device)) for x in params]
    for variable, g in zip(variables, grads, strict=True):
        variable.grad = torch.tensor(g, device=device)
    optimizer = torch.optim.Adadelta(variables, 1.0, RHO, EPS, foreach=True)
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step() -> None:
        update()
        if device == "cuda":
            torch.cuda.synchronize()

    return report.Peer(step, lambda: [v.detach().cpu().numpy() for v in variables])


def in_place_pass(params: list[np.ndarray]) -> report.Peer:
    """Reads and writes as many numbers as there are parameters."""
    x = jnp.concatenate([jnp.ravel(x) for x in params])
    scale = jax.jit(lambda x: x * 0.999, donate_argnums=0)

    def step() -> None:
        nonlocal x
        x = jax.block_until_ready(scale(x))

    return report.Peer(step, lambda: [])


TRANSFORMATIONS = {
    OURS: adadelta_tx.adadelta(1.0, RHO, EPS),
    LOW: adadelta_tx.adadelta(1.0, RHO, EPS, accumulator_dtype=jnp.bfloat16),
    OPTAX: optax.adadelta(1.0, RHO, EPS),
}
AT_RANDOM = {
    f"{LOW}, rho 0.99": adadelta_tx.adadelta(
        1.0, 0.99, EPS, accumulator_dtype=jnp.bfloat16
    ),
    "adadelta_tx, 8-bit state": adadelta_tx.adadelta(
        1.0, RHO, EPS, accumulator_dtype=jnp.uint8
    ),
}
PEERS: dict[str, Make] = {
    **{name: optax_peer(tx) for name, tx in TRANSFORMATIONS.items()},
    "Keras": keras_peer,
    "BrainPy": functools.partial(brainpy_peer, False),
    "bm.jit": functools.partial(brainpy_peer, True),
    "torch": functools.partial(torch_peer, False),
    "torch.compile": functools.partial(torch_peer, True),
}
DONATED = {
    name: optax_peer(TRANSFORMATIONS[name], donate_gradients=True)
    for name in (OURS, OPTAX)
}


def arrays(parameters: int, leaves: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters of zeros and gradients, in leaves of one size."""
    shape = (parameters // leaves,)
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(shape, np.float32) for _ in range(leaves)]
    return [np.zeros(shape, np.float32) for _ in grads], grads


def measure(
    peers: dict[str, Make], parameters: int, leaves: int, rounds: int, progress: Any
) -> list[dict[str, Any]]:
    """One row a peer, and one for the limit.

    Raises:
      AssertionError: If a peer does not give the numbers that ours gives.
    """
    params, grads = arrays(parameters, leaves)
    if leaves > MOST_COMPILED and jax.devices()[0].platform == "cpu":
        peers = {name: make for name, make in peers.items() if name != "torch.compile"}
    made = {}
    for name, make in peers.items():
        progress.set_description(f"{parameters:,} in {leaves}: {name}")
        made[name] = peer = make(params, grads)
        for _ in range(2):
            peer.before()
            peer.step()
        for ours, theirs in zip(made[OURS].params(), peer.params(), strict=True):
            tolerance = 0.02 if name == LOW else 1e-4
            np.testing.assert_allclose(theirs, ours, rtol=tolerance, err_msg=name)
    if parameters >= LIMIT_FROM:
        made[LIMIT] = in_place_pass(params)
        made[LIMIT].step()
    seconds = report.interleaved(made, rounds, progress)
    if LIMIT in seconds:
        seconds[LIMIT] = [STEP_BYTES / PASS_BYTES * s for s in seconds[LIMIT]]
    return [
        {
            "peer": name,
            "parameters": parameters,
            "leaves": leaves,
            **report.milliseconds(seconds[name]),
            "state_bytes": peer.state_bytes,
            "temporary_bytes": peer.temporary_bytes,
        }
        for name, peer in made.items()
    ]


def compile_once(name: str, leaves: int) -> tuple[float, float]:
    """Seconds to trace and to compile a step of that many leaves."""
    jax.config.update("jax_enable_compilation_cache", False)
    tx = (TRANSFORMATIONS | AT_RANDOM)[name]
    params, grads = jax.tree.map(jnp.asarray, arrays(OF_LEAVES, leaves))
    state = jax.block_until_ready(tx.init(params))
    step = jax.jit(report.step_of(tx), donate_argnums=(0, 1))
    start = time.perf_counter()
    lowered = step.lower(params, state, grads)
    traced = time.perf_counter()
    lowered.compile()
    return traced - start, time.perf_counter() - traced


def compilation(
    names: Iterable[str], leaves: int, rounds: int, progress: Any
) -> list[dict[str, Any]]:
    """One row for each of these transformations."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    new = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for name, pairs in times.items():
            progress.set_description(f"{leaves} leaves: compiling {name}")
            with ProcessPoolExecutor(1, new) as processes:
                pairs.append(processes.submit(compile_once, name, leaves).result())
        progress.update()
    return [
        {
            "peer": name,
            "leaves": leaves,
            "trace_ms": report.milliseconds([trace for trace, _ in pairs])["median_ms"],
            **report.milliseconds([sum(pair) for pair in pairs]),
        }
        for name, pairs in times.items()
    ]


def label(row: dict[str, Any]) -> str:
    """How a column names a case."""
    leaves = f" in {row['leaves']}" if row["leaves"] > 1 else ""
    return f"{row['parameters']:,}{leaves}"


def short(ms: float) -> str:
    """At least three digits."""
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.3f}"


def times_table(rows: list[dict[str, Any]]) -> str:
    """A row a peer, a column a case."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(label(row), {})[row["peer"]] = row
    peers = dict.fromkeys(row["peer"] for row in rows)
    return report.table(
        ["step, ms", *cases],
        [
            [
                peer,
                *(
                    short(rows[peer]["median_ms"]) if peer in rows else ""
                    for rows in cases.values()
                ),
            ]
            for peer in peers
        ],
    )


def detail_table(title: str, rows: list[dict[str, Any]]) -> str:
    """One case: a row a peer."""
    medians = {row["peer"]: row["median_ms"] for row in rows}

    def count(number: int | None) -> str:
        return "" if number is None else f"{number:,}"

    return report.table(
        [
            title,
            "median ms",
            "range ms",
            "times ours",
            "of the limit",
            "state bytes",
            "temporary bytes",
        ],
        [
            [
                row["peer"],
                short(row["median_ms"]),
                f"{short(row['fastest_ms'])} to {short(row['slowest_ms'])}",
                f"{row['median_ms'] / medians[OURS]:.2f}",
                f"{medians[LIMIT] / row['median_ms']:.0%}" if LIMIT in medians else "",
                count(row["state_bytes"]),
                count(row["temporary_bytes"]),
            ]
            for row in rows
        ],
    )


def summary(results: dict[str, list[dict[str, Any]]]) -> str:
    """All cases; one in detail, its gradients kept and donated; and compiling."""
    case = label(results["donated"][0])
    parts = [
        times_table(results["steps"]),
        detail_table(case, [r for r in results["steps"] if label(r) == case]),
        detail_table(f"{case}, gradients donated", results["donated"]),
        report.table(
            ["to compile a step", "leaves", "trace ms", "median ms", "range ms"],
            [
                [
                    row["peer"],
                    str(row["leaves"]),
                    short(row["trace_ms"]),
                    short(row["median_ms"]),
                    f"{short(row['fastest_ms'])} to {short(row['slowest_ms'])}",
                ]
                for row in results["compilation"]
            ],
        ),
    ]
    return "\n\n".join(parts)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the time of a step against the size of one leaf."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    single = [row for row in rows if row["leaves"] == 1]
    markers = iter("os^vD<>Px*")
    for peer in dict.fromkeys(row["peer"] for row in single):
        points = [r for r in single if r["peer"] == peer]
        sizes = [r["parameters"] for r in points]
        medians = [r["median_ms"] for r in points]
        if peer == LIMIT:
            axes.plot(sizes, medians, "k--", linewidth=1, label="limit: 28 bytes each")
        else:
            bold = {"linewidth": 2.5, "color": "black"} if peer == OURS else {}
            axes.plot(sizes, medians, marker=next(markers), label=peer, **bold)
    axes.set(
        title="One step on one float32 leaf: median",
        xlabel="parameters",
        ylabel="milliseconds",
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements, prints tables, writes the result and a picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, default=list(PEERS), help="(default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder")
    options = parser.parse_args(arguments)
    # On a GPU, leave memory to the libraries that are not JAX.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sizes, leaves, work, compiled, compilations = (
        ((10**6,), (10,), 10**7, (10,), 1)
        if options.quick
        else (SIZES, LEAVES, 12 * REFERENCE, (1, 200, 500), 5)
    )
    names = [OURS, OPTAX] if options.quick else [*TRANSFORMATIONS, *AT_RANDOM]
    peers = {name: PEERS[name] for name in dict.fromkeys([OURS, *options.peers])}
    try:
        results: dict[str, Any] = {"versions": versions(peers)}
    except PackageNotFoundError as error:
        parser.error(f"{error}: it comes with the extra peers, or choose --peers.")

    cases = [(size, 1) for size in sizes] + [(OF_LEAVES, n) for n in leaves]
    rounds = [max(3, min(30, work // size)) for size, _ in cases]
    reference = min(REFERENCE, sizes[-1])
    total = sum(rounds) + 12 + len(compiled) * compilations
    with tqdm(total=total, unit="round", disable=None) as progress:
        results["steps"] = [
            row
            for (size, count), n in zip(cases, rounds, strict=True)
            for row in measure(peers, size, count, n, progress)
        ]
        results["donated"] = measure(DONATED, reference, 1, 12, progress)
        results["compilation"] = [
            row
            for count in compiled
            for row in compilation(names, count, compilations, progress)
        ]
    print(summary(results))
    print(", ".join(f"{name} {number}" for name, number in results["versions"].items()))
    print(report.describe())
    print(f"written: {report.write(options.out, 'step', results)}")
    draw(results["steps"], options.out / "step.png")
    print(f"picture: {options.out / 'step.png'}")


def versions(peers: dict[str, Make]) -> dict[str, str]:
    """Of the libraries that the peers come from."""
    names = {"Keras": "keras", "BrainPy": "brainpy", "torch": "torch"}
    return {
        package: version(package) for name, package in names.items() if name in peers
    }


if __name__ == "__main__":
    main()
