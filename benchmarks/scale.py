"""Runs the optimizer's step on 1, 2, 4 and 8 devices, and counts what it needs there.

There are two ways to share the work. Each gradient is sharded as its parameter is:

- sharded: each device has its part of the parameters, the same number for any number
  of devices, and that part of the state.
- state sharded (ZeRO, stage 1, Rajbhandari et al. 2020): each device has all
  parameters, and a part of the state. It makes its part of the updates, and the
  devices gather them.

The state is made by ``jax.jit(tx.init)``, optax.adadelta's, too; only in the second way
with ``out_shardings``. Bytes are those on the fullest device. Collectives are
counted in the compiled step. Without accelerators, the devices are threads of one CPU:
eight share its cores, so their step takes longer. The second table is arithmetic.
"""

import math
import re
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

import adadelta_tx
from benchmarks import _pictures as pictures
from benchmarks import _report as report

COLLECTIVE = re.compile(
    r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
)
KINDS = [
    # name, bytes of a parameter, of its gradient, dtype of the accumulators
    ("all float32", 4, 4, jnp.float32),
    ("bfloat16 with float32 accumulators", 2, 2, jnp.float32),
    ("all bfloat16", 2, 2, jnp.bfloat16),
    ("bfloat16 with 8-bit accumulators", 2, 2, jnp.uint8),
]
MODELS = {"1 B": 1e9, "7 B": 7e9, "70 B": 70e9}
DEVICE_BYTES = 80e9


def collectives(compiled: jax.stages.Compiled) -> int:
    """How many operations of a compiled program are talk between devices."""
    return len(COLLECTIVE.findall(compiled.as_text() or ""))


def bytes_of_fullest_device(tree: Any) -> int:
    """What the device that holds most of these arrays holds of them."""
    held: Counter[Any] = Counter()
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values())


def measure(devices: int, parameters: int, zero: bool, rounds: int) -> dict[str, Any]:
    """One row: that many devices, with that many parameters on each."""
    mesh = jax.make_mesh(
        (devices,), ("shard",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )
    sharded = NamedSharding(mesh, PartitionSpec("shard"))
    where = NamedSharding(mesh, PartitionSpec()) if zero else sharded
    size = parameters if zero else parameters * devices
    params = jax.device_put(jnp.zeros(size), where)
    grads = jax.device_put(jax.random.normal(jax.random.key(0), (size,)), where)
    tx = adadelta_tx.adadelta()

    def init(tx: Any) -> Any:
        """The state, sharded where that has to be said."""
        places = jax.tree.map(lambda leaf: sharded, jax.eval_shape(tx.init, params))
        return jax.jit(tx.init, out_shardings=places if zero else None)(params)

    state = init(tx)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    compiled = (
        jax.jit(
            report.step_of(tx), donate_argnums=(0, 1), out_shardings=(where, places)
        )
        .lower(params, state, grads)
        .compile()
    )
    seconds = []
    for i in range(rounds + 2):
        start = time.perf_counter()
        params, state = jax.block_until_ready(compiled(params, state, grads))
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return {
        "way": "everywhere, state sharded" if zero else "sharded",
        "devices": devices,
        "parameters": size,
        "median_ms": 1e3 * statistics.median(seconds),
        "state_bytes": bytes_of_fullest_device(state),
        "optax_state_bytes": bytes_of_fullest_device(init(optax.adadelta(1.0))),
        "collectives": collectives(compiled),
    }


def state_bytes_of_a_parameter(dtype: Any) -> int:
    """Bytes of both accumulators, for one parameter more."""
    tx = adadelta_tx.adadelta(accumulator_dtype=dtype)
    small, large = (
        sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(jax.eval_shape(tx.init, jnp.zeros(size)))
        )
        for size in (1, 2)
    )
    return large - small


def summary(results: dict[str, Any]) -> str:
    """Both tables."""
    measured = report.table(
        [
            "parameters are",
            "devices",
            "parameters",
            "step ms",
            "state bytes a device",
            "optax's",
            "collectives",
        ],
        [
            [
                row["way"],
                str(row["devices"]),
                f"{row['parameters']:,}",
                f"{row['median_ms']:.1f}",
                f"{row['state_bytes']:,}",
                f"{row['optax_state_bytes']:,}",
                str(row["collectives"]),
            ]
            for row in results["measured"]
        ],
    )
    return f"{measured}\n\n{memory(results['kinds'])}"


def memory(kinds: list[dict[str, Any]]) -> str:
    """The table of bytes a parameter, and of devices that models need."""

    def needs(total: int, parameters: float) -> str:
        size = total * parameters
        return f"{size / 1e9:,.0f} GB, {math.ceil(size / DEVICE_BYTES)}"

    rows = []
    for kind in kinds:
        parts = kind["parameter"], kind["gradient"], kind["state"]
        cells = [*map(str, parts), str(sum(parts))]
        rows.append(
            [kind["name"], *cells, *(needs(sum(parts), n) for n in MODELS.values())]
        )
    return report.table(
        ["bytes of", "parameter", "gradient", "state", "sum", *MODELS], rows
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs all cases, prints the tables and writes the result and a picture."""
    parser = report.parser("benchmarks.scale", __doc__, "15 seconds")
    parser.add_argument(
        "--parameters", type=int, default=4_000_000, help="on each device"
    )
    parser.add_argument("--rounds", type=int, default=20, help="timed steps")
    options = parser.parse_args(arguments)

    cases = [
        (devices, zero)
        for zero in (False, True)
        for devices in (1, 2, 4, 8)
        if devices <= jax.device_count()
    ]
    results = {
        "measured": [
            measure(devices, options.parameters, zero, options.rounds)
            for devices, zero in tqdm(cases, unit="case", disable=None)
        ],
        "kinds": [
            {
                "name": name,
                "parameter": parameter,
                "gradient": gradient,
                "state": state_bytes_of_a_parameter(dtype),
            }
            for name, parameter, gradient, dtype in KINDS
        ],
    }
    report.finish(options, summary(results), results)
    draw(results["measured"], options.out / "scale.png")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the bytes of state on the fullest device, where parameters are sharded."""
    figure = pictures.figure(
        3, "State from jax.jit(tx.init) is sharded as its parameters are"
    )
    axes = figure.subplots()
    sharded = [row for row in rows if row["way"] == "sharded"]
    devices = [row["devices"] for row in sharded]
    for key, name, style in zip(
        ("state_bytes", "optax_state_bytes"),
        ("adadelta_tx:\nits own part", "optax.adadelta:\nthe whole state"),
        pictures.STYLES,
        strict=False,
    ):
        values = [row[key] / 1e6 for row in sharded]
        axes.plot(
            devices,
            values,
            **style._asdict(),
            linewidth=2,
        )
        axes.annotate(
            name,
            (devices[-1], values[-1]),
            (10, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set(
        xlabel=f"devices, {sharded[0]['parameters'] // 10**6} M parameters on each",
        ylabel="MB of state on the fullest device",
        ylim=(0, None),
        xticks=devices,
    )
    pictures.plain([axes])
    pictures.save(figure, path)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # has no effect on accelerators
    main()
