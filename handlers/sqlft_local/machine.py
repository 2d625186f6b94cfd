"""What this machine has: cores, memory, a GPU, and the numbers that it multiplies fast; how processes share it.

Imports no torch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from sqlft.errors import OptionError

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where Linux says what a container may use, and what it uses."""
UNLIMITED = 1 << 50
SMI_SECONDS = 10.0
BF16_CAPABILITY = 8.0
"""NVIDIA's Ampere and later multiply bfloat16."""
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
"""Features of processors that speed up matrices, as Linux names them; the last three are ARM's."""
OVERRIDE = "SQLFT_CPU_FEATURES"
"""Names features in place of the processor's own, to see here what `auto` takes elsewhere: avx2, or avx2,amx_bf16."""


@dataclass(frozen=True)
class Gpu:
    """A card: bytes of its memory, and NVIDIA's compute capability."""

    name: str
    memory: int
    free: int
    capability: float


@dataclass(frozen=True)
class Machine:
    """A machine; memory in bytes, `flags` those of the processor that speed up matrices."""

    processor: str
    cores: int
    memory: int | None
    free: int | None
    flags: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    metal: bool = False

    def device(self, wanted: str = "auto") -> str:
        """cpu, cuda or mps: what `device = …` of the engine means here, for PyTorch as it is installed."""
        if wanted != "auto":
            return wanted.partition(":")[0]
        return "cuda" if self.gpus and torch_has_cuda() else "mps" if self.metal else "cpu"

    def fast_dtypes(self, device: str) -> tuple[str, ...]:
        """The dtypes that are not slower than float32 on the device."""
        if device == "cuda":
            able = all(gpu.capability >= BF16_CAPABILITY for gpu in self.gpus)
            return ("float32", "float16", "bfloat16") if able else ("float32", "float16")
        if device == "mps":
            return ("float32", "float16")
        return ("float32", "bfloat16") if multiplies_bfloat16(self.flags) else ("float32",)

    def dtype(self, wanted: str, device: str, training: bool = True) -> str:
        """What `dtype = …` means on the device, here."""
        return resolve_dtype(wanted, device, training, self.flags, "bfloat16" in self.fast_dtypes("cuda"))

    def available(self, device: str, processes: int = 1) -> int | None:
        """Bytes that are free where a model would be, for each of so many processes."""
        if device == "cuda" and self.gpus:
            return sorted((gpu.free for gpu in self.gpus), reverse=True)[min(processes, len(self.gpus)) - 1]
        return None if self.free is None else self.free // processes


def multiplies_bfloat16(flags: Collection[str]) -> bool:
    """Whether a processor with these flags has instructions for products of bfloat16: matrix units or vectors."""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def resolve_dtype(wanted: str, device: str, training: bool, flags: Collection[str], gpu_has_bfloat16: bool) -> str:
    """What `dtype = 'auto'` means: bfloat16 where the hardware multiplies it.

    A processor then trains in half the time to a third of it (`benchmarks/train.py`).  Its answers are float32's unless
    `predict.choose` says that torch is to answer in bfloat16; scores are always float32's, so that a batch gives the
    same as one row alone.

    >>> [resolve_dtype("auto", "cpu", training, ("avx512_bf16",), False) for training in (True, False)]
    ['bfloat16', 'float32']
    """
    if wanted != "auto":
        return wanted
    kind = device.partition(":")[0]
    fast = gpu_has_bfloat16 if kind == "cuda" else kind == "cpu" and training and multiplies_bfloat16(flags)
    return "bfloat16" if fast else "float32"


def detect_machine() -> Machine:
    """This one, as it is now."""
    total, free = _detect_memory()
    return Machine(
        _detect_processor(), count_cores(), total, free, detect_cpu_features(), tuple(_detect_gpus()), _is_apple()
    )


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_has_cuda() -> bool:
    """Whether the PyTorch that is installed was built for NVIDIA's cards; known without importing it."""
    try:
        return "+cpu" not in version("torch") and platform.system() != "Darwin"
    except PackageNotFoundError:
        return False


def _detect_memory() -> tuple[int | None, int | None]:
    """(all, free), of the container if it has less than the machine."""
    try:
        import psutil
    except ImportError:
        return _read_meminfo()
    found = psutil.virtual_memory()
    total, free = int(found.total), int(found.available)
    for limit, used in read_cgroup_limits():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _read_meminfo() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    known = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return known.get("MemTotal"), known.get("MemAvailable")


def read_cgroup_limits() -> Iterator[tuple[int, int]]:
    """(allowed, used) bytes of each container that bounds this process."""
    for limit, used in CGROUPS:
        try:
            most = Path(limit).read_text(encoding="ascii").strip()
            now = Path(used).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if most.isdigit() and int(most) < UNLIMITED:
            yield int(most), int(now)


@cache
def _detect_processor() -> str:
    for line in _read_cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def detect_cpu_features() -> tuple[str, ...]:
    """Those of FEATURES that the processor has, or that the environment says in its place."""
    named = os.environ.get(OVERRIDE, "").replace(",", " ").split()
    if unknown := set(named) - set(FEATURES):
        raise OptionError(
            f"{OVERRIDE} names what is no feature of a processor: {', '.join(sorted(unknown))}.",
            f"Use names out of {', '.join(FEATURES)}, or unset {OVERRIDE}.",
        )
    if named:
        return tuple(name for name in FEATURES if name in named)
    line = next((text for text in _read_cpuinfo() if text.lower().startswith(("flags", "features"))), "")
    there = set(line.partition(":")[2].split())
    return tuple(name for name in FEATURES if name in there)


@cache
def _read_cpuinfo() -> tuple[str, ...]:
    try:
        return tuple(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def _is_apple() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def _detect_gpus() -> Iterator[Gpu]:
    """NVIDIA's, by its own tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    asked = [tool, "--query-gpu=name,memory.total,memory.free,compute_cap", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(asked, capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in result.stdout.splitlines() if result.returncode == 0 else ():
        name, *numbers = (part.strip() for part in line.split(","))
        try:
            total, free, capability = (float(number) for number in numbers)
        except ValueError:
            continue
        yield Gpu(name, round(total * 2**20), round(free * 2**20), capability)


SPIN_COUNT = "2000"
"""Rounds that OpenMP's threads spin before they sleep: some ten microseconds.  By default it is milliseconds, which on
cores that other work uses too (two threads of three processes on two cores) made an answer ten times slower."""
PRIMITIVE_CACHE_SIZE = "128"
"""Products of matrices that stay prepared, by oneDNN and by PyTorch's layer over it.  A step needs about a hundred; by
default it is 1024, and rows of ever other lengths then took 6 MB more in each step of a training."""


def configure_math_libraries() -> None:
    """Settings of the libraries that compute, to be made before they are imported: threads that wait for each other
    sleep where they would spin, and few products stay prepared."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    for capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(capacity, PRIMITIVE_CACHE_SIZE)


def disable_compiler(has_cuda: bool) -> None:
    """Without a GPU nothing is compiled, and bitsandbytes then takes two seconds less to import: before peft is."""
    if not has_cuda:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def drop_file_pages(address: int, size: int) -> None:
    """Give back the memory of `size` bytes that are mapped from a file and were copied: it is read again if need be."""
    if sys.platform != "linux":
        return
    start, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(OSError, AttributeError):
        if start < end and _is_mapped_from_file(start, end):
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _is_mapped_from_file(start: int, end: int) -> bool:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        place, _, _, _, inode = line.split()[:5]
        first, last = (int(number, 16) for number in place.split("-"))
        if first <= start and end <= last:
            return inode != "0"
    return False


def resolve_threads(given: int | None) -> int:
    """Threads: as many as cores that this process may use; two on one core only disturb each other."""
    if given:
        return given
    there = count_cores()
    try:
        twofold = Path("/sys/devices/system/cpu/smt/active").read_text(encoding="ascii").strip() == "1"
    except OSError:
        twofold = False
    return max(1, there // 2 if twofold else there)


def module_command(module: str, *arguments: str) -> list[str]:
    """What runs a module of ours in a process of its own, with `child_environment`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """That of this process, in which the other one finds the modules that this one would."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}


class _SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_: ClassVar = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Leave this thread's stack for signal handlers as it was.

    OpenVINO's processor plugin puts in one of its own and frees it with the model: the next signal, a Ctrl-C or another
    size of the terminal, would end the process.
    """
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
