"""Tries to lose a run: kills writers, damages files, fills the disk, races writers.

Each checkpoint that is written holds random numbers made from a version, and the
version. A file that loads is right if all of its numbers are those of one version.

- kills: a process that saves again and again is killed (SIGKILL) at a random moment.
  Afterwards the file must load, and be no older than the last completed save.
- damage: a file is truncated, or has bits flipped, a block overwritten, or its end
  replaced by that of another checkpoint. Or something in it is changed and all its
  checksums renewed. Or another library wrote it, in one of its ways, and it may be
  damaged then, but for its numbers. Loading it must fail and change nothing, or return
  the numbers that were written, or those that the library of the format reads. It must
  not end the process, hang, or take more than 64 MB and 4 times the file, or 2 seconds
  and 1 second for 10 MB.
- full disk: a limit stops a save after some number of bytes. The old file must still
  load, and no other file may be left.
- races: two processes save to one path while it is loaded again and again.
"""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import resource
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
import scipy.io
from tqdm import tqdm

import adadelta_tx
from benchmarks import _report as report

FORMATS = ["npz", "compressed npz", "h5", "mat", "pkl"]
DAMAGES = ["truncated", "bits flipped", "block overwritten", "spliced"]
KINDS = ["re-sealed", "foreign", "foreign, damaged"]
OTHER, OVER = "loaded with other content", "over memory or time"
LARGE, SMALL = 250_000, 100  # elements of each of two variables


def make(size: int, version: int = -1) -> adadelta_tx.Adadelta:
    """An optimizer, new or with the state of a version."""
    variables = {
        "w": adadelta_tx.TrainVar(jnp.zeros((size // 10, 10))),
        "b": adadelta_tx.TrainVar(jnp.zeros(size)),
    }
    optimizer = adadelta_tx.Adadelta(variables)
    if version >= 0:
        rng = np.random.default_rng(version)
        for variable in optimizer.implicit_vars.values():
            variable.value = jnp.asarray(rng.random(variable.shape, np.float32))
        optimizer.lr.last_call.value = jnp.asarray(version, dtype=jnp.int32)
    return optimizer


def version_in(path: Path, size: int) -> int | None:
    """The version in a file; ``None`` if it does not load, or is not of one version."""
    optimizer = make(size)
    try:
        optimizer.load_states(path)
    except adadelta_tx.CheckpointError:
        return None
    version = int(optimizer.lr.last_call.value)
    right = make(size, version)
    pairs = zip(optimizer.vars().values(), right.vars().values(), strict=True)
    same = all(np.array_equal(ours.value, theirs.value) for ours, theirs in pairs)
    return version if same else None


def path_of(folder: Path, form: str) -> Path:
    """Where checkpoints of a format are saved."""
    return folder / f"run.{form.split()[-1]}"


def save(optimizer: adadelta_tx.Adadelta, folder: Path, form: str) -> None:
    """Saves a checkpoint."""
    compressed = form.startswith("compressed")
    optimizer.save_states(path_of(folder, form), compressed=compressed)


def _save_forever(saved: Connection, folder: Path, form: str, step: int) -> None:
    for version in count(step, step):
        save(make(LARGE, version), folder, form)
        saved.send(version)


def writer(folder: Path, form: str, step: int = 1) -> tuple[BaseProcess, Connection]:
    """A process that saves every step-th version, and where it tells which it saved."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["adadelta_tx"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_save_forever, args=(theirs, folder, form, step))
    process.start()
    theirs.close()
    return process, ours


def received(saved: Connection) -> list[int]:
    """All that a writer told before it was killed."""
    versions = []
    while True:
        try:
            versions.append(saved.recv())
        except EOFError:
            return versions


def kill(form: str, seed: int) -> str:
    """Kills a writer. Whether in the middle of a save, or the checkpoint is lost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, saved = writer(folder, form)
        last = saved.recv()
        time.sleep(random.Random(seed).uniform(0.0, 0.2))
        process.kill()
        process.join()
        last = [last, *received(saved)][-1]
        version = version_in(path_of(folder, form), LARGE)
        if version is None or version < last:
            return "lost"
        during = len(list(folder.iterdir())) > 1
        return f"killed {'during a save' if during else 'between saves'}, kept"


def kills(form: str, number: int) -> dict[str, int]:
    """Kills that many writers, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(lambda seed: kill(form, seed), range(number))
        return Counter(_progress(outcomes, number, f"{form}: kills"))


def damaged(kind: str, data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a file."""
    result = bytearray(data)
    if kind == "truncated":
        del result[rng.randrange(len(data)) :]
    elif kind == "bits flipped":
        for _ in range(rng.randint(1, 8)):
            result[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "block overwritten":
        start = rng.randrange(len(data))
        length = min(rng.randint(1, 4096), len(data) - start)
        zeros = rng.random() < 0.5
        result[start : start + length] = (
            bytes(length) if zeros else rng.randbytes(length)
        )
    else:
        cut = rng.randrange(len(data))
        result[cut:] = other[cut:]
    return bytes(result)


def foreign(form: str, arrays: Mapping[str, Any], rng: random.Random) -> bytes:
    """Arrays as the library of a format writes them, in one of its ways."""
    file, order = io.BytesIO(), rng.choice("<>")
    arrays = {k: v.astype(v.dtype.newbyteorder(order)) for k, v in arrays.items()}
    if form == "h5":
        libver = rng.choice([None, "earliest", "v108", "v110", "v112", "latest"])
        kinds = [{}, {"chunks": True}, {"compression": "gzip"}, {"maxshape": None}]
        with h5py.File(file, "w", libver=libver, track_order=rng.random() < 0.2) as to:
            for name, array in arrays.items():
                kind = rng.choice(
                    kinds[: 4 if rng.random() < 0.1 and array.ndim else 1]
                )
                to.create_dataset(name, data=array, **kind)
    elif form == "mat":
        arrays = {k: v.astype(v.dtype.newbyteorder("=")) for k, v in arrays.items()}
        ways = {
            "do_compression": rng.random() < 0.2,
            "oned_as": rng.choice(["row", "column"]),
        }
        scipy.io.savemat(file, arrays, format=rng.choice("5554"), **ways)
    elif form == "pkl":
        nest = rng.choice([lambda x: x, lambda x: {"net": {}, "opt": x, "epoch": 3}])
        file.write(pickle.dumps(nest(arrays), rng.randint(2, 5)))
    else:
        order = rng.choice([np.ascontiguousarray, np.asfortranarray])
        arrays = {k: order(v) if v.ndim else v for k, v in arrays.items()}
        (np.savez_compressed if "compressed" in form else np.savez)(file, **arrays)
    return file.getvalue()


def resealed(form: str, content: Mapping[str, Any], rng: random.Random) -> bytes:
    """A file of ours with something changed, and the checksums renewed."""
    arrays = dict(content)
    header = json.loads(arrays["adadelta_tx:header"].tobytes())
    name, said = rng.choice([*header["variables"].items()])
    what = rng.choice(["value", "dtype", "shape", "names", "less", "text", "number"])
    array = arrays[name]
    if what == "value":
        array = rng.choice([array + 1, array * 0, -array])
    elif what == "dtype":
        array = array.astype(rng.choice(["f8", "f2", "i4", "c8", "bool", "i8"]))
    elif what == "shape":
        array = rng.choice([array[None], array.ravel()[:-1], array.T])
    elif what == "names":
        arrays[name], arrays["more"] = arrays[rng.choice([*header["variables"]])], array
        array = arrays[name]
    elif what == "number":
        header["numbers"][rng.choice([*header["numbers"]])] = rng.choice(
            [0.5, -1, "x", None]
        )
    arrays[name] = array
    if rng.random() < 0.7:  # the header tells of it, too
        shape = ",".join(map(str, array.shape))
        digest = sha256(array.tobytes()).hexdigest()
        dtype = rng.choice([array.dtype.name, said.split(" ")[0]])
        header["variables"][name] = f"{dtype} ({shape}) {digest}"
    if what == "less":
        del arrays[name]
    text = bytearray(json.dumps(header).encode())
    if what == "text":
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.choice(b'\x00"{}[],: 19ae\\')
    arrays["adadelta_tx:header"] = np.frombuffer(bytes(text), np.uint8)
    arrays["adadelta_tx:digest"] = np.frombuffer(sha256(text).digest(), np.uint8)
    file = io.BytesIO()
    if form == "h5":
        with h5py.File(file, "w") as to:
            to.update(arrays)
    elif form == "mat":
        scipy.io.savemat(file, {k: np.expand_dims(v, 0) for k, v in arrays.items()})
    elif form == "pkl":
        pickle.dump(arrays, file, 5)
    else:
        (np.savez_compressed if "compressed" in form else np.savez)(file, **arrays)
        if rng.random() < 0.3:  # the headers of the arrays, with renewed CRCs
            old, file = zipfile.ZipFile(file), io.BytesIO()
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as to:
                for member in old.namelist():
                    part = bytearray(old.read(member))
                    for _ in range(rng.choice([0, 0, 1, 2])):
                        part[rng.randrange(128)] ^= 1 << rng.randrange(8)
                    to.writestr(member, bytes(part))
    return file.getvalue()


def library(path: Path) -> dict[str, Any]:
    """All arrays in a file as the library of its format reads them."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {k: x[()] for k, x in file.items() if isinstance(x, h5py.Dataset)}
    if path.suffix == ".mat":
        found = scipy.io.loadmat(path)
        return {k: v for k, v in found.items() if k[:2] != "__"}
    if path.suffix == ".pkl":
        found = pickle.loads(path.read_bytes())
        return found.get("opt", found)
    with np.load(path) as file:
        found = {}
        for name in file.files:
            with contextlib.suppress(Exception):
                found[name] = file[name]
        return found


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def _loads(pipe: Connection) -> None:
    """Loads files whose paths it gets, and tells what came of each."""
    logging.getLogger("adadelta_tx").setLevel(logging.ERROR)
    optimizer = make(SMALL, 3)
    while True:
        path, by_library = pipe.recv()
        if by_library:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    pipe.send(library(path))
            except Exception:
                pipe.send({})
            continue
        for variable, value in zip(
            optimizer.vars().values(), make(SMALL, 3).vars().values(), strict=True
        ):
            variable.value = value.value
        before = {k: np.asarray(v.value) for k, v in optimizer.vars().items()}
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
        start, memory = time.perf_counter(), _memory("VmRSS")
        try:
            optimizer.load_states(path)
            outcome = "loaded"
        except adadelta_tx.CheckpointError:
            outcome = "refused"
        took, more = time.perf_counter() - start, _memory("VmHWM") - memory
        now = {k: np.asarray(v.value) for k, v in optimizer.vars().items()}
        if outcome == "refused" and not all(
            map(np.array_equal, now.values(), before.values())
        ):
            outcome = "half-loaded"
        size = path.stat().st_size
        if took > 2 + size / 1e7 or more > 2**26 + 4 * size:
            outcome = OVER
        pipe.send((outcome, now))


class Loader:
    """Another process that loads files, and a new one if a file ends it."""

    def __init__(self) -> None:
        """Starts it."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["adadelta_tx"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_loads, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def load(self, path: Path, by_library: bool = False) -> Any:
        """What came of it; a text alone if the process ended, or did not end."""
        self.pipe.send((path, by_library))
        try:
            if self.pipe.poll(60):
                return self.pipe.recv()
            outcome = "hang"
        except EOFError:
            outcome = "crash"
        self.close()
        self.__init__()
        return outcome

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.join()


def judged(loader: Loader, path: Path, written: list[dict[str, Any]]) -> str:
    """What comes of loading a file, of which these contents may be right."""
    found = loader.load(path)
    if isinstance(found, str):
        return found
    outcome, now = found
    if outcome != "loaded":
        return outcome

    def is_in(content: Mapping[str, Any]) -> bool:
        keys = {k.partition(".")[2]: v for k, v in content.items()}
        return all(
            np.array_equal(
                np.ravel(keys[k.partition(".")[2]]), np.ravel(value), equal_nan=True
            )
            for k, value in now.items()
            if k.endswith(("_cache", "_delta"))
        )

    try:
        if any(map(is_in, written)):
            return "loaded as written"
        theirs = loader.load(path, by_library=True)
        return "loaded as its library reads it" if is_in(theirs) else OTHER
    except (AttributeError, KeyError):  # what the library does not read
        return OTHER


def damages(form: str, number: int) -> Mapping[str, Mapping[str, int]]:
    """Loads that many files, damaged and others, and counts what came of each kind."""
    rng, loader = random.Random(form), Loader()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = path_of(folder, form)
        originals, contents = [], []
        for version in (1, 2):
            optimizer = make(SMALL, version)
            contents.append(
                {k: np.asarray(v.value) for k, v in optimizer.vars().items()}
            )
            save(optimizer, folder, form)
            originals.append(path.read_bytes())
        ours = library(path)
        if form == "mat":
            ours = {k: v[0] for k, v in ours.items()}
        outcomes = {kind: Counter() for kind in (*DAMAGES, *KINDS)}
        for i in _progress(range(number), number, f"{form}: damaged files"):
            kind, right = [*outcomes][i % len(outcomes)], contents
            if kind == "re-sealed":
                data, right = resealed(form, ours, rng), []
            elif kind == "foreign":
                data = foreign(form, contents[0], rng)
            elif kind == "foreign, damaged":
                data = _damaged_around(
                    foreign(form, contents[0], rng), contents[0], rng
                )
            else:
                data = originals[0]
                while data in originals:
                    data = damaged(kind, *originals, rng)
            path.write_bytes(data)
            os.utime(path, (0, 0))  # a foreign one that is new is read twice
            outcomes[kind][judged(loader, path, right)] += 1
    loader.close()
    return outcomes


def _damaged_around(
    data: bytes, arrays: Mapping[str, Any], rng: random.Random
) -> bytes:
    """A damaged copy with the numbers as they were: nothing tells of damage to them."""
    kind = rng.choice(DAMAGES[1:3])
    result = bytearray(damaged(kind, data, data, rng))
    for array in arrays.values():
        for numbers in (array, array.byteswap()) if array.ndim else ():
            for text in (numbers.tobytes(), numbers.tobytes("F")):
                if (place := data.find(text)) >= 0:
                    result[place : place + len(text)] = text
    return bytes(result)


def full_disks(form: str, number: int) -> dict[str, int]:
    """Stops saves after that many different numbers of bytes."""
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, newer = path_of(folder, form), make(SMALL, 2)
        save(newer, folder, form)
        size = path.stat().st_size
        save(make(SMALL, 1), folder, form)
        before = path.read_bytes()
        for i in _progress(range(number), number, f"{form}: full disk"):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            limit = i * (size - 1) // max(1, number - 1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                save(newer, folder, form)
                outcomes["success reported"] += 1
            except OSError:
                alone = list(folder.iterdir()) == [path]
                kept = path.read_bytes() == before
                outcomes["kept" if kept and alone else "lost"] += 1
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return outcomes


def race(form: str, number: int) -> dict[str, int]:
    """Loads that many times what two writers save to the same path."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writers = [writer(folder, form, step) for step in (1, 1_000)]
        for _, saved in writers:
            saved.recv()
        outcomes = Counter()
        for _ in _progress(range(number), number, f"{form}: loads in a race"):
            version = version_in(path_of(folder, form), LARGE)
            outcomes["lost" if version is None else "kept"] += 1
        for process, _ in writers:
            process.kill()
            process.join()
    return outcomes


def _progress(steps: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    return tqdm(steps, what, total, disable=None)


def summary(results: dict[str, Any]) -> str:
    """The table."""

    def row(label: str, counts: Callable[[dict[str, Any]], Iterable[int]]) -> list[str]:
        return [label, *(f"{sum(counts(result)):,}" for result in results.values())]

    def outcome(fault: str, name: str) -> Callable[[dict[str, Any]], Iterable[int]]:
        return lambda result: [result[fault].get(name, 0)]

    def damage(name: str) -> Callable[[dict[str, Any]], Iterable[int]]:
        return lambda result: [kind.get(name, 0) for kind in result["damage"].values()]

    return report.table(
        ["", *results],
        [
            row("writers killed", lambda result: result["kills"].values()),
            row("… during a save", outcome("kills", "killed during a save, kept")),
            row("… checkpoint lost", outcome("kills", "lost")),
            row(
                "damaged files",
                lambda result: [sum(d.values()) for d in result["damage"].values()],
            ),
            row("… refused", damage("refused")),
            row("… loaded as written", damage("loaded as written")),
            row(
                "… loaded as its library reads it",
                damage("loaded as its library reads it"),
            ),
            row("… loaded with other content", damage(OTHER)),
            row("… optimizer half-loaded", damage("half-loaded")),
            row("… process ended", damage("crash")),
            row("… hang", damage("hang")),
            row("… over memory or time", damage(OVER)),
            row("saves on a full disk", lambda result: result["full disk"].values()),
            row("… success reported", outcome("full disk", "success reported")),
            row("… checkpoint lost or litter left", outcome("full disk", "lost")),
            row("loads while two writers race", lambda result: result["race"].values()),
            row("… failed or of two versions", outcome("race", "lost")),
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs all faults, prints the table and writes it."""
    parser = report.parser("tests.files.faults", __doc__, "about 6 minutes")
    parser.add_argument("--kills", type=int, default=60, help="for each format")
    parser.add_argument("--damaged", type=int, default=5_600, help="for each format")
    parser.add_argument("--stops", type=int, default=100, help="by a full disk, each")
    parser.add_argument("--loads", type=int, default=60, help="in a race, each")
    options = parser.parse_args(arguments)
    results = {
        form: {
            "kills": kills(form, options.kills),
            "damage": damages(form, options.damaged),
            "full disk": full_disks(form, options.stops),
            "race": race(form, options.loads),
        }
        for form in FORMATS
    }
    report.finish(options, summary(results), results)


if __name__ == "__main__":
    main()
