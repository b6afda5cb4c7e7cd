"""Files of other libraries: each array is what the library reads, or refused."""

import itertools
import pickle
import struct

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from adadelta_tx import CheckpointError, Variable
from tests.files.helpers import one
from tests.files.test_strangers import element

pytestmark = pytest.mark.usefixtures("_at_rest")

NUMBERS = [
    "b1",
    "i1",
    "u1",
    "i2",
    "i4",
    "u4",
    "i8",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
]
BIG = [">i4", ">f4", ">f8", ">c8"]
DTYPES = [*NUMBERS, *BIG, "u2", "S3", "U3", "f4,i4"]  # u2 may be codes of a dtype
SHAPES = [(), (1,), (3,), (0, 2), (2, 1, 3)]


def arrays_of(rng):
    for code, shape in itertools.product(DTYPES, SHAPES):
        values = rng.integers(0, 100, size=shape)
        dtype = np.dtype(code)
        if dtype.kind == "c":
            yield np.array(values + 1j * rng.normal(size=shape), dtype)
        elif dtype.names:
            yield np.zeros(shape, dtype)
        else:
            yield np.asarray(rng.normal(size=shape) if "f" in code else values).astype(
                dtype
            )


def checked(path, by_library, wanted=()):
    """How many of the arrays in a file load, each as the library reads it."""
    optimizer = one(name="A0")
    refused, loaded = [], 0
    for name, theirs in by_library.items():
        theirs = np.asarray(theirs)
        if name.startswith("A0.") or theirs.dtype.kind not in "biufc":
            continue
        native = theirs.astype(theirs.dtype.newbyteorder("="))
        shape = (
            theirs.shape[1:]
            if path.suffix == ".mat" and name[0] == "_"
            else theirs.shape
        )
        variable = Variable(jnp.zeros(shape, native.dtype))
        try:
            optimizer.load_states(path, {name: variable})
        except CheckpointError:
            refused.append(name)
            continue
        np.testing.assert_array_equal(variable.value, native.reshape(shape))
        loaded += 1
    return loaded, refused


def content():
    rng = np.random.default_rng(0)
    zeros = {f"A0.w_{key}": np.float32([1, 2, 3, 4]) for key in ("cache", "delta")}
    arrays = {f"x{i}": array for i, array in enumerate(arrays_of(rng))}
    return zeros, arrays


READ = len(NUMBERS + BIG) * len(SHAPES)
U2 = [f"x{READ + i}" for i in range(len(SHAPES))]


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "v112", "latest", None])
@pytest.mark.parametrize("track_order", [False, True])
def test_h5py(libver, track_order, tmp_path):
    """In the first layout, in which h5py writes by default, all numbers are read."""
    path = tmp_path / "run.h5"
    zeros, arrays = content()
    with h5py.File(path, "w", libver=libver, track_order=track_order) as file:
        file.update(zeros)
        for name, array in arrays.items():
            if array.dtype.kind != "U":
                file[name] = array
    with h5py.File(path) as file, jax.enable_x64():
        theirs = {name: item[()] for name, item in file.items()}
    with jax.enable_x64():
        loaded, refused = checked(path, theirs)
    first = libver in ("earliest", None) and not track_order
    assert (loaded, len(refused)) == ((READ, 5) if first else (0, READ + 5))


@pytest.mark.parametrize("kind", ["chunked", "gzip", "resizable", "compact", "shuffle"])
def test_h5py_in_other_layouts(kind, tmp_path):
    path = tmp_path / "run.h5"
    zeros, _ = content()
    ways = {"chunked": {"chunks": (2,)}, "gzip": {"compression": "gzip"}}
    ways |= {"resizable": {"maxshape": (None,)}, "shuffle": {"shuffle": True}}
    with h5py.File(path, "w") as file:
        file.update(zeros)
        if kind == "compact":
            how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            how.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple((3,))
            made = h5py.h5d.create(
                file.id, b"x", h5py.h5t.NATIVE_FLOAT, space, dcpl=how
            )
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.float32([1, 2, 3]))
        else:
            file.create_dataset("x", data=np.float32([1, 2, 3]), **ways[kind])
    assert checked(path, {"x": np.float32([1, 2, 3])}) == (0, ["x"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", "CF")
def test_numpy(save, order, tmp_path):
    path = tmp_path / "run.npz"
    zeros, arrays = content()
    arrays = {key: np.asarray(array, order=order) for key, array in arrays.items()}
    save(path, **zeros, **arrays)
    with jax.enable_x64(), np.load(path) as theirs:
        loaded, refused = checked(path, theirs)
    assert (loaded, refused) == (READ, U2)


@pytest.mark.parametrize("form", ["4", "5"])
@pytest.mark.parametrize("oned_as", ["row", "column"])
@pytest.mark.parametrize("do_compression", [False, True])
def test_scipy(form, oned_as, do_compression, tmp_path):
    path = tmp_path / "run.mat"
    zeros, arrays = content()
    arrays = {
        k: v for k, v in arrays.items() if v.ndim <= 2 and v.dtype.kind in "biufc"
    }
    arrays = {
        k: v.astype(v.dtype.newbyteorder("=")) for k, v in {**arrays, **zeros}.items()
    }
    scipy.io.savemat(
        path, arrays, oned_as=oned_as, do_compression=do_compression, format=form
    )
    theirs = {k: v for k, v in scipy.io.loadmat(path).items() if k[:2] != "__"}
    for key, array in arrays.items():
        if array.dtype == bool:  # which the library reads as uint8
            theirs[key] = theirs[key].astype(bool)
    with jax.enable_x64():
        loaded, refused = checked(path, theirs)
    read = form == "5" and not do_compression and oned_as == "row"
    want = [k for k in theirs if k[0] == "x" and theirs[k].dtype != np.uint16]
    assert loaded == (len(want) if read else 0)
    assert loaded + len(refused) == len(want) + 4  # u2 of at most two axes


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("library", [np.asarray, jnp.asarray])
def test_pickle(library, order, protocol, tmp_path):
    path = tmp_path / "run.pkl"
    zeros, arrays = content()
    with jax.enable_x64():
        arrays = {
            key: library(np.asarray(array, order=order))
            for key, array in arrays.items()
            if library is np.asarray
            or (array.dtype.kind in "biufc" and array.dtype.isnative)
        }
        path.write_bytes(pickle.dumps({**zeros, **arrays}, protocol))
        loaded, refused = checked(path, pickle.loads(path.read_bytes()))
    numbers = READ - (len(BIG) * len(SHAPES) if library is jnp.asarray else 0)
    assert loaded == (numbers if protocol > 2 else 0)
    assert loaded + len(refused) == numbers + len(U2)


# What a library would read as something else, or not at all


def test_h5_numbers_in_another_way(tmp_path):
    """The imaginary part first, and floats whose mantissa is not normalized."""
    path = tmp_path / "run.h5"
    zeros, _ = content()
    swapped = np.dtype(
        {"names": ["r", "i"], "formats": ["f4", "f4"], "offsets": [4, 0], "itemsize": 8}
    )
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_norm(h5py.h5t.NORM_NONE)
    with h5py.File(path, "w") as file:
        file.update(zeros)
        file["pairs"] = np.zeros(2, swapped)
        h5py.h5d.create(file.id, b"odd", odd, h5py.h5s.create_simple((2,)))
    wanted = {"pairs": np.zeros(2, np.complex64), "odd": np.zeros(2, np.float32)}
    assert checked(path, wanted) == (0, ["pairs", "odd"])


def test_complex_integers_of_matlab(tmp_path):
    """Which scipy does not write; it reads them as complex numbers."""
    path = tmp_path / "run.mat"
    zeros, _ = content()
    scipy.io.savemat(path, zeros)
    real, imaginary = (element(5, np.int32(x).tobytes()) for x in ([1, 2], [3, 4]))
    head = element(6, struct.pack("<4B4x", 12, 8, 0, 0)) + element(
        5, bytes([1, 0, 0, 0, 2, 0, 0, 0])
    )
    path.write_bytes(
        path.read_bytes() + element(14, head + element(1, b"x") + real + imaginary)
    )
    np.testing.assert_array_equal(scipy.io.loadmat(path)["x"], [[1 + 3j, 2 + 4j]])
    assert checked(path, {"x": np.zeros((1, 2), np.int32)}) == (0, ["x"])


def test_long_names_of_matlab(tmp_path):
    """Two that are alike in their first ten thousand letters."""
    path = tmp_path / "run.mat"
    zeros, _ = content()
    arrays = {
        "x" * 10_004: np.float32([[1, 2]]),
        "x" * 10_003 + "y": np.float32([[3, 4]]),
    }
    scipy.io.savemat(path, {**zeros, **arrays})
    assert checked(path, arrays) == (2, [])


@pytest.mark.parametrize("extension", [".npz"])
def test_a_broken_name_is_no_other_variable(extension, tmp_path):
    """A schedule's counter whose name is damaged in the archive's directory."""
    path = tmp_path / "run.npz"
    zeros, _ = content()
    np.savez(path, **zeros, **{"StepLR0.last_epoch": np.int32(3)})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"last_epoch")] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="two names"):
        one(name="A0").load_states(path)
