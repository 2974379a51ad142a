"""What to run, and whether this machine can. Standard library only, so that a wrong command line is refused before any environment
is made."""

import fcntl
import hashlib
import json
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO

from lab import book, machine
from lab.book import ROOT, Entry
from lab.files import OUT_MARKER

_MODELLED_GIB = 3.0  # of a notebook on the modelled backend, at most
_SMOKE_GIB = 6.0  # of one of smoke on a CPU: notebook 50 has two engines
_CODE = {".py", ".json"}  # of the packages; their other files only dress the report


@dataclass(frozen=True)
class Job:
    """A notebook of the book, to be run with the parameters of a profile and a backend."""

    entry: Entry
    profile: str
    backend: str

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def parameters(self) -> dict:
        return self.entry.parameters(self.profile, self.backend)

    @property
    def expected_seconds(self) -> float | None:
        return self.entry.seconds(self.profile, self.backend)

    @property
    def kv_gib(self) -> float:
        """GiB of KV cache that it asks a CPU for."""
        return self.parameters.get("kv_gib", self.entry.own("kv_gib", 0))

    def fingerprint(self, device: str) -> str:
        """Changes with the notebook's cells, its parameters, the two packages, what the model is fitted to, the locked environment or
        the device."""
        cells = [cell["source"] for cell in json.loads(self.entry.source().read_text(encoding="utf-8"))["cells"]]
        digest = hashlib.sha256(json.dumps([cells, self.parameters, device], sort_keys=True).encode())
        packages = [path for package in ("feather", "lab") for path in (ROOT / package).rglob("*") if path.suffix in _CODE]
        for path in sorted([*packages, *(ROOT / "data" / "calibration").glob("*.csv"), *(ROOT / "requirements").glob("*.txt")]):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _story(self, out: Path) -> dict:
        try:
            return json.loads((out / "results" / f"{self.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def untested(self, out: Path) -> list[str]:
        """The claims that a run of it could not test for want of something, e.g. a data set."""
        return list(self._story(out).get("not run", ()))

    def figures(self, out: Path) -> list[Path]:
        """The figure files that a run of it has left in ``out``."""
        figures = self._story(out).get("figures", ())
        return [out / "figures" / f"{figure['name']}.{suffix}" for figure in figures for suffix in ("png", "pdf")]

    def clear(self, out: Path) -> None:
        """Remove what a run of it has left in ``out``."""
        left = [out / "results" / f"{self.name}.{suffix}" for suffix in ("json", "csv")]
        left += [out / "notebooks" / f"{self.name}.ipynb", out / "state" / f"{self.name}.json"]
        for path in [*self.figures(out), *left]:
            path.unlink(missing_ok=True)


def make_jobs(only: str | None, profile: str, backend: str) -> list[Job]:
    """All notebooks that run on the backend, or those that ``only`` names ("10,E3"): by number, by name, or by a claim, which stands for
    every notebook that answers it on this backend. Raises ValueError for an unknown profile, for a name that is none, and for one that
    has nothing to run on the backend."""
    if profile not in book.PROFILES:
        raise ValueError(f"--profile {profile!r} is not one of: {', '.join(book.PROFILES)}")
    if only is None:
        chosen = [entry for entry in book.ENTRIES.values() if backend in entry.minutes]
    else:
        chosen = [entry for wanted in filter(None, map(str.strip, only.split(","))) for entry in _named(wanted, backend)]
        if not chosen:
            raise ValueError("--only names no notebook; there are: " + ", ".join(book.ENTRIES))
    return [Job(entry, profile, backend) for entry in book.ENTRIES.values() if entry in chosen]


def _named(wanted: str, backend: str) -> list[Entry]:
    if claim := book.CLAIMS.get(wanted.upper()):
        found = book.answered_by(claim.id)
        here = [entry for entry in found if backend in entry.minutes]
        if found and not here:
            raise ValueError(f"--only {wanted}: no notebook tests {claim.id} on backend {backend!r}; use {book.command(claim.id)}")
        return here
    found = [entry for entry in book.ENTRIES.values() if wanted in (entry.name, entry.number)]
    if not found:
        close = get_close_matches(wanted, book.ENTRIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "there are: " + ", ".join(book.ENTRIES)
        raise ValueError(f"--only {wanted!r}: no such notebook or claim; {hint}")
    for entry in found:
        entry.parameters("smoke", backend)  # raises where it is not for the backend
    return found


def lanes(backend: str, profile: str) -> int:
    """How many notebooks run side by side: one where they measure; where the clock is virtual, and at smoke on a CPU, whose numbers mean nothing, one on
    each core, as far as memory goes."""
    modelled = backend == "sim" or machine.rehearses()
    if not modelled and (backend, profile) != ("cpu", "smoke"):
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), int(machine.memory_gib()[1] // (_MODELLED_GIB if modelled else _SMOKE_GIB))))


def check_machine(jobs: list[Job], backend: str) -> None:
    """Raise MemoryError where the largest KV cache of the jobs does not fit."""
    if backend == "cpu":
        kv_gib = max((job.kv_gib for job in jobs), default=0)
        if kv_gib:
            machine.check_memory(kv_gib)


def check_out(out: Path) -> None:
    """Raise ValueError unless ``out`` can be made and written, and holds nothing that is not ours. Leaves no trace."""
    present = out
    while not present.exists():
        present = present.parent
    if not present.is_dir():
        raise ValueError(f"--out {out}: {present} is not a folder; choose another")
    if not os.access(present, os.W_OK):
        raise ValueError(f"--out {out}: {present} cannot be written; choose another folder or change its permissions")
    try:
        with tempfile.TemporaryFile(dir=present):
            pass
    except OSError as error:
        raise ValueError(f"--out {out}: {present} cannot be written ({error.strerror}); choose another folder") from None
    if present == out and any(out.iterdir()) and not (out / OUT_MARKER).exists():
        raise ValueError(f"--out {out}: the folder is not empty and was not made by run_all.sh; choose another")
    if (out / OUT_MARKER).exists():
        _hold(out)


def prepare_out(out: Path) -> None:
    """Make the folders of a run, and keep other runs out of them until this process ends, however it ends. Raises ValueError where one
    writes there."""
    for folder in ("notebooks", "figures", "results", "state"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _hold(out)


_held: dict[Path, IO[str]] = {}


def _hold(out: Path) -> None:
    marker = out.resolve() / OUT_MARKER
    if marker in _held:
        return
    file = marker.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        writer = file.read().strip() or "another run"
        file.close()
        raise ValueError(f"--out {out}: {writer} writes there: wait for its end, or choose another folder") from None
    except OSError:  # a file system without locks
        pass
    with suppress(OSError):  # a full disk: the lock counts, not the name
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
    _held[marker] = file
