"""Counts what a step costs on TPUs and GPUs, without having one.

XLA compiles the step for each chip, and this counts what is in the compiled programs:
kernels, copies, bytes, temporaries, collectives and, for GPUs, machine instructions.
Nothing is run, so nothing is timed: the times in the table are computed from the chips'
peak numbers. The compilers come with the extra accelerators, for Linux.

The optimizer alone takes given gradients and changes parameters and state, which are
donated: leaves of 4096 × 4096 numbers on each chip. The limit is what it must move: it
reads each array once and writes parameters and state once. The whole training step is
that of two layers, whose weights are sharded over all chips.
"""

import functools
import logging
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import adadelta_tx
from benchmarks import _chips as chips
from benchmarks import _pictures as pictures
from benchmarks import _report as report

SIDE, LEAVES = 4096, (1, 8)
WIDTH, HIDDEN_PER_CHIP, TOKENS = 4096, 1024, 2048
FLOAT32, OPTAX, SGD = "float32", "optax.adadelta", "optax.sgd"
IN_TRAINING = (FLOAT32, "bfloat16, ρ 0.99", "uint8", OPTAX)
"""Kinds to compile the whole training step with, next to those of :data:`OTHERS`."""
HOSTS = {"TPU v5e": 4, "H100": 8}
"""Chips of one machine, to compile that step for; and for as many as there are."""
QUICK = ("TPU v5e", "TPU v5p", "H100", "B200")
"""Chips to compile the optimizer alone for, with ``--quick``."""


class Kind(NamedTuple):
    """A row of the tables."""

    make: Callable[[], optax.GradientTransformation]
    params_dtype: Any = jnp.float32


def _ours(rho: float = 0.95, dtype: Any = None) -> optax.GradientTransformation:
    return adadelta_tx.adadelta(1.0, rho, accumulator_dtype=dtype)


KINDS = {
    FLOAT32: Kind(_ours),
    "bfloat16": Kind(functools.partial(_ours, dtype=jnp.bfloat16)),
    "bfloat16, ρ 0.99": Kind(functools.partial(_ours, 0.99, jnp.bfloat16)),
    "uint8": Kind(functools.partial(_ours, dtype=jnp.uint8)),
    "bfloat16 parameters": Kind(_ours, jnp.bfloat16),
    OPTAX: Kind(lambda: optax.adadelta(1.0, 0.95, 1e-6)),
}
OTHERS = {
    SGD: Kind(lambda: optax.sgd(1.0)),
    "optax.adam": Kind(lambda: optax.adam(1e-3)),
}


class Job(NamedTuple):
    """One program for so many chips of a kind."""

    chip: str
    chips: int
    kind: str
    leaves: int | None
    """``None`` for the whole training step."""


def jobs(quick: bool) -> list[Job]:
    """All of them; or the optimizer alone on single chips, and training on hosts."""
    slices = {name: [*chip.slices] for name, chip in chips.CHIPS.items()}
    alone = [
        Job(chip, count, kind, leaves)
        for chip in (QUICK if quick else slices)
        for count in (slices[chip][:1] if quick else slices[chip])
        for kind in KINDS
        for leaves in (LEAVES if count == 1 else LEAVES[-1:])
    ]
    training = [*HOSTS.items()]
    if not quick:
        training += [(chip, max(counts)) for chip, counts in slices.items()]
    whole = [
        Job(chip, count, kind, None)
        for chip, count in training
        for kind in (*OTHERS, *IN_TRAINING)
    ]
    return alone + whole


def measure(job: Job) -> dict[str, Any]:
    """The job and its counts a chip, or why there are none."""
    row: dict[str, Any] = job._asdict()
    try:
        step, arguments = (alone if job.leaves else whole)(job)
        program = chips.compile_for(
            job.chip, step, arguments, machine_code=job.leaves is not None
        )
    except Exception as error:  # a chip that this jaxlib does not know, for one
        return row | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    parameters = _elements(arguments[0]) / job.chips
    read, written = (_size(x) / job.chips for x in (arguments, arguments[:2]))
    return row | {
        "parameters": parameters,
        **program._asdict(),
        "limit_bytes": (read + written) if job.leaves else None,
    }


def alone(job: Job) -> tuple[Callable[..., Any], Any]:
    """The optimizer's step, and what it takes."""
    assert job.leaves
    kind = KINDS[job.kind]
    mesh = Mesh(chips.devices(job.chip, job.chips), ("x",))
    tx = kind.make()
    leaf = jax.ShapeDtypeStruct((SIDE * job.chips, SIDE), kind.params_dtype)
    params = {f"w{i}": leaf for i in range(job.leaves)}
    given = params, jax.eval_shape(tx.init, params), params
    placed = _placed(given, mesh, lambda _, x: P("x") if x.ndim else P())
    return report.step_of(tx), placed


def whole(job: Job) -> tuple[Callable[..., Any], Any]:
    """A training step of two layers, and what it takes.

    The weights are sharded over all chips: over half of them by the hidden units, and
    over the two groups of chips, each with half of the batch, by the others.
    """
    kind = (KINDS | OTHERS)[job.kind]
    mesh = Mesh(chips.devices(job.chip, job.chips).reshape(2, -1), ("data", "model"))
    tx = kind.make()
    hidden = HIDDEN_PER_CHIP * job.chips

    def loss(params: Any, x: jax.Array) -> jax.Array:
        up, down = (params[name].astype(x.dtype) for name in ("up", "down"))
        y = x + jax.nn.relu(x @ up) @ down
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        return report.step_of(tx)(params, state, jax.grad(loss)(params, x))

    def spec(path: str, x: Any) -> P:
        if not x.ndim:
            return P()
        return P("model", "data") if path.endswith("down") else P("data", "model")

    params = {
        "up": jax.ShapeDtypeStruct((WIDTH, hidden), kind.params_dtype),
        "down": jax.ShapeDtypeStruct((hidden, WIDTH), kind.params_dtype),
    }
    given = params, jax.eval_shape(tx.init, params)
    batch = jax.ShapeDtypeStruct((2 * TOKENS, WIDTH), jnp.bfloat16)
    return step, (
        *_placed(given, mesh, spec),
        _placed(batch, mesh, lambda *_: P("data")),
    )


def _placed(tree: Any, mesh: Mesh, spec: Callable[[str, Any], P]) -> Any:
    def place(path: Any, x: Any) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True)
        sharding = NamedSharding(mesh, spec(name, x))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def _elements(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _size(tree: Any) -> int:
    """Of the arrays; a count of steps is left out."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.ndim)


def measure_all(todo: Iterable[Job]) -> list[dict[str, Any]]:
    """A row a job, in their order."""
    todo = list(todo)
    new = multiprocessing.get_context("spawn")
    rows = {}
    with (
        tqdm(total=len(todo), unit="program", disable=None) as progress,
        ProcessPoolExecutor(mp_context=new, initializer=_start) as workers,
    ):
        with chips.quiet():  # the processes that start here, for good
            futures = {workers.submit(measure, job): job for job in todo}
        for future in as_completed(futures):
            job = futures[future]
            rows[job] = future.result()
            progress.set_description(f"{job.chips} {job.chip}, {job.kind}")
            progress.update()
    return [rows[job] for job in todo]


def _start() -> None:
    logging.disable(logging.WARNING)  # JAX's, on GPUs that it does not find
    chips.prepare()
    jax.config.update("jax_enable_compilation_cache", False)


def least_seconds(row: dict[str, Any]) -> dict[str, float]:
    """For a parameter: what the bytes take at least, and what the instructions do."""
    chip = chips.CHIPS[row["chip"]]
    seconds = {"bytes": row["memory_bytes"] / row["parameters"] / chip.bandwidth}
    if chip.issue_rate and row["instructions"]:
        rate = chip.issue_rate * row["parameters"]
        seconds["instructions"] = row["instructions"] / rate
    return seconds


def alone_table(rows: list[dict[str, Any]]) -> str:
    """The optimizer alone; numbers of chips that give the same counts share a line."""
    lines: dict[tuple[str, ...], list[int]] = {}
    single = {(r["chip"], r["kind"]): r for r in rows if r["leaves"] == LEAVES[0]}
    for row in rows:
        if row["leaves"] != LEAVES[-1]:
            continue
        one = single[row["chip"], row["kind"]]
        if "error" in row or "error" in one:
            cells = [row.get("error") or one["error"], *[""] * 5]
        else:
            each = row["parameters"]
            instructions = row["instructions"]
            others = (str(r["scalar_kernels"] + r["copies"]) for r in (one, row))
            cells = [
                f"{row['array_kernels'] / row['leaves']:.2g}",
                " → ".join(others),
                f"{row['memory_bytes'] / each:.2f}",
                f"{row['limit_bytes'] / each:.2f}",
                f"{row['temporary_bytes'] / each:.2f}",
                f"{instructions / each:.0f}" if instructions else "",
            ]
        key = (row["chip"], row["kind"], *cells)
        lines.setdefault(key, []).append(row["chips"])
    return report.table(
        [
            "the optimizer alone",
            "chips",
            "state",
            "array kernels per leaf",
            f"others, {LEAVES[0]} → {LEAVES[-1]} leaves",
            "bytes per parameter",
            "limit",
            "temporary bytes",
            "instructions",
        ],
        [
            [chip, ", ".join(map(str, counts)), *cells]
            for (chip, *cells), counts in lines.items()
        ],
    )


def roofline_table(rows: list[dict[str, Any]]) -> str:
    """A row a kind, a column a chip."""
    names = list(dict.fromkeys(row["chip"] for row in rows))
    cells: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for row in rows:
        if row["leaves"] == LEAVES[-1] and row["chips"] == 1 and "error" not in row:
            seconds = least_seconds(row)
            bound = max(seconds, key=lambda name: seconds[name])
            mark = " i" if bound == "instructions" else ""
            cells[row["kind"]][row["chip"]] = f"{1e12 * seconds[bound]:.1f}{mark}"
    return report.table(
        ["µs for a million parameters, calculated", *names],
        [[kind, *(cells[kind].get(name, "—") for name in names)] for kind in cells],
    )


def whole_table(rows: list[dict[str, Any]]) -> str:
    """The whole training step, compared with that of SGD."""
    sgd = {(r["chip"], r["chips"]): r for r in rows if r["kind"] == SGD}
    lines = []
    for row in rows:
        base = sgd[row["chip"], row["chips"]]
        if "error" in row or "error" in base:
            cells = [row.get("error") or base["error"], *[""] * 3]
        else:
            sizes = ("memory_bytes", "temporary_bytes")
            each = row["parameters"]
            cells = [
                *(_beyond(row, base, name, ".1f", each) for name in sizes),
                *(_beyond(row, base, x, "d") for x in ("array_kernels", "collectives")),
            ]
        lines.append([row["chip"], str(row["chips"]), row["kind"], *cells])
    return report.table(
        [
            "the whole step",
            "chips",
            "optimizer",
            "bytes per parameter",
            "temporary bytes",
            "array kernels",
            "collectives",
        ],
        lines,
    )


def _beyond(
    row: Any, base: Any, name: str, digits: str, each: float | None = None
) -> str:
    """The number itself for ``base``, and for others how much more it is."""
    if row[name] is None:
        return ""
    number, sign = (row[name], "") if row is base else (row[name] - base[name], "+")
    return f"{number / each if each else number:{sign}{digits}}"


def summary(results: dict[str, Any]) -> str:
    """Both programs, and what is calculated from the counts."""
    rows = results["rows"]
    single = [row for row in rows if row["leaves"]]
    training = [row for row in rows if not row["leaves"]]
    parts = [
        alone_table(single),
        f"{roofline_table(single)}\n\n(i: bound by instructions, not by memory)",
    ]
    if training:
        parts.append(
            f"{whole_table(training)}\n\n"
            f"({SGD}: what it takes per parameter; the others: how much more than that)"
        )
    return "\n\n".join(parts)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the calculated time of a step, as a share of float32's limit."""
    names = list(dict.fromkeys(row["chip"] for row in rows))
    figure = pictures.figure(
        2.2 + 0.6 * len(names),
        "The least time of a step, from each chip's peak numbers",
    )
    axes = figure.subplots()
    hollow = False
    shift = {kind: 0.33 - 0.66 * i / (len(KINDS) - 1) for i, kind in enumerate(KINDS)}
    for (kind, offset), marker in zip(shift.items(), "os^vDX", strict=True):
        shown = kind
        for row in rows:
            if (row["kind"], row["leaves"], row["chips"]) != (kind, LEAVES[-1], 1):
                continue
            if "error" in row:
                continue
            bandwidth = chips.CHIPS[row["chip"]].bandwidth
            share = {
                name: seconds * bandwidth / 28
                for name, seconds in least_seconds(row).items()
            }
            by_instructions = share.get("instructions", 0) > share["bytes"]
            hollow |= by_instructions
            axes.plot(
                max(share.values()),
                names.index(row["chip"]) - offset,
                marker,
                color=pictures.STYLES[1 if kind == OPTAX else 0].color,
                fillstyle="none" if by_instructions else "full",
                markersize=6,
                label=shown,
            )
            shown = "_"
    if hollow:
        axes.plot([], [], "ow", markeredgecolor="k", label="hollow: by\ninstructions")
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set(
        xlabel="1 is the time to move 28 bytes per parameter, as float32 must",
        yticks=range(len(names)),
        yticklabels=names,
        xlim=(0, None),
        ylim=(len(names) - 0.5, -0.5),
    )
    pictures.plain([axes])
    axes.grid(visible=False, axis="y")
    for i in range(len(names) - 1):
        axes.axhline(i + 0.5, color="0.85", linewidth=1)
    figure.legend(loc="outside lower center", frameon=False, ncols=2)
    pictures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Compiles all programs, prints tables, writes the counts and a picture."""
    parser = report.parser(
        "benchmarks.accelerators", __doc__, "about 10 minutes", "few chips"
    )
    options = parser.parse_args(arguments)
    try:
        versions = chips.versions()
    except PackageNotFoundError as error:
        parser.error(f"{error}: it comes with the extra accelerators.")
    rows = measure_all(jobs(options.quick))
    peaks = {
        name: {"bandwidth": x.bandwidth, "issue_rate": x.issue_rate, "source": x.source}
        for name, x in chips.CHIPS.items()
    }
    results = {"versions": versions, "chips": peaks, "rows": rows}
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    chips.prepare()
    logging.disable(logging.WARNING)
    with chips.quiet():
        jax.devices()  # which starts JAX
    report.finish(options, summary(results), results)
    draw(rows, options.out / "accelerators.png")


if __name__ == "__main__":
    main()
