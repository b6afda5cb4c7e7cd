"""Files that BrainPy and its users wrote, in real BrainPy where it can be installed."""

import contextlib
import functools
import logging
import os
import pickle
import random
import re
import sys
import types

import brainpy as bp
import brainpy.math as bm
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from adadelta_tx import Adadelta, CheckpointError, Variable
from tests import textbook
from tests.files import faults
from tests.files.helpers import DATA, ONE_EACH, refused, train

pytestmark = pytest.mark.usefixtures("_at_rest")


def brainpy_optimizer(steps, dtype=jnp.float32, **arguments):
    """A real one of BrainPy, trained as ours would be."""
    keys = {"w": (4, 3), "Dense0.b": (5,), "c": ()}
    optimizer = bp.optim.Adadelta(
        1.0, {k: bm.TrainVar(jnp.ones(s, dtype)) for k, s in keys.items()}, **arguments
    )
    for i in range(steps):
        rng = np.random.default_rng(i)
        grads = {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in keys.items()}
        optimizer.update(grads)
    return optimizer, keys


def write_as_brainpy(path, variables):
    """The layout of BrainPy 2.2's save_states: one entry for each variable.

    A variable under a second name is not written again: two lists tell the names.
    """
    arrays, names = {}, {}
    aliases = []
    for key, variable in variables.items():
        if id(variable) in names:
            aliases.append((key, names[id(variable)]))
        else:
            names[id(variable)] = key
            arrays[key] = np.asarray(variable.value)
    lists = dict(
        zip(
            ("duplicate_keys", "duplicate_targets"),
            zip(*aliases, strict=True),
            strict=False,
        )
    )
    if path.suffix in (".h5", ".hdf5"):
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file[key] = array
            for key, many in lists.items():
                file.create_dataset(key, data="+".join(many))
        return
    arrays |= {key: np.asarray(many) for key, many in lists.items()}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".mat":
        arrays = {key: np.expand_dims(array, 0) for key, array in arrays.items()}
        scipy.io.savemat(path, arrays)
    else:
        path.write_bytes(pickle.dumps(arrays, pickle.HIGHEST_PROTOCOL))


def like(keys, **arguments):
    """One of ours for the same variables, which has moved already."""
    variables = {k: bm.TrainVar(jnp.ones(s)) for k, s in keys.items()}
    return train(Adadelta(variables, **arguments), 50, 52)


def loads(path, keys, theirs, **arguments):
    """One of ours after it has loaded their state from a file."""
    ours = like(keys, **arguments)
    ours.load_states(path)
    same_as_theirs(ours, theirs)
    return ours


def same_as_theirs(ours, theirs):
    prefix = f"{theirs.name}."
    want = {k.removeprefix(prefix): v for k, v in theirs.vars().items() if prefix in k}
    assert ours.implicit_vars.keys() == want.keys()
    for key, variable in ours.implicit_vars.items():
        np.testing.assert_array_equal(variable.value, want[key].value)


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("alias", [False, True])
def test_files_of_brainpy(extension, alias, tmp_path, caplog):
    path = tmp_path / f"run{extension}"
    theirs, keys = brainpy_optimizer(4, name=f"AnyName{extension[1:]}{alias}")
    variables = dict(theirs.vars())
    cache = next(k for k in variables if k.endswith(".w_cache"))
    if alias:  # under another name first, so that its own is the duplicate
        variables = {"Net0.shared": variables[cache], **variables}
        variables["Net0.again"] = variables["Net0.shared"]
    write_as_brainpy(path, variables)
    ours = loads(path, keys, theirs, rho=0.9)
    assert ours.rho == 0.9
    assert ours.lr.last_epoch.value == theirs.lr.last_epoch.value
    assert ours.lr.last_call.value == 1
    (record,) = caplog.records
    name = ours.lr.name
    assert record.message == f"{path}: {name}.last_call stays; the file has none."


@pytest.mark.parametrize("extension", [*ONE_EACH, ".hdf5"])
@pytest.mark.parametrize("version", ["2.2.1", "2.4.4"])
def test_files_that_older_brainpy_wrote(version, extension):
    """Written by their save_as_* and save_states, after three steps on these gradients.

    Both hold two more names of w_cache; that of 2.2.1 a counter that it never used.
    """
    grads = {"w": np.arange(12.0).reshape(4, 3) / 10, "Dense0.b": -np.arange(5.0)}
    grads["c"] = np.array(2.0)
    ours = like({key: g.shape for key, g in grads.items()})
    ours.load_states(DATA / f"brainpy-{version}{extension}")
    for key, g in grads.items():
        *_, (_, s, d) = textbook.adadelta([g] * 3, rho=0.95, eps=1e-6)
        for kind, want in (("cache", s), ("delta", d)):
            got = ours.implicit_vars[f"{key}_{kind}"].value
            np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("extension", [".npz", ".h5", ".pkl"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrower_accumulators_of_brainpy(extension, dtype, tmp_path):
    path = tmp_path / f"run{extension}"
    theirs, keys = brainpy_optimizer(
        2, jnp.dtype(dtype), name=f"A{dtype}{extension[1:]}"
    )
    write_as_brainpy(path, theirs.vars())
    ours = like(keys)
    if (extension, dtype) == (".h5", "bfloat16"):  # HDF5 has opaque bytes there
        with refused(ours, path, "not a plain array", "convert it"):
            ours.load_states(path)
        return
    ours.load_states(path)
    same_as_theirs(ours, theirs)
    if dtype == "bfloat16":
        loads(path, keys, theirs, accumulator_dtype=jnp.bfloat16)
        return
    optimizer = like(keys, accumulator_dtype=jnp.bfloat16)
    with refused(optimizer, path, dtype):
        optimizer.load_states(path)


def test_state_dict_of_brainpy(tmp_path):
    """What BrainPy of today gives to save, by pickle and by its own save_pytree."""
    theirs, keys = brainpy_optimizer(4)
    nested = jax.tree.map(np.asarray, theirs.state_dict())
    path = tmp_path / "run.pkl"
    path.write_bytes(pickle.dumps(nested))
    loads(path, keys, theirs)

    saved, path = tmp_path / "run.msgpack", tmp_path / "run.npz"
    bp.checkpoints.save_pytree(str(saved), theirs.state_dict(), verbose=False)
    nested = bp.checkpoints.load_pytree(str(saved))
    np.savez(path, **nested[theirs.name])
    loads(path, keys, theirs)


@pytest.mark.parametrize("extension", ONE_EACH)
def test_wrong_files_of_brainpy(extension, tmp_path):
    path = tmp_path / f"run{extension}"
    theirs, keys = brainpy_optimizer(1, name=f"Wrong{extension[1:]}")
    name = theirs.name
    ours = like(keys)
    variables = dict(theirs.vars())

    def check(changes, *messages):
        changed = {k: v for k, v in {**variables, **changes}.items() if v is not None}
        write_as_brainpy(path, changed)
        with refused(ours, path, *messages):
            ours.load_states(path)

    check({f"{name}.w_delta": None}, "missing w_delta")
    check({f"{name}.v_delta": Variable(1.0)}, "unknown v_delta")
    check({f"{name}.w_cache": Variable(jnp.ones((3, 4)))}, f"{name}.w_cache is float32")
    wide = Variable(jnp.ones((4, 3), jnp.int32))
    check({f"{name}.w_cache": wide}, f"{name}.w_cache is int32")
    check({"Other.w_cache": variables[f"{name}.w_cache"]}, "Other, Wrong")
    check(dict.fromkeys(variables), "missing w_cache", "unknown none")
    others = dict.fromkeys(variables) | {
        f"{name}.v_cache": variables[f"{name}.w_cache"]
    }
    check(others, f"unknown {name}.v_cache")


def test_counters_of_two_optimizers_of_brainpy(tmp_path, caplog):
    """Nothing in such a file says whose they are."""
    path = tmp_path / "run.npz"
    one_, keys = brainpy_optimizer(1, name="One")
    two, _ = brainpy_optimizer(3, name="Two")
    two.lr.step_epoch()
    write_as_brainpy(path, {**one_.vars(), **two.vars()})
    bm.clear_name_cache()
    ours = loads(path, keys, two, name="Two")
    assert ours.lr.last_epoch.value == -1
    assert any("last_epoch stays; the file has" in r.message for r in caplog.records)


def test_wide_counters_of_brainpy(tmp_path):
    path = tmp_path / "run.npz"
    theirs, keys = brainpy_optimizer(1, name="Wide")
    counter = f"{theirs.lr.name}.last_epoch"
    for value, fits in ((7, True), (2**40, False)):
        np.savez(path, **theirs.vars().dict() | {counter: np.int64(value)})
        ours = like(keys)
        if fits:
            ours.load_states(path)
            assert ours.lr.last_epoch.value == 7
        else:
            with refused(ours, path, "too large for int32"):
                ours.load_states(path)


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_checksums_of_npz_files_of_brainpy(savez, tmp_path):
    """The one of an array is checked at its end, wherever the difference is."""
    path = tmp_path / "run.npz"
    theirs, keys = brainpy_optimizer(1, name=savez.__name__)
    savez(path, **theirs.vars().dict())
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2", 0, data.rindex(b".w_cache")) + 16] ^= 1
    path.write_bytes(data)
    ours = like(keys)
    with refused(ours, path, "CRC"):
        ours.load_states(path)


def test_name_of_brainpy_like_ours(tmp_path):
    path = tmp_path / "run.npz"
    theirs, keys = brainpy_optimizer(2, name="adadelta_tx_opt")
    write_as_brainpy(path, theirs.vars())
    loads(path, keys, theirs)


@pytest.mark.parametrize("extension", ONE_EACH)
def test_damaged_files_of_brainpy(extension, tmp_path):
    """They have no seal: some load, but nothing else than a refusal happens."""
    path = tmp_path / f"run{extension}"
    theirs, keys = brainpy_optimizer(1, name=f"Damaged{extension[1:]}")
    write_as_brainpy(path, theirs.vars())
    data = path.read_bytes()
    rng = random.Random(0)
    ours = like(keys)
    refusals = 0
    for kind in faults.DAMAGES * 100:
        path.write_bytes(faults.damaged(kind, data, data[::-1], rng))
        os.utime(path, (0, 0))  # a new one is read twice, with time between
        with contextlib.suppress(CheckpointError):
            ours.load_states(path)
            refusals -= 1
        refusals += 1
    assert refusals > 200


# BrainPy 2.0 and 2.1


def write_as_brainpy_2_1(path, variables):
    """As save_h5, save_npz, save_mat and save_pkl of its brainpy/base/io.py."""
    arrays = {key: np.asarray(variable.value) for key, variable in variables.items()}
    dashed = {key.replace(".", "--"): array for key, array in arrays.items()}
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file[key] = array
    elif path.suffix == ".npz":
        np.savez(path, **dashed)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, dashed)
    else:
        path.write_bytes(pickle.dumps(arrays, pickle.HIGHEST_PROTOCOL))


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("names", ["absolute", "relative"])
def test_files_of_brainpy_2_0(extension, names, tmp_path):
    """By default their names were relative to what was saved."""
    path = tmp_path / f"run{extension}"
    theirs, keys = brainpy_optimizer(3, name="Old")
    variables = dict(theirs.vars().items())
    step = Variable(jnp.array([3], jnp.int32))
    if names == "relative":
        own = {k.removeprefix("Old"): v for k, v in variables.items() if "Old." in k}
        variables = {**own, "lr.step": step}
    write_as_brainpy_2_1(path, variables)
    loads(path, keys, theirs)


# What users wrote


def nested(theirs, network):
    flat = {k: np.asarray(v) for k, v in theirs.vars().dict().items()}
    return {
        "vars().dict()": theirs.vars().dict(),
        "state_dict()": theirs.state_dict(),
        "arrays": flat,
        "net, opt": {"net": network.state_dict(), "opt": theirs.state_dict()},
        "net, optimizer, epoch": {
            "net": network.vars().dict(),
            "optimizer": theirs.vars().dict(),
            "epoch": 3,
            "losses": [0.5, 0.25],
            "by epoch": {0: 0.5, 1: 0.25},
        },
        "two networks": {
            "net": network.state_dict(),
            "best": jax.tree.map(lambda x: x + 1, network.state_dict()),
            "opt": theirs.state_dict(),
        },
        "big-endian": {
            k: v.astype(v.dtype.newbyteorder(">"))[() if v.ndim else ...]
            for k, v in flat.items()
        },
    }


@functools.cache
def network():
    return bp.dnn.Dense(3, 2, mode=bm.training_mode)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("case", nested(brainpy_optimizer(0)[0], network()))
def test_pickles_of_users(case, protocol, tmp_path):
    path = tmp_path / "run.pkl"
    theirs, keys = brainpy_optimizer(3)
    theirs.lr.step_epoch()
    content = nested(theirs, network())[case]
    path.write_bytes(pickle.dumps(content, protocol))
    ours = loads(path, keys, theirs)
    assert ours.lr.last_epoch.value == 0


def test_pickles_of_jax_of_2022(tmp_path, monkeypatch):
    """Its device arrays said the same under another name."""
    module = types.ModuleType("jax._src.device_array")

    def reconstruct_device_array(*_):
        raise AssertionError("nothing of a pickle is called")

    module.reconstruct_device_array = reconstruct_device_array
    reconstruct_device_array.__module__ = module.__name__
    reconstruct_device_array.__qualname__ = reconstruct_device_array.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class DeviceArray:
        def __init__(self, value):
            self.value = np.asarray(value)

        def __reduce__(self):
            function, arguments, state = self.value.__reduce__()
            aval = {"weak_type": False, "named_shape": {}}
            return reconstruct_device_array, (function, arguments, state, aval)

    path = tmp_path / "run.pkl"
    theirs, keys = brainpy_optimizer(3)
    content = {key: DeviceArray(value) for key, value in theirs.vars().dict().items()}
    path.write_bytes(pickle.dumps(content))
    loads(path, keys, theirs)


@pytest.mark.parametrize("extension", [".npz", ".h5", ".pkl"])
def test_big_endian(extension, tmp_path):
    path = tmp_path / f"run{extension}"
    theirs, keys = brainpy_optimizer(3)
    theirs.lr.step_epoch()
    swapped = {}
    for key, value in theirs.vars().dict().items():
        array = np.asarray(value)
        swapped[key] = Variable(0)
        swapped[key]._value = array.astype(array.dtype.newbyteorder(">"))
    write_as_brainpy(path, swapped)
    assert loads(path, keys, theirs).lr.last_epoch.value == 0


def test_savemat_of_a_dict(tmp_path):
    path = tmp_path / "run.mat"
    theirs, keys = brainpy_optimizer(3)
    scipy.io.savemat(path, theirs.vars().dict())
    loads(path, keys, theirs)


def test_h5_with_all_kinds_of_other_entries(tmp_path, caplog):
    path = tmp_path / "run.h5"
    theirs, keys = brainpy_optimizer(3)
    write_as_brainpy(path, theirs.vars())
    with h5py.File(path, "a") as file:
        file.create_group("notes")["x"] = 1.0
        file["text"], file["texts"] = "a text", ["a", "b"]
        file.create_dataset("chunked", (4,), "f4", chunks=(2,))
        file.create_dataset("packed", (4,), "f4", compression="gzip")
        file["empty"] = h5py.Empty("f4")
        file["link"] = h5py.SoftLink("/nothing")
        file["records"] = np.zeros(2, "i4,f4")
    loads(path, keys, theirs)
    told = caplog.records[-1].message
    assert caplog.records[-1].levelno == logging.WARNING
    more = "chunked, empty, link, notes, packed and 3"
    assert f"not loaded: {more}" in told


def unread(folder, theirs):
    """Files with what is not read: for each, a path."""
    arrays = {key: np.asarray(v) for key, v in theirs.vars().dict().items()}
    with h5py.File(folder / "packed.h5", "w") as file:
        for key, array in arrays.items():
            kind = {"compression": "gzip"} if array.ndim else {}
            file.create_dataset(key, data=array, **kind)
    scipy.io.savemat(folder / "packed.mat", arrays, do_compression=True)
    content = {key: bm.asarray(array) for key, array in arrays.items()}
    (folder / "arrays.pkl").write_bytes(pickle.dumps(content))
    (folder / "text.pkl").write_bytes(pickle.dumps(arrays, protocol=0))
    (folder / "two.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    return [folder / n for n in ("packed.h5", "packed.mat", "arrays.pkl", "text.pkl")]


@pytest.mark.parametrize("which", range(4))
def test_what_is_refused_says_how_to_convert_it(which, tmp_path, monkeypatch):
    theirs, keys = brainpy_optimizer(3)
    path = unread(tmp_path, theirs)[which]
    ours = like(keys)
    with pytest.raises(CheckpointError) as caught:
        ours.load_states(path)
    line = re.search("If you trust the file, convert it: (.*)$", str(caught.value))[1]
    monkeypatch.chdir(tmp_path)
    names = {"old": path, "numpy": np, "h5py": h5py, "scipy": scipy, "pickle": pickle}
    exec(line, names)
    (new,) = tmp_path.glob("new.*")
    loads(new, keys, theirs)


# Networks whose states are as long as a batch


class Recurrent(bp.DynamicalSystem):
    def __init__(self):
        super().__init__()
        self.cell, self.norm = bp.dyn.RNNCell(3, 24), bp.dnn.BatchNorm1d(24)
        self.out = bp.dnn.Dense(24, 2)

    def update(self, x):
        x = bm.expand_dims(self.cell(x), 1)  # a time of one moment, for the norm
        return self.out(self.norm(x)[:, 0])


class Spiking(bp.DynamicalSystem):
    def __init__(self):
        super().__init__()
        self.into, self.out = bp.dnn.Dense(3, 24), bp.dnn.Dense(24, 2)
        self.cells = bp.neurons.LIF(24, tau=10.0, spike_fun=bm.surrogate.arctan)

    def update(self, x):
        self.cells(30 * self.into(x))
        return self.out(self.cells.spike.value)


def kept(network):
    """As the page and the error say."""
    return {k: v for k, v in network.vars().items() if v.batch_axis is None}


def network_of(kind):
    bm.clear_name_cache()
    bm.random.seed(0)
    with bm.training_environment():
        network = kind()
    return network, Adadelta(network.train_vars().unique())


def fit(network, optimizer, batch, steps):
    x = np.random.default_rng(batch).normal(size=(2, batch, 3)).astype(np.float32)

    def loss():
        bp.reset_state(network, batch)
        for moment in x:
            out = network(moment)
        return jnp.mean((bm.as_jax(out) - 1) ** 2)

    grad = bm.grad(loss, network.train_vars().unique())
    for _ in range(steps):
        optimizer.update(grad())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Recurrent, Spiking])
def test_a_network_resumes_with_another_batch(kind, tmp_path):
    path = tmp_path / "run.npz"
    bp.share.save(t=0.0, dt=0.1, fit=True)
    network, optimizer = network_of(kind)
    fit(network, optimizer, 32, 1)
    optimizer.save_states(path, kept(network))
    other, resumed = network_of(kind)
    bp.reset_state(other, 8)
    resumed.load_states(path, kept(other))
    for run in ((network, optimizer), (other, resumed)):
        fit(*run, 8, 1)
    trained = network.train_vars().unique()
    assert any((v.value != 0).any() for v in optimizer.implicit_vars.values())
    assert kept(network).keys() > trained.keys() or kind is Spiking
    for key, variable in kept(network).items():
        np.testing.assert_array_equal(variable.value, kept(other)[key].value)


def test_a_state_of_another_batch_is_told(tmp_path):
    path = tmp_path / "run.npz"
    network, optimizer = network_of(Recurrent)
    bp.reset_state(network, 32)
    optimizer.save_states(path, network.vars())
    other, loaded = network_of(Recurrent)
    name = next(key for key, v in network.vars().items() if v.batch_axis is not None)
    line = "{k: v for k, v in network.vars().items() if v.batch_axis is None}"
    told = (
        f"{name} is float32 of shape (32, 24) in the file, and float32 of shape (1, 24)"
    )
    with refused(loaded, path, told, line):
        loaded.load_states(path, other.vars())
    loaded.load_states(path, eval(line, {"network": other}))
    for key, variable in kept(network).items():
        np.testing.assert_array_equal(variable.value, other.vars()[key].value)
