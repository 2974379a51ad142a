"""Run notebooks through papermill, each in a process of its own, with a line that says how long it takes."""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import machine
from lab.artifact.console import clock
from lab.artifact.plan import Job
from lab.files import replace

_UNTIMED = 60.0  # seconds that a notebook is taken for until somebody has timed it
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's <sys/prctl.h>


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


def run_notebooks(jobs: Sequence[Job], out: Path, device: str, lanes: int) -> Iterator[Outcome]:
    """Execute notebooks, ``lanes`` of them side by side, and tell how each ended as it ends. One that times what it runs
    (``Entry.alone``) waits until it has the machine to itself. KeyboardInterrupt passes through once the kernels have ended; so do an OSError,
    which says that ``out`` cannot be written, and BrokenProcessPool where one of the processes was killed."""
    together = sorted((job for job in jobs if not job.entry.alone), key=lambda job: -_expected(job)) if lanes > 1 else list(jobs)
    progress = _Progress(jobs, lanes)
    running: dict[Future[Outcome], Job] = {}
    # Forked, so that papermill is imported once.
    with ProcessPoolExecutor(lanes, multiprocessing.get_context("fork"), _begin, (lanes,)) as pool:
        import papermill  # noqa: F401

        try:
            for job in [*together, *(job for job in jobs if job not in together)]:
                while len(running) >= (lanes if job in together else 1):
                    yield from _ended(running, progress)
                running[pool.submit(_interruptible, job, out, device)] = job
                progress.begins(job)
            while running:
                yield from _ended(running, progress)
        except BaseException:
            for child in multiprocessing.active_children() if running else ():
                os.kill(child.pid, signal.SIGINT)
            raise


def _ended(running: dict[Future[Outcome], Job], progress: "_Progress") -> Iterator[Outcome]:
    """Wait until one of those that run has ended, and take it out."""
    done: set[Future[Outcome]] = set()
    while not done:
        done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        progress.tick()
    for future in done:
        job = running.pop(future)
        outcome = future.result()
        progress.ends(job, outcome.seconds)
        yield outcome


def _begin(lanes: int) -> None:
    if lanes > 1:
        # A core each, and not all the same one, as vLLM would bind them.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # else a run that is killed would go on writing
    _ignore_interrupts()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt(*_) -> None:
    _ignore_interrupts()  # a terminal's Ctrl-C comes twice, and the second would keep the kernel from being ended
    raise KeyboardInterrupt


def _interruptible(job: Job, out: Path, device: str) -> Outcome:
    signal.signal(signal.SIGINT, _interrupt)
    try:
        return run_notebook(job, out, device)
    finally:
        _ignore_interrupts()


def run_notebook(job: Job, out: Path, device: str) -> Outcome:
    """Execute a notebook into ``out``, in place of what an earlier run left, and remember how it went. KeyboardInterrupt passes through, and
    OSError where ``out`` cannot be written; every other failure becomes the outcome's error."""
    import papermill

    from lab.artifact.kernel import ThisPython

    job.clear(out)
    executed = out / "notebooks" / f"{job.name}.ipynb"
    fingerprint = job.fingerprint(device)
    began = time.monotonic()
    error = ""
    with _stderr_into(out / "state" / f"{job.name}.log"):
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


def _expected(job: Job) -> float:
    return job.expected_seconds or _UNTIMED


class _Progress:
    """What runs and how long all of it will take: on a terminal a line that counts, elsewhere one when a notebook begins."""

    def __init__(self, jobs: Sequence[Job], lanes: int):
        self._share = {job.name: 1.0 if job.entry.alone else 1 / lanes for job in jobs}
        self._left = {job.name: _expected(job) for job in jobs}
        self._began = time.monotonic()
        self._running: dict[str, float] = {}  # when they began
        self._spent = self._done = 0.0

    def begins(self, job: Job) -> None:
        if self._running and sys.stdout.isatty():
            print()
        self._running[job.name] = time.monotonic()
        self._label = f"[{len(self._share) - len(self._left) + len(self._running)}/{len(self._share)}] {' + '.join(self._running)}"
        if sys.stdout.isatty():
            self.tick()
        else:
            print(self._line(), flush=True)

    def tick(self) -> None:
        if sys.stdout.isatty():
            print(f"\r{self._line()}  ", end="", flush=True)

    def ends(self, job: Job, seconds: float) -> None:
        del self._running[job.name]
        self._spent, self._done = self._spent + seconds, self._done + self._left.pop(job.name)
        if sys.stdout.isatty() and not self._running:
            print()

    def _line(self) -> str:
        # Machines differ: what is left is scaled by how the notebooks so far compared with their expected times, as soon
        # as they have taken long enough to tell.
        now, pace = time.monotonic(), (self._spent + 60) / (self._done + 60)
        left = sum(
            self._share[name] * max(0.0, pace * expected - (now - self._running.get(name, now))) for name, expected in self._left.items()
        )
        return f"{self._label}  {clock(now - self._began)} elapsed, about {clock(left)} left"
