"""Chips that need not be here: XLA compiles for them ahead of time, and what came out.

Needs the extra ``accelerators``: libtpu, JAX's CUDA plugin, ptxas and nvdisasm.
"""

import contextlib
import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.metadata import files, version
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies


class Chip(NamedTuple):
    """A chip, and the slices of it to compile for."""

    slices: dict[int, dict[str, Any]]
    """What :func:`get_topology_desc` takes for so many chips."""
    bandwidth: float
    """Of its memory, in bytes a second."""
    issue_rate: float | None
    """Instructions a second, those of each thread counted, where they are counted."""
    source: str
    """Of both numbers."""


_TPU_DOCS = "https://docs.cloud.google.com/tpu/docs/"
_GPU_SPECS = (
    "https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs; "
    "4 schedulers a core, each 1 instruction of 32 threads a cycle: "
    "https://docs.nvidia.com/cuda/cuda-c-programming-guide/"
)


def _tpu(name: str, gigabytes: int, slices: dict[int, str], **arguments: Any) -> Chip:
    topology = {
        count: {
            "platform": "tpu",
            "topology_name": f"{name}:{shape}",
            "num_slices": -(-count // prod(map(int, shape.split("x")))),
            **arguments,
        }
        for count, shape in slices.items()
    }
    return Chip(topology, gigabytes * 1e9, None, f"{_TPU_DOCS}{name}")


def _gpu(
    name: str,
    major: int,
    cores: int,
    bandwidth: int,
    gigahertz: float,
    fpus: int,
    level_2: int,
    memory: int,
    shared: int,
) -> Chip:
    accelerated = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    target = f"""
      gpu_device_info {{
        cuda_compute_capability {{ major: {major} {accelerated} }}
        core_count: {cores}
        memory_bandwidth: {bandwidth}
        clock_rate_ghz: {gigahertz}
        fpus_per_core: {fpus}
        l2_cache_size: {level_2}
        device_memory_size: {memory}
        shared_memory_per_core: {shared}
        shared_memory_per_block_optin: {shared - 1024}
        shared_memory_per_block: 49152
        threads_per_warp: 32
        threads_per_block_limit: 1024
        threads_per_core_limit: 2048
        registers_per_core_limit: 65536
        registers_per_block_limit: 65536
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
      }}
      platform_name: "CUDA"
      device_description_str: "NVIDIA {name}"
    """
    slices = {
        count: {
            "platform": "cuda",
            "topology_name": name,
            "topology": f"1x{-(-count // 8)}x{min(count, 8)}",
            "target_config": target,
        }
        for count in (1, 8, 256)
    }
    return Chip(slices, bandwidth, cores * 4 * 32 * gigahertz * 1e9, _GPU_SPECS)


CHIPS = {
    "TPU v4": _tpu(
        "v4",
        1200,
        {1: "2x2x1", 256: "4x8x8", 512: "8x8x8"},
        chip_config_name="megacore",
    ),
    "TPU v5e": _tpu("v5e", 800, {1: "2x2", 4: "2x2", 256: "16x16", 512: "16x16"}),
    "TPU v5p": _tpu("v5p", 2765, {1: "2x2x1", 4: "2x2x1", 256: "4x8x8", 512: "8x8x8"}),
    "TPU v6e": _tpu("v6e", 1600, {1: "2x2", 256: "16x16", 512: "16x16"}),
    "A100": _gpu(
        "A100", 8, 108, 2039040000000, 1.41, 64, 41943040, 85100068864, 167936
    ),
    "H100": _gpu(
        "H100", 9, 132, 3352320000000, 1.98, 128, 52428800, 84942979072, 233472
    ),
    "B200": _gpu(
        "B200", 10, 148, 7672320000000, 1.965, 128, 132644864, 191514411008, 233472
    ),
}
"""Sources of what the compiler is told, and of the rooflines, are in each one."""


_TOOLS = {"ptxas": "nvidia-cuda-nvcc-cu12", "nvdisasm": "nvidia-cuda-nvdisasm"}


def versions() -> dict[str, str]:
    """Of the compilers.

    Raises:
      PackageNotFoundError: If the extra is not installed.
    """
    return {x: version(x) for x in ("libtpu", "jax-cuda12-plugin", *_TOOLS.values())}


def prepare() -> None:
    """Sets what the compilers read from the environment; before JAX starts."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "PATH": f"{_tool('ptxas').parent}{os.pathsep}{os.environ['PATH']}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # No TPU's metadata server is asked; the topology says what there is.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_LOG_DIR": "disabled",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def _tool(name: str) -> Path:
    installed = files(_TOOLS[name]) or ()
    found = (x for x in installed if x.parts[-2:] == ("bin", name))
    return Path(str(next(found).locate()))


@functools.cache
def devices(chip: str, count: int) -> np.ndarray:
    """So many chips, in one dimension."""
    topology = topologies.get_topology_desc(**CHIPS[chip].slices[count])
    return np.array(topology.devices[:count])


class Program(NamedTuple):
    """What a chip runs, counted."""

    array_kernels: int
    """Instructions that calculate an array."""
    scalar_kernels: int
    """Those that calculate one number."""
    copies: int
    """From memory to memory. A TPU's moves between that and its cache, VMEM, do not
    count: the compiler fetches the next arrays while it calculates."""
    collectives: int
    memory_bytes: int
    """Read from and written to memory: of each instruction the operands and results
    that are not in VMEM."""
    analysed_bytes: float | None
    """XLA's "bytes accessed", on TPUs. What goes through VMEM counts more than once."""
    temporary_bytes: int
    instructions: int | None
    """Of all threads, on GPUs: in the machine code of each kernel, up to its end."""


def compile_for(
    chip: str, step: Any, arguments: Any, *, machine_code: bool = False
) -> Program:
    """Compiles ``step``, whose first two arguments are donated, and counts."""
    gpu = CHIPS[chip].issue_rate is not None
    with tempfile.TemporaryDirectory() as folder:
        listed = gpu and machine_code
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments)
        compiled = lowered.compile(
            compiler_options={"xla_dump_to": folder} if listed else None
        )
        analysis = None if gpu else compiled.cost_analysis()
        memory = compiled.memory_analysis()
        assert memory is not None
        return Program(
            *count(compiled.as_text() or ""),
            analysis and analysis["bytes accessed"],
            memory.temp_size_in_bytes,
            _instructions(Path(folder), chip) if listed else None,
        )


_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\((.*)"
)
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NOTHING = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier"),
}
_COLLECTIVE = re.compile(
    r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)


def count(text: str) -> tuple[int, int, int, int, int]:
    """The first five numbers of a :class:`Program`, from XLA's optimised program."""
    kernels = {True: 0, False: 0}
    copies = traffic = 0
    types: dict[str, str] = {}
    for line in text[text.index("\nENTRY") :].splitlines():
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        name, type_, operation, rest = found.groups()
        types[name] = type_
        if operation in _NOTHING or operation.endswith("-done"):
            continue
        if "ConcatBitcast" in rest:  # parts of an array that were fetched apart
            continue
        results = _arrays(type_)
        names = dict.fromkeys(re.findall(r"%([^\s,()]+)", rest.split("), ")[0]))
        operands = [x for name in names for x in _arrays(types.get(name, ""))]
        if operation == "slice-start":  # ((the whole,), the slice, a flag)
            moved = results[1]
            traffic += moved.size * (1 + moved.in_memory)
        elif operation in ("copy", "copy-start"):
            both = [results[0], operands[0]]
            traffic += sum(x.size for x in both if x.in_memory)
            copies += all(x.in_memory for x in both)
        elif not _COLLECTIVE.match(f" {operation}("):
            kernels[any(x.elements > 1 for x in results)] += 1
            traffic += sum(x.size for x in (*results, *operands) if x.in_memory)
    collectives = len(_COLLECTIVE.findall(text))
    return kernels[True], kernels[False], copies, collectives, traffic


class _Array(NamedTuple):
    elements: int
    size: int
    in_memory: bool


def _arrays(type_: str) -> list[_Array]:
    found = []
    for dtype, shape, layout in _ARRAY.findall(type_):
        elements = prod(int(x) for x in shape.split(",") if x)
        bits = int(re.sub(r"\D", "", dtype) or 8)  # pred has 8
        found.append(_Array(elements, elements * bits // 8, "S(" not in layout))
    return found


def _instructions(folder: Path, chip: str) -> int:
    lengths: dict[str, int] = {}
    for ptx in folder.glob("*.ptx"):
        source = ptx.read_text()
        if not source.strip():
            continue
        [target] = re.findall(r"^\.target (\w+)", source, re.M)
        cubin = ptx.with_suffix(".cubin")
        subprocess.run([_tool("ptxas"), "-arch", target, ptx, "-o", cubin], check=True)
        listing = subprocess.run(
            [_tool("nvdisasm"), cubin], check=True, capture_output=True, text=True
        ).stdout
        for kernel in re.split(r"^\.text\.", listing, flags=re.M)[1:]:
            lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", kernel, re.M)
            end = max(i for i, line in enumerate(lines) if "EXIT" in line)
            lengths[kernel.split(":")[0]] = end + 1
    [sequence] = folder.glob("*.thunk_sequence.txt")
    launches = re.findall(
        r"Kernel .*\] (\S+) grid: \[(.*?)\] threads: \[(.*?)\]", sequence.read_text()
    )
    if not launches:
        raise ValueError(f"XLA's list of launches for {chip} has another form.")
    return sum(
        lengths[kernel] * prod(map(int, f"{grid}, {threads}".split(", ")))
        for kernel, grid, threads in launches
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the compilers' libraries print while they are loaded."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
