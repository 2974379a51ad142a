"""What a policy has learned, as a file: JSON with its kind, its version and a checksum."""

import errno
import json
import os
import socket
from hashlib import sha256
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

_ours: dict[str, socket.socket] = {}


def write_checkpoint(path: Path, kind: str, version: int, learned: Any) -> None:
    """Write ``learned`` (what JSON can hold; numbers must be finite). The file is replaced in one stroke, so that neither a reader
    nor a crash ever finds half of it."""
    body = json.dumps(learned, allow_nan=False)
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps({"kind": kind, "version": version, "sha256": _digest(body), "learned": learned})
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_checkpoint(path: Path | Traversable, kind: str, version: int) -> Any:
    """What ``write_checkpoint`` was given. Raises FileNotFoundError, or ValueError for a file that is damaged or of another kind
    or version."""
    text = path.read_bytes()
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


def is_ours(path: str) -> bool:
    """Whether this process may write a file: no other of this machine does. The claim, a name in the kernel's table of sockets, leaves
    nothing behind and goes with the process however that ends."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        if path not in _ours:
            claim.bind("\0feather " + sha256(os.fsencode(os.path.realpath(path))).hexdigest())
            _ours[path] = claim
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def _digest(body: str) -> str:
    return sha256(body.encode()).hexdigest()
