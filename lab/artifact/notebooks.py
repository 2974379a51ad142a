"""Run one notebook through papermill, with a line that says how long it takes."""

import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import machine
from lab.artifact.console import clock
from lab.artifact.plan import Job
from lab.files import replace


@dataclass
class Outcome:
    """How a notebook ended. ``error`` is one line, empty where all went well."""

    name: str
    fingerprint: str
    seconds: float
    error: str
    executed: Path
    profile: str
    revision: str


def load_outcome(job: Job, out: Path, device: str) -> Outcome | None:
    """What an earlier run left, if it went well, tested all it could and nothing that decides the result has changed since."""
    try:
        kept = json.loads((out / "state" / f"{job.name}.json").read_text(encoding="utf-8"))
        outcome = Outcome(**{**kept, "executed": Path(kept["executed"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    complete = outcome.executed.exists() and all(path.exists() for path in job.figures(out)) and not job.untested(out)
    return outcome if complete and not outcome.error and outcome.fingerprint == job.fingerprint(device) else None


def run_notebook(job: Job, out: Path, device: str, label: str, elapsed: float, left: float) -> Outcome:
    """Execute a notebook into ``out``, in place of what an earlier run left, and remember how it went. ``elapsed`` and
    ``left`` are seconds of the whole run, for the progress line. KeyboardInterrupt passes through; every other failure
    becomes the outcome's error."""
    import papermill

    from lab.artifact.kernel import ThisPython

    job.clear(out)
    executed = out / "notebooks" / f"{job.name}.ipynb"
    fingerprint = job.fingerprint(device)
    began = time.monotonic()
    error = ""
    with _progress(label, elapsed, left), _stderr_into(out / "state" / f"{job.name}.log"):
        try:
            papermill.execute_notebook(
                job.entry.source(), executed, {**job.parameters, "out": str(out)}, cwd=job.entry.source().parent,
                kernel_name="python3", progress_bar=False, log_output=False, kernel_manager_class=ThisPython,
            )  # fmt: skip
        except papermill.PapermillExecutionError as failure:
            if failure.ename == "KeyboardInterrupt":
                raise KeyboardInterrupt from None
            error = f"{failure.ename}: {failure.evalue}".splitlines()[0]
        except Exception as failure:  # a kernel that died, a notebook that is no JSON: the others still run
            error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    outcome = Outcome(job.name, fingerprint, time.monotonic() - began, error, executed, job.profile, machine.revision())
    replace(out / "state" / f"{job.name}.json", json.dumps(asdict(outcome), default=str))
    return outcome


@contextmanager
def _stderr_into(path: Path):
    """Send what this process and the kernel it starts write to stderr into a file: chatter where all goes well, and
    the only trace of a kernel that dies."""
    kept = os.dup(2)
    with path.open("wb") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _progress(label: str, elapsed: float, left: float):
    """On a terminal a line that counts; elsewhere one line at the start and one at the end."""
    began = time.monotonic()
    stop = threading.Event()

    def line() -> str:
        here = time.monotonic() - began
        return f"{label}  {clock(elapsed + here)} elapsed, about {clock(max(0, left - here))} left"

    def tick() -> None:
        while not stop.wait(1):
            print(f"\r{line()}  ", end="", flush=True)

    print(line(), end="" if sys.stdout.isatty() else "\n", flush=True)
    ticker = threading.Thread(target=tick, daemon=True)
    if sys.stdout.isatty():
        ticker.start()
    try:
        yield
    finally:
        stop.set()
        if ticker.is_alive():
            ticker.join()
            print()
