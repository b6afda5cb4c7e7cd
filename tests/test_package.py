"""The package as a whole: its names, its imports, its demonstration."""

import gzip
import json
import struct
import subprocess
import sys

import numpy as np
import pytest

import adadelta_tx
from benchmarks import _mnist, demo, faults, low_memory, scale, step


def test_public_names():
    names = {name for name in vars(adadelta_tx) if not name.startswith("_")}
    assert names == set(adadelta_tx.__all__)
    for name in names - {"TrainVar"}:
        assert "Examples:" in getattr(adadelta_tx, name).__doc__


def test_imports_only_what_it_depends_on():
    code = "import sys, adadelta_tx; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
    )
    modules = {name.partition(".")[0] for name in result.stdout.split()}
    others = {"brainpy", "brainstate", "flax", "haiku", "keras", "orbax", "torch"}
    assert "optax" in modules
    assert not modules & {*others, "h5py", "matplotlib", "scipy", "sklearn", "tqdm"}


def test_demo(tmp_path, capsys):
    demo.main(["--epochs", "12", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "demo.json").read_text())["results"]
    ours = results["adadelta_tx.adadelta()"]
    assert ours["accuracy"] > 0.95
    assert ours["temporary_bytes"] == 0
    assert np.shape(ours["rates"]) == (12, 3)
    assert ours["losses"][-1] < 0.05 < ours["losses"][0]
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for name in demo.OPTIMIZERS:
        assert f"| {name}" in printed


def test_demo_fails_loudly(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OPTIMIZERS", {demo.OURS: demo.OPTIMIZERS[demo.OURS]})
    monkeypatch.setattr(demo, "REQUIRED_ACCURACY", 1.01)
    with pytest.raises(SystemExit, match="test accuracy after 1 epochs, less than"):
        demo.main(["--epochs", "1", "--out", str(tmp_path)])


def test_step_benchmark(tmp_path):
    step.main(["--size", "100000", "--rounds", "1", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "step.json").read_text())
    assert {"command", "jax", "machine"} <= document.keys()
    ours, theirs = document["results"]
    assert ours["temporary_bytes"] == 0 < theirs["temporary_bytes"]


def test_faults_benchmark(tmp_path, capsys):
    few = ["--kills", "1", "--damaged", "8", "--stops", "2", "--loads", "1"]
    faults.main([*few, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "faults.json").read_text())["results"]
    assert list(results) == faults.FORMATS
    assert (tmp_path / "faults.png").stat().st_size > 10_000
    assert faults.summary(results) in capsys.readouterr().out


def write_mnist(folder, ending):
    """Bytes in MNIST's format: 200 images for training and 100 for the test."""
    rng = np.random.default_rng(0)
    for name in _mnist.FILES:
        n = 200 if "train" in name else 100
        shape = (n, 28, 28) if "images" in name else (n,)
        limit = 256 if "images" in name else 10
        array = rng.integers(limit, size=shape, dtype=np.uint8)
        header = b"\0\0\x08" + struct.pack(f">B{len(shape)}i", len(shape), *shape)
        data = header + array.tobytes()
        path = folder / f"{name}-ubyte{ending}"
        path.write_bytes(gzip.compress(data) if ending else data)
    return array


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_low_memory_benchmark(ending, tmp_path, capsys):
    labels = write_mnist(tmp_path, ending)
    data = _mnist.load(tmp_path)
    assert data.train_images.shape == (200, 784)
    assert 0.99 < data.train_images.max() <= 1
    np.testing.assert_array_equal(data.test_labels, labels)
    arguments = ["--quick", "--seeds", "1", "--size", "1000"]
    low_memory.main([*arguments, "--data", str(tmp_path), "--out", str(tmp_path)])
    results = json.loads((tmp_path / "low_memory.json").read_text())["results"]
    assert {run["kind"] for run in results["mnist"]} == low_memory.KINDS.keys()
    assert (tmp_path / "low_memory.png").stat().st_size > 10_000
    assert low_memory.summary(results) in capsys.readouterr().out


def test_low_memory_costs_alone(tmp_path, capsys):
    low_memory.main(["--costs", "--quick", "--size", "1000", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "low_memory.json").read_text())["results"]
    costs = {row["optimizer"]: row["state_bytes"] for row in results["costs"]}
    assert (costs["float32"], costs["uint8"]) == (8000, 2004)
    assert low_memory.summary(results) in capsys.readouterr().out


def test_mnist_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte or"):
        _mnist.load(tmp_path)
    write_mnist(tmp_path, "")
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="idx1-ubyte is not an IDX file"):
        _mnist.load(tmp_path)


def test_scale_benchmark(tmp_path, capsys):
    scale.main(["--parameters", "8000", "--rounds", "1", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "scale.json").read_text())["results"]
    for row in results["measured"]:
        everywhere = row["way"] != "sharded"
        assert row["state_bytes"] == 64_000 / (row["devices"] if everywhere else 1)
        assert row["collectives"] == (everywhere and row["devices"] > 1)
        theirs = row["state_bytes"] * (1 if everywhere else row["devices"])
        assert row["optax_state_bytes"] == theirs
    assert len(results["measured"]) == 8
    assert [kind["state"] for kind in results["kinds"]] == [8, 8, 4, 2]
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    assert scale.summary(results) in capsys.readouterr().out
