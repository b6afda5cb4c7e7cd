"""Files of the Adadelta object: round trips, writing, refusals, BrainPy's files."""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import pickle
import re
import stat
import struct
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import brainpy as bp
import brainpy.math as bm
import brainstate
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.io
from jax.sharding import NamedSharding, PartitionSpec

from adadelta_tx import Adadelta, CheckpointError, TrainVar, Variable, _files
from tests.files import faults
from tests.files.helpers import (
    ARRAYS,
    ONE_EACH,
    SHAPES,
    bits,
    make,
    one,
    outcomes,
    refused,
    train,
)

pytestmark = pytest.mark.usefixtures("_at_rest")


def copy_variables(source, target):
    for key, variable in target.vars_to_train.items():
        variable.value = source.vars_to_train[key].value


DTYPES = {
    "float32": {},
    "float64": {"dtype": jnp.float64},
    "bfloat16": {"dtype": jnp.bfloat16, "accumulator_dtype": jnp.bfloat16},
    "float16": {"dtype": jnp.float16},
    "uint8": {"accumulator_dtype": jnp.uint8},
    "two epsilons": {"grad_epsilon": 1e-12},
    "complex64": {"dtype": jnp.complex64},
    "schedule": {"lr": optax.linear_schedule(1.0, 0.0, 20), "weight_decay": 0.01},
}


@pytest.mark.parametrize("extension", [*ONE_EACH, ""])
@pytest.mark.parametrize("case", DTYPES)
def test_resumes_as_if_it_had_not_stopped(extension, case, tmp_path):
    with jax.enable_x64(case == "float64"):
        path = tmp_path / f"run{extension}"
        first = train(make(**DTYPES[case]), 0, 5)
        first.lr.step_epoch()
        first.save_states(path)
        second = make(**DTYPES[case])
        copy_variables(first, second)
        second.load_states(path)
        assert bits(second) == bits(first)
        assert bits(train(second, 5, 9)) == bits(train(first, 5, 9))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("extension", ONE_EACH)
def test_every_dtype_and_name(extension, tmp_path):
    """Variables of other dtypes, 8-bit codes too, come back by a later optimizer."""
    dtypes = "bool uint8 int8 int64 uint32 float16 complex64 float8_e4m3fn bfloat16"
    codes = np.arange(6, dtype=np.uint8).reshape(2, 3) % 2
    given = {dtype: codes.astype(jnp.dtype(dtype)) for dtype in dtypes.split()}
    optimizer = train(make(), 0, 2)
    path = tmp_path / f"run{extension}"
    others = {"file": codes, "_a/b.c": codes, "é%": codes, "x" * 200: codes, **given}
    optimizer.save_states(path, {**optimizer.vars(), **others})
    loaded = make()
    copy_variables(optimizer, loaded)
    loaded.load_states(path)
    assert bits(loaded) == bits(optimizer)


def read(path):
    """The arrays in a file, by the library of its format."""
    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix in (".h5", ".hdf5"):
        with h5py.File(path) as file:
            return {name: item[()] for name, item in file.items()}
    if path.suffix == ".mat":
        return {k: v[0] for k, v in scipy.io.loadmat(path).items() if k[0] != "_"}
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize("extension", [*ONE_EACH, ".hdf5", ".pickle"])
def test_files_are_ordinary_ones_of_their_format(extension, tmp_path):
    path = tmp_path / f"run{extension}"
    optimizer = train(make(lr=0.5, rho=0.9, epsilon=1e-4, name="mine"), 0, 3)
    optimizer.save_states(path)
    arrays = read(path)
    want = optimizer.implicit_vars
    np.testing.assert_array_equal(arrays["mine.w_cache"], want["w_cache"].value)
    np.testing.assert_array_equal(arrays["mine.%CF%81_delta"], want["ρ_delta"].value)
    assert arrays["Constant0.last_call"] == 2
    header = json.loads(arrays["adadelta_tx:header"].tobytes())
    cache = np.asarray(want["w_cache"].value)
    digest = hashlib.sha256(cache.tobytes()).hexdigest()
    assert header.pop("variables")["mine.w_cache"] == f"float32 (4,3) {digest}"
    assert header == {
        "format": 2,
        "name": "mine",
        "schedule": "Constant0",
        "numbers": {
            **{"lr": 0.5, "rho": 0.9, "epsilon": 1e-4},
            **{"grad_epsilon": None, "weight_decay": 0.0},
        },
    }
    digest = hashlib.sha256(arrays["adadelta_tx:header"].tobytes()).digest()
    assert arrays["adadelta_tx:digest"].tobytes() == digest


def test_compressed(tmp_path):
    optimizer = make(shapes={"w": (1000,)})
    optimizer.save_states(tmp_path / "plain.npz")
    optimizer.save_states(str(tmp_path / "small.npz"), compressed=True)
    plain, small = (os.path.getsize(tmp_path / f) for f in ("plain.npz", "small.npz"))
    assert small < 0.5 * plain
    make(shapes={"w": (1000,)}).load_states(tmp_path / "small.npz")
    with pytest.raises(
        ValueError, match=r"compressed is for .npz files, not for .*x.h5"
    ):
        optimizer.save_states(tmp_path / "x.h5", compressed=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'level'"):
        optimizer.save_states(tmp_path / "x.npz", level=9)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "bool", "int8"])
def test_variables_of_a_model_are_readable(extension, dtype, tmp_path):
    """As they are, or as unsigned integers of the same bits."""
    path = tmp_path / f"run{extension}"
    value = jnp.asarray(np.arange(6).reshape(2, 3) % 2, jnp.dtype(dtype))
    optimizer = make()
    optimizer.save_states(path, {**optimizer.vars(), "w": value})
    stored = read(path)["w"]
    assert stored.shape == (2, 3)
    if dtype in ("float16", "bfloat16"):
        assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored.view(value.dtype), value)


def test_unknown_extension(tmp_path):
    for call in (make().save_states, make().load_states):
        with pytest.raises(CheckpointError, match=r"run\.pt: .*'\.pt'.*\.npz, \.h5, "):
            call(tmp_path / "run.pt")


def test_missing_package(tmp_path, monkeypatch):
    h5, mat = tmp_path / "run.h5", tmp_path / "run.mat"
    optimizer = make()
    for path in (h5, mat):
        optimizer.save_states(path)
    before = h5.read_bytes(), mat.read_bytes()
    for package in ("h5py", "scipy.io"):
        monkeypatch.setitem(sys.modules, package, None)
    for call, path, package in (
        (optimizer.save_states, h5, "h5py"),
        (optimizer.save_states, mat, "scipy"),
    ):
        with pytest.raises(CheckpointError, match=rf"pip install {package}\. \.npz"):
            call(path)
    optimizer.load_states(h5)
    optimizer.load_states(mat)
    assert (h5.read_bytes(), mat.read_bytes()) == before
    assert sorted(tmp_path.iterdir()) == [h5, mat]


def test_name_of_the_error():
    assert repr(CheckpointError) == "<class 'adadelta_tx.CheckpointError'>"
    assert pickle.loads(pickle.dumps(CheckpointError("x"))).args == ("x",)


def test_bad_variables(tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(TypeError, match="variables, after the path, must be a dict"):
        make().save_states(path, [1.0])
    for value in (
        object(),
        "text",
        b"bytes",
        np.datetime64("now"),
        np.zeros(1, "i4,i4"),
    ):
        with pytest.raises(TypeError, match=r"variables\['a'\] is not an array of num"):
            make().save_states(path, {"a": value})
    for name in ("", ".", 3):
        with pytest.raises(TypeError, match="variables must have names"):
            make().save_states(path, {name: jnp.ones(1)})
    with pytest.raises(ValueError, match="Two values have the name"):
        make().save_states(path, {"a": {"b": jnp.ones(1)}, "a['b']": jnp.ones(1)})
    with pytest.raises(TypeError, match=r"variables\['key'\].*PRNGKey"):
        make().save_states(path, {"key": jax.random.key(0)})
    optimizer = make()
    with pytest.raises(RuntimeError, match="'x' cannot be saved inside"):
        jax.jit(lambda x: optimizer.save_states(path, {"x": x}))(1.0)
    assert not list(tmp_path.iterdir())


# Writing


@contextlib.contextmanager
def unprivileged():
    """The system ignores permissions for root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("extension", ONE_EACH)
def test_no_permission(extension):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"run{extension}")
        train(make(), 0, 1).save_states(path)
        before = path.read_bytes()
        newer = train(make(), 0, 2)
        Path(folder).chmod(0o555)
        with unprivileged(), pytest.raises(PermissionError):
            newer.save_states(path)
        Path(folder).chmod(0o755)
        assert path.read_bytes() == before
        assert os.listdir(folder) == [path.name]
        path.chmod(0)
        before = bits(newer)
        with unprivileged(), pytest.raises(PermissionError):
            newer.load_states(path)
        assert bits(newer) == before


@pytest.mark.parametrize("form", faults.FORMATS)
def test_full_disk(form):
    assert faults.full_disks(form, 40) == {"kept": 40}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["npz", "h5"])
def test_killed_writers(form):
    outcomes = faults.kills(form, 4)
    assert sum(outcomes.values()) == 4
    assert "lost" not in outcomes


@pytest.mark.parametrize("form", ["mat", "pkl"])
def test_two_writers(form):
    assert faults.race(form, 10) == {"kept": 10}


def test_order_of_writing(tmp_path, monkeypatch):
    """Contents reach the disk before the name does, and then the folder."""
    calls = []

    def recorded(name):
        original = getattr(os, name)

        def call(*arguments):
            what = arguments[0]
            if isinstance(what, int):
                what = os.readlink(f"/proc/self/fd/{what}")
            calls.append((name, os.fspath(what)))
            return original(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name))
    make().save_states(tmp_path / "run.npz")
    (first, temporary), replaced, folder = calls
    assert first == "fsync"
    assert replaced == ("replace", temporary)
    assert os.path.dirname(temporary) == str(tmp_path)
    assert folder == ("fsync", str(tmp_path))


def test_what_is_no_file_stays(tmp_path):
    pipe = tmp_path / "run.npz"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="Not a regular file"):
        make().save_states(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(OSError, match="Not a regular file"):
        make().save_states(f"{tmp_path}/")
    with pytest.raises(OSError, match=r"There is no folder: '.*/new'"):
        make().save_states(tmp_path / "new" / "run.npz")
    assert list(tmp_path.iterdir()) == [pipe]


def test_no_one_else_reads_a_private_file(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    make().save_states(path)
    path.chmod(0o600)
    modes = []
    fsync = os.fsync

    def look(descriptor):
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    make().save_states(path)
    assert modes[0] == 0o600


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_interrupted(error, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    make().save_states(path)
    before = path.read_bytes()

    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        train(make(), 0, 1).save_states(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_mode_and_links_stay(tmp_path):
    path, link = tmp_path / "run.npz", tmp_path / "latest.npz"
    make().save_states(path)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o640)
    link.symlink_to(path)
    train(make(), 0, 1).save_states(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o666)  # more than a new file would get
    make().save_states(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    make().load_states(path)


# Damage and other files


@pytest.mark.slow
@pytest.mark.parametrize("form", faults.FORMATS)
def test_damaged_files(form):
    """What loads is as it was written: the damage is where no number is."""
    for kind, came in faults.damages(form, 350).items():
        right = {"refused", "loaded as written"}
        right |= {"loaded as its library reads it"} if kind in faults.KINDS else set()
        assert came.keys() <= right, kind
        assert came["refused"] >= (0 if kind == "foreign" else 10), kind
        assert came["loaded as written"] or kind != "foreign", kind


@pytest.mark.parametrize("extension", ONE_EACH)
def test_not_a_checkpoint(extension, tmp_path):
    path = tmp_path / f"run{extension}"
    optimizer = train(make(), 0, 1)
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        optimizer.load_states(path)
    for content in (
        b"",
        b"no checkpoint",
        os.urandom(5000),
        b"PK\x03\x04",
        b"\x80\x05",
    ):
        path.write_bytes(content)
        with refused(optimizer, path):
            optimizer.load_states(path)
    path.unlink()
    path.mkdir()
    with refused(optimizer, path):
        optimizer.load_states(path)
    with pytest.raises(OSError, match="Not a regular file"):
        optimizer.save_states(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("extension", "other"), [*itertools.permutations(ONE_EACH, 2)])
def test_wrong_extension(extension, other, tmp_path):
    path, wrong = tmp_path / f"run{extension}", tmp_path / f"wrong{other}"
    train(make(), 0, 1).save_states(path)
    path.rename(wrong)
    optimizer = train(make(), 0, 2)
    with refused(optimizer, wrong):
        optimizer.load_states(wrong)


WRONG = {
    "missing": ({**SHAPES, "new": (2,)}, {}, "missing new_cache"),
    "extra": ({"w": (4, 3)}, {}, "unknown _c_cache"),
    "shape": (
        {**SHAPES, "w": (3, 4)},
        {},
        "Adadelta0.w_cache is float32 of shape (4, 3)",
    ),
    "scalar": ({**SHAPES, "layer/b": (1,)}, {}, "Adadelta0.layer/b_cache is float32"),
    "dtype": (
        SHAPES,
        {"accumulator_dtype": jnp.bfloat16},
        "and bfloat16 of shape (4, 3)",
    ),
    "codes": (
        SHAPES,
        {"accumulator_dtype": "uint8"},
        "has accumulators in uint8, and the file has them in floats.",
    ),
    "none": ({}, {}, "has no variables yet"),
}


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("case", WRONG)
def test_other_variables(extension, case, tmp_path):
    path = tmp_path / f"run{extension}"
    shapes, arguments, message = WRONG[case]
    train(make(), 0, 1).save_states(path)
    optimizer = Adadelta()
    if shapes:
        optimizer = train(make(shapes=shapes, **arguments), 0, 2)
    with refused(optimizer, path, message):
        optimizer.load_states(path)


def crafted(path, source, changes=(), **header):
    """A file with the arrays of one of ours, some changed, and another header."""
    arrays = dict(np.load(source)) | dict(changes)
    old = json.loads(arrays["adadelta_tx:header"].tobytes())
    text = json.dumps({**old, **header}).encode()
    arrays["adadelta_tx:header"] = np.frombuffer(text, np.uint8)
    digest = hashlib.sha256(text).digest()
    arrays["adadelta_tx:digest"] = np.frombuffer(digest, np.uint8)
    np.savez(path, **arrays)


NUMBERS = {"lr": 1.0, "rho": 0.95, "epsilon": 1e-6, "weight_decay": 0.0}
HEADERS = {
    "newer format": ({"format": 3}, "of no version known"),
    "number out of range": ({"numbers": {**NUMBERS, "rho": 2.0}}, "rho must be"),
    "negative grad_epsilon": (
        {"numbers": {**NUMBERS, "grad_epsilon": -1.0}},
        "grad_epsilon must be",
    ),
    "no number": ({"numbers": {**NUMBERS, "epsilon": "x"}}, "epsilon"),
    "no rho": ({"numbers": {**NUMBERS, "rho": None}}, "rho"),
    "negative rate": ({"numbers": {**NUMBERS, "lr": -1.0}}, "lr must be"),
    "rate of NaN": ({"numbers": {**NUMBERS, "lr": float("nan")}}, "lr must be"),
    "large rate": ({"numbers": {**NUMBERS, "lr": 1e308}}, "lr must be"),
    "rate of text": ({"numbers": {**NUMBERS, "lr": "1"}}, "lr must be"),
    "other dtype": (
        {"variables": {"Adadelta0.w_cache": f"float16 (4,3) {'0' * 64}"}},
        "missing",
    ),
    "numbers": ({"variables": {"Adadelta0.w_cache": 3}}, "of no version known"),
    "lists": ({"variables": [[]] * 2000}, "of no version known"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_crafted_headers(case, tmp_path):
    ours, path = tmp_path / "ours.npz", tmp_path / "crafted.npz"
    make().save_states(ours)
    header, message = HEADERS[case]
    crafted(path, ours, **header)
    optimizer = train(make(), 0, 2)
    with refused(optimizer, path, message):
        optimizer.load_states(path)


@pytest.mark.parametrize(
    "change", [np.transpose, np.float64, np.int32, lambda x: x + 1]
)
def test_header_that_the_arrays_do_not_fit(change, tmp_path):
    ours, path = tmp_path / "ours.npz", tmp_path / "crafted.npz"
    make().save_states(ours)
    array = change(np.load(ours)["Adadelta0.w_cache"])
    crafted(path, ours, {"Adadelta0.w_cache": array})
    optimizer = train(make(), 0, 2)
    with refused(optimizer, path, "Adadelta0.w_cache"):
        optimizer.load_states(path)


# Files are data


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_pickles(folder):
    array = np.zeros(4, np.float32)
    yield Evil(os.mkdir, str(folder / "executed"))
    yield {"A0.w_cache": Evil(os.mkdir, str(folder / "executed"))}
    yield {"A0.w_cache": array, "A0.w_delta": np.array([None, {}], dtype=object)}
    yield {"A0.w_cache": array, "A0.w_delta": TrainVar}
    yield {"A0.w_cache": array, "A0.w_delta": Evil(np.ndarray, (10**13,))}
    yield {"A0.w_cache": array, "A0.w_delta": [0.0] * 4}
    yield {"A0.w_cache": array, "A0.w_delta": np.array(["a", "b", "c", "d"])}
    yield [array]
    yield {"A0.w_cache": array, 3: array}
    yield {"a": {"A0.w_cache": array}, "b": {"A0.w_cache": array, "A0.w_delta": array}}
    yield {"A0.w_cache": array, "A0.w_delta": frozenset([1])}


@pytest.mark.parametrize("case", range(11))
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_are_data(case, protocol, tmp_path):
    path = tmp_path / "run.pkl"
    content = list(evil_pickles(tmp_path))[case]
    path.write_bytes(pickle.dumps(content, protocol))
    optimizer = one()
    with refused(optimizer, path, *(["asks for posix.mkdir"] if case < 2 else [])):
        optimizer.load_states(path)
    assert list(tmp_path.iterdir()) == [path]


def opcodes(content, protocol=4):
    """The instructions of a pickle, without its first and its last."""
    return pickle.dumps(content, protocol)[2:-1]


PROGRAMS = {
    "sets bfloat16's size": b"cml_dtypes\nbfloat16\n"
    + pickle.dumps((3, "<", None, None, None, 1, 1, 0), 2)[2:-1]
    + b"b.",
    "deep key": b"})" + b"\x85" * 10**6 + b"Ns.",
    "key of 2^60 parts": b"})" + b"2\x86" * 60 + b"Ns.",
    "key of 2^60 parts, by memo": b"})" + b"\x94h\x00h\x00\x86" * 60 + b"Ns.",
    "deep lists": b"}\x8c\x01a" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"s.",
    "extension": b"\x82\x01.",
    "persistent": b"Pid\n.",
    "instance": b"(ios\ngetcwd\n.",
    "empty stack": b"0.",
    "no mark": b"t.",
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_of_pickles(case, tmp_path):
    path = tmp_path / "run.pkl"
    path.write_bytes(b"\x80\x05" + PROGRAMS[case])
    optimizer = one()
    with refused(optimizer, path):
        optimizer.load_states(path)
    assert jnp.dtype(jnp.bfloat16).itemsize == 2


def pickled_dtype(code=b"X\x02\x00\x00\x00f4"):
    return b"cnumpy\ndtype\n" + code + b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00<tb"


@pytest.mark.parametrize("kind", ["shape", "code", "axes"])
def test_pickled_arrays_of_odd_descriptions(kind, tmp_path):
    """A shape, or the name of a dtype, that is a tuple of 2^60 parts; 65 axes."""
    tower = b")" + b"q\x63h\x63\x86" * 60
    shapes = {"shape": tower, "axes": b"(" + b"K\x01" * 65 + b"t"}
    shape = shapes.get(kind, b"K\x04\x85")
    dtype = pickled_dtype(tower) if kind == "code" else pickled_dtype()
    array = b"cnumpy.core.numeric\n_frombuffer\n(C\x10" + bytes(16) + dtype + shape
    array += b"X\x01\x00\x00\x00CtR"
    names = (b"X\x0a\x00\x00\x00A0.w_" + end for end in (b"cache", b"delta"))
    path = tmp_path / "run.pkl"
    path.write_bytes(b"\x80\x05}" + b"".join(n + array + b"s" for n in names) + b".")
    optimizer = one()
    with refused(optimizer, path, "A0.w_cache is" if kind == "axes" else ""):
        optimizer.load_states(path)


def memory_bombs(folder):
    """Small files that claim a lot: for each, a path."""
    zeros = np.zeros(4, np.float32)
    for name, opcodes in {
        "bytes": b"\x8e" + (2**40).to_bytes(8, "little"),
        "bytearray": b"\x96" + (2**40).to_bytes(8, "little"),
        "frame": b"\x95" + (2**40).to_bytes(8, "little"),
        "text": b"\x8d" + (2**40).to_bytes(8, "little"),
        "memo": b"}r" + (2**32 - 1).to_bytes(4, "little") + b".",
        "integer": b"\x8b" + (2**31 - 1).to_bytes(4, "little"),
    }.items():
        path = folder / f"{name}.pkl"
        path.write_bytes(b"\x80\x05" + opcodes)
        yield path
    for name, shape in {"huge": (10**12,), "header": (10**10,)}.items():
        path = folder / f"{name}.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key in ("A0.w_cache", "A0.w_delta"):
                buffer = io.BytesIO()
                np.lib.format.write_array_header_1_0(
                    buffer, {"descr": "<f4", "fortran_order": False, "shape": shape}
                )
                archive.writestr(f"{key}.npy", buffer.getvalue())
        yield path
    path = folder / "chunks.h5"
    with h5py.File(path, "w") as file:
        for key in ("A0.w_cache", "A0.w_delta"):
            file.create_dataset(key, shape=(10**12,), dtype="f4", chunks=(1000,))
    yield path
    path = folder / "names.h5"
    with h5py.File(path, "w") as file:
        file["A0.w_cache"] = file["A0.w_delta"] = zeros
        for key in ("duplicate_keys", "duplicate_targets"):
            file.create_dataset(key, shape=(10**12,), dtype="f4", chunks=(1000,))
    yield path
    path = folder / "strings.h5"
    with h5py.File(path, "w") as file:
        file["A0.w_cache"] = file["A0.w_delta"] = zeros
        for key in ("duplicate_keys", "duplicate_targets"):
            file.create_dataset(key, shape=(), dtype="S2000000000")
    yield path
    path = folder / "chunk.h5"
    with h5py.File(path, "w") as file:
        for key in ("A0.w_cache", "A0.w_delta"):
            data = file.create_dataset(
                key, (4,), "f4", maxshape=(None,), chunks=(2**26,), compression="gzip"
            )
            data.id.write_direct_chunk((0,), zlib.compress(bytes(2**28)))
    yield path
    path = folder / "names.npz"
    names = np.zeros(5 * 10**7, "U1")
    np.savez_compressed(path, duplicate_keys=names, duplicate_targets=names)
    yield path
    npy = b"\x93NUMPY\x01\x00v\x00"
    header = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }"
    long = {
        "duplicate_keys": npy + header.ljust(117) + b"\n",
        "duplicate_targets": npy + header.ljust(117) + b"\n",
    }
    wide = {"A0.w_cache": b"\x93NUMPY\x02\x00" + b"\0\0\0\x20" + b" " * 2**29}
    for name, members in {"empty": long, "wide": wide}.items():
        path = folder / f"{name}.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, content in members.items():
                archive.writestr(f"{key}.npy", content)
        yield path
    path = folder / "bz2.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("A0.w_cache.npy", bytes(2**28))
    yield path
    number = b"\x8a\xff" + b"\x7f" * 255
    shape = b"(" + number + b"\x94" + b"h\x00" * 50_000 + b"t"
    array = b"cnumpy.core.numeric\n_frombuffer\n(C\x00" + pickled_dtype() + shape
    array += b"X\x01\x00\x00\x00CtR"
    path = folder / "shape.pkl"
    path.write_bytes(
        b"\x80\x05}"
        + b"".join(
            b"X" + len(key).to_bytes(4, "little") + key + value + b"s"
            for key, value in ((b"duplicate_keys", array), (b"duplicate_targets", b"N"))
        )
        + b"."
    )
    yield path
    shared = {f"{i:x}": None for i in range(3000)}
    path = folder / "shared.pkl"
    path.write_bytes(pickle.dumps({f"k{i:x}": shared for i in range(3000)}, 5))
    yield path
    path = folder / "overlap.mat"
    elements = (((65000 << 16) | 14, (60000 << 16) | i) for i in range(3000))
    path.write_bytes(
        bytes(124)
        + b"\x00\x01IM"
        + b"".join(struct.pack("<2I", *element) for element in elements)
        + bytes(70_000)
    )
    yield path
    path = folder / "name.mat"
    with path.open("wb") as file:
        scipy.io.savemat(file, {"A0.w_cache": zeros}, do_compression=True)
        packed = zlib.compress(struct.pack("<2I", 14, 2**28) + bytes(2**28))
        file.write(struct.pack("<2I", 15, len(packed)) + packed)
    yield path


@pytest.mark.slow
def test_small_files_take_little_memory(tmp_path):
    paths = list(memory_bombs(tmp_path))
    assert len(paths) == 20
    assert all(path.stat().st_size < 2**20 for path in paths)
    assert "loaded" not in outcomes(paths)


def evil_h5(folder):
    """Files whose data would be elsewhere, or not numbers."""
    elsewhere = folder / "elsewhere.h5"
    zeros = np.zeros(4, np.float32)
    with h5py.File(elsewhere, "w") as file:
        file["x"] = zeros
    (folder / "raw").write_bytes(zeros.tobytes())
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "x", shape=(4,))
    makers = {
        "external": lambda f: f.__setitem__(
            "A0.w_delta", h5py.ExternalLink(elsewhere, "x")
        ),
        "soft": lambda f: f.__setitem__("A0.w_delta", h5py.SoftLink("/A0.w_cache")),
        "raw": lambda f: f.create_dataset(
            "A0.w_delta", (4,), "f4", external=[(str(folder / "raw"), 0, 16)]
        ),
        "virtual": lambda f: f.create_virtual_dataset("A0.w_delta", layout),
        "strings": lambda f: f.create_dataset("A0.w_delta", data=["a", "b", "c", "d"]),
        "references": lambda f: f.create_dataset("A0.w_delta", (4,), h5py.ref_dtype),
        "group": lambda f: f.create_group("A0.w_delta"),
        "chunked": lambda f: f.create_dataset("A0.w_delta", (4,), "f4", chunks=(4,)),
    }
    for name, make_entry in makers.items():
        path = folder / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file["A0.w_cache"] = zeros
            make_entry(file)
        yield path


def test_hdf5_leads_nowhere_else(tmp_path):
    optimizer = one()
    paths = list(evil_h5(tmp_path))
    assert len(paths) == 8
    for path in paths:
        told = "'A0.w_delta' is not a plain array in the file"
        if path.stem == "external":  # for which the library takes another layout
            told = "names in another layout"
        with refused(optimizer, path, told):
            optimizer.load_states(path)
    path = tmp_path / "lists.h5"
    with h5py.File(path, "w") as file:
        for name in ("duplicate_keys", "duplicate_targets"):
            file.create_dataset(name, data=["a", "b"])
    with refused(optimizer, path, "'duplicate_keys' is not a plain array"):
        optimizer.load_states(path)


def test_entries_of_one_name(tmp_path):
    path = tmp_path / "run.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(4, np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("A0.w_cache.npy", buffer.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("A0.w_cache.npy", buffer.getvalue())
        archive.writestr("A0.w_delta.npy", buffer.getvalue())
    optimizer = one()
    with refused(optimizer, path, "two entries"):
        optimizer.load_states(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cache", "delta"):
            archive.writestr(f"A0.w_{name}.npy", buffer.getvalue() + b"more")
    with refused(optimizer, path, "not as long as it should be"):
        optimizer.load_states(path)


@pytest.mark.parametrize("more", [0, 1])
def test_a_file_of_another_program_is_read_twice(more, tmp_path, monkeypatch):
    """If it was written just now. If it was again meanwhile, it is refused."""
    path, optimizer = tmp_path / "run.npz", one(name="A0")
    np.savez(path, **ARRAYS)
    optimizer.load_states(path)
    monkeypatch.setattr(_files, "_REST", 0.1)

    def written_again(seconds):
        assert seconds == 0.1
        written = path.stat().st_mtime_ns
        np.savez(path, **{name: x + more for name, x in ARRAYS.items()})
        os.utime(path, ns=(written, written + 10**6))

    monkeypatch.setattr(_files.time, "sleep", written_again)
    with refused(optimizer, path, "is being written by another process"):
        optimizer.load_states(path)
    os.utime(path, (0, 0))
    optimizer.load_states(path)


def test_special_file():
    optimizer = one()
    with refused(optimizer, "/dev/zero", "extension"):
        optimizer.load_states("/dev/zero.x")
    with refused(optimizer, "/dev/zero", "not a file"):
        optimizer.load_states("/dev/zero")


# More than one optimizer's own state


@pytest.mark.parametrize("extension", ONE_EACH)
def test_with_the_variables_of_a_network(extension, tmp_path, caplog):
    path = tmp_path / f"run{extension}"
    network = bp.dnn.Dense(3, 2, mode=bm.training_mode)
    optimizer = train(Adadelta(network.train_vars().unique()), 0, 3)
    optimizer.save_states(path, network.vars() + optimizer.vars())
    loaded = Adadelta(network.train_vars().unique())
    with caplog.at_level(logging.INFO, "adadelta_tx"):
        loaded.load_states(path, verbose=True)
    assert bits(loaded) == bits(optimizer)
    name = next(k for k in network.vars() if k.endswith("W"))
    key = next(k for k in network.train_vars() if k.endswith("W"))
    lines = [(r.levelname, r.message) for r in caplog.records]
    cache = f"{optimizer.name}.{key}_cache"
    assert ("INFO", f"{path}: loads {cache}: float32 of shape (3, 2)") in lines
    assert ("INFO", f"{path}: leaves {name}") in lines
    assert ("INFO", f"{path}: loads rho: 0.95") in lines
    assert lines[0][0] == "WARNING"
    assert f"not loaded: {name}" in lines[0][1]
    assert len(lines) == 14
    np.testing.assert_array_equal(read(path)[name], network.W.value)
    caplog.clear()
    old, network.W.value = network.W.value, network.W.value + 1
    loaded.load_states(path, network.vars())
    np.testing.assert_array_equal(network.W.value, old)
    assert not caplog.records
    # A number that was saved as well is no variable that was forgotten.
    optimizer.save_states(path, {**network.vars(), "epochs": 5})
    loaded.load_states(path, network.vars())
    assert not caplog.records
    second = bp.dnn.Dense(3, 2, mode=bm.training_mode)
    optimizer.save_states(path, {**network.vars(), **second.vars()})
    loaded.load_states(path, network.vars())
    (record,) = caplog.records
    assert f"not loaded: {second.name}.W" in record.message
    other = Adadelta(second.train_vars().unique())
    with refused(other, path, "If these are layers that BrainPy numbered, call"):
        other.load_states(path)


@pytest.mark.parametrize("extension", ONE_EACH)
def test_loads_what_it_is_given(extension, tmp_path):
    """The same dict that was saved, or the network's variables alone."""
    path = tmp_path / f"run{extension}"

    def both():
        bm.clear_name_cache()
        network = bp.dnn.Dense(3, 2, mode=bm.training_mode)
        return network, Adadelta(network.train_vars().unique())

    network, optimizer = both()
    train(optimizer, 0, 3).save_states(path, {**network.vars(), **optimizer.vars()})
    for own in (False, True):
        copy, loaded = both()
        variables = {**copy.vars(), **(loaded.vars() if own else {})}
        loaded.load_states(path, variables)
        np.testing.assert_array_equal(copy.W.value, network.W.value)
        copy_variables(optimizer, loaded)
        assert bits(loaded) == bits(optimizer)
    wrong = {"Dense0.W": bm.Variable(jnp.ones((3, 3)))}
    with refused(loaded, path, "Dense0.W is float32 of shape (3, 2) in the file"):
        loaded.load_states(path, wrong)
    with refused(loaded, path, "lacks these variables: Dense7.W"):
        loaded.load_states(path, {"Dense7.W": network.W})
    for variables in ({"epochs": 5}, [network.W], {3: network.W}):
        with pytest.raises(TypeError, match="variables"):
            loaded.load_states(path, variables)


@pytest.mark.parametrize("extension", ONE_EACH)
def test_two_optimizers_in_a_file(extension, tmp_path):
    """Such a file has the numbers and the schedule's name of the one that saved it."""
    path = tmp_path / f"run{extension}"
    first, second = train(make(name="first"), 0, 2), train(make(name="second"), 5, 8)
    first.save_states(path, second.vars() | first.vars())
    want = bits(first)
    copy = make(name="copy")
    copy_variables(first, copy)
    train(first, 8, 9)
    first.load_states(path)
    copy_variables(copy, first)
    assert bits(first) == want
    for other in (second, copy):
        wants = "saved by first: load it by that one's load_states(file, variables)"
        with refused(other, path, "first, second", wants):
            other.load_states(path)
    first.load_states(path, variables=second.vars())


def test_more_variables_under_a_name_of_its_own(tmp_path):
    path = tmp_path / "run.npz"
    optimizer = train(make(), 0, 2)
    optimizer.save_states(path)
    name = f"{optimizer.name}.w_cache"
    optimizer.load_states(path, variables={name: optimizer.vars()[name]})
    before = bits(optimizer)
    with pytest.raises(ValueError, match=f"'{name}' is another variable of"):
        optimizer.load_states(path, variables={name: Variable(jnp.ones(3))})
    assert bits(optimizer) == before


def test_a_variable_with_a_name_of_the_optimizers_own(tmp_path):
    saved = train(make(), 0, 1)
    with pytest.raises(ValueError, match=r"'Adadelta0\.w_cache' is another var"):
        saved.save_states(tmp_path / "run.npz", {"Adadelta0.w_cache": jnp.ones((4, 3))})
    assert not list(tmp_path.iterdir())


def test_the_optimizer_is_in_every_file(tmp_path):
    """Of load_states(path, network.vars()), save_states(path, network.vars())."""
    path = tmp_path / "run.npz"
    saved, loaded = train(make(), 0, 2), make()
    saved.save_states(path, saved.train_vars())
    loaded.load_states(path, loaded.train_vars())
    assert bits(train(loaded, 2, 4)) == bits(train(saved, 2, 4))


def test_numbers_come_back_and_are_told(tmp_path, caplog):
    path = tmp_path / "run.npz"
    saved = make(lr=0.5, rho=0.9, epsilon=1e-4, weight_decay=0.01)
    saved.lr.set_value(0.25)
    train(saved, 0, 2).save_states(path)
    loaded = make(lr=0.5, rho=0.95)
    copy_variables(saved, loaded)
    loaded.load_states(path)
    assert {r.message.removeprefix(f"{path}: ") for r in caplog.records} == {
        "lr is 0.25, as in the file, not 0.5",
        "rho is 0.9, as in the file, not 0.95",
        "epsilon is 0.0001, as in the file, not 1e-06",
        "weight_decay is 0.01, as in the file, not 0.0",
    }
    assert bits(train(loaded, 2, 4)) == bits(train(saved, 2, 4))


def schedule():
    return optax.linear_schedule(1.0, 0.0, 20)


RATES = {
    "schedule, set": (schedule, 0.5, schedule, 0.5),
    "schedule, unset": (schedule, None, schedule, None),
    "number to schedule": (lambda: 0.5, None, schedule, "stays"),
    "schedule to number": (schedule, None, lambda: 0.5, "stays"),
    "BrainPy's": (
        lambda: bp.optim.StepLR(1.0, 2),
        0.5,
        lambda: bp.optim.StepLR(1.0, 2),
        0.5,
    ),
    "variable": (lambda: Variable(0.5), 0.25, lambda: Variable(1.0), 0.25),
}


@pytest.mark.parametrize("case", RATES)
def test_learning_rates(case, tmp_path, caplog):
    path = tmp_path / "run.npz"
    make_lr, value, make_other, want = RATES[case]
    saved, loaded = make(lr=make_lr()), make(lr=make_other())
    if value is not None:
        saved.lr.set_value(value)
    train(saved, 0, 3).save_states(path)
    before = float(np.asarray(loaded.lr()))
    loaded.load_states(path)
    if want == "stays":
        (record,) = caplog.records
        assert "lr stays" in record.message
        assert "pass it as lr when you make the optimizer" in record.message
        assert loaded.lr.last_call.value == 2
        assert loaded.lr(0) == before
    else:
        np.testing.assert_allclose(loaded.lr(), saved.lr())
        if case == "schedule, set":
            (record,) = caplog.records
            told = f"lr is {value}, as in the file, not the schedule's"
            assert record.message == f"{path}: {told}"
        copy_variables(saved, loaded)
        assert bits(train(loaded, 3, 5)) == bits(train(saved, 3, 5))


def test_learning_rate_variable_out_of_range(tmp_path):
    with pytest.raises(ValueError, match="lr must be finite and at least 0"):
        make(lr=Variable(-1.0)).save_states(tmp_path / "run.npz")
    assert not list(tmp_path.iterdir())


class Fixed(bp.optim.Scheduler):
    """A scheduler whose learning rate cannot be set."""

    def __init__(self, lr):
        bp.BrainPyObject.__init__(self)
        self.rate = lr

    @property
    def lr(self):
        return self.rate

    def __call__(self, i=None):
        return self.rate


def test_learning_rate_that_cannot_be_set(tmp_path):
    path = tmp_path / "run.npz"
    train(make(lr=Fixed(0.5)), 0, 1).save_states(path)
    make(lr=Fixed(0.5)).load_states(path)
    optimizer = train(make(lr=Fixed(1.0), rho=0.5), 0, 2)
    with refused(optimizer, path, "no setter"):
        optimizer.load_states(path)


class WithMore(Adadelta):
    """A subclass with a variable of its own."""

    def __init__(self, *arguments, **named):
        self.extra = Variable(jnp.zeros(2))
        super().__init__(*arguments, **named)

    def vars(self, *arguments, **named):
        found = super().vars(*arguments, **named)
        found[f"{self.name}.extra"] = self.extra
        return found


def test_subclass_with_a_variable(tmp_path):
    path = tmp_path / "run.npz"
    saved, loaded = (WithMore({"w": TrainVar(jnp.ones(3))}) for _ in "ab")
    saved.extra.value = jnp.ones(2)
    saved.save_states(path)
    loaded.load_states(path)
    np.testing.assert_array_equal(loaded.extra.value, 1.0)
    plain = make(shapes={"w": (3,)})
    plain.load_states(path)  # what the user adds under the optimizer's name is no harm


def test_byte_order(tmp_path):
    path = tmp_path / "run.npz"
    optimizer, x = make(), Variable(jnp.zeros(3))
    optimizer.save_states(path, {"x": np.arange(3, dtype=">f4")})
    assert np.load(path)["x"].dtype.isnative
    optimizer.load_states(path, {"x": x})
    np.testing.assert_array_equal(x.value, [0, 1, 2])


def test_float64_needs_x64(tmp_path):
    path = tmp_path / "run.npz"
    with jax.enable_x64(True):
        optimizer = train(make(jnp.float64), 0, 1)
        optimizer.save_states(path)
        train(optimizer, 1, 2)
    with refused(optimizer, path, "enable jax_enable_x64"):
        optimizer.load_states(path)


def test_not_inside_a_transformation(tmp_path):
    path = tmp_path / "run.npz"
    variables = {"w": bm.TrainVar(jnp.ones(3))}
    optimizer = Adadelta(variables)
    optimizer.save_states(path)

    @bm.jit
    def load():
        optimizer.update({"w": jnp.ones(3)})
        optimizer.load_states(path)

    with pytest.raises(CheckpointError, match="inside a JAX transformation"):
        load()


# Where variables live


def test_in_a_run_of_bptt(tmp_path):
    """Half of the epochs, a file, and the other half in new objects."""

    def run(epochs, load=None):
        bm.random.seed(1)
        with bm.training_environment():
            network = bp.dnn.Dense(2, 3)
        variables = network.train_vars().unique()
        optimizer = Adadelta(variables)
        if load is not None:
            optimizer.load_states(load)
            for key, value in np.load(load).items():
                if key in network.vars():
                    network.vars()[key].value = jnp.asarray(value)
        rng = np.random.default_rng(0)
        data = [(rng.normal(size=(8, 2)), rng.normal(size=(8, 3))) for _ in range(4)]
        trainer = bp.BPFF(
            network,
            loss_fun=lambda out, y: jnp.mean((bm.as_jax(out) - y) ** 2),
            optimizer=optimizer,
            progress_bar=False,
        )
        trainer.fit(data, num_epoch=epochs)
        return trainer.get_hist_metric(), optimizer, network

    bp.math.clear_name_cache()
    whole, _, _ = run(6)
    bp.math.clear_name_cache()
    first, optimizer, network = run(3)
    path = tmp_path / "run.npz"
    optimizer.save_states(path, network.vars() + optimizer.vars())
    bp.math.clear_name_cache()
    second, optimizer, _ = run(3, path)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    assert optimizer.lr.last_call.value == 6 * 4 - 1
    assert optimizer.lr.last_epoch.value == 5


@pytest.mark.parametrize("extension", ONE_EACH)
def test_tree_valued_states(extension, tmp_path):
    path = tmp_path / f"run{extension}"

    def tree():
        value = {"a": jnp.ones((2, 3)), "b": [jnp.zeros(2), jnp.ones(())]}
        return {"w": brainstate.ParamState(value)}

    grads = {"w": jax.tree.map(lambda x: x + 0.5, tree()["w"].value)}
    saved, loaded = Adadelta(tree()), Adadelta(tree())
    saved.update(grads)
    saved.save_states(path)
    loaded.load_states(path)
    for ours, theirs in zip(
        loaded.implicit_vars.values(), saved.implicit_vars.values(), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, ours.value, theirs.value)


def test_sharded_variables_stay_sharded(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec("x", "y"))

    def sharded():
        optimizer = make(shapes={"w": (8, 4)})
        for variable in (
            *optimizer.implicit_vars.values(),
            optimizer.vars_to_train["w"],
        ):
            variable.value = jax.device_put(variable.value, sharding)
        return optimizer

    path = tmp_path / "run.npz"
    saved, loaded = train(sharded(), 0, 2), sharded()
    saved.save_states(path)
    copy_variables(saved, loaded)
    loaded.load_states(path)
    for variable in loaded.implicit_vars.values():
        assert variable.value.sharding.is_equivalent_to(sharding, 2)
    assert bits(train(loaded, 2, 4)) == bits(train(saved, 2, 4))
