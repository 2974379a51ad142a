"""Reading data files a line at a time, as their publishers have them: what is right is used, what is not is left out and counted.

A file may be compressed by gzip, begin with a byte-order mark and end its lines in any way. Bytes that are no text of its encoding, and
halves of characters (lone surrogates), are replaced. A file of which nothing is left is refused with the line and the mend.
"""

import codecs
import csv
import gzip
import io
import json
import logging
import math
import reprlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")

FETCH_AGAIN = "fetch it again (python -m lab.workloads fetch NAME)"
_MEND = "mend or remove the line"
_MOST = 10**15  # seconds, tokens: a larger number is damage
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip

logger = logging.getLogger("lab.workloads")


class DataError(ValueError):
    """A file does not hold what it should."""

    def __init__(self, path: Path, line: int, wrong: str, mend: str = _MEND):
        super().__init__(f"{path}, line {line}: {wrong}; {mend}")


class Wrong(Exception):
    """What is wrong with one line. ``kind``: what such lines are called where they are counted."""

    def __init__(self, wrong: str, kind: str, mend: str = _MEND):
        super().__init__(wrong)
        self.kind, self.mend = kind, mend


@dataclass
class Records(Generic[Made]):
    """What was read from a file."""

    path: Path
    made: list[Made] = field(default_factory=list)
    """one for each line that is right, in their order"""
    counts: dict[str, int] = field(default_factory=dict)
    """what was left out or replaced, and how often"""
    _first: dict[str, tuple[int, str]] = field(default_factory=dict)
    _refusal: DataError | None = None

    def count(self, what: str, line: int, example: str = "") -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        self._first.setdefault(what, (line, example))

    def leave_out(self, line: int, wrong: Wrong) -> None:
        self._refusal = self._refusal or DataError(self.path, line, str(wrong), wrong.mend)
        self.count(f"{wrong.kind}, left out", line, str(wrong))

    @property
    def note(self) -> str:
        """What was left out or replaced, for the caption of a figure; empty where all was right."""
        return "; ".join(f"{count} {what}" for what, count in self.counts.items())

    def finished(self) -> "Records[Made]":
        """Itself, with a line in the log for each kind of thing that was left out. Raises DataError where nothing is left."""
        if not self.made:
            raise self._refusal or DataError(self.path, 1, "the file is empty", FETCH_AGAIN)
        for what, count in self.counts.items():
            line, example = self._first[what]
            logger.warning("%s: %d %s; the first in line %d%s", self.path, count, what, line, f": {example}" if example else "")
        return self


def read_json(path: Path, fields: dict[str, type], make: Callable[[dict], Made]) -> Records[Made]:
    """What ``make`` makes of every line that is a JSON object with all ``fields``, each of its type; ``float`` takes any finite
    number. ``make`` may raise ``Wrong``. Raises DataError."""
    found: Records[Made] = Records(path)
    for number, line, damage in _lines(found):
        try:
            record = _record(line, fields)
            if halves := r"\ud" in line.lower() and record != (clean := json.loads(replaced(json.dumps(record, ensure_ascii=False)))):
                record = clean
            found.made.append(make(record))
            if halves:
                found.count("lines with halves of characters, replaced", number)
        except Wrong as wrong:
            found.leave_out(number, Wrong(f"no JSON ({damage})", "lines that are no JSON") if damage else wrong)
    return found.finished()


def read_csv(path: Path, numbers: list[str], make: Callable[[dict[str, float]], Made]) -> Records[Made]:
    """What ``make`` makes of every line under a header that has the columns ``numbers``: column → number. Raises DataError."""
    found: Records[Made] = Records(path)
    header: list[str] | None = None
    number = 1
    for number, line, _ in _lines(found):
        if header is None:
            header = [name.strip() for name in line.replace('"', "").split(",")]
            if missing := [name for name in numbers if name not in header]:
                raise DataError(
                    path, number, f"the header lacks the column {missing[0]!r}; it has {reprlib.repr(header)}", FETCH_AGAIN
                )
            continue
        try:
            found.made.append(make(_numbers(line, header, numbers)))
        except Wrong as wrong:
            found.leave_out(number, wrong)
    if header is None:
        raise found._refusal or DataError(path, 1, f"the header lacks the column {numbers[0]!r}; it has nothing", FETCH_AGAIN)
    if not found.made and found._refusal is None:
        raise DataError(path, number, "there is nothing under the header", FETCH_AGAIN)
    return found.finished()


def _lines(found: Records) -> Iterator[tuple[int, str, str]]:
    """(Number, text, which of its bytes are none of the encoding or "") of every line that holds anything."""
    number = 0
    with found.path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        raw: Any = gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file
        try:
            start = raw.read(4)
            raw.seek(0)
            encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), _unmarked(start))
            text = io.TextIOWrapper(raw, encoding, errors="surrogateescape" if "utf-8" in encoding else "replace")
            for number, line in enumerate(text, 1):
                line = line.lstrip("\ufeff")  # where files were put one after the other
                if not line.strip():
                    found.leave_out(number, Wrong("the line is empty", "empty lines"))
                    continue
                damage = _damage(line)
                if damage:
                    found.count("lines with bytes that are no UTF-8, replaced", number, damage)
                yield number, replaced(line), damage
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            found.leave_out(
                number + 1, Wrong(f"the compressed file is damaged from here on ({error})", "damaged ends of the file", FETCH_AGAIN)
            )


def _unmarked(start: bytes) -> str:
    """The encoding of a file without a mark: both JSON and a header begin with two ASCII characters, which have zeros in UTF-16."""
    zeros = [byte == 0 for byte in start]
    return {(False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be"}.get(tuple(zeros), "utf-8")


def _damage(line: str) -> str:
    try:
        line.encode("utf-8", "surrogateescape").decode()
    except UnicodeError as error:
        return str(error)
    return ""


def replaced(text: str) -> str:
    """The text with a mark (U+FFFD) in place of every half of a character, which cannot be encoded again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _record(line: str, fields: dict[str, type]) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        if not line.endswith("\n"):
            raise Wrong("the file ends in the middle of this line", "cut-off ends of the file", FETCH_AGAIN) from None
        raise Wrong(f"no JSON ({error})", "lines that are no JSON") from None
    if not isinstance(record, dict):
        raise Wrong(f"a JSON object is expected, not {line[:40].strip()!r}", "lines that are no JSON object")
    for name, kind in fields.items():
        if name not in record:
            there = replaced(", ".join(record))[:200] or "none"
            raise Wrong(f"the field {name!r} is missing; there are {there}", f"lines without {name!r}")
        _check(record[name], name, kind)
    return record


def _check(value: Any, name: str, kind: type) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST
    if {int: number and isinstance(value, int), float: number}.get(kind, isinstance(value, kind)):
        return
    names = {str: "text", list: "a list", int: "a whole number", float: "a finite number"}
    shown = replaced(reprlib.repr(value) if isinstance(value, (list, dict)) else str(value)[:40])
    raise Wrong(f"{name!r} is {shown!r}, not {names[kind]}", f"lines in which {name!r} is not {names[kind]}")


def _cells(line: str, columns: int) -> list[str]:
    """The cells of one line. A quotation mark that is not closed would swallow the lines after it: so each line is read by itself, and
    where the marks hide a column they mean nothing."""
    bare = line.strip("\n").replace('"', "").split(",")
    try:
        cells = next(csv.reader([line.strip("\n")]), [])
    except csv.Error:  # a cell of more than 131 072 characters
        cells = bare
    return bare if len(bare) == columns else cells


def _numbers(line: str, header: list[str], wanted: list[str]) -> dict[str, float]:
    cells = _cells(line, len(header))
    if len(cells) != len(header):
        raise Wrong(f"{len(cells)} columns where the header has {len(header)}", "lines with too few or too many columns")
    values = {}
    for name in wanted:
        text = cells[header.index(name)]
        try:
            values[name] = float(text)
            kind = "" if abs(values[name]) < _MOST else "absurdly large" if math.isfinite(values[name]) else "no finite number"
        except ValueError:
            kind = "no number"
        if kind:
            raise Wrong(f"{name!r} is {text[:40]!r}, which is {kind}", f"lines in which {name!r} is {kind}")
    return values
