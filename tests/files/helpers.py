"""What the tests of files share."""

import contextlib
import resource
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from adadelta_tx import Adadelta, CheckpointError, TrainVar

DATA = Path(__file__).parent / "data"
ONE_EACH = [".npz", ".h5", ".mat", ".pkl"]


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
import jax.numpy as jnp
from tests.files.helpers import memory, one
from adadelta_tx import CheckpointError

optimizer = one(name="A0")
for path in sys.argv[2:]:
    try:
        with memory(int(sys.argv[1])):
            optimizer.load_states(path)
        print("loaded")
    except CheckpointError as error:
        print(ascii(str(error)))
"""


@contextlib.contextmanager
def memory(more):
    """Allows to allocate no more bytes than these."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcomes(paths, seconds=60, more=2**27):
    """What comes of loading files in another process, which can be ended.

    What hangs in a library does not hear Ctrl-C.
    """
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(more), *map(str, paths)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    assert not any("MemoryError" in line for line in lines), lines
    return lines
