"""What XLA makes of a step for TPUs and GPUs: counts, not times.

Needs the extra ``accelerators``, no accelerator: ``make test-accelerators``.
"""

import pytest

from benchmarks import accelerators as bench

pytestmark = pytest.mark.accelerators

ONE, MANY = bench.LEAVES
OURS = [kind for kind in bench.KINDS if kind != bench.OPTAX]
TPUS = [chip for chip in bench.QUICK if chip.startswith("TPU")]
GPUS = [chip for chip in bench.QUICK if chip not in TPUS]
INSTRUCTIONS = {
    "float32": 44,
    "bfloat16": 48,
    "bfloat16, ρ 0.99": 61,
    "uint8": 70,
    "bfloat16 parameters": 47,
}
"""At most, for a parameter."""

ours = pytest.mark.parametrize("kind", OURS)
each_chip = pytest.mark.parametrize("chip", bench.QUICK)


@pytest.fixture(scope="module")
def rows():
    found = bench.measure_all(bench.jobs(quick=True))
    assert not [row["error"] for row in found if "error" in row]
    return {(row["chip"], row["kind"], row["leaves"]): row for row in found}


@each_chip
@ours
def test_a_leaf_takes_one_kernel(rows, chip, kind):
    for leaves in (ONE, MANY):
        assert rows[chip, kind, leaves]["array_kernels"] <= leaves


@each_chip
@ours
def test_nothing_else_grows_with_the_leaves(rows, chip, kind):
    one, many = rows[chip, kind, ONE], rows[chip, kind, MANY]
    for what in ("scalar_kernels", "copies", "collectives"):
        assert many[what] == one[what], what


@each_chip
@ours
@pytest.mark.parametrize("leaves", [ONE, MANY])
def test_each_array_moves_once(rows, chip, kind, leaves):
    row = rows[chip, kind, leaves]
    assert row["memory_bytes"] == pytest.approx(row["limit_bytes"], rel=1e-3)
    assert row["temporary_bytes"] < 1e-2 * row["parameters"]


@pytest.mark.parametrize("chip", GPUS)
@ours
def test_instructions(rows, chip, kind):
    row = rows[chip, kind, MANY]
    assert row["instructions"] <= INSTRUCTIONS[kind] * row["parameters"]


@pytest.mark.parametrize("chip", bench.HOSTS)
@pytest.mark.parametrize("kind", [x for x in bench.IN_TRAINING if x != bench.OPTAX])
def test_a_training_step_has_no_more_collectives_than_with_sgd(rows, chip, kind):
    sgd = rows[chip, bench.SGD, None]
    assert sgd["collectives"] > 0
    assert rows[chip, kind, None]["collectives"] == sgd["collectives"]


@pytest.mark.parametrize("chip", TPUS)
def test_more_is_seen_where_there_is_more(rows, chip):
    row = rows[chip, bench.OPTAX, ONE]
    assert row["array_kernels"] == 2
    assert row["memory_bytes"] > 1.2 * row["limit_bytes"]
    assert row["analysed_bytes"] >= row["memory_bytes"]
