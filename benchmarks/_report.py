"""What every benchmark shares: its options, what it times, prints and writes."""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

RESULTS = Path("results")
"""Where results go by default; the documentation's are in benchmarks/results."""

OPTION = "xla_cpu_use_multi_output_fusion"
"""XLA's: one loop for several results."""
WITH = "with the option"
"""A column of tables."""


class _Help(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Keeps line breaks, and tells defaults where there is something to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False):
            return action.help
        return super()._get_help_string(action)


def parser(
    module: str, description: str | None, duration: str, quick: str | None = None
) -> argparse.ArgumentParser:
    """The options that the commands share.

    Args:
      module: Whose command it is.
      description: Its docstring.
      duration: How long the command takes on a machine with 2 cores.
      quick: What ``--quick`` leaves out; ``None`` for a command that has no such
        option.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=f"{description}\nTakes {duration} on 2 cores.",
        formatter_class=_Help,
    )
    made.set_defaults(module=module)
    if quick:
        made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for results and pictures"
    )
    return made


def environment() -> dict[str, Any]:
    """Versions and machine, as they are kept with each result."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    machine = (
        platform.machine(),
        f"{os.cpu_count()} cores",
        " ".join(platform.libc_ver()).strip(),  # whose malloc it is; empty on a Mac
        tunables and f"GLIBC_TUNABLES={tunables}",
    )
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        "machine": ", ".join(filter(None, machine)),
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
    }


def step_of(tx: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """What a training loop does with ``(params, state, grads)``: a step of ``tx``."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


Key = TypeVar("Key")


class Timed(NamedTuple):
    """Something to time, step by step."""

    step: Callable[[], Any]
    """Returns when the step is done."""
    params: Callable[[], Sequence[Any]]
    """What it has trained."""
    state_bytes: int | None = None
    temporary_bytes: int | None = None
    total_bytes: int | None = None
    kernels: int | None = None
    """Those that make arrays."""
    compile_seconds: float | None = None
    """Tracing and compiling."""


def timed_jax(
    update: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    state: Any,
    inputs: Any,
    donate: tuple[int, ...] = (0, 1),
) -> Timed:
    """A compiled ``update(params, state, inputs)``, which donates those arguments."""
    start = time.perf_counter()
    step = jax.jit(update, donate_argnums=donate)
    compiled = step.lower(params, state, inputs).compile()
    compile_seconds = time.perf_counter() - start
    carry = jax.tree.map(jnp.array, (params, state))

    def one() -> None:
        nonlocal carry
        carry = jax.block_until_ready(compiled(*carry, inputs))

    return Timed(
        one,
        lambda: jax.tree.leaves(carry[0]),
        sum(x.nbytes for x in jax.tree.leaves(state)),
        temporary_bytes(compiled),
        total_bytes(compiled),
        array_kernels(compiled),
        compile_seconds,
    )


def interleaved(
    all_timed: Mapping[Key, Timed], rounds: int, progress: Any
) -> dict[Key, list[float]]:
    """Seconds of ``2 * rounds`` steps of each, three in a row and the first dropped.

    That first one finds the caches as another left them. The order is drawn anew in
    each round.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in all_timed}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample([*all_timed], len(all_timed)):
            timed = all_timed[name]
            for repetition in range(3):
                start = time.perf_counter()
                timed.step()
                if repetition:
                    seconds[name].append(time.perf_counter() - start)
        progress.update()
    return seconds


@contextlib.contextmanager
def new_process(**environment: str) -> Iterator[ProcessPoolExecutor]:
    """Runs functions in one that starts with these variables."""
    spawn = multiprocessing.get_context("spawn")
    with (
        mock.patch.dict(os.environ, environment),
        ProcessPoolExecutor(1, spawn) as processes,
    ):
        yield processes


def without_and_with(
    measure: Callable[..., list[dict[str, Any]]],
    *arguments: Any,
    pairs: int,
    progress: Any,
) -> list[dict[str, Any]]:
    """Rows of ``measure(*arguments)`` without XLA's option, then those with it.

    XLA reads its flags once. So each run has a process of its own, one without and one
    with the option for each pair, one after the other. Lists in a row are what was
    measured: those of all pairs are joined.
    """
    runs: dict[bool, list[list[dict[str, Any]]]] = {False: [], True: []}
    for pair in range(pairs):
        for option in sorted(runs, reverse=pair % 2 == 1):
            named = "with" if option else "without"
            progress.set_description(f"{named} XLA's option, {pair + 1} of {pairs}")
            flags = f"--xla_backend_extra_options={OPTION}" if option else ""
            with new_process(XLA_FLAGS=flags) as process:
                runs[option].append(process.submit(measure, *arguments).result())
            progress.update()
    return [
        {"option": option, **_joined(same)}
        for option, found in runs.items()
        for same in zip(*found, strict=True)
    ]


def _joined(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row in place of several that differ in their lists."""
    return {
        key: [x for row in rows for x in row[key]] if isinstance(value, list) else value
        for key, value in rows[0].items()
    }


def in_milliseconds(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the statistics of its ``seconds`` in place of these."""
    rest = {key: value for key, value in row.items() if key != "seconds"}
    return {**rest, **milliseconds(row["seconds"])}


def array_kernels(compiled: jax.stages.Compiled) -> int:
    """How many loops of a program for a CPU make arrays, copies included."""
    made = r" = (\S+|\(.*?\)) (?:fusion|copy|call)\("
    shapes = re.findall(made, compiled.as_text() or "")
    return sum(bool(re.search(r"\[\d", shape)) for shape in shapes)


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """What a compiled program allocates besides its arguments and results."""
    return _memory(compiled).temp_size_in_bytes


def total_bytes(compiled: jax.stages.Compiled) -> int:
    """Arguments, results and temporaries of a compiled program, donated ones once."""
    memory = _memory(compiled)
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _memory(compiled: jax.stages.Compiled) -> Any:
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("This backend does not say how much memory a program takes.")
    return memory


def milliseconds(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and range of timed runs, as they are kept with each result."""
    fastest, lower, median, upper, slowest = (
        1e3 * np.percentile(seconds, (0, 25, 50, 75, 100))
    ).tolist()
    return {
        "median_ms": median,
        "quartiles_ms": [lower, upper],
        "fastest_ms": fastest,
        "slowest_ms": slowest,
    }


def describe() -> str:
    """The environment in one line."""
    return ", ".join(f"{key} {value}" for key, value in environment().items())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned: the first left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def write(path: Path, module: str, results: Any, **more: str) -> Path:
    """Writes results as JSON, with the command and the environment.

    Args:
      path: Where to.
      module: Whose command it was.
      results: What it found.
      **more: Versions of other libraries, and a ``note``, for below the tables.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "-m", module, *sys.argv[1:]])
    document = {"command": command, **environment(), **more, "results": results}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def finish(
    options: argparse.Namespace,
    tables: str,
    results: Any,
    name: str | None = None,
    **more: str,
) -> None:
    """Prints the tables and the environment, and writes the results.

    Args:
      options: What the command's :func:`parser` found.
      tables: Of the results.
      results: What was found.
      name: Of the file, without its ending; the module's by default.
      **more: As in :func:`write`.
    """
    print(tables)
    print(describe())
    name = name or options.module.rpartition(".")[2]
    path = write(options.out / f"{name}.json", options.module, results, **more)
    print(f"written: {path}")
