"""Reading data files a line at a time; what is wrong is told with the file, the line and the mend."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

FETCH_AGAIN = "fetch it again (python -m lab.workloads fetch NAME)"


class DataError(ValueError):
    """A file does not hold what it should."""

    def __init__(self, path: Path, line: int, wrong: str, mend: str = "mend or remove the line"):
        super().__init__(f"{path}, line {line}: {wrong}; {mend}")


def json_lines(path: Path, fields: dict[str, type]) -> Iterator[tuple[int, dict]]:
    """(Line number, record) for every line: a JSON object that has all ``fields``, each of its type; ``float`` takes any
    finite number. Raises DataError."""
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError as error:  # no JSON, or no UTF-8
                if not line.endswith(b"\n"):
                    raise DataError(path, number, "the file ends in the middle of this line", FETCH_AGAIN) from None
                raise DataError(path, number, f"no JSON ({error})" if line.strip() else "the line is empty") from None
            if not isinstance(record, dict):
                raise DataError(path, number, f"a JSON object is expected, not {line[:40].decode(errors='replace').strip()!r}")
            for name, kind in fields.items():
                _check(path, number, record, name, kind)
            yield number, record
    if not number:
        raise DataError(path, 1, "the file is empty", FETCH_AGAIN)


def csv_lines(path: Path, numbers: list[str]) -> Iterator[tuple[int, dict[str, float]]]:
    """(Line number, column → number) for every line under a header that has the columns ``numbers``. Raises DataError."""
    line = 1
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in numbers if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(path, 1, f"the header lacks the column {missing[0]!r}; it has {reader.fieldnames or 'nothing'}", FETCH_AGAIN)
        for row in reader:
            line = reader.line_num
            if None in row or None in row.values():
                found = sum(value is not None for name, value in row.items() if name is not None) + len(row.get(None, ()))
                raise DataError(path, line, f"{found} columns where the header has {len(reader.fieldnames)}")
            values = {}
            for name in numbers:
                try:
                    values[name] = float(row[name])
                except ValueError:
                    raise DataError(path, line, f"{name!r} is {row[name]!r}, which is no number") from None
                if not math.isfinite(values[name]):
                    raise DataError(path, line, f"{name!r} is {row[name]!r}, which is no finite number")
            yield line, values
    if line == 1:
        raise DataError(path, 1, "there is nothing under the header", FETCH_AGAIN)


def _check(path: Path, line: int, record: dict, name: str, kind: type) -> None:
    if name not in record:
        raise DataError(path, line, f"the field {name!r} is missing; there are {', '.join(record) or 'none'}")
    value = record[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    fits = {int: number and isinstance(value, int), float: number}.get(kind, isinstance(value, kind))
    if not fits:
        names = {str: "text", list: "a list", int: "a whole number", float: "a finite number"}
        raise DataError(path, line, f"{name!r} is {str(value)[:40]!r}, not {names[kind]}")
