"""Files made to harm: none ends the process, loads a library, hangs or floods it.

`outcomes` loads them in another process, and checks time and memory of each.
"""

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from tests.files.helpers import ARRAYS, ZEROS, one, outcomes

pytestmark = pytest.mark.slow


def all_refused(folder, contents):
    paths = [folder / name for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    came = dict(zip(contents, outcomes(paths), strict=True))
    assert [name for name, what in came.items() if what == "loaded"] == []


# HDF5


def plain(**ways):
    file = io.BytesIO()
    with h5py.File(file, "w", **ways) as group:
        group.update(ARRAYS)
        group["x"] = np.float32(1)
    return bytearray(file.getvalue())


def test_no_library_reads_h5(tmp_path):
    """So none looks for others, as libhdf5 does for filters."""
    path = tmp_path / "run.h5"
    path.write_bytes(plain())
    code = f"""
import sys
import jax.numpy as jnp
import adadelta_tx
opt = adadelta_tx.Adadelta({{"w": adadelta_tx.TrainVar(jnp.ones(4))}})
opt.load_states({str(path)!r})
assert not {{"h5py", "scipy", "pyfive"}} & sys.modules.keys()
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def trees():
    data = plain()
    tree, node = data.index(b"TREE"), data.index(b"SNOD")
    own_child = bytearray(data)
    own_child[tree + 5] = 1
    own_child[tree + 32 : tree + 40] = struct.pack("<Q", tree)
    yield "own child", own_child
    levels, start = bytearray(data), len(data)
    for level in range(7, 0, -1):  # each node 32 times the one below
        below = start + 600 if level > 1 else node
        head = struct.pack("<4s2BH16x", b"TREE", 0, level, 32)
        levels += (head + struct.pack("<2Q", 0, below) * 32 + bytes(600))[:600]
        start += 600
    levels = levels.replace(struct.pack("<Q", tree), struct.pack("<Q", len(data)))
    yield "levels", levels
    for symbols in (0xFFFF, 0x7FFF):
        many = bytearray(data)
        many[node + 6 : node + 8] = struct.pack("<H", symbols)
        yield f"symbols {symbols}", many
    heap = data.index(b"HEAP")
    for place, value in ((8, 2**63), (24, 2**63), (24, 0), (8, 1)):
        other = bytearray(data)
        other[heap + place : heap + place + 8] = struct.pack("<Q", value)
        yield f"heap {place} {value}", other
    kind = data.index(b"\x11\x20\x1f\0\4\0\0\0")
    for flags in (2, 3):  # a message that is shared with its own header
        shared = bytearray(data)
        shared[kind - 4] = flags
        shared[kind : kind + 10] = struct.pack("<2BQ", 3, 2, kind - 8 - 16 - 8)
        yield f"shared {flags}", shared
    nested = bytearray(data)  # a vlen of a vlen of …, in a message of 64 KB
    nested[kind - 8 : kind - 6] = struct.pack("<H", 3)
    nested[kind : kind + 8] = b"\x19\0\0\0\x10\0\0\0"
    yield "nested", nested
    number = data.index(struct.pack("<BxH2I", 1, 5, 1, 256))
    more = bytearray(data)  # a header that goes on with itself
    more[number + 2 : number + 4] = b"\xff\xff"
    yield "messages", more
    more = bytearray(data)
    more[number + 16 : number + 40] = struct.pack("<2H4x2Q", 16, 16, number + 16, 256)
    yield "continued", more


def test_trees_of_h5(tmp_path):
    all_refused(tmp_path, {f"{name}.h5": data for name, data in trees()})


def test_long_names_in_a_heap_of_h5(tmp_path):
    """Each name of a table is nearly the whole heap."""
    data = plain()
    heap, node, size = data.index(b"HEAP"), data.index(b"SNOD"), 10**6
    data[heap + 8 : heap + 16] = struct.pack("<Q", size)
    data[heap + 24 : heap + 32] = struct.pack("<Q", len(data))
    data += b"x" * (size - 1) + b"\0"
    table = struct.pack("<4s2BH", b"SNOD", 1, 0, 60_000)
    table += b"".join(struct.pack("<2Q24x", i, 800) for i in range(60_000))
    place = struct.pack("<Q", node)
    data = data.replace(place, struct.pack("<Q", len(data))) + table
    all_refused(tmp_path, {"names.h5": data})


@pytest.mark.parametrize("libver", ["v108", "latest"])
def test_other_layouts_of_h5(libver, tmp_path):
    """With links in a heap that may be filtered: there libraries are loaded."""
    all_refused(tmp_path, {"dense.h5": plain(libver=libver, track_order=True)})


# Time and memory


def element(kind, data):
    return struct.pack("<2I", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(name, data, class_=4, kind=16, axes=(1, 1)):
    flags = element(6, struct.pack("<2I", class_, 0))
    axes = element(5, struct.pack(f"<{len(axes)}I", *axes))
    return element(14, flags + axes + element(1, name) + element(kind, data))


def test_floods_of_mat(tmp_path):
    start = bytes(124) + b"\0\1IM"
    start += b"".join(matrix(k.encode(), bytes(16), 7, 7, (1, 4)) for k in ARRAYS)
    text = b"a" * 5_000_000
    lists = [b"duplicate_keys", b"duplicate_targets"]
    small = [matrix(b"", b"", 7, 7, ())] * 700_000
    all_refused(
        tmp_path,
        {
            "text.mat": start + b"".join(matrix(name, text) for name in lists),
            "long.mat": start
            + b"".join(matrix(name, text, axes=(1, 9000)) for name in lists),
            "small.mat": start + b"".join(small),
            "axes.mat": bytes(124)
            + b"\0\1IM"
            + matrix(b"A0.w_cache", bytes(16), 7, 7, (1,) * 2_000_000)
            + matrix(b"A0.w_delta", bytes(16), 7, 7, (1, 4)),
        },
    )


def member(shape, content=b"", descr="<f4"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def archive(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as to:
        for name, content in members.items():
            to.writestr(f"{name}.npy", content)
    return file.getvalue()


def without_members(number):
    """Entries of a directory for which there is nothing in the archive."""
    data = archive({key: member("(4,)", bytes(16)) for key in ARRAYS})
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    fields = "<4s24xH16x8s"
    directory = data[start:end] + b"".join(
        struct.pack(fields, b"PK\1\2", 8, b"%08x" % i) for i in range(number)
    )
    size, after = len(directory), start + len(directory)
    number += 2
    sizes = 44, 45, 45, 0, 0, number, number, size, start
    wide = struct.pack("<4sQ2H2I4Q", b"PK\6\6", *sizes)
    wide += struct.pack("<4sIQI", b"PK\6\7", 0, after, 1)
    last = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, start, 0)
    return data[:start] + directory + wide + last


def test_floods_of_npz(tmp_path):
    arrays = {key: member("(4,)", bytes(16)) for key in ARRAYS}
    zeros = bytes(300_000_000)
    lists = ["duplicate_keys", "duplicate_targets"]
    text = np.array("a" * 2**24, "S")
    file = io.BytesIO()
    np.savez_compressed(file, **ARRAYS, **dict.fromkeys(lists, text))
    all_refused(
        tmp_path,
        {
            "negative.npz": archive({key: member("(-1,)", zeros) for key in ARRAYS}),
            "two negatives.npz": archive(
                {key: member("(-2, -2)", zeros) for key in ARRAYS}
            ),
            "lists.npz": archive(
                arrays | {x: member("(-1,)", zeros, "|S1") for x in lists}
            ),
            "text.npz": file.getvalue(),
            "60,000.npz": without_members(60_000),
            "800,000.npz": without_members(800_000),
        },
    )


def test_sealed_headers_that_flood(tmp_path):
    header = {"format": 2, "name": "A0", "schedule": "Constant0"}
    header["numbers"] = {"lr": 1.0, "rho": 0.9, "epsilon": 1e-6, "weight_decay": 0.0}
    own = dict.fromkeys(ARRAYS, f"float32 (4) {sha256(ZEROS).hexdigest()}")
    axes = ",".join(["300"] * 60)
    many = {f"{i:x}": f"u ({axes}) {'0' * 64}" for i in range(60_000)}
    contents = {}
    for name, more, variables in (
        ("texts", {"more": ["a"] * 5_000_000}, own),
        ("lists", {"more": [[]] * 5_000_000}, own),
        ("list", {}, [[]] * 1_950_000),
        ("axes", {}, own | many),
        ("number", {"numbers": {"lr": [[]] * 1_950_000}}, own),
    ):
        text = json.dumps({**header, **more, "variables": variables}).encode()
        marks = {"adadelta_tx:header": np.frombuffer(text, np.uint8)}
        marks["adadelta_tx:digest"] = np.frombuffer(sha256(text).digest(), np.uint8)
        for save in (np.savez, np.savez_compressed):
            file = io.BytesIO()
            save(file, **ARRAYS, **marks)
            contents[f"{name} {save.__name__}.npz"] = file.getvalue()
    all_refused(tmp_path, contents)


def test_integers_of_one_hash(tmp_path):
    path = tmp_path / "run.pkl"
    same = {j * (2**61 - 1): None for j in range(1, 30_000)}
    path.write_bytes(pickle.dumps({**ARRAYS, "by epoch": same}))
    assert outcomes([path]) == ["loaded"]


def test_a_file_of_any_kind_in_every_format(tmp_path):
    """What one library wrote, by the name of another's format."""
    optimizer = one(name="A0")
    scipy.io.savemat(tmp_path / "a.mat", ARRAYS)
    np.savez(tmp_path / "a.npz", **ARRAYS)
    (tmp_path / "a.h5").write_bytes(plain())
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(ARRAYS))
    for path in [*tmp_path.iterdir()]:
        optimizer.load_states(path)
    contents = {
        f"{path.suffix[1:]} as{other.suffix}": path.read_bytes()
        for path in sorted(tmp_path.glob("a.*"))
        for other in sorted(tmp_path.glob("a.*"))
        if path != other
    }
    assert len(contents) == 12
    all_refused(tmp_path, contents)
