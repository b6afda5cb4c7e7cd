"""Tries to lose a run: kills writers, damages files, fills the disk, races writers.

Each checkpoint that is written holds random numbers made from a version, and the
version. A file that loads is right if all of its numbers are those of one version.

- kills: a process that saves again and again is killed (SIGKILL) at a random moment.
  Afterwards the file must load, and be no older than the last completed save.
- damage: a file is truncated, or has bits flipped, a block overwritten, or its end
  replaced by that of another checkpoint. Loading it must fail and change nothing or, if
  the damage is elsewhere, return the numbers that were written.
- full disk: a limit stops a save after some number of bytes. The old file must still
  load, and no other file may be left.
- races: two processes save to one path while it is loaded again and again.
"""

import multiprocessing
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import adadelta_tx
from benchmarks import _report as report

FORMATS = ["npz", "compressed npz", "h5", "mat", "pkl"]
DAMAGES = ["truncated", "bits flipped", "block overwritten", "spliced"]
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


def damages(form: str, number: int) -> Mapping[str, Mapping[str, int]]:
    """Loads that many damaged files, and counts what came of each kind."""
    rng = random.Random(form)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = path_of(folder, form)
        originals = []
        for version in (1, 2):
            save(make(SMALL, version), folder, form)
            originals.append(path.read_bytes())
        outcomes = {kind: Counter() for kind in DAMAGES}
        for i in _progress(range(number), number, f"{form}: damaged files"):
            kind = DAMAGES[i % len(DAMAGES)]
            data = originals[0]
            while data in originals:
                data = damaged(kind, *originals, rng)
            path.write_bytes(data)
            outcomes[kind][load_damaged(path)] += 1
    return outcomes


def load_damaged(path: Path) -> str:
    """What comes of a damaged file."""
    optimizer = make(SMALL, 3)
    before = [variable.value for variable in optimizer.vars().values()]
    try:
        optimizer.load_states(path)
    except adadelta_tx.CheckpointError:
        now = [variable.value for variable in optimizer.vars().values()]
        unchanged = all(map(np.array_equal, before, now))
        return "refused" if unchanged else "optimizer half-loaded"
    whole = version_in(path, SMALL) in (1, 2)
    return "loaded as written" if whole else "loaded with wrong numbers"


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
            row("… loaded with wrong numbers", damage("loaded with wrong numbers")),
            row("… optimizer half-loaded", damage("optimizer half-loaded")),
            row("saves on a full disk", lambda result: result["full disk"].values()),
            row("… success reported", outcome("full disk", "success reported")),
            row("… checkpoint lost or litter left", outcome("full disk", "lost")),
            row("loads while two writers race", lambda result: result["race"].values()),
            row("… failed or of two versions", outcome("race", "lost")),
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs all faults, prints the table and writes it."""
    parser = report.parser("faults", __doc__, "about 7 minutes")
    parser.add_argument("--kills", type=int, default=200, help="for each format")
    parser.add_argument("--damaged", type=int, default=5_000, help="for each format")
    parser.add_argument("--stops", type=int, default=100, help="by a full disk, each")
    parser.add_argument("--loads", type=int, default=100, help="in a race, each")
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
    print(summary(results))
    print(report.describe())
    print(f"written: {report.write(options.out, 'faults', results)}")


if __name__ == "__main__":
    main()
