"""Runs every example with ours, and with the Adadelta that users of its library have.

Each runs in a process of its own, as a user starts it. What came out goes to
results/examples, and table.py makes the table of docs/measurements.md from it.
"""

import json
import re
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import hydra.utils
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import table

HERE = Path(__file__).parent
PAGE = table.PAGE.read_text()
PYTHON = [sys.executable, "-W", "error:Some donated buffers were not usable"]


class Example(NamedTuple):
    """A script, and how far its number may be from the expected one, relatively."""

    distributions: list[str]
    tolerance: float
    reference: str = "optax.adadelta"
    reference_tolerance: float = 1e-3


EXAMPLES = {
    "plain_jax": Example(["jax"], 0.05),
    "flax_nnx": Example(["flax", "orbax-checkpoint"], 0.05),
    "flax_linen": Example(["flax"], 0.05),
    "haiku_mlp": Example(["dm-haiku"], 0.05),
    "equinox_mlp": Example(["equinox"], 0.05),
    "numpyro_svi": Example(["numpyro"], 1e-3),
    "optimistix_minimise": Example(["optimistix"], 1e-4),
    # optax.adadelta's second moment of a complex gradient is wrong.
    "netket_vmc": Example(["netket"], 1e-3, reference_tolerance=np.inf),
    "blackjax_vi": Example(["blackjax"], 1e-4),
    "flowjax_fit": Example(["flowjax"], 0.01),
    "gpjax_fit": Example(["gpjax"], 1e-4),
    "jaxley_cell": Example(["jaxley"], 1e-3),
    "from_torch": Example(["flax", "torch"], 1e-3),
    "brainstate_braintools": Example(["brainstate", "braintools"], 0.05),
    "brainpy_bptt": Example(["brainpy"], 0.1, "brainpy.optim.Adadelta", 5e-3),
    "brainpy_loop": Example(["brainpy"], 0.1, "brainpy.optim.Adadelta", 5e-3),
}


def output(*arguments, folder):
    result = subprocess.run(
        [*PYTHON, *arguments], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def cpu_seconds():
    """What the processes that have ended took, on all cores."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    example = EXAMPLES[name]
    before = cpu_seconds()
    printed = output(HERE / f"{name}.py", folder=tmp_path)
    seconds = cpu_seconds() - before
    what, *numbers = re.search(r"(.*): (\S+).*, expected: (\S+)\n$", printed).groups()
    number, expected = map(float, numbers)
    assert number == pytest.approx(expected, rel=example.tolerance)

    (tmp_path / "reference").mkdir()
    here = f"import sys; sys.path.insert(0, {str(HERE)!r})"
    run = f"import {example.reference.partition('.')[0]}, {name}"
    call = f"print({name}.main({example.reference}))"
    printed = output("-c", f"{here}; {run}; {call}", folder=tmp_path / "reference")
    reference = float(printed.splitlines()[-1])
    assert number == pytest.approx(reference, rel=example.reference_tolerance)
    row = {
        "versions": {name: version(name) for name in example.distributions},
        "number": what,
        "ours": number,
        "expected": expected,
        "tolerance": example.tolerance,
        "reference": example.reference,
        "theirs": reference,
        "cpu_seconds": seconds,
    }
    table.save(f"examples/{name}", row)


def test_killed_and_resumed(tmp_path):
    """Flax NNX with Orbax ends bit for bit where an uninterrupted run does."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    script = HERE / "flax_nnx.py"
    printed = output(script, folder=whole)
    assert printed.startswith("from step 0\n")

    checkpoints = killed / "results/flax_nnx"
    process = subprocess.Popen([*PYTHON, script], cwd=killed)
    while not (checkpoints / "500").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (checkpoints / "2000").exists()

    first, last = output(script, folder=killed).splitlines()
    assert int(first.removeprefix("from step ")) >= 500
    assert last == printed.splitlines()[-1]
    with ocp.StandardCheckpointer() as checkpointer:
        ends = [
            jax.tree.leaves(checkpointer.restore(folder / "2000/default"))
            for folder in (whole / "results/flax_nnx", checkpoints)
        ]
    expected, resumed = ([leaf.tobytes() for leaf in leaves] for leaves in ends)
    assert resumed == expected


def test_hydra():
    config = {"_target_": "adadelta_tx.adadelta", "rho": 0.9}
    tx = hydra.utils.instantiate(config)
    params = jnp.ones(3)
    updates, _ = tx.update(params, tx.init(params), params)
    # The first step's length is √(ε / (1 − ρ)) for a gradient that is large against √ε.
    np.testing.assert_allclose(updates, -np.sqrt(1e-6 / 0.1), rtol=1e-3)


def test_page_passes_what_the_examples_pass():
    page = (table.ROOT / "docs/libraries.md").read_text()
    rows = re.findall(r"^\| \[.+/(\w+)\.py\) \| `(.+?)` \|", page, re.MULTILINE)
    assert {name for name, _ in rows} == EXAMPLES.keys()
    for name, code in rows:
        script = re.sub(r"\s+", " ", (HERE / f"{name}.py").read_text())
        assert code in script, name


@pytest.mark.parametrize("name", table.TABLES)
def test_page_has_the_kept_results(name):
    documents = json.loads((table.KEPT / f"{name}.json").read_text())
    assert table.TABLES[name](documents) in PAGE
