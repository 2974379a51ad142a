"""What a policy has learned, as a file: JSON with its kind, its version and a checksum."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any


def write(path: Path, kind: str, version: int, learned: Any) -> None:
    """Replace the file in one stroke, so that a reader or a crash never meets half of one. Numbers must be finite."""
    body = json.dumps(learned, allow_nan=False)
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps({"kind": kind, "version": version, "sha256": _digest(body), "learned": learned}))
    unfinished.replace(path)


def read(path: Path, kind: str, version: int) -> Any:
    """What ``write`` was given. Raises FileNotFoundError, or ValueError for a file that is damaged or of another kind or
    version."""
    text = Path(path).read_bytes()
    try:
        found = json.loads(text)
        body = json.dumps(found["learned"], allow_nan=False)
        whole = found["sha256"] == _digest(body)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint of Feather ({error}): delete it to start afresh") from None
    if not whole:
        raise ValueError(f"{path} is damaged (its checksum is another): delete it to start afresh")
    if (found.get("kind"), found.get("version")) != (kind, version):
        raise ValueError(
            f"{path} is a {found.get('kind')!r} of version {found.get('version')!r}; this Feather reads "
            f"{kind!r} of version {version}: train or learn it anew"
        )
    return found["learned"]


def _digest(body: str) -> str:
    return sha256(body.encode()).hexdigest()
