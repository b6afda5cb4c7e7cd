"""Whatever is saved loads, or saving refuses it and leaves an older file as it was."""

import io
import os
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import adadelta_tx
from adadelta_tx import CheckpointError, Variable
from tests.files.helpers import ONE_EACH, bits, one, refused

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("suite")


def round_trip(path, arrays):
    """Whether arrays could be saved; what was saved has been loaded then."""
    adadelta_tx.clear_name_cache()
    optimizer = one(name="A0")
    path.write_bytes(b"older")
    try:
        optimizer.save_states(path, arrays)
    except (CheckpointError, ValueError):
        assert path.read_bytes() == b"older"
        assert os.listdir(path.parent) == [path.name]
        return False
    variables = {key: Variable(jnp.zeros_like(array)) for key, array in arrays.items()}
    optimizer.load_states(path, variables)
    for key, array in arrays.items():
        assert variables[key].dtype == array.dtype
        np.testing.assert_array_equal(variables[key].value, array)
    return True


LETTERS = st.characters(exclude_categories=())  # with surrogates, NUL and emoji
NAMES = st.text(LETTERS, min_size=1, max_size=40).filter(lambda x: x.strip("."))


@pytest.mark.parametrize("extension", ONE_EACH)
def test_names_of_any_letters(extension):
    @settings(max_examples=60)
    @given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    @example(["_", "__x", "0", "%5F", "file", "a.npy", "a/b", "/", " ", "arr_0"])
    @example(["\x00", "\x00\x00", "\ud800", "😀", "é", "e\u0301", "A0.w", "..a"])
    @example(["self", "x--y", "x.y", "duplicate_keys", "duplicate_targets"])
    def check(names):
        arrays = {name: np.float32([i, 0.5]) for i, name in enumerate(names)}
        with tempfile.TemporaryDirectory() as folder:
            round_trip(Path(folder, f"run{extension}"), arrays)

    check()


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("letter", ["a", "😀", "é", "\udc80", '"'])
def test_names_of_any_length(extension, letter, tmp_path):
    """Ten thousand letters are many: so much fits into all formats, and all is kept."""
    path = tmp_path / f"run{extension}"
    fits = []
    lengths = (1, 900, 10_000, 10_004, 70_000, 10**6)
    for length in lengths[: None if letter == "a" else 5]:
        array = np.float32([length])
        fits.append(round_trip(path, {letter * length: array}))
        path.unlink()
    assert fits[:2] == [True, True]
    if letter == "a":
        assert fits == [True] * 4 + [extension != ".npz"] * 2


@pytest.mark.parametrize("extension", ONE_EACH)
@pytest.mark.parametrize("axes", [0, 1, 3, 31, 32, 33, 62, 63, 64])
def test_any_number_of_axes(extension, axes, tmp_path):
    shape = (1,) * (axes - 2) + (2, 3)[: min(axes, 2)]
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    most = {".h5": 32, ".mat": 63}.get(extension, 64)
    assert round_trip(tmp_path / f"run{extension}", {"x": array}) == (axes <= most)


@pytest.mark.slow
@pytest.mark.parametrize("extension", ONE_EACH)
def test_any_number_of_variables(extension, tmp_path):
    """As many as can be read, and not one more."""
    path = tmp_path / f"run{extension}"
    optimizer = one(name="A0")
    own = len(optimizer.vars())
    scalar, vector = np.float32(1), np.float32([2])
    number = 2**16 - 2 - own  # without the header and its digest
    arrays = {f"v{i}": (scalar, vector)[i % 2] for i in range(number)}
    path.write_bytes(b"older")
    with pytest.raises(CheckpointError, match=r"more than 65,536 names"):
        optimizer.save_states(path, {**arrays, "more": scalar})
    assert path.read_bytes() == b"older"
    if extension == ".h5":  # it takes the library minutes
        arrays = dict([*arrays.items()][::8])
    optimizer.save_states(path, arrays)
    last = [*arrays][-1]
    variable = Variable(jnp.zeros_like(arrays[last]))
    optimizer.load_states(path, {last: variable})
    np.testing.assert_array_equal(variable.value, arrays[last])


@pytest.mark.parametrize("extension", ONE_EACH)
def test_paths_that_are_none(extension):
    path = f"a\0b{extension}"
    for call in (one(name="A0").save_states, one(name="A1").load_states):
        with pytest.raises(CheckpointError, match="has no NUL"):
            call(path)


# File objects


def test_a_file_object(tmp_path):
    """As torch.save and equinox take it: it holds an .npz file."""
    saved, loaded = one(name="A0"), one(name="A1", rho=0.5)
    buffer = io.BytesIO()
    buffer.write(b"before")
    saved.save_states(buffer, {"x": jnp.ones(2)}, compressed=True)
    buffer.seek(6)
    arrays = dict(np.load(io.BytesIO(buffer.getvalue()[6:])))
    np.testing.assert_array_equal(arrays["x"], [1, 1])
    loaded.load_states(buffer)
    for key, variable in saved.implicit_vars.items():
        np.testing.assert_array_equal(loaded.implicit_vars[key].value, variable.value)
    assert loaded.rho == 0.95
    with (tmp_path / "any.name").open("w+b") as file:
        saved.save_states(file)
        file.seek(0)
        loaded.load_states(file)


def test_file_objects_that_do_not_serve(tmp_path):
    optimizer, buffer = one(name="A0"), io.BytesIO()
    optimizer.save_states(buffer)
    with refused(optimizer, "BytesIO", "seek(0)"):
        optimizer.load_states(buffer)
    with refused(optimizer, "BytesIO", "cannot be read"):
        optimizer.load_states(io.BytesIO(buffer.getvalue()[:-50]))
    path = tmp_path / "run.npz"
    optimizer.save_states(path)
    with path.open() as file, pytest.raises(TypeError, match="in binary mode"):
        optimizer.load_states(file)
    with pytest.raises(
        TypeError, match="binary file object, or the path of a file, got dict"
    ):
        optimizer.load_states({})


def test_a_file_object_gets_nothing_of_what_cannot_be_saved():
    optimizer, buffer = one(name="A0"), io.BytesIO()
    before = bits(optimizer)
    with pytest.raises(CheckpointError, match="a name too long"):
        optimizer.save_states(buffer, {"x" * 70_000: jnp.ones(2)})
    assert not buffer.getvalue()
    assert bits(optimizer) == before


class Sip(io.RawIOBase):
    """A file without a buffer that takes 100 bytes at once."""

    def __init__(self):
        super().__init__()
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data[:100])
        return len(data[:100])


def test_a_file_that_takes_a_part_gets_the_rest():
    optimizer, file = one(name="A0"), Sip()
    optimizer.update({"w": np.ones(np.shape(optimizer.vars_to_train["w"].value), "f4")})
    optimizer.save_states(file)
    other = one(name="A0b")
    other.load_states(io.BytesIO(file.data))
    for key, variable in optimizer.implicit_vars.items():
        np.testing.assert_array_equal(other.implicit_vars[key].value, variable.value)


def test_files_that_are_no_binary_ones(tmp_path):
    optimizer = one(name="A0")
    for use in (optimizer.save_states, optimizer.load_states):
        with pytest.raises(TypeError, match="open in binary mode"):
            use(io.StringIO())
        with pytest.raises(TypeError, match="got bytes"):
            use(b"run.npz")
