"""Two processes of four devices train together; one is killed, and both start again."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.files import processes

TIMEOUT = 100  # seconds a run may take


def run(folder, shape="4,2", dies_after="never"):
    """The losses that each process printed, by step, and how each ended."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("XLA_FLAGS", None)
    deadline = time.monotonic() + TIMEOUT
    with contextlib.ExitStack() as stack:
        workers = []
        for number in range(processes.PROCESSES):
            log = stack.enter_context((folder.parent / f"{port}-{number}").open("w+"))
            command = [
                sys.executable,
                "-m",
                "tests.files.processes",
                str(port),
                str(number),
            ]
            worker = subprocess.Popen(
                [*command, shape, str(folder), dies_after],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            workers.append((worker, log))
            stack.callback(worker.wait)
            stack.callback(worker.kill)
        while any(worker.poll() is None for worker, _ in workers):
            killed = any(worker.poll() not in (None, 0) for worker, _ in workers)
            if killed or time.monotonic() > deadline:
                for worker, _ in workers:  # without the other it would only wait
                    worker.kill()
            time.sleep(0.05)
        outputs = []
        for _, log in workers:
            log.seek(0)
            outputs.append(log.read())
    codes = [worker.returncode for worker, _ in workers]
    losses = [
        {int(i): loss for i, loss in re.findall(r"loss (\d+) (\S+)\n", output)}
        for output in outputs  # gloo prints between the lines
    ]
    return losses, codes, "\n".join(outputs)


@pytest.mark.slow
def test_killed_and_restarted(tmp_path):
    """The losses after a restart are, bit for bit, those of a run without one."""
    (whole, same), codes, output = run(tmp_path / "whole")
    assert codes == [0, 0], output
    assert list(whole) == list(range(12))
    assert whole == same
    assert output.count("shard 8 32") == 2  # of 64 x 32: an eighth
    values = [float.fromhex(loss) for loss in whole.values()]
    assert values[-1] < 0.9 * values[0]

    folder, other_mesh = tmp_path / "killed", tmp_path / "other mesh"
    _, codes, output = run(folder, dies_after="9")
    assert codes[1] == -9, output
    assert sorted(p.name for p in folder.iterdir()) == ["3", "7"]
    shutil.copytree(folder, other_mesh)

    (resumed, same), codes, output = run(folder)
    assert codes == [0, 0], output
    assert list(resumed) == [8, 9, 10, 11]
    assert resumed == same == {i: whole[i] for i in resumed}

    (other, _), codes, output = run(other_mesh, shape="1,8")
    assert codes == [0, 0], output
    assert list(other) == [8, 9, 10, 11]
    np.testing.assert_allclose(
        [float.fromhex(loss) for loss in other.values()], values[8:], rtol=1e-5
    )
