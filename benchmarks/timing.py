"""What the benchmarks share: their command line, and the clock around one short operation."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable

import numpy as np

from lab import machine


def timed(operation: Callable[[], object]) -> float:
    """Microseconds that one call takes."""
    start = time.perf_counter_ns()
    operation()
    return (time.perf_counter_ns() - start) / 1e3


def spread(taken: list[float], digits: int = 3) -> dict[str, float]:
    """Median, quartiles and mean of repeated timings."""
    low, median, high = np.percentile(taken, [25, 50, 75])
    found = {"median": median, "low": low, "high": high, "mean": np.mean(taken)}
    return {name: round(float(value), digits) for name, value in found.items()}


def _terminate(*_) -> None:
    """What was started is stopped, as after an interrupt, and a second signal does not keep that from happening."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main(module: str, description: str, run: Callable[..., dict], show: Callable[[dict], None], **arguments: dict) -> None:
    """``arguments``: further options as name → keywords of ``add_argument``; ``run`` is called with their values by name."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the revision, instead of a table")
    for name, settings in arguments.items():
        parser.add_argument(f"--{name}", **settings)
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    signal.signal(signal.SIGTERM, _terminate)
    found = run(**options)
    if as_json:
        print(json.dumps({"revision": machine.revision(), **found}, indent=1))
    else:
        show(found)
