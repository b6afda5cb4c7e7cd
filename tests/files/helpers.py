"""What the tests of files share."""

import contextlib
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from adadelta_tx import Adadelta, CheckpointError, TrainVar

DATA = Path(__file__).parent / "data"
ONE_EACH = [".npz", ".h5", ".mat", ".pkl"]
ZEROS = np.zeros(4, np.float32)
ARRAYS = {"A0.w_cache": ZEROS, "A0.w_delta": ZEROS}


SHAPES = {"w": (4, 3), "layer/b": (), "_c": (2,), "none": (0, 3), "ρ": (1, 2, 1)}


def make(dtype=jnp.float32, shapes=SHAPES, **arguments):
    variables = {key: TrainVar(jnp.ones(s, dtype)) for key, s in shapes.items()}
    return Adadelta(variables, **arguments)


def train(optimizer, first, last):
    for i in range(first, last):
        rng = np.random.default_rng(i)
        optimizer.update(
            {
                key: jnp.asarray(rng.normal(size=v.shape)).astype(v.dtype)
                for key, v in optimizer.vars_to_train.items()
            }
        )
    return optimizer


def one(**arguments):
    """An optimizer of one variable of 4 numbers, after two steps."""
    return train(make(shapes={"w": (4,)}, **arguments), 0, 2)


def bits(optimizer):
    """All that a checkpoint has to bring back, and the trained variables."""
    variables = {**optimizer.vars("relative"), **optimizer.vars_to_train}
    return {
        **{
            k: (str(v.dtype), v.shape, np.asarray(v.value).tobytes())
            for k, v in variables.items()
        },
        "numbers": [optimizer.rho, optimizer.epsilon, optimizer.weight_decay],
        "lr": np.asarray(optimizer.lr.lr).tobytes(),
    }


@contextlib.contextmanager
def refused(optimizer, path, *messages):
    """Loading fails with the file's name and these messages, and changes nothing."""
    before = bits(optimizer)
    with pytest.raises(CheckpointError) as caught:
        yield
    for message in (str(path), *messages):
        assert message in str(caught.value)
    assert bits(optimizer) == before


LOADER = """
import sys, time
from pathlib import Path
from tests.files.helpers import one
from adadelta_tx import CheckpointError

def told(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(what))

optimizer = one(name="A0")
optimizer.save_states(sys.argv[1])
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    start, before = time.perf_counter(), told("VmRSS")
    try:
        optimizer.load_states(path)
        outcome = "loaded"
    except CheckpointError as error:
        outcome = ascii(str(error))
    seconds, memory = time.perf_counter() - start, told("VmHWM") - before
    if path != sys.argv[1]:
        print(f"{outcome}\\t{seconds}\\t{memory}", flush=True)
"""


def outcomes(paths, seconds=100):
    """What comes of loading files in another process, which can be ended.

    None may end it, or take more time or memory than a file of its size may.
    """
    done = subprocess.run(
        [sys.executable, "-c", LOADER, paths[0].parent / "warm.npz", *paths],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    for path, (what, took, memory) in zip(paths, lines, strict=True):
        size = path.stat().st_size
        assert float(took) < 2 + size / 1e7, (path.name, took, what)
        assert int(memory) < 2**26 + 4 * size, (path.name, memory, what)
    return [what for what, _, _ in lines]
