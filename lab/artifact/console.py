"""How times and paths are told on the terminal."""

import os
import sys
from pathlib import Path


def speak_any_locale() -> None:
    """A character that the terminal does not have is shown as a question mark, and ends no program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d} min"


def shown(path: Path) -> str:
    """A path as a reader would type it from where they are."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
