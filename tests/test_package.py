"""The package as a whole: its names, its imports, its demonstration."""

import gzip
import importlib
import json
import pkgutil
import re
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

import adadelta_tx
import benchmarks
from benchmarks import (
    _mnist,
    choosing,
    demo,
    low_memory,
    scale,
    step,
    training,
    zeiler2012,
)
from benchmarks import _report as report
from tests.files import faults

ROOT = Path(__file__).parents[1]


def test_public_names():
    names = {name for name in vars(adadelta_tx) if not name.startswith("_")}
    names.discard("brainpy")  # a module, imported with BrainPy's variables
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


def make(tmp_path, *arguments, prints):
    """What make says with a Python that prints this version of itself."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {prints}\n")
    python.chmod(0o755)
    command = ["make", "--dry-run", *arguments, f"PYTHON={python}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.stdout, result.stderr.strip()


@pytest.mark.parametrize("target", ["demo", "test", "docs"])
def test_makefile_with_an_old_python(target, tmp_path):
    _, error = make(tmp_path, target, prints="is 3.10.13")
    assert error.count("\n") == 0
    assert "needs Python 3.11 or newer" in error
    assert f"is 3.10.13: make {target} PYTHON=python3.13" in error


def test_makefile_makes_the_environment_anew_for_another_python(tmp_path):
    commands, _ = make(tmp_path, "test", prints="3.99")
    assert "venv --clear .venv" in commands
    assert "pip install --quiet --editable '.[test]'" in commands


def test_citation_has_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {adadelta_tx.__version__}\n" in citation
    readme = (ROOT / "README.md").read_text()
    assert f"\n  version = {{{adadelta_tx.__version__}}},\n" in readme


def test_pages_have_all_results():
    """Each table once; two benchmarks have a page that shows theirs one by one."""
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for path in (ROOT / "benchmarks" / "results").glob("*"):
        if path.suffix == ".json":
            times = pages.count(f"_generated/{path.stem}.md")
            assert times == (path.stem not in ("choosing", "faq")), path.stem
            if path.stem == "choosing":
                for name in choosing.tables(json.loads(path.read_text())["results"]):
                    assert pages.count(f"_generated/choosing_{name}.md") == 1, name
        if path.suffix == ".png":
            assert f"(../benchmarks/results/{path.name})" in pages


COMMANDS = [
    "tests.files.faults",
    *(
        f"benchmarks.{module.name}"
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if not module.name.startswith("_")
    ),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_benchmark(command, capsys):
    """It says what is done and how long it takes, and each option's default."""
    module = importlib.import_module(command)
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main(["--help"])
    text = capsys.readouterr().out
    assert module.__doc__.partition("\n")[0] in text
    assert re.search(r"Takes .*(second|minute|hour)s? .*on 2 cores", text)
    assert re.search(r"--out OUT .*\(default: results\)", text, re.DOTALL)
    for options in re.split(r"^  -", text, flags=re.MULTILINE)[2:]:
        assert (
            re.match(r"-(quick|data|small|costs|choices)\b", options)
            or "(default:" in options
        )


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    demo.main(["--epochs", "12", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "demo.json").read_text())["results"]
    ours = results[demo.OURS]
    assert ours["accuracy"] > 0.95
    assert ours["temporary_bytes"] == 0
    assert np.shape(ours["rates"]) == (12, 3)
    assert ours["losses"][-1] < 0.05 < ours["losses"][0]
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for name in demo.OPTIMIZERS:
        assert f"| {name}" in printed


@pytest.mark.slow
def test_demo_fails_loudly(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OPTIMIZERS", {demo.OURS: demo.OPTIMIZERS[demo.OURS]})
    monkeypatch.setattr(demo, "REQUIRED_ACCURACY", 1.01)
    with pytest.raises(SystemExit, match="test accuracy after 1 epochs, less than"):
        demo.main(["--epochs", "1", "--out", str(tmp_path)])


@pytest.mark.slow
def test_step_benchmark(tmp_path, capsys):
    others = ["optax", "bm.jit"]  # no torch and Keras in the test extra
    step.main(["--quick", "--implementations", *others, "--out", str(tmp_path)])
    document = json.loads((tmp_path / "step.json").read_text())
    assert {"command", "jax", "machine", "brainpy", "note"} <= document.keys()
    results = document["results"]
    large, small, leaves = "10,000,000", "100,000", "2,048,000 in 10"
    assert {(step.label(row), row["option"]) for row in results["steps"]} == {
        (small, False),
        *((case, option) for case in (large, leaves) for option in (False, True)),
    }
    for case in (large, leaves):
        rows = step.by_option(results["steps"], case)
        limit = {step.LIMIT} if case == large else set()
        assert rows.keys() == {step.OURS, *others} | limit
        for option, (ours, theirs) in enumerate(
            zip(rows[step.OURS], rows[step.OPTAX], strict=True)
        ):
            assert ours["option"] == theirs["option"] == bool(option)
            assert ours["temporary_bytes"] < 1024 * ours["leaves"]
            bytes_of_theirs = theirs["temporary_bytes"] / theirs["parameters"]
            assert round(bytes_of_theirs, 1) == (4 if option else 8)
            assert ours["kernels"] == (1 if option else 3) * ours["leaves"]
            assert ours["state_bytes"] == 8 * ours["parameters"]
            assert ours["compile_ms"] > 0
    faults = {
        (row["allocator"], row["donated"], row["implementation"]): row["page_faults"]
        for row in results["allocation"]
    }
    assert len(faults) == len(step.ALLOCATORS) * 2 * 2
    assert not any(n for (allocator, *_), n in faults.items() if allocator == step.KEPT)
    for picture in ("step", "step_allocation"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    assert step.summary(results) in capsys.readouterr().out


def test_step_benchmark_of_operations():
    """BrainPy's object without ``bm.jit``."""
    with tqdm(disable=True) as progress:
        names, case = (step.OURS, "BrainPy"), step.Case(1000, 1, rounds=3)
        rows = step.measure(names, case, progress)
    assert [len(row["seconds"]) for row in rows] == [6, 6]


def test_step_benchmark_finds_numbers_that_are_wrong(tmp_path, monkeypatch):
    wrong = step.of_optax(optax.adadelta(1.0, 0.9))
    monkeypatch.setitem(step.IMPLEMENTATIONS, step.OPTAX, wrong)
    with pytest.raises(AssertionError, match="optax"):
        step.main(["--quick", "--implementations", "optax", "--out", str(tmp_path)])
    assert not (tmp_path / "step.json").exists()


def test_step_benchmark_sets_the_option_itself(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_backend_extra_options={report.OPTION}")
    with pytest.raises(SystemExit, match=r"^2$"):
        step.main(["--quick"])
    assert "unset XLA_FLAGS" in capsys.readouterr().err


@pytest.mark.slow
def test_training_benchmark(tmp_path, capsys, monkeypatch):
    few = (training.OURS, training.OPTAX, training.SGD)
    optimizers = {name: training.OPTIMIZERS[name] for name in few}
    monkeypatch.setattr(training, "OPTIMIZERS", optimizers)
    training.main(["--quick", "--small", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "training.json").read_text())["results"]
    cells = training.by_model(rows)
    assert list(cells) == ["MLP", "embedding"]
    for rows_of_model in cells.values():
        assert rows_of_model.keys() == optimizers.keys()
        for option, (ours, sgd) in enumerate(
            zip(rows_of_model[training.OURS], rows_of_model[training.SGD], strict=True)
        ):
            assert ours["option"] == sgd["option"] == bool(option)
            state = ours["total_bytes"] - sgd["total_bytes"]
            assert state >= 8 * sgd["parameters"]
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert training.summary(rows) in capsys.readouterr().out


@pytest.mark.slow
def test_training_benchmark_has_a_transformer():
    few = training.OURS, training.OPTAX
    rows = training.measure(few, ["transformer"], small=True, rounds=3)
    assert [row["optimizer"] for row in rows] == [*few]
    assert all(len(row["seconds"]) == 6 for row in rows)


@pytest.mark.slow
def test_faults_as_a_command(tmp_path, capsys):
    few = ["--kills", "1", "--damaged", "8", "--stops", "2", "--loads", "1"]
    faults.main([*few, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "faults.json").read_text())["results"]
    assert list(results) == faults.FORMATS
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
def test_files_of_mnist(ending, tmp_path):
    labels = write_mnist(tmp_path, ending)
    data = _mnist.load(tmp_path)
    assert data.train_images.shape == (200, 784)
    assert 0.99 < data.train_images.max() <= 1
    np.testing.assert_array_equal(data.test_labels, labels)


@pytest.mark.slow
def test_low_memory_benchmark(tmp_path, capsys):
    write_mnist(tmp_path, ".gz")
    arguments = ["--quick", "--seeds", "1", "--size", "1000"]
    low_memory.main([*arguments, "--data", str(tmp_path), "--out", str(tmp_path)])
    results = json.loads((tmp_path / "low_memory.json").read_text())["results"]
    assert {run["kind"] for run in results["mnist"]} == low_memory.KINDS.keys()
    assert (tmp_path / "low_memory.png").stat().st_size > 10_000
    assert low_memory.summary(results) in capsys.readouterr().out


@pytest.mark.slow
def test_low_memory_costs_alone(tmp_path, capsys):
    low_memory.main(["--costs", "--quick", "--size", "1000", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "low_memory.json").read_text())["results"]
    costs = {row["optimizer"]: row["state_bytes"] for row in results["costs"]}
    assert (costs["float32"], costs["uint8"]) == (8000, 2004)
    assert low_memory.summary(results) in capsys.readouterr().out


@pytest.mark.slow
def test_zeiler2012_benchmark(tmp_path, capsys):
    write_mnist(tmp_path, "")
    zeiler2012.main(["--quick", "--data", str(tmp_path), "--out", str(tmp_path)])
    results = json.loads((tmp_path / "zeiler2012.json").read_text())["results"]
    cells = [
        tuple(cell.get(k) for k in ("method", *zeiler2012.HYPERPARAMETERS))
        for cell in results["cells"]
    ]
    assert len(set(cells)) == 3 * 5 + 3 * 4
    assert ("ADADELTA", None, 0.95, 1e-6) in cells
    errors = np.array([cell["errors"] for cell in results["cells"]])
    assert errors.shape == (27, 1, 1)  # seeds and epochs
    assert errors.min() > 50  # of noise there is nothing to learn
    for picture in ("errors", "steps"):
        assert (tmp_path / f"zeiler2012_{picture}.png").stat().st_size > 10_000
    assert zeiler2012.summary(results) in capsys.readouterr().out


@pytest.mark.slow
def test_zeiler2012_choices(tmp_path, capsys, monkeypatch):
    write_mnist(tmp_path, ".gz")
    weights, images = zeiler2012.CHOSEN
    for name, chosen in (("INITIALISERS", weights), ("SCALINGS", images)):
        there = getattr(zeiler2012, name)
        monkeypatch.setattr(zeiler2012, name, {chosen: there[chosen]})
    few = ["--quick", "--choices", "--data", str(tmp_path)]
    zeiler2012.main([*few, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "zeiler2012_choices.json").read_text())["results"]
    (row,) = results["choices"]
    assert (row["weights"], row["images"]) == zeiler2012.CHOSEN
    assert len(row["cells"]) == 12
    assert zeiler2012.summary(results) in capsys.readouterr().out


@pytest.mark.parametrize("method", zeiler2012.METHODS)
def test_zeiler2012_methods_are_those_of_the_paper(method):
    """Its section 3 and Algorithm 1, in NumPy float64."""
    grads = np.random.default_rng(0).normal(size=20)
    h = {"learning rate": 0.1, "ρ": 0.9, "ε": 0.1}
    x = moved = squares = d = 0.0
    for g in grads:
        squares = 0.9 * squares + 0.1 * g**2 if method == "ADADELTA" else squares + g**2
        if method == "ADADELTA":
            moved = -g * np.sqrt((d + 0.1) / (squares + 0.1))
            d = 0.9 * d + 0.1 * moved**2
        else:
            moved = {
                "SGD": -0.1 * g,
                "Momentum": 0.9 * moved - 0.1 * g,
                "ADAGRAD": -0.1 * g / np.sqrt(squares),
            }[method]
        x += moved
    tx = zeiler2012.METHODS[method].make(h)
    params = jnp.zeros(())
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(jnp.float32(g), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, x, rtol=1e-5)


def test_zeiler2012_images_are_scaled_by_the_training_set():
    data = _mnist.Data(*(jnp.array(x) for x in ([[0.0, 2], [4, 2]], 0, [[4.0, 4]], 0)))
    data = zeiler2012.scaled(data, zeiler2012.CHOSEN[1])
    deviation = np.std([0, 2, 4, 2])
    np.testing.assert_allclose(data.train_images * deviation, [[-2, 0], [2, 0]])
    np.testing.assert_allclose(data.test_images * deviation, [[2, 2]], rtol=1e-6)


def test_mnist_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte or"):
        _mnist.load(tmp_path)
    write_mnist(tmp_path, "")
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="idx1-ubyte is not an IDX file"):
        _mnist.load(tmp_path)


@pytest.mark.slow
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
