"""Runs every example, and again with the Adadelta that users of its library have.

Each runs in a process of its own, as a user starts it. What came out goes to
results/examples, and table.py makes the table of docs/measurements.md from it.
"""

import gzip
import itertools
import json
import re
import resource
import signal
import struct
import subprocess
import sys
import sysconfig
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
    """How far a script's number may be from the one it names, and from reference.py's.

    Both relatively.
    """

    distributions: list[str]
    tolerance: float
    reference_tolerance: float = 1e-3


EXAMPLES = {
    "plain_jax": Example(["jax"], 0.05),
    "flax_nnx": Example(["flax"], 0.05),
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
    "brainpy_bptt": Example(["brainpy"], 0.1, 5e-3),
    "brainpy_loop": Example(["brainpy"], 0.1, 5e-3),
    "brainpy_spiking": Example(["brainpy"], 0.02, 0.01),
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


def last_numbers(printed):
    """Of the last line: what, number, and with which number to compare it."""
    line = printed.splitlines()[-1]
    return re.fullmatch(r"(.+?): ([^\s,]+)(?:.*: ([^\s,]+))?.*", line).groups()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    example = EXAMPLES[name]
    before = cpu_seconds()
    printed = output(HERE / f"{name}.py", folder=tmp_path)
    seconds = cpu_seconds() - before
    what, *numbers = last_numbers(printed)
    number, expected = map(float, numbers)
    assert number == pytest.approx(expected, rel=example.tolerance)

    printed = output(HERE / "reference.py", HERE / f"{name}.py", folder=tmp_path)
    reference = float(last_numbers(printed)[1])
    assert number == pytest.approx(reference, rel=example.reference_tolerance)
    row = {
        "versions": {name: version(name) for name in example.distributions},
        "number": what,
        "ours": number,
        "expected": expected,
        "tolerance": example.tolerance,
        "theirs": reference,
        "cpu_seconds": seconds,
    }
    table.save(f"examples/{name}", row)


def test_characters(tmp_path):
    """Less than the letters' entropy: it uses the letters before."""
    arguments = [HERE / "characters_jax.py", "--steps", "100"]
    numbers = [
        float(last_numbers(output(*call, folder=tmp_path))[1])
        for call in (arguments, [HERE / "reference.py", *arguments])
    ]
    paths = Path(sysconfig.get_path("stdlib")).glob("*.py")
    texts = [path.read_bytes() for path in paths]
    counts = np.bincount(np.frombuffer(b"".join(texts), np.uint8))
    shares = counts[counts > 0] / counts.sum()
    assert numbers[0] < 0.9 * -np.sum(shares * np.log(shares))
    assert numbers[0] == pytest.approx(numbers[1], rel=0.01)


@pytest.fixture
def digits(tmp_path):
    """A folder of images like MNIST's, each with a spot where its label is."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in [("train", 700), ("t10k", 210)]:
        labels = rng.integers(10, size=count).astype(np.uint8)
        images = rng.integers(100, size=(count, 28, 28)).astype(np.uint8)
        rows, columns = 4 + 14 * (labels // 5), 2 + 5 * (labels % 5)
        for side in itertools.product(range(4), repeat=2):
            images[np.arange(count), rows + side[0], columns + side[1]] = 255
        for kind, array in ("images-idx3", images), ("labels-idx1", labels):
            header = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def test_mnist(digits, tmp_path):
    """It learns, as with optax's; killed and resumed, it ends bit for bit the same."""
    script = HERE / "mnist_flax_nnx.py"

    def arguments(folder):
        return ["--data", digits, "--epochs", "8", "--folder", tmp_path / folder]

    printed = output(script, *arguments("whole"), folder=tmp_path)
    assert "resumed" not in printed
    reference = output(
        HERE / "reference.py", script, *arguments("reference"), folder=tmp_path
    )
    assert float(re.search(r"epoch 8, .*images: (\S+) %\n$", printed)[1]) > 90
    # Later losses are close to 0, and not comparable.
    ours, theirs = (
        float(re.search(r"epoch 1, training loss (\S+),", text)[1])
        for text in (printed, reference)
    )
    assert ours == pytest.approx(theirs, rel=0.01)

    process = subprocess.Popen([*PYTHON, script, *arguments("killed")], cwd=tmp_path)
    while not (tmp_path / "killed/3").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/8").exists()

    first, *_, last = output(script, *arguments("killed"), folder=tmp_path).splitlines()
    assert int(first.removeprefix("resumed after epoch ")) >= 3
    assert last == printed.splitlines()[-1]
    with ocp.StandardCheckpointer() as checkpointer:
        ends = [
            jax.tree.leaves(checkpointer.restore(tmp_path / folder / "8/default"))
            for folder in ("whole", "killed")
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
