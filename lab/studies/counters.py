"""What the hardware's own counters say of one attention call: Nsight Compute on a GPU, perf on a CPU, where they may be read.

Both raise ``Unreadable`` with one line that says why where they cannot.
"""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

_NCU = {
    "dram__bytes_read.sum": "DRAM bytes read",
    "dram__bytes_write.sum": "DRAM bytes written",
    "lts__t_sectors_lookup_hit.sum": "L2 sectors hit",
    "lts__t_sectors_lookup_miss.sum": "L2 sectors missed",
}
_PERF = {"LLC-loads": "last-level cache loads", "LLC-load-misses": "last-level cache load misses"}


class Unreadable(RuntimeError):
    """The counters cannot be read here."""


def ncu(program: list[str], timeout: float = 300) -> dict[str, tuple[float, str]]:
    """Run ``python program…`` under Nsight Compute and add up what its kernels between cudaProfilerStart and cudaProfilerStop
    did: metric → (value, unit). Nsight Compute empties the caches before each kernel; clocks are left as they are."""
    if not shutil.which("ncu"):
        raise Unreadable("GPU counters: ncu (Nsight Compute) is not on the PATH; install it, or go without")
    command = ["ncu", "--csv", "--print-units", "base", "--clock-control", "none", "--profile-from-start", "off",
               "--metrics", ",".join(_NCU), sys.executable, *program]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout)
    said = next((line for line in (done.stdout + done.stderr).splitlines() if "==ERROR==" in line), "")
    if "ERR_NVGPUCTRPERM" in said:
        raise Unreadable("GPU counters: the driver permits them to administrators only (ERR_NVGPUCTRPERM); run as root, or go without")
    if done.returncode or said:
        said = said or (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unreadable(f"GPU counters: ncu ended with {done.returncode}: {said}")
    sums = dict.fromkeys(_NCU, 0.0)
    seen = set()
    lines = done.stdout.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if row.get("Metric Name") in sums:
            sums[row["Metric Name"]] += float(row["Metric Value"].replace(",", ""))
            seen.add(row["Metric Name"])
    if seen != set(_NCU):
        raise Unreadable(f"GPU counters: ncu gave nothing for {', '.join(sorted(set(_NCU) - seen))}")
    hit, missed = sums["lts__t_sectors_lookup_hit.sum"], sums["lts__t_sectors_lookup_miss.sum"]
    found = {_NCU[name]: (value, "bytes" if "bytes" in name else "sectors") for name, value in sums.items()}
    return {**found, "L2 hit rate": (hit / (hit + missed), "share of sectors")}


def perf(call: Callable[[], object], calls: int = 20) -> dict[str, tuple[float, str]]:
    """Let perf count this process's last-level cache loads and misses while ``call`` runs; per call."""
    if not shutil.which("perf"):
        raise Unreadable("CPU counters: perf is not installed")
    command = ["perf", "stat", "-x", ",", "-e", ",".join(_PERF), "-p", str(os.getpid())]
    watcher = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8", errors="replace")
    time.sleep(0.3)  # until it is attached to every thread
    for _ in range(calls):
        call()
    watcher.send_signal(signal.SIGINT)
    said = watcher.communicate(timeout=10)[1]
    found = {}
    for fields in csv.reader(said.splitlines()):
        name = fields[2].split(":")[0] if len(fields) > 2 else ""
        if name in _PERF and fields[0].replace(".", "").isdigit():
            found[_PERF[name]] = (float(fields[0]) / calls, "per call")
    if len(found) != len(_PERF):
        said = (said.strip().splitlines() or ["no message"])[0].split(",")[0]
        raise Unreadable(f"CPU counters: perf cannot count {' and '.join(_PERF)} here: {said}")
    return found
