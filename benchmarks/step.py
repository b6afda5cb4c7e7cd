"""Times one optimizer step, compared with other implementations of Adadelta.

A step takes given gradients and changes float32 parameters and state, which are
donated, or changed in place if the library does that; gradients are not donated. In
each round, each implementation takes three steps, of which the last two are timed: the
first one pays for what the others left in the caches. The tables show medians.

Two cases are measured without and with XLA's option for several results in one loop
(``xla_cpu_use_multi_output_fusion``): each in its own process, three of each kind, one
after the other, and all implementations alternately in each. "Times as fast as optax"
compares with optax without the option. Compiling includes tracing; each process does it
once.

The limit is the time to move the 28 bytes per parameter that a step must move (it reads
g, s, d and x, and writes s, d and x), at the speed of an in-place pass over as many
numbers, measured in the same rounds. There is no limit for arrays that fit in a cache.

Memory that a step allocates costs page faults, unless the allocator keeps it from one
step to the next. So the step is timed again with each of three settings of glibc's
malloc, each in a new process, with and without donated parameters and state.
"""

import os
import resource
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import _pictures as pictures
from benchmarks import _report as report
from benchmarks._implementations import (
    AT_RANDOM,
    COMPILED,
    IMPLEMENTATIONS,
    LOW,
    OPTAX,
    OURS,
    TRANSFORMATIONS,
    in_place_pass,
    of_optax,
)


class Case(NamedTuple):
    """Parameters in leaves of one size, and how many rounds to time them."""

    parameters: int
    leaves: int
    rounds: int


OF_LEAVES = 500 * 64 * 64
SINGLE = (
    *(Case(n, 1, min(30, 12 * 10**7 // n)) for n in (10**4, 10**5, 10**6, 10**7)),
    *(Case(OF_LEAVES, n, 30) for n in (10, 100)),
)
"""Measured without the option."""
BOTH = (Case(3 * 10**7, 1, 5), Case(OF_LEAVES, 500, 6))
"""Measured without and with it, in several pairs of processes."""
PAIRS = 3
MOST_COMPILED = 100
"""Leaves; for 500, torch.compile takes minutes on a CPU."""
LIMIT, LIMIT_FROM = "limit", 10**7
STEP_BYTES, PASS_BYTES = 28, 8
KEPT = "memory kept"
ALLOCATORS = {
    "default": "",
    "huge pages": "glibc.malloc.hugetlb=1",
    KEPT: "glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=4294967296:glibc.malloc.arena_max=1",
}
"""``GLIBC_TUNABLES``. Threads but the first allocate in arenas, which keep no large
memory: hence one arena."""
ALLOCATED = (10**6, 10**7, 3 * 10**7)


def arrays(parameters: int, leaves: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters of zeros and gradients, in leaves of one size."""
    size = parameters // leaves
    shape = (size,) if leaves == 1 else (size // 64, 64)
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(shape, np.float32) for _ in range(leaves)]
    return [np.zeros(shape, np.float32) for _ in grads], grads


def measure(names: Iterable[str], case: Case, progress: Any) -> list[dict[str, Any]]:
    """One row an implementation, and one for the limit; ``seconds`` of each step.

    Raises:
      AssertionError: If an implementation does not give the numbers that ours gives.
    """
    parameters, leaves, rounds = case
    params, grads = arrays(parameters, leaves)
    made = {}
    for name in names:
        if name == COMPILED and leaves > MOST_COMPILED:
            continue
        progress.set_description(f"{parameters:,} in {leaves}: {name}")
        made[name] = timed = IMPLEMENTATIONS[name](params, grads)
        for _ in range(2):
            timed.step()
        if name not in AT_RANDOM:
            tolerance = 0.02 if name == LOW else 1e-4
            for ours, theirs in zip(made[OURS].params(), timed.params(), strict=True):
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
            "seconds": seconds[name],
            "compile_seconds": [timed.compile_seconds] if timed.kernels else None,
            "state_bytes": timed.state_bytes,
            "temporary_bytes": timed.temporary_bytes,
            "kernels": timed.kernels,
        }
        for name, timed in made.items()
    ]


def measure_all(names: Sequence[str], cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The rows of several cases, for a process of its own."""
    jax.config.update("jax_enable_compilation_cache", False)
    with tqdm(disable=True) as progress:
        return [row for case in cases for row in measure(names, case, progress)]


def in_milliseconds(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is kept: medians in place of what was measured."""
    seconds = row.pop("compile_seconds")
    compile_ms = 1e3 * statistics.median(seconds) if seconds else None
    return {**report.in_milliseconds(row), "compile_ms": compile_ms}


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


def allocation(
    sizes: Iterable[int], rounds: int, progress: Any
) -> list[dict[str, Any]]:
    """The rows of all sizes and allocators."""
    rows = []
    for size in sizes:
        for name, tunables in ALLOCATORS.items():
            progress.set_description(f"{size:,}: memory allocation {name}")
            with report.new_process(GLIBC_TUNABLES=tunables) as process:
                found = process.submit(measure_here, size, rounds).result()
            rows += [{"allocator": name, **row} for row in found]
            progress.update()
    return rows


def label(row: dict[str, Any]) -> str:
    """How a column names a case."""
    leaves = f" in {row['leaves']}" if row["leaves"] > 1 else ""
    return f"{row['parameters']:,}{leaves}"


def short(ms: float) -> str:
    """At least three digits."""
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.3f}"


def times_table(rows: list[dict[str, Any]]) -> str:
    """A row an implementation, a column a case; all without the option."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["leaves"], row["parameters"])):
        if not row["option"]:
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


def by_option(rows: list[dict[str, Any]], case: str) -> dict[str, list[dict[str, Any]]]:
    """Of a case: each implementation's row without the option, and that with it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if label(row) == case:
            found.setdefault(row["implementation"], []).append(row)
    return found


def option_table(case: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    """One case: the time of a step."""
    medians = {name: [row["median_ms"] for row in both] for name, both in rows.items()}
    optax, _ = medians[OPTAX]
    header = [
        case,
        "ms",
        report.WITH,
        "with / without",
        "times as fast as optax",
        report.WITH,
    ]
    lines = [
        [
            name,
            *map(short, both),
            f"{both[1] / both[0]:.2f}",
            *(f"{optax / ms:.2f}" for ms in both),
        ]
        for name, both in medians.items()
    ]
    if COMPILED in medians:
        header += [f"ms / {COMPILED}'s", report.WITH]
        for line, both in zip(lines, medians.values(), strict=True):
            pairs = zip(both, medians[COMPILED], strict=True)
            line += [f"{ms / compiled:.2f}" for ms, compiled in pairs]
    return report.table(header, lines)


def program_table(case: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    """One case: what XLA has compiled, with bytes per parameter."""
    return report.table(
        [
            f"{case}, the program",
            "bytes of state",
            "temporary bytes",
            report.WITH,
            "array kernels",
            report.WITH,
            "ms to compile",
            report.WITH,
        ],
        [
            [
                name,
                f"{both[0]['state_bytes'] / both[0]['parameters']:.0f}",
                *(f"{row['temporary_bytes'] / row['parameters']:.1f}" for row in both),
                *(f"{row['kernels']:,}" for row in both),
                *(short(row["compile_ms"]) for row in both),
            ]
            for name, both in rows.items()
            if both[0]["kernels"]
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
    """All cases; those with the option; the settings of malloc."""
    steps = results["steps"]
    parts = [times_table(steps)]
    for case in dict.fromkeys(label(row) for row in steps if row["option"]):
        rows = by_option(steps, case)
        parts += [option_table(case, rows), program_table(case, rows)]
    return "\n\n".join([*parts, allocation_table(results["allocation"])])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws bars: how many times as fast as optax's a step on one leaf is."""
    one = next(row for row in rows if row["option"] and row["leaves"] == 1)
    cells = by_option(rows, label(one))
    times = {
        (name, option): cells[OPTAX][0]["median_ms"] / row["median_ms"]
        for name in ("torch", "Keras", OPTAX, OURS, COMPILED)
        for option, row in enumerate(cells.get(name, ()))
        if option == 0 or name in (OURS, OPTAX)
    }
    bars = sorted(times, key=lambda bar: times[bar])
    figure = pictures.figure(1.1 + 0.4 * len(bars), "Speed of one step, on a CPU")
    axes = figure.subplots()
    for i, (name, option) in enumerate(bars):
        ours = name == OURS
        axes.barh(
            i,
            times[name, option],
            color=pictures.OURS if ours else pictures.OTHERS,
            edgecolor="white",
            hatch="///" if option else None,
        )
        text = f"{times[name, option]:.1f}"
        axes.annotate(
            text, (times[name, option], i), (5, 0), textcoords="offset points"
        ).set(va="center", fontweight="bold" if ours else "normal")
    axes.set_yticks(
        range(len(bars)),
        [f"{name},\nwith XLA's option" if option else name for name, option in bars],
    )
    for tick, (name, _) in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_fontweight("bold" if name == OURS else "normal")
    axes.set(
        xlabel="times as fast as optax.adadelta without the option\n"
        f"({one['parameters'] // 10**6} million float32 parameters)",
        xlim=(0, 1.1 * max(times.values())),
    )
    pictures.plain([axes])
    axes.grid(axis="y", visible=False)
    pictures.save(figure, path)


def draw_allocation(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws ours and optax's with each allocator, at the largest size."""
    size = max(row["parameters"] for row in rows)
    figure = pictures.figure(
        4.8, f"A step on {size / 1e6:g} million parameters, by malloc's settings"
    )
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
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
            yticks=range(len(ALLOCATORS)),
            yticklabels=ALLOCATORS,
        )
    panels[-1].set_xlabel("ms per step: median and quartiles")
    panels[0].set_ylim(len(ALLOCATORS) - 0.6, -0.4)
    panels[0].set_xlim(0, 1.15 * max(r["quartiles_ms"][1] for r in rows))
    panels[0].legend(loc="lower right")
    pictures.plain(panels)
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements, prints tables, writes the result and pictures."""
    parser = report.parser(
        "benchmarks.step", __doc__, "about 12 minutes", "few sizes and rounds"
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        metavar="NAME",
        choices=IMPLEMENTATIONS,
        default=[*IMPLEMENTATIONS],
        help="those to time; Keras and torch come with the extra comparison",
    )
    options = parser.parse_args(arguments)
    if report.OPTION in os.environ.get("XLA_FLAGS", ""):
        parser.error(f"unset XLA_FLAGS: this sets {report.OPTION} where it belongs.")
    # On a GPU, leave memory to the libraries that are not JAX.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    wanted = {OURS, OPTAX, *options.implementations}
    names = [name for name in IMPLEMENTATIONS if name in wanted]
    try:
        libraries = versions(names)
    except PackageNotFoundError as error:
        parser.error(
            f"{error}: it comes with the extra comparison, or choose --implementations."
        )

    single, both, pairs, allocated, most = SINGLE, BOTH, PAIRS, ALLOCATED, 12
    if options.quick:
        single, pairs, allocated, most = (Case(10**5, 1, 3),), 1, (10**6,), 3
        both = (Case(10**7, 1, 3), Case(OF_LEAVES, 10, 3))
    total = sum(case.rounds for case in single) + 2 * pairs
    total += len(allocated) * len(ALLOCATORS)
    with tqdm(total=total, unit="round", disable=None) as progress:
        rows = [
            {"option": False, **row}
            for case in single
            for row in measure(names, case, progress)
        ]
        rows += report.without_and_with(
            measure_all, names, both, pairs=pairs, progress=progress
        )
        results = {
            "steps": [in_milliseconds(row) for row in rows],
            "allocation": allocation(allocated, most, progress),
        }
    print(", ".join(f"{name} {number}" for name, number in libraries.items()))
    note = "Parameters and state are donated, gradients are not."
    report.finish(options, summary(results), results, **libraries, note=note)
    draw(results["steps"], options.out / "step.png")
    draw_allocation(results["allocation"], options.out / "step_allocation.png")


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of the libraries that these implementations come from."""
    packages = {
        "Keras": "keras",
        "BrainPy": "brainpy",
        "bm.jit": "brainpy",
        "torch": "torch",
        COMPILED: "torch",
    }
    return {
        package: version(package) for name, package in packages.items() if name in names
    }


if __name__ == "__main__":
    main()
