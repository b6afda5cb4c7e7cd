"""Times one optimizer step, compared with other implementations of Adadelta.

A step takes given gradients and changes float32 parameters and state, which are
donated, or changed in place if the library does that. In each round, each
implementation takes three steps, of which the last two are timed: the first one pays
for what the others left in the caches. The tables show medians. The gradients are not
donated, except in the rows that say so.

The limit is the time to move the 28 bytes per parameter that a step must move (it reads
g, s, d and x, and writes s, d and x), at the speed of an in-place pass over as many
numbers, measured in the same rounds. There is no limit for arrays that fit in a cache.

Memory that a step allocates costs page faults, unless the allocator keeps it from one
step to the next. So the step is timed again with each of three settings of glibc's
malloc, each in a new process, with and without donated parameters and state.

Tracing and compiling a step is timed once in each of several new processes, because it
happens once in a training run.
"""

import contextlib
import functools
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from tqdm import tqdm

import adadelta_tx
from benchmarks import _pictures as pictures
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
TUNABLES, KEPT = "GLIBC_TUNABLES", "memory kept"
ALLOCATORS = {
    "default": "",
    "huge pages": "glibc.malloc.hugetlb=1",
    KEPT: "glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=4294967296:glibc.malloc.arena_max=1",
}
"""``GLIBC_TUNABLES``. Threads but the first allocate in arenas, which keep no large
memory: hence one arena."""
ALLOCATED = (10**6, 10**7, REFERENCE)

Make = Callable[[list[np.ndarray], list[np.ndarray]], report.Timed]


def of_optax(
    tx: optax.GradientTransformation, donate: tuple[int, ...] = (0, 1)
) -> Make:
    """An optax transformation; parameters, state and gradients may be donated."""

    def make(params: list[np.ndarray], grads: list[np.ndarray]) -> report.Timed:
        start, given = jax.tree.map(jnp.asarray, (params, grads))
        update = report.step_of(tx)
        return report.timed_jax(update, start, tx.init(start), given, donate)

    return make


def of_keras(params: list[np.ndarray], grads: list[np.ndarray]) -> report.Timed:
    """Keras on JAX, through its stateless interface, compiled."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras  # pyright: ignore[reportMissingImports]: not in the test extra

    optimizer = keras.optimizers.Adadelta(1.0, rho=RHO, epsilon=EPS)
    optimizer.build([keras.Variable(x) for x in params])

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        return optimizer.stateless_apply(state, grads, params)

    start, given = jax.tree.map(jnp.asarray, (params, grads))
    state = [variable.value for variable in optimizer.variables]
    return report.timed_jax(update, start, state, given)


def of_brainpy(
    compiled: bool, params: list[np.ndarray], grads: list[np.ndarray]
) -> report.Timed:
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

    return report.Timed(
        step, lambda: [variable.value for variable in variables.values()]
    )


def of_torch(
    compiled: bool, params: list[np.ndarray], grads: list[np.ndarray]
) -> report.Timed:
    """torch.optim.Adadelta, foreach, eager or under ``torch.compile``."""
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

    return report.Timed(step, lambda: [v.detach().cpu().numpy() for v in variables])


def in_place_pass(params: list[np.ndarray]) -> report.Timed:
    """Reads and writes as many numbers as there are parameters."""
    x = jnp.concatenate([jnp.ravel(x) for x in params])
    scale = jax.jit(lambda x: x * 0.999, donate_argnums=0)

    def step() -> None:
        nonlocal x
        x = jax.block_until_ready(scale(x))

    return report.Timed(step, lambda: [])


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
IMPLEMENTATIONS: dict[str, Make] = {
    **{name: of_optax(tx) for name, tx in TRANSFORMATIONS.items()},
    "Keras": of_keras,
    "BrainPy": functools.partial(of_brainpy, False),
    "bm.jit": functools.partial(of_brainpy, True),
    "torch": functools.partial(of_torch, False),
    "torch.compile": functools.partial(of_torch, True),
}
DONATED = {
    name: of_optax(TRANSFORMATIONS[name], donate=(0, 1, 2)) for name in (OURS, OPTAX)
}


def arrays(parameters: int, leaves: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters of zeros and gradients, in leaves of one size."""
    shape = (parameters // leaves,)
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(shape, np.float32) for _ in range(leaves)]
    return [np.zeros(shape, np.float32) for _ in grads], grads


def measure(
    makers: dict[str, Make], parameters: int, leaves: int, rounds: int, progress: Any
) -> list[dict[str, Any]]:
    """One row an implementation, and one for the limit.

    Raises:
      AssertionError: If an implementation does not give the numbers that ours gives.
    """
    params, grads = arrays(parameters, leaves)
    if leaves > MOST_COMPILED and jax.devices()[0].platform == "cpu":
        makers = {k: make for k, make in makers.items() if k != "torch.compile"}
    made = {}
    for name, make in makers.items():
        progress.set_description(f"{parameters:,} in {leaves}: {name}")
        made[name] = timed = make(params, grads)
        for _ in range(2):
            timed.before()
            timed.step()
        for ours, theirs in zip(made[OURS].params(), timed.params(), strict=True):
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
            "implementation": name,
            "parameters": parameters,
            "leaves": leaves,
            **report.milliseconds(seconds[name]),
            "state_bytes": timed.state_bytes,
            "temporary_bytes": timed.temporary_bytes,
        }
        for name, timed in made.items()
    ]


def measure_here(parameters: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of ours and optax's, donated and not, with this process's allocator."""
    made = {
        (name, donated): of_optax(TRANSFORMATIONS[name], (0, 1) if donated else ())(
            *arrays(parameters, 1)
        )
        for name in (OURS, OPTAX)
        for donated in (True, False)
    }
    with tqdm(disable=True) as progress:
        seconds = report.interleaved(made, rounds, progress)
    return [
        {
            "implementation": name,
            "parameters": parameters,
            "donated": donated,
            **report.milliseconds(seconds[name, donated]),
            "page_faults": page_faults(timed.step),
        }
        for (name, donated), timed in made.items()
    ]


def page_faults(step: Callable[[], Any]) -> float:
    """Of a step, the median of 9."""
    counts = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(counts)


@contextlib.contextmanager
def new_process(tunables: str = "") -> Iterator[ProcessPoolExecutor]:
    """Runs functions in one; glibc reads its tunables when a process starts."""
    there = os.environ.get(TUNABLES)
    if tunables:
        os.environ[TUNABLES] = tunables
    try:
        new = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, new) as processes:
            yield processes
    finally:
        os.environ.pop(TUNABLES, None)
        if there is not None:
            os.environ[TUNABLES] = there


def allocation(
    sizes: Iterable[int], rounds: int, progress: Any
) -> list[dict[str, Any]]:
    """The rows of all sizes and allocators."""
    rows = []
    for size in sizes:
        for name, tunables in ALLOCATORS.items():
            progress.set_description(f"{size:,}: memory allocation {name}")
            with new_process(tunables) as process:
                found = process.submit(measure_here, size, rounds).result()
            rows += [{"allocator": name, **row} for row in found]
            progress.update()
    return rows


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
    for _ in range(rounds):
        for name, pairs in times.items():
            progress.set_description(f"{leaves} leaves: compiling {name}")
            with new_process() as process:
                pairs.append(process.submit(compile_once, name, leaves).result())
        progress.update()
    return [
        {
            "implementation": name,
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
    """A row an implementation, a column a case."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(label(row), {})[row["implementation"]] = row
    names = dict.fromkeys(row["implementation"] for row in rows)
    return report.table(
        ["step, ms", *cases],
        [
            [
                name,
                *(
                    short(rows[name]["median_ms"]) if name in rows else ""
                    for rows in cases.values()
                ),
            ]
            for name in names
        ],
    )


def detail_table(title: str, rows: list[dict[str, Any]]) -> str:
    """One case: a row an implementation."""
    medians = {row["implementation"]: row["median_ms"] for row in rows}

    def count(number: int | None) -> str:
        return "" if number is None else f"{number:,}"

    return report.table(
        [
            title,
            "median ms",
            "range ms",
            "times ours",
            "times the limit",
            "state bytes",
            "temporary bytes",
        ],
        [
            [
                row["implementation"],
                short(row["median_ms"]),
                f"{short(row['fastest_ms'])} to {short(row['slowest_ms'])}",
                f"{row['median_ms'] / medians[OURS]:.2f}",
                f"{row['median_ms'] / medians[LIMIT]:.2f}" if LIMIT in medians else "",
                count(row["state_bytes"]),
                count(row["temporary_bytes"]),
            ]
            for row in rows
        ],
    )


def allocation_table(rows: list[dict[str, Any]]) -> str:
    """A row a size, allocator and donation: ours compared with optax's."""
    pairs: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        kept = "donated" if row["donated"] else "not donated"
        case = f"{row['parameters']:,}", row["allocator"], kept
        pairs.setdefault(case, {})[row["implementation"]] = row
    return report.table(
        [
            "parameters",
            "memory allocation",
            "parameters and state",
            "ours, ms",
            "optax, ms",
            "optax / ours",
            "page faults of ours",
            "of optax",
        ],
        [
            [
                *case,
                *(short(pair[name]["median_ms"]) for name in (OURS, OPTAX)),
                f"{pair[OPTAX]['median_ms'] / pair[OURS]['median_ms']:.2f}",
                *(f"{pair[name]['page_faults']:,.0f}" for name in (OURS, OPTAX)),
            ]
            for case, pair in pairs.items()
        ],
    )


def summary(results: dict[str, list[dict[str, Any]]]) -> str:
    """All cases; one in detail, its gradients kept and donated; memory; compiling."""
    case = label(results["donated"][0])
    parts = [
        times_table(results["steps"]),
        detail_table(case, [r for r in results["steps"] if label(r) == case]),
        detail_table(f"{case}, gradients donated", results["donated"]),
        allocation_table(results["allocation"]),
        report.table(
            ["to compile a step", "leaves", "trace ms", "median ms", "range ms"],
            [
                [
                    row["implementation"],
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
    """Draws the times of a step on one leaf, as multiples of the limit."""
    single = [row for row in rows if row["leaves"] == 1]
    sizes = [row["parameters"] for row in single if row["implementation"] == LIMIT]
    size = REFERENCE if REFERENCE in sizes else sizes[-1]
    medians = {
        row["implementation"]: row["median_ms"]
        for row in single
        if row["parameters"] == size
    }
    limit = medians.pop(LIMIT)
    names = sorted(medians, key=lambda name: -medians[name])
    times = [medians[name] / limit for name in names]
    figure = pictures.figure(
        1.1 + 0.3 * len(names),
        "Time of one step, as a multiple of the memory-bandwidth limit",
    )
    axes = figure.subplots()
    axes.hlines(names, 1, times, color="0.6", linewidth=2)
    for name, x in zip(names, times, strict=True):
        bold = "bold" if name == OURS else "normal"
        color, marker = ("black", "o") if name == OURS else ("0.4", "s")
        axes.plot(x, name, marker, color=color, markersize=8)
        axes.annotate(
            f"{x:.1f}", (x, name), (9, 0), textcoords="offset points", va="center"
        ).set_fontweight(bold)
        axes.get_yticklabels()[names.index(name)].set_fontweight(bold)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    text = "limit: 28 bytes per parameter"
    axes.annotate(text, (1.04, len(names) - 0.45), fontsize=9, va="center")
    axes.set(
        xscale="log",
        xlabel=f"{size // 10**6} million float32 parameters in one leaf; log scale",
        xlim=(min(0.8, 0.9 * min(times)), 1.6 * max(times)),
        ylim=(-0.5, len(names) - 0.1),
    )
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    pictures.plain([axes])
    pictures.save(figure, path)


def draw_allocation(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws ours and optax's with each allocator, at the largest size."""
    size = max(row["parameters"] for row in rows)
    figure = pictures.figure(
        3.2,
        f"A step on {size / 1e6:g} million parameters, with three malloc settings",
    )
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, donated in zip(panels, (True, False), strict=True):
        for name, style in zip((OURS, OPTAX), pictures.STYLES, strict=False):
            mine = {
                row["allocator"]: row
                for row in rows
                if (row["parameters"], row["donated"], row["implementation"])
                == (size, donated, name)
            }
            offset = -0.12 if name == OURS else 0.12
            for i, row in enumerate(mine.values()):
                median = row["median_ms"]
                low, high = row["quartiles_ms"]
                axes.errorbar(
                    median,
                    i + offset,
                    xerr=[[median - low], [high - median]],
                    color=style.color,
                    marker=style.marker,
                    capsize=3,
                    label="_" if i else name,
                )
                axes.annotate(
                    f"{median:.0f}",
                    (high, i + offset),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    color=style.color,
                )
        axes.set_title(
            f"parameters and state {'donated' if donated else 'not donated'}",
            fontsize=10,
        )
        axes.set(
            xlabel="ms per step: median and quartiles",
            yticks=range(len(ALLOCATORS)),
            yticklabels=ALLOCATORS,
        )
    panels[0].invert_yaxis()
    panels[0].set_xlim(0, 1.15 * max(r["quartiles_ms"][1] for r in rows))
    panels[0].legend(loc="lower right")
    pictures.plain(panels)
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements, prints tables, writes the result and pictures."""
    parser = report.parser("step", __doc__, "about 10 minutes", "few sizes and rounds")
    parser.add_argument(
        "--implementations",
        nargs="+",
        metavar="NAME",
        choices=IMPLEMENTATIONS,
        default=[*IMPLEMENTATIONS],
        help="those to time; Keras and torch come with the extra comparison",
    )
    options = parser.parse_args(arguments)
    # On a GPU, leave memory to the libraries that are not JAX.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sizes, leaves, allocated, most, work, compiled, compilations = (
        ((10**7,), (10,), (10**6,), 3, 10**7, (10,), 1)
        if options.quick
        else (SIZES, LEAVES, ALLOCATED, 20, 12 * REFERENCE, (1, 200, 500), 5)
    )
    names = [OURS, OPTAX] if options.quick else [*TRANSFORMATIONS, *AT_RANDOM]
    makers = {
        name: IMPLEMENTATIONS[name]
        for name in dict.fromkeys([OURS, *options.implementations])
    }
    try:
        results: dict[str, Any] = {"versions": versions(makers)}
    except PackageNotFoundError as error:
        parser.error(
            f"{error}: it comes with the extra comparison, or choose --implementations."
        )

    cases = [(size, 1) for size in sizes] + [(OF_LEAVES, n) for n in leaves]
    rounds = [max(3, min(30, work // size)) for size, _ in cases]
    reference = min(REFERENCE, sizes[-1])
    total = sum(rounds) + 12 + len(compiled) * compilations
    total += len(allocated) * len(ALLOCATORS)
    with tqdm(total=total, unit="round", disable=None) as progress:
        results["steps"] = [
            row
            for (size, count), n in zip(cases, rounds, strict=True)
            for row in measure(makers, size, count, n, progress)
        ]
        results["donated"] = measure(DONATED, reference, 1, 12, progress)
        results["allocation"] = allocation(allocated, most, progress)
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
    draw_allocation(results["allocation"], options.out / "step_allocation.png")


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of the libraries that these implementations come from."""
    packages = {"Keras": "keras", "BrainPy": "brainpy", "torch": "torch"}
    return {
        package: version(package) for name, package in packages.items() if name in names
    }


if __name__ == "__main__":
    main()
