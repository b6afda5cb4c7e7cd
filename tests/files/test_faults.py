"""Files and moments at which an earlier version hung, grew, or loaded what is wrong."""

import contextlib
import io
import json
import logging
import os
import pickle
import random
import re
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from hashlib import sha256

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from adadelta_tx import Adadelta, CheckpointError, TrainVar, Variable
from tests.files.helpers import (
    ARRAYS,
    DATA,
    ONE_EACH,
    ZEROS,
    bits,
    make,
    one,
    outcomes,
    refused,
    train,
)

pytestmark = pytest.mark.slow


# Texts of HDF5


def h5_with_texts(path, keys="x", targets="A0.w_cache"):
    with h5py.File(path, "w") as file:
        file.update(ARRAYS)
        file["duplicate_keys"], file["duplicate_targets"] = keys, targets
    return bytearray(path.read_bytes())


def test_no_bit_of_a_heap_of_texts_makes_hdf5_hang(tmp_path):
    data = (DATA / "brainpy-2.2.1.h5").read_bytes()
    heap = data.index(b"GCOL")
    size = int.from_bytes(data[heap + 8 : heap + 16], "little")
    paths = []
    for bit in range(0, 8 * min(size, 128)):
        damaged = bytearray(data)
        damaged[heap + bit // 8] ^= 1 << bit % 8
        paths.append(tmp_path / f"{bit}.h5")
        paths[-1].write_bytes(damaged)
    outcomes(paths)


def test_lengths_in_heaps_of_texts(tmp_path):
    paths = [tmp_path / f"{i}.h5" for i in range(4)]
    data = h5_with_texts(paths[0])
    heap = data.index(b"GCOL")
    data[heap + 24 : heap + 32] = (2**64 - 16).to_bytes(8, "little")
    paths[0].write_bytes(data)
    for path, length in zip(paths[1:], (2**32 - 1, 2**30, 2**16), strict=True):
        data = h5_with_texts(path, keys="y" * 300)
        place = data.index(struct.pack("<IQ", 300, data.index(b"GCOL")))
        data[place : place + 4] = struct.pack("<I", length)
        path.write_bytes(data)
    assert "loaded" not in outcomes(paths)


# Ours or not


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("bit", [5, 0, 7, None])
def test_no_damage_to_all_marks_makes_a_file_anothers(extension, bit, tmp_path):
    rng = random.Random(0)
    path = tmp_path / f"run{extension}"
    optimizer = one(name="A0")
    optimizer.save_states(path)
    data = path.read_bytes()
    number = data.index(np.asarray(optimizer.implicit_vars["w_cache"].value).tobytes())
    marks = [m.start() for m in re.finditer(b"adadelta_tx:", data)]
    for i in range(40 if bit is None else 1):
        damaged = bytearray(data)
        for mark in marks:
            place = mark if bit is not None else mark + rng.randrange(18)
            damaged[place] ^= 1 << (rng.randrange(8) if bit is None else bit)
        damaged[number + i % 16] ^= 1
        path = tmp_path / f"damaged{extension}"
        path.write_bytes(damaged)
        with refused(optimizer, path):
            optimizer.load_states(path)


def read_and_write(path, more):
    """Adds an array to a file by the library of its format."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "a") as archive, archive.open("x.npy", "w") as file:
            np.save(file, more)
    elif path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            file["x"] = more
            file.create_dataset("text", data=["a", "b"])
    elif path.suffix == ".mat":
        arrays = {k: v for k, v in scipy.io.loadmat(path).items() if k[:2] != "__"}
        scipy.io.savemat(path, {**arrays, "x": more, "s": {"a": 1, "b": "text"}})
    else:
        content = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps({**content, "x": more}, protocol=4))


@pytest.mark.parametrize("extension", ONE_EACH)
def test_a_library_may_add_to_a_file(extension, tmp_path):
    path = tmp_path / f"run{extension}"
    optimizer = train(make(), 0, 2)
    optimizer.save_states(path)
    read_and_write(path, np.ones(3))
    loaded = make()
    loaded.load_states(path)
    for key, variable in optimizer.implicit_vars.items():
        np.testing.assert_array_equal(loaded.implicit_vars[key].value, variable.value)


WRITER = """
import sys, time
from pathlib import Path
path, pause, *contents = sys.argv[1:]
contents = [Path(content).read_bytes() for content in contents]
with open(path, "r+b") as file:
    while True:
        for content in contents:
            file.seek(0)
            for start in range(0, len(content), 2**14):
                file.write(content[start : start + 2**14])
                file.flush()
            time.sleep(float(pause))
"""


@contextlib.contextmanager
def rewritten(path, contents, pause):
    """Another process writes contents in place by turns."""
    paths = [path.with_name(f"{i}") for i in range(len(contents))]
    path.write_bytes(contents[0])  # whole, if the last writer was killed at work
    for one_, content in zip(paths, contents, strict=True):
        one_.write_bytes(content)
    command = [sys.executable, "-c", WRITER, path, str(pause), *paths]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


def write_arrays(path, arrays):
    """As BrainPy and its users do: with nothing that tells of damage."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.update(arrays)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, arrays)
    else:
        path.write_bytes(pickle.dumps(arrays))


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("whose", ["ours", "BrainPy's"])
def test_rewritten_in_place_while_it_is_read(whose, extension, tmp_path):
    """What loads is one version, or the file is refused; and some loads do load."""
    path, size = tmp_path / f"run{extension}", 200_000
    optimizer, contents = make(shapes={"w": (size,)}, name="A0"), []
    for value in (1.0, 2.0):
        for variable in optimizer.implicit_vars.values():
            variable.value = jnp.full(size, value, jnp.float32)
        if whose == "ours":
            optimizer.save_states(path)
        else:
            write_arrays(
                path, {f"A0.{k}": v.value for k, v in optimizer.implicit_vars.items()}
            )
        contents.append(path.read_bytes())
    assert len(contents[0]) == len(contents[1])
    loads = 0
    for pause in (0, 0.25):
        with rewritten(path, contents, pause):
            for _ in range(25):
                try:
                    optimizer.load_states(path)
                except CheckpointError:
                    continue
                loads += 1
                found = [v.value for v in optimizer.implicit_vars.values()]
                assert np.unique(found).size == 1
    assert loads


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path):
    path, size = tmp_path / "run.h5", 200_000
    ones = np.ones(size, np.float32)
    write_arrays(path, {"A0.w_cache": ones, "A0.w_delta": ones})
    content, stop = path.read_bytes(), threading.Event()

    def write():
        while not stop.is_set():
            os.truncate(path, len(content) // 2)
            with path.open("r+b") as file:
                file.seek(len(content) // 2)
                file.write(content[len(content) // 2 :])
            stop.wait(0.25)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        optimizer, loads = make(shapes={"w": (size,)}), 0
        for _ in range(20):
            with contextlib.suppress(CheckpointError):
                optimizer.load_states(path)
                loads += 1
            for variable in optimizer.implicit_vars.values():
                assert np.unique(variable.value).tolist() in ([0.0], [1.0])
        assert loads
    finally:
        stop.set()
        thread.join()


# All or nothing


class Raising(Variable):
    """A variable that raises when it is set to anything but what it had."""

    error = None

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        if self.error and not np.array_equal(value, self._value):
            raise self.error
        self._value = value


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("which", range(4))
def test_a_variable_that_raises_leaves_nothing_half_loaded(error, which, tmp_path):
    path = tmp_path / "run.npz"
    train(make(shapes={"w": (3,), "b": (2,)}, rho=0.5, lr=0.5), 0, 2).save_states(path)
    optimizer = train(make(shapes={"w": (3,), "b": (2,)}), 0, 3)
    key = list(optimizer.implicit_vars)[which]
    raising = Raising(optimizer.implicit_vars[key].value)
    dict.__setitem__(optimizer.implicit_vars, key, raising)
    before, raising.error = bits(optimizer), error
    kind = CheckpointError if isinstance(error, ValueError) else KeyboardInterrupt
    with pytest.raises(kind):
        optimizer.load_states(path)
    assert bits(optimizer) == before


class NoEpsilon(Adadelta):
    """An optimizer whose epsilon cannot be set again."""

    def __setattr__(self, name, value):
        if name == "epsilon" and hasattr(self, "lr"):
            raise AttributeError("epsilon is fixed")
        super().__setattr__(name, value)


def test_a_number_that_cannot_be_set_leaves_nothing_half_loaded(tmp_path):
    path = tmp_path / "run.npz"
    train(make(rho=0.5, lr=0.5, epsilon=1e-3), 0, 2).save_states(path)
    optimizer = NoEpsilon(dict(make().vars_to_train))
    with refused(optimizer, path, "epsilon is fixed"):
        optimizer.load_states(path)


def test_a_log_handler_that_raises_leaves_nothing_half_loaded(tmp_path):
    path = tmp_path / "run.npz"
    saved = train(make(rho=0.5, lr=0.5, epsilon=1e-3), 0, 2)
    saved.save_states(path)

    class Handler(logging.Handler):
        def emit(self, record):
            raise OSError("the log's disk is full")

    handler, optimizer = Handler(), make()
    logging.getLogger("adadelta_tx").addHandler(handler)
    try:
        with pytest.raises(OSError, match="the log's disk"):
            optimizer.load_states(path)
    finally:
        logging.getLogger("adadelta_tx").removeHandler(handler)
    numbers = saved.rho, saved.epsilon, saved.lr.lr
    assert (optimizer.rho, optimizer.epsilon, optimizer.lr.lr) == numbers
    for key, variable in saved.implicit_vars.items():
        np.testing.assert_array_equal(
            optimizer.implicit_vars[key].value, variable.value
        )


# Small files that took much


def with_header(path, text):
    """A compressed file with a sealed header."""
    digest = np.frombuffer(sha256(text).digest(), np.uint8)
    header = np.frombuffer(text, np.uint8)
    arrays = {"adadelta_tx:header": header, **ARRAYS, "adadelta_tx:digest": digest}
    np.savez_compressed(path, **arrays)


def test_headers_that_took_much(tmp_path):
    header = {
        "format": 2,
        "name": "A0",
        "schedule": "Constant0",
        "numbers": {"lr": 1.0, "rho": 0.9, "epsilon": 1e-6, "weight_decay": 0.0},
        "variables": dict.fromkeys(ARRAYS, f"float32 (4) {'0' * 64}"),
    }
    texts = [
        json.dumps({**header, "name": "a" * 2**24}),
        json.dumps({**header, "more": [{}] * 3_000_000}),
        json.dumps({**header, "more": 0})[:-2] + "[" * 900 + "]" * 900 + "}",
        json.dumps({**header, "more": ["a"] * 3_000_000}),
    ]
    paths = [tmp_path / f"{i}.npz" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        with_header(path, text.encode())
    lines = outcomes(paths)
    assert all("no version" in line or "not as" in line for line in lines), lines


def test_headers_of_arrays_that_took_much(tmp_path):
    def member(header):
        return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header

    shape = b"(" + b"4L," + b"".join(b"''" for _ in range(3000)) + b")"
    slow = b"{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n" % shape
    buffer = io.BytesIO()
    np.save(buffer, ZEROS)
    others, wanted = tmp_path / "others.npz", tmp_path / "wanted.npz"
    with zipfile.ZipFile(others, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in ARRAYS:
            archive.writestr(f"{key}.npy", buffer.getvalue())
        for i in range(4800):
            archive.writestr(f"{i}.npy", member(slow))
    with zipfile.ZipFile(wanted, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in ARRAYS:
            archive.writestr(f"{key}.npy", member(slow))
    first, second = outcomes([others, wanted], seconds=30)
    assert first == "loaded"
    assert "is not an array of numbers" in second


@pytest.mark.parametrize("dtype", ["u1", "U1", "S1", "U0", "f4"])
def test_second_names_that_took_much(dtype, tmp_path):
    path = tmp_path / "run.npz"
    names = np.zeros(2**24 if dtype == "u1" else 10_001, dtype)
    np.savez_compressed(path, **ARRAYS, duplicate_keys=names, duplicate_targets=names)
    (line,) = outcomes([path], seconds=30)
    assert "a list of second names that is" in line


@pytest.mark.parametrize("extension", [".npz", ".pkl"])
def test_second_names_that_are_no_text(extension, tmp_path):
    """Letters beyond Unicode make strings that end in a SystemError when looked at."""
    path = tmp_path / f"run{extension}"
    names = np.full(8, 2**32 - 1, np.uint32).view("U8")
    arrays = {**ARRAYS, "duplicate_keys": names, "duplicate_targets": names}
    if extension == ".npz":
        np.savez(path, **arrays)
    else:
        path.write_bytes(pickle.dumps(arrays))
    optimizer = one(name="A0")
    with refused(optimizer, path, "no letters"):
        optimizer.load_states(path)


def test_second_names_of_other_letters(tmp_path):
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file["x"] = ZEROS
        file["duplicate_keys"] = "A0.ρ_cache+A0.ρ_delta"
        file["duplicate_targets"] = "x+x"
    train(make(shapes={"ρ": (4,)}, name="A0"), 0, 1).load_states(path)


def test_floods_of_a_pickle(tmp_path):
    """Memory of the order of the file's size, not of that of what it makes."""
    size = 6_000_000
    floods = {
        "dicts": b"}" * size,
        "lists": b"]" * size,
        "numbers": b"K\x01" * (size // 2),
        "texts": b"\x8c\1a" * (size // 3),
        "calls": b"NNR" * (size // 3),
        "memo": b"N" + b"\x94" * size,
        "names": b"}(" + b"".join(b"\x8c\4%04xN" % i for i in range(2**16)),
    }
    paths = [tmp_path / f"{name}.pkl" for name in floods]
    for path, flood in zip(paths, floods.values(), strict=True):
        path.write_bytes(b"\x80\5" + flood + b".")
    lines = outcomes(paths, seconds=100)
    assert "loaded" not in lines


def test_sparse_files(tmp_path):
    """Two hundred gigabytes with nothing on the disk."""
    paths = []
    for extension in ONE_EACH:
        path = tmp_path / f"run{extension}"
        path.touch()
        paths.append(path)
        ours = tmp_path / f"ours{extension}"
        one().save_states(ours)
        paths.append(ours)
    text = tmp_path / "bytes.pkl"
    text.write_bytes(b"\x80\5}\x8c\nA0.w_cache\x8e" + (199 << 30).to_bytes(8, "little"))
    line = tmp_path / "line.pkl"
    line.write_bytes(b"\x80\5c")
    name = tmp_path / "name.mat"
    tags = struct.pack("<8I", 14, 2**32 - 64, 6, 8, 7, 0, 5, 4) + bytes(8)
    name.write_bytes(bytes(124) + b"\0\1IM" + tags + struct.pack("<2I", 1, 2**31))
    for path in (*paths, text, line, name):
        os.truncate(path, 200 << 30)
    lines = outcomes([*paths, text, line, name], seconds=60)
    assert "loaded" not in lines


# What is saved is loaded


DTYPES = [
    *("bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32"),
    *("float16", "bfloat16", "float32", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e3m4", "float4_e2m1fn"),
    *("int64", "uint64", "float64", "complex128"),
]


class WithMore(Adadelta):
    """A subclass with a variable of its own."""

    def __init__(self, extra, **arguments):
        self.extra = Variable(extra)
        super().__init__({"w": TrainVar(jnp.ones(3))}, **arguments)

    def vars(self, *arguments, **named):
        found = super().vars(*arguments, **named)
        found[f"{self.name}.extra"] = self.extra
        return found


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 1, 3)])
def test_what_is_saved_is_loaded(extension, dtype, shape, tmp_path):
    path = tmp_path / f"run{extension}"
    with jax.enable_x64("64" in dtype or dtype == "complex128"):
        whole = np.arange(np.prod(shape, dtype=int)).reshape(shape) % 3
        value = jnp.asarray(whole.astype(jnp.dtype(dtype)))
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            value = value * (1 + 2j)
        saved, loaded = WithMore(value), WithMore(jnp.zeros_like(value))
        saved.save_states(path)
        loaded.load_states(path)
        assert loaded.extra.dtype == saved.extra.dtype
        assert np.asarray(loaded.extra.value).tobytes() == np.asarray(value).tobytes()


@pytest.mark.parametrize("extension", ONE_EACH)
def test_names_that_would_be_one(extension, tmp_path):
    path = tmp_path / f"run{extension}"
    arrays = {"ÿ": jnp.zeros(2), "\udcc3\udcbf": jnp.ones(2)}
    with pytest.raises(ValueError, match="are written alike: '%C3%BF'"):
        make().save_states(path, arrays)
    assert not path.exists()


# What is said


NAMES = {
    "escape": ("A0.\x1bc_cache", r"\x1bc_cache"),
    "line": ("A0.a\nb_cache", r"a\nb_cache"),
    "right to left": ("A0.\u202ex_cache", r"\u202ex_cache"),
    "no letter": ("A0.\udc80_cache", r"\udc80_cache"),
    "long": (f"A0.{'x' * 60_000}_cache", "xxx"),
}


def written_by_libraries():
    """For each format, the names that its library writes."""
    for extension in ONE_EACH:
        for case in NAMES:
            foreign = case == "right to left" and extension in (".h5", ".mat")
            if not foreign and (case != "no letter" or extension == ".pkl"):
                yield extension, case


@pytest.mark.parametrize(("extension", "case"), [*written_by_libraries()])
@pytest.mark.parametrize("is_accumulator", [True, False])
def test_messages_can_be_printed(extension, case, is_accumulator, tmp_path, caplog):
    """Whatever a file's names are: no escapes, no new lines, no flood."""
    name, shown = NAMES[case]
    name = name if is_accumulator else name.replace("A0", "B")
    path = tmp_path / f"run{extension}"
    write_arrays(path, {**ARRAYS, name: ZEROS})
    optimizer = one(name="A0")
    said = []
    if is_accumulator:
        with pytest.raises(CheckpointError) as caught:
            optimizer.load_states(path)
        said.append(str(caught.value))
    else:
        optimizer.load_states(path)
    said += [record.getMessage() for record in caplog.records]
    assert any(shown in text for text in said)
    for text in said:
        assert text.isprintable()
        assert len(text) < 3000


@pytest.mark.parametrize("extension", ONE_EACH)
def test_one_class_of_error_with_the_name_of_the_file(extension, tmp_path):
    path = tmp_path / f"run{extension}"
    optimizer = one(lr=Variable(1.0))
    optimizer.save_states(path)

    def load_with(x):
        optimizer.implicit_vars["w_cache"]._value = x
        optimizer.load_states(path)

    old = optimizer.implicit_vars["w_cache"].value
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        jax.jit(load_with)(jnp.ones(4))
    optimizer.implicit_vars["w_cache"]._value = old
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        jax.jit(lambda: optimizer.load_states(path))()


def test_a_rate_that_is_traced(tmp_path):
    path = tmp_path / "run.npz"
    optimizer = one()
    optimizer.save_states(path)
    old = optimizer.lr._rate

    def load(x):
        optimizer.lr._rate = Variable(x)
        optimizer.load_states(path)

    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        jax.jit(load)(1.0)
    optimizer.lr._rate = old


@pytest.mark.parametrize("extension", ONE_EACH)
def test_a_second_name_is_no_other_array(extension, tmp_path):
    path = tmp_path / f"run{extension}"
    other = {**ARRAYS, "x": np.ones(4, np.float32)}
    if extension == ".h5":
        with h5py.File(path, "w") as file:
            file.update(other)
            file["duplicate_keys"], file["duplicate_targets"] = "A0.w_cache", "x"
    else:
        lists = {"duplicate_keys": ["A0.w_cache"], "duplicate_targets": ["x"]}
        arrays = {**other, **{k: np.asarray(v) for k, v in lists.items()}}
        if extension == ".npz":
            np.savez(path, **arrays)
        elif extension == ".mat":
            scipy.io.savemat(path, {k: v[None] for k, v in arrays.items()})
        else:
            path.write_bytes(pickle.dumps(arrays))
    optimizer = one(name="A0")
    with refused(optimizer, path, "two entries called 'A0.w_cache'"):
        optimizer.load_states(path)


def test_what_nobody_asks_for_is_not_looked_at(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, **ARRAYS)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("notes.txt", b"no array")
    one(name="A0").load_states(path)


# Where files are written


def test_links_that_lead_to_themselves(tmp_path):
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    a.symlink_to(b)
    b.symlink_to(a)
    with pytest.raises(OSError, match="link"):
        make().save_states(a)
    assert a.is_symlink()
    assert b.is_symlink()
    missing = tmp_path / "missing.npz"
    link = tmp_path / "link.npz"
    link.symlink_to(missing)
    make().save_states(link)
    assert missing.is_file()
    assert link.is_symlink()


def test_owner_stays(tmp_path):
    """Where the system allows it, as it does for root."""
    path = tmp_path / "run.npz"
    make().save_states(path)
    mode, user = 0o640, 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(path, user, -1)
    path.chmod(mode)
    make().save_states(path)
    assert path.stat().st_uid == user
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_no_mode_is_set_that_a_file_has(tmp_path, monkeypatch):
    """Some file systems have no modes, and refuse."""
    path = tmp_path / "run.npz"
    make().save_states(path)

    def fail(*_):
        raise PermissionError("no modes here")

    monkeypatch.setattr(os, "chmod", fail)
    make().save_states(path)
