"""Numbers of the pages are numbers that were recorded."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "data" / "recorded"
PAGES = [ROOT / "README.md", ROOT / "artifact.md", *sorted((ROOT / "docs").glob("*.md"))]
NUMBER = re.compile(r"(?<![\w.:/])(\d+\.\d+)(?!\.?\d|\w)(?=\s?(×|%|ms\b|µs|s\b|tok/s|to\b|and\b|\[|,|\)|\]|\||$|\s))", re.MULTILINE)
NOT_MEASURED = ("arXiv", "vLLM", "SGLang", "Ray ", "CUDA", "torch", "Python", "version", "ray[serve]", "numpy", "xxhash", "Apache")
"""what stands before a number that is a name"""


@cache
def recorded() -> frozenset[float]:
    """Every number of the JSON files, reports and claims under data/recorded."""
    found: set[float] = set()

    def take(value) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                take(one)
        elif isinstance(value, str):
            found.update(float(number) for number in re.findall(r"\d+(?:\.\d+)?", value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.add(abs(float(value)))

    for path in RECORDED.rglob("*"):
        if path.suffix == ".json":
            take(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".md" or path.name.startswith("claims") and path.suffix == ".csv":
            take(path.read_text(encoding="utf-8"))
    return frozenset(found)


def is_recorded(number: str, unit: str = "") -> bool:
    """Whether a recorded value rounds to it, in the unit of the record or in one that is usual beside it."""
    digits = len(number.partition(".")[2])
    scales = {"%": (1.0, 100.0), "ms": (1.0, 1e3), "µs": (1.0, 1e3, 1e6), "s": (1.0, 1e-3)}.get(unit, (1.0,))
    return any(number in rounded(digits, scale) for scale in scales)


@cache
def rounded(digits: int, scale: float) -> frozenset[str]:
    return frozenset(f"{scale * value:.{digits}f}" for value in recorded())


def told(text: str) -> list[tuple[str, str]]:
    """The measured numbers of a page, each with its unit: those with a decimal point that are no version or name."""
    found = []
    for match in NUMBER.finditer(re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)):
        before = match.string[max(0, match.start() - 12) : match.start()]
        if not any(name in before for name in NOT_MEASURED):
            found.append((match[1], match[2] or ""))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_measured_number_of_a_page_is_recorded(page):
    missing = [number + unit for number, unit in told(page.read_text(encoding="utf-8")) if not is_recorded(number, unit)]
    assert not missing, f"{page.name}: nothing under data/recorded rounds to {', '.join(missing)}"


def test_a_number_that_nobody_measured_is_found_out():
    assert told("FCFS gives 1.33 × with vLLM 0.31, in `0.25` of 123.4567 ms (arXiv 2605.06046).") == [("1.33", "×"), ("123.4567", "ms")]
    assert not is_recorded("123.4567", "ms")
