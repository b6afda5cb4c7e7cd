"""What every benchmark prints and writes: the machine, a table, a result file."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

RESULTS = Path("results")
"""Where results go by default; README's are in benchmarks/results."""


def environment() -> dict[str, Any]:
    """Versions and machine, as they are kept with each result."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
    }


def step_of(tx: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """What a training loop does with ``(params, state, grads)``: a step of ``tx``."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def compiled_step(tx: optax.GradientTransformation, size: int) -> jax.stages.Compiled:
    """A step for a float32 leaf of that size; all but the gradient donated."""
    leaf = jax.ShapeDtypeStruct((size,), jnp.float32)
    step = jax.jit(step_of(tx), donate_argnums=(0, 1))
    return step.lower(leaf, jax.eval_shape(tx.init, leaf), leaf).compile()


def interleaved(
    steps: Mapping[str, Callable[..., Any]],
    carries: Mapping[str, Any],
    grads: Any,
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds of ``2 * rounds`` steps of each, three in a row and the first dropped.

    That first one finds the caches as another optimizer left them. The carries,
    parameters and state by optimizer, are donated.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    carries = dict(carries)
    for _ in tqdm(range(rounds), unit="round", disable=None):
        for name, step in steps.items():
            for repetition in range(3):
                start = time.perf_counter()
                carries[name] = jax.block_until_ready(step(*carries[name], grads))
                if repetition:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """What a compiled program allocates beside its arguments and results."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("This backend does not say how much memory a program takes.")
    return memory.temp_size_in_bytes


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and range of several timed runs, as they are kept with each result."""
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "fastest_ms": 1e3 * min(seconds),
        "slowest_ms": 1e3 * max(seconds),
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


def write(folder: Path, name: str, results: Any) -> Path:
    """Writes results as JSON, with the command and the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    arguments = " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    document = {"command": arguments, **environment(), "results": results}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path
