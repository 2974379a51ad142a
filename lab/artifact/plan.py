"""What to run: notebooks, profiles, and whether this machine can. Standard library only, so that a wrong command line
is refused before any environment is made."""

import hashlib
import json
import os
import tempfile
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lab import machine
from lab.files import OUT_MARKER

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
PROFILES = ("smoke", "default", "full")


@dataclass(frozen=True)
class Job:
    """One notebook with the parameters of a profile and a backend."""

    name: str
    profile: str
    parameters: dict
    expected_seconds: float | None
    """on the machine that the profiles were timed on; None: not timed yet"""

    @property
    def source(self) -> Path:
        return NOTEBOOKS / f"{self.name}.ipynb"

    def fingerprint(self, device: str) -> str:
        """Changes with the notebook's cells, its parameters, the package, the locked environment or the device."""
        cells = [cell["source"] for cell in json.loads(self.source.read_text())["cells"]]
        digest = hashlib.sha256(json.dumps([cells, self.parameters, device], sort_keys=True).encode())
        for path in sorted([*(ROOT / "feather").rglob("*.py"), *(ROOT / "lab").rglob("*.py"), *(ROOT / "requirements").glob("*.txt")]):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _story(self, out: Path) -> dict:
        try:
            return json.loads((out / "results" / f"{self.name}.json").read_text())
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


def notebook_names() -> list[str]:
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def title(name: str) -> str:
    """A notebook's heading; its name where it has none."""
    try:
        first = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"][0]
    except (OSError, ValueError, LookupError):
        return name
    head = "".join(first["source"]).partition("\n")[0]
    return head.removeprefix("# ") if head.startswith("# ") else name


def choose_notebooks(only: str | None) -> list[str]:
    """All notebooks, or those whose number or name is in ``only`` ("01,03"). Raises ValueError for an unknown one."""
    names = notebook_names()
    if only is None:
        return names
    chosen = []
    for wanted in filter(None, (part.strip() for part in only.split(","))):
        found = [name for name in names if wanted in (name, name.split("_")[0])]
        if not found:
            close = get_close_matches(wanted, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "there are: " + ", ".join(names)
            raise ValueError(f"--only {wanted!r}: no such notebook; {hint}")
        chosen += [name for name in found if name not in chosen]
    if not chosen:
        raise ValueError("--only names no notebook; there are: " + ", ".join(names))
    return sorted(chosen)


def choose_for_backend(only: str | None, backend: str) -> list[str]:
    """As ``choose_notebooks``; where none is named, those that ``notebooks/profiles.toml`` offers for the backend: what
    times this machine makes no sense on a modelled one, and the other way round."""
    names = choose_notebooks(only)
    if only is not None:
        return names
    profiles = _profiles()
    return [name for name in names if backend in profiles.get(name, {})] or names


def make_jobs(names: list[str], profile: str, backend: str) -> list[Job]:
    """Jobs with the parameters that ``notebooks/profiles.toml`` gives for the profile and the backend; what it leaves
    out stands in the notebook's own parameters cell. Raises ValueError where it has no such profile of a notebook."""
    profiles = _profiles()
    jobs = []
    for name in names:
        if name in profiles and backend not in profiles[name]:
            raise ValueError(f"{name} is not for backend {backend!r}: it runs on {', '.join(profiles[name])}")
        of_backend = profiles.get(name, {}).get(backend, {})
        if profile not in of_backend:
            there = ", ".join(of_backend) or "none"
            raise ValueError(f"{name} has no profile {profile!r} for backend {backend!r} (it has: {there}); choose another, or --only")
        chosen = dict(of_backend[profile])
        seconds = chosen.pop("expected_seconds", None)
        jobs.append(Job(name, profile, {"backend": backend, **chosen}, seconds))
    return jobs


def from_environment(name: str) -> dict:
    """Parameters for a notebook that nobody passes any to, as under a test runner: those of the profile that
    ``FEATHER_PROFILE`` names, and ``FEATHER_OUT`` as where to write. Empty where neither is set. Raises ValueError for an unknown
    profile."""
    parameters = {}
    if profile := os.environ.get("FEATHER_PROFILE"):
        backend = machine.choose_backend()[0] if runs_here(name) else "sim"
        (job,) = make_jobs([name], profile, backend)
        parameters |= job.parameters
    if out := os.environ.get("FEATHER_OUT"):
        parameters["out"] = out
    return parameters


def runs_here(name: str) -> bool:
    """Whether a notebook measures, rather than models."""
    return bool(_profiles().get(name, {"cpu": {}}).keys() & {"cpu", "gpu"})


def _profiles() -> dict:
    return tomllib.loads((NOTEBOOKS / "profiles.toml").read_text())


def check_machine(jobs: list[Job], backend: str) -> None:
    """Raise MemoryError where the largest KV cache of the jobs does not fit."""
    if backend == "cpu":
        kv_gib = max((job.parameters.get("kv_gib", 0) for job in jobs), default=0)
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


def prepare_out(out: Path) -> None:
    for folder in ("notebooks", "figures", "results", "state"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / OUT_MARKER).touch()
