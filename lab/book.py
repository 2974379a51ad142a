"""``book.toml`` as data: the paper's claims, and for every notebook the claims it answers, the backends it runs on, its sizes and how long
it takes. Standard library only, so that a wrong command line is refused before any environment is made."""

import ast
import json
import os
import re
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import machine

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PROFILES = ("smoke", "default", "full")


@dataclass(frozen=True)
class Claim:
    """What the paper says. ``factor``: its value as the number that ours is held against; None for a claim about a shape."""

    id: str
    text: str
    paper: str
    """the value as the paper gives it"""
    factor: float | None = None
    unit: str = "×"
    floor: float | None = None
    """above it the direction, if not the size, is the paper's; None: a ratio above 1 by more than noise"""
    short: str = ""
    """its name in the picture of all claims"""

    @property
    def is_shape(self) -> bool:
        """Whether it is about the shape of a curve, which parts tell and no single ratio does."""
        return self.factor is None and self.unit == "×"


@dataclass(frozen=True)
class Entry:
    """What the book says of one notebook."""

    name: str
    minutes: dict[str, list[float]]
    """backend → minutes at smoke, default and full; an empty list where nobody has timed it"""
    claims: tuple[str, ...] = ()
    alone: bool = False
    """whether it times what it runs, even where the clock is virtual, and so wants the machine to itself"""
    changes: dict[str, dict] = field(default_factory=dict)
    """parameters that differ from the notebook's own, by what they hold for"""

    @property
    def number(self) -> str:
        return self.name.split("_")[0]

    @property
    def measures(self) -> bool:
        """Whether it measures, rather than models."""
        return bool(self.minutes.keys() & {"cpu", "gpu"})

    @property
    def decade(self) -> str:
        return f"{self.name[0]}x"

    @property
    def title(self) -> str:
        """The notebook's heading; its name where it has none."""
        try:
            first = json.loads(self.source().read_text(encoding="utf-8"))["cells"][0]
        except (OSError, ValueError, LookupError):
            return self.name
        head = "".join(first["source"]).partition("\n")[0]
        return head.removeprefix("# ") if head.startswith("# ") else self.name

    @property
    def question(self) -> str:
        """Its heading without number and claims."""
        return re.sub(r"^\d\d\s*[·:.–-]\s*|\s*\([A-Z]\d[^)]*\)$", "", self.title)

    def seconds(self, profile: str, backend: str) -> float | None:
        """What a run takes on the machine that the book was timed on; None where nobody has timed it."""
        times = self.minutes[backend]
        return 60 * times[PROFILES.index(profile)] if times else None

    def parameters(self, profile: str, backend: str) -> dict:
        """Those of the notebook that the profile and the backend set. Raises ValueError for a backend that it does not run on."""
        if backend not in self.minutes:
            raise ValueError(f"{self.name} is not for backend {backend!r}: it runs on {', '.join(self.minutes)}")
        layers = ["smoke"] if profile == "smoke" else [backend] if profile == "default" else [backend, "full"]
        found = {"backend": backend}
        if backend == "cpu" and machine.lacks_avx512():
            found |= {name: value for name, value in WITHOUT_AVX512.items() if self.own(name) is not None}
        for layer in (*layers, f"{backend}_{profile}"):
            found |= self.changes.get(layer, {})
        return found

    def source(self) -> Path:
        return NOTEBOOKS / f"{self.name}.ipynb"

    def own(self, parameter: str, otherwise=None):
        """The value that a parameter has in the notebook itself; ``otherwise`` where it has no such parameter, or one that is not a plain
        value."""
        for cell in json.loads(self.source().read_text(encoding="utf-8"))["cells"]:
            if "parameters" in cell["metadata"].get("tags", ()):
                for statement in ast.parse("".join(cell["source"])).body:
                    if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == parameter:
                        with suppress(ValueError):
                            return ast.literal_eval(statement.value)
        return otherwise


def _read() -> tuple[dict[str, Claim], dict[str, Entry], dict[str, str], dict]:
    book = tomllib.loads((ROOT / "book.toml").read_text(encoding="utf-8"))
    claims = {id_: Claim(id_, **told) for id_, told in book["claims"].items()}
    entries = {}
    for name, told in sorted(book["notebooks"].items()):
        entries[name] = Entry(name, told.pop("minutes"), tuple(told.pop("claims", ())), told.pop("alone", False), told)
        if unknown := set(entries[name].claims) - claims.keys():
            raise ValueError(f"book.toml: {name} answers {', '.join(sorted(unknown))}, not among the claims: {', '.join(claims)}")
        if entries[name].decade not in book["decades"]:
            raise ValueError(f"book.toml: {name} is of no decade; there are: {', '.join(book['decades'])}")
    return claims, entries, book["decades"], book["without_avx512"]


CLAIMS, ENTRIES, DECADES, WITHOUT_AVX512 = _read()


def answered_by(claim_id: str) -> list[Entry]:
    """The notebooks that answer a claim, those that measure before those that model."""
    return sorted((entry for entry in ENTRIES.values() if claim_id in entry.claims), key=lambda entry: not entry.measures)


def measured(claim_id: str) -> bool:
    """Whether some notebook measures it, rather than models it."""
    return any(entry.measures for entry in answered_by(claim_id))


def command(*claim_ids: str) -> str:
    """What to type to test claims that are all ``measured``, or all not; those are modelled, into a folder of their own."""
    return f"./run_all.sh --only {','.join(claim_ids)}" + ("" if measured(claim_ids[0]) else " --backend sim --out out-sim")


def title(name: str) -> str:
    """The heading of a notebook; the name itself for one that is not in the book, as in a run that was kept before it was renamed."""
    return ENTRIES[name].title if name in ENTRIES else name


def from_environment(name: str) -> dict:
    """Parameters for a notebook that nobody passes any to, as under a test runner: those of the profile that ``FEATHER_PROFILE`` names,
    and ``FEATHER_OUT`` as where to write. Empty where neither is set. Raises ValueError for an unknown profile."""
    parameters = {}
    if profile := os.environ.get("FEATHER_PROFILE"):
        if profile not in PROFILES:
            raise ValueError(f"FEATHER_PROFILE={profile!r} is not one of: {', '.join(PROFILES)}")
        entry = ENTRIES[name]
        parameters |= entry.parameters(profile, machine.choose_backend()[0] if entry.measures else "sim")
    if out := os.environ.get("FEATHER_OUT"):
        parameters["out"] = out
    return parameters
